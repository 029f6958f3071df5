"""Publishes a running aggregator for Home Assistant over the aggregator's own connection, and follows its pause switch.

Over its own, because a broker may take the user for the client id: a second connection of the same user would end the
first. So the connector is wrapped: the aggregator does not see what is for Home Assistant.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import replace
from heapq import nsmallest
from typing import TYPE_CHECKING, Self

from midge.aggregator.health import HealthReporter
from midge.aggregator.home_assistant import HomeView, messages, wanted_pause
from midge.aggregator.store.pausing import pause, resume
from midge.broker.mqtt.connection import BrokerError, Connection, Connector, Delivery, Limits, Options, Payload, QoS
from midge.broker.mqtt.retained import read_retained
from midge.wire.topics import HomeTopics

if TYPE_CHECKING:
    from midge.aggregator.service import Aggregator

log = logging.getLogger("aggregator")

MOST = 200
"""Most devices that are shown, the first by name: each is four entities and two retained messages."""
_LOOK = 2.0
"""Seconds between two looks at the federation; only what has changed is published."""
_WHY = "paused in Home Assistant"


class SharedConnection:
    """One connection for two readers: what is for Home Assistant goes to `ours`, all else to the aggregator."""

    def __init__(self, connection: Connection, topics: HomeTopics) -> None:
        self._connection = connection
        self._prefixes = f"{topics.prefix}/", topics.configs.partition("+")[0]
        self.ours: asyncio.Queue[Delivery] = asyncio.Queue()

    @property
    def limits(self) -> Limits:
        return self._connection.limits

    async def publish(self, topic: str, payload: Payload, *, qos: QoS = 1, retain: bool = False) -> None:
        await self._connection.publish(topic, payload, qos=qos, retain=retain)

    async def subscribe(self, *filters: str, qos: QoS = 1) -> None:
        await self._connection.subscribe(*filters, qos=qos)

    async def unsubscribe(self, *filters: str) -> None:
        await self._connection.unsubscribe(*filters)

    def messages(self) -> AsyncIterator[Delivery]:
        return _Theirs(aiter(self._connection.messages()), self)

    def waiting(self) -> Sequence[Delivery]:
        return [delivery for delivery in self._connection.waiting() if not self.taken(delivery)]

    def ack(self, delivery: Delivery) -> None:
        self._connection.ack(delivery)

    def abort(self, why: str) -> None:
        self._connection.abort(why)

    def taken(self, delivery: Delivery) -> bool:
        """Take a delivery that is for Home Assistant; return whether it is."""
        if not delivery.topic.startswith(self._prefixes):
            return False
        self._connection.ack(delivery)
        self.ours.put_nowait(delivery)
        return True


class _Theirs:
    """The aggregator's deliveries."""

    def __init__(self, deliveries: AsyncIterator[Delivery], shared: SharedConnection) -> None:
        self._deliveries, self._shared = deliveries, shared

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Delivery:
        while self._shared.taken(delivery := await anext(self._deliveries)):
            pass
        return delivery


class _Ours(SharedConnection):
    """The same connection, read by the bridge. What it reads was acknowledged."""

    def __init__(self, shared: SharedConnection, topics: HomeTopics) -> None:
        super().__init__(shared, topics)
        self.ours = shared.ours

    async def messages(self) -> AsyncGenerator[Delivery, None]:
        while True:
            yield await self.ours.get()

    def ack(self, delivery: Delivery) -> None:
        """Do nothing."""


