"""Publishes a running aggregator for Home Assistant, over a connection of its own, and follows its pause switch.

A connection of its own has a Last Will of its own: when the process or its network fails, the broker itself marks all
entities as unavailable.
"""

import asyncio
import logging
import random
import secrets
import time
from contextlib import suppress
from heapq import nsmallest
from typing import TYPE_CHECKING

from midge.aggregator.health import HealthReporter
from midge.aggregator.home_assistant import OFFLINE, FederationView, messages, wanted_pause
from midge.aggregator.store.pausing import pause, resume
from midge.broker.mqtt.connection import BrokerError, Connection, Delivery, Options, Will
from midge.broker.mqtt.retained import read_retained
from midge.wire.topics import HomeTopics

if TYPE_CHECKING:
    from midge.aggregator.service import Aggregator

log = logging.getLogger("aggregator")

MOST = 200
"""Most devices that are shown, the first by name: each is five entities and two retained messages."""
_LOOK = 2.0
"""Seconds between two looks at the federation; only what has changed is published."""
_PAUSE, _LONGEST_PAUSE = 1.0, 60.0
_GOODBYE = 2.0
"""Seconds for the last message."""
_WHY = "paused in Home Assistant"


class HomeAssistantBridge:
    """The view of one aggregator.

    Args:
        aggregator: the service.
        topics: where it is published.
    """

    def __init__(self, aggregator: "Aggregator", topics: HomeTopics) -> None:
        self._aggregator, self._topics = aggregator, topics
        self._published: dict[str, bytes] = {}
        """What the broker retains."""

    async def serve(self) -> None:
        """Publish until cancelled. Without a broker it tries again; it never ends the aggregator."""
        pause_for = _PAUSE
        while True:
            try:
                if self._aggregator.open_now:
                    await self._connect()
            except BrokerError as error:
                log.info("Home Assistant: %s Trying again in about %.0f s.", error, pause_for)
                pause_for = min(2 * pause_for, _LONGEST_PAUSE)
            await asyncio.sleep(pause_for * random.uniform(0.5, 1.0))  # noqa: S311 - spreads load

    async def _connect(self) -> None:
        options = Options(client_id=f"midge-ha-{secrets.token_hex(6)}", will=Will(self._topics.availability, OFFLINE))
        async with self._aggregator.config.connector(options) as connection:
            await self._recall(connection)
            await connection.subscribe(self._topics.pause)
            try:
                await self._follow(connection)
            finally:
                # If this was cancelled: the broker publishes no will after DISCONNECT.
                with suppress(TimeoutError):
                    async with asyncio.timeout(_GOODBYE):
                        await connection.publish(self._topics.availability, OFFLINE, retain=True)

    async def _recall(self, connection: Connection) -> None:
        """Read what the broker retains from before: devices that are gone are removed."""
        marker = f"{self._topics.prefix}/look-{secrets.token_hex(6)}"
        found = await read_retained(connection, self._topics.everything, self._topics.configs, marker=marker)
        self._published = {each.topic: each.payload for each in found}

    async def _follow(self, connection: Connection) -> None:
        deliveries = aiter(connection.messages())
        arriving: asyncio.Task[Delivery] | None = None
        try:
            while True:
                await self._publish(connection)
                arriving = arriving or asyncio.create_task(anext(deliveries))  # type: ignore[arg-type]
                await asyncio.wait({arriving}, timeout=_LOOK)
                if arriving.done():
                    delivery, arriving = arriving.result(), None
                    connection.ack(delivery)
                    self._obey(delivery)
        finally:
            if arriving is not None:
                arriving.cancel()
                await asyncio.gather(arriving, return_exceptions=True)

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
        if asked is None or delivery.retain:
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


def view_of(aggregator: "Aggregator") -> FederationView:
    """What is shown of an open aggregator."""
    federation, now = aggregator.federation, time.monotonic()
    health = HealthReporter(federation, _ignore, _ignore)
    metrics = aggregator.evaluation.metrics or {
        name: spread.mean for name, spread in aggregator.evaluation.federated.items()
    }
    rows = health.rows(nsmallest(MOST, federation.devices), now)
    if aggregator.config.require_sealed:  # devices seal their scores from the broker
        rows = [row.model_copy(update={"metrics": {}}) for row in rows]
    return FederationView(
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