class HomeAssistantBridge:
    """The view of one aggregator.

    Args:
        aggregator: the service, before it serves: its connector is wrapped.
        topics: where it is published.
    """

    def __init__(self, aggregator: "Aggregator", topics: HomeTopics) -> None:
        self._aggregator, self._topics = aggregator, topics
        self._shared: SharedConnection | None = None
        self._served = 0
        """Connections that have served before the present one."""
        self._published: dict[str, bytes] = {}
        """What the broker retains."""
        aggregator.config = replace(aggregator.config, connector=self._sharing(aggregator.config.connector))

    def _sharing(self, connector: Connector) -> Connector:
        @asynccontextmanager
        async def share(options: Options) -> AsyncGenerator[Connection, None]:
            async with connector(options) as connection:
                self._served = self._aggregator.meters.connects
                self._shared = SharedConnection(connection, self._topics)
                try:
                    yield self._shared
                finally:
                    self._shared = None

        def connect(options: Options) -> AbstractAsyncContextManager[Connection]:
            return share(options)

        return connect

    async def serve(self) -> None:
        """Publish until cancelled, while the aggregator serves. A broker's refusal never ends the aggregator."""
        refused: SharedConnection | None = None
        while True:
            shared = self._shared
            # Before it serves, another aggregator may still be the one.
            if shared is not None and shared is not refused and self._aggregator.meters.connects > self._served:
                try:
                    await self._follow(shared)
                except BrokerError as error:
                    refused = shared
                    if shared is self._shared:  # it is not lost
                        log.warning("Nothing is shown in Home Assistant over this connection: %s", error)
            await asyncio.sleep(_LOOK)

    async def _follow(self, shared: SharedConnection) -> None:
        """Publish over one connection as long as it is the aggregator's."""
        ours, topics = _Ours(shared, self._topics), self._topics
        found = await read_retained(ours, topics.everything, topics.configs, marker=f"{topics.prefix}/look")
        self._published = {each.topic: each.payload for each in found}
        await ours.subscribe(topics.pause)
        while shared is self._shared:
            await self._publish(ours)
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK):
                    self._obey(await shared.ours.get())

    async def _publish(self, connection: Connection) -> None:
        """Publish what has changed, and remove what is no longer shown."""
        wanted = messages(self._topics, view_of(self._aggregator))
        changed = {topic: payload for topic, payload in wanted.items() if self._published.get(topic) != payload}
        gone = dict.fromkeys(sorted(self._published.keys() - wanted.keys(), key=self._topics.removal_order), b"")
        for topic, payload in (changed | gone).items():
            await connection.publish(topic, payload, retain=True)
        self._published = wanted

    def _obey(self, delivery: Delivery) -> None:
        """Pause or resume; a retained command is an old one."""
        asked = wanted_pause(bytes(delivery.payload))
        if delivery.topic != self._topics.pause or asked is None or delivery.retain:
            return
        directory = self._aggregator.config.directory
        try:
            if asked:
                pause(directory, _WHY)
            else:
                resume(directory)
        except OSError as error:
            log.warning("Home Assistant asked for %s, which failed: %s", "a pause" if asked else "its end", error)


class ShownAggregator:
    """An aggregator and its view for Home Assistant, as one service."""

    def __init__(self, aggregator: "Aggregator", topics: HomeTopics) -> None:
        self._aggregator, self._bridge = aggregator, HomeAssistantBridge(aggregator, topics)

    async def serve(self) -> None:
        """Serve until `stop()`. A bug in the view ends the aggregator cleanly and is raised then."""
        showing = asyncio.create_task(self._bridge.serve(), name="home assistant")
        showing.add_done_callback(lambda _: self._aggregator.stop())
        try:
            await self._aggregator.serve()
        finally:
            showing.cancel()
            with suppress(asyncio.CancelledError):
                await showing

    def stop(self) -> None:
        """End `serve` cleanly."""
        self._aggregator.stop()


def view_of(aggregator: "Aggregator") -> HomeView:
    """What is shown of an open aggregator."""
    federation, now = aggregator.federation, time.monotonic()
    health = HealthReporter(federation, _ignore, _ignore)
    metrics, federated = aggregator.evaluation.metrics, aggregator.evaluation.federated
    rows = health.rows(nsmallest(MOST, federation.devices), now)
    if aggregator.config.require_sealed:  # what devices say of themselves is no business of the broker
        rows = [row.model_copy(update={"metrics": {}, "why": ""}) for row in rows]
    elif not metrics:
        metrics = {name: spread.mean for name, spread in federated.items()}
    return HomeView(
        federation=aggregator.config.federation,
        version=federation.core.version,
        step=federation.core.step,
        health=health.health(now),
        there=sum(hello.state.live for hello in federation.devices.values()),
        paused=federation.core.paused,
        score=next(iter(metrics.items()), None),
        rows=rows,
    )


def _ignore(*_: object, **__: object) -> None:
    """Take no events: the service's own reporter emits them."""
