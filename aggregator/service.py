"""The aggregator as a process: connects processor and store to MQTT.

One loop passes on waiting messages and the time; MQTT messages are acknowledged once the processor has made them
durable. The connection is remade with back-off and jitter, and after each connect everything is published again,
because it is unknown what the broker still has.
"""

import asyncio
import logging
import math
import random
import secrets
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from midge.aggregator.chunk_fitting import ChunkFitting
from midge.aggregator.config import AggregatorConfig
from midge.aggregator.connecting import authorities, connection_options, listen_to_operators, sole
from midge.aggregator.contention import AnotherAggregator, Contention
from midge.aggregator.core import events as ev
from midge.aggregator.core.core import AggregatorCore
from midge.aggregator.evaluation import VersionEvaluator
from midge.aggregator.federation import FederationRuntime
from midge.aggregator.metrics.counters import Meters
from midge.aggregator.model.model import Model
from midge.aggregator.publish.outlet import Outlet
from midge.aggregator.publish.publish_queue import Post, PublishQueue
from midge.aggregator.reloading import reload
from midge.aggregator.standby.feed import StandbyFeed
from midge.aggregator.standby.gate import PublicationGate
from midge.aggregator.standstill import StandstillGuard
from midge.aggregator.status import StatusPublisher
from midge.aggregator.store.pausing import paused
from midge.aggregator.takeover import ForeignFederation, refuse_foreign, take_over
from midge.broker.mqtt.connection import (
    BrokerError,
    BrokerRefused,
    Connection,
    Delivery,
    Options,
)
from midge.broker.mqtt.message_size import TriedTooMuch
from midge.broker.mqtt.retained import read_retained
from midge.broker.mqtt.waiting import (
    UNSAID,
    acknowledged_or_aborted,
    batches,
    done_before,
    happened,
    heed_cancellation,
)
from midge.storage.failpoints import failpoint
from midge.wire.messages import AggregatorState, Health, Hello
from midge.wire.overview import Overview

__all__ = ["Aggregator", "AnotherAggregator", "ForeignFederation", "NotOpen"]

log = logging.getLogger("aggregator")

_LASTING = 10.0
"""Seconds of a connection after which the back-off is reset: a broker that ends each connection at once must not be
retried twice a second."""
_GOODBYE = 2.0
"""Seconds for the last status of an aggregator that is cancelled."""
_DRAIN = 5.0
"""Seconds for the last status, and what waits, of one that is stopped."""


class NotOpen(RuntimeError):
    """There is no core and no model yet: the store has not been opened."""


class Aggregator:
    """The server of one federation. `run()` serves until it is interrupted.

    It is a handle: `serve` makes the runtime from the current config, so that a command can run another's program with
    a few values replaced.

    Raises:
        ValueError: the keys in the config contradict it.
        KeyUnusable: one of them cannot be read.
    """

    def __init__(self, config: AggregatorConfig) -> None:
        self.meters = Meters()
        self._config = config
        self._issuer, self._credentials = authorities(config)
        self._federation: FederationRuntime | None = None
        self._serving = self._connected = False
        self._boot = secrets.randbits(62)
        self._stop, self.begun = asyncio.Event(), asyncio.Event()
        self._paused: str | None = None
        self._pause_seen = float("-inf")
        self.evaluation = VersionEvaluator(config.evaluate, self.tell)
        self._fitting = ChunkFitting(f"{config.topics.aggregator}/size-{self._boot:x}", self.tell)
        self._standstill = StandstillGuard(lambda: self.feed.standing)
        self._outgoing = PublishQueue(self._sent, self._fitting.refused, before=self._standstill.look)
        self._gate = PublicationGate(self._outgoing.put)
        self._forgotten = False
        """Whether the broker has lost what we retained there."""
        self.insists = False
        """Whether to serve although another aggregator did since this store was written."""

    @property
    def config(self) -> AggregatorConfig:
        """The configuration. It can be replaced before serving; while serving, only its strategy and limits.

        Raises:
            RuntimeError, StoreError: it serves, and something else is different; or the store is full.
        """
        return self._config

    @config.setter
    def config(self, config: AggregatorConfig) -> None:
        if self._serving:
            reload(self.federation, self._config, config, begun=self._contention.serving, put=self._outgoing.put)
        else:
            self._issuer, self._credentials = authorities(config)
            self.evaluation = VersionEvaluator(config.evaluate, self.tell)
        self._config = config

    def run(self) -> None:
        """Serve until interrupted, then write a checkpoint and publish the last status."""
        asyncio.run(self.serve())

    def stop(self) -> None:
        """End `serve` cleanly. To be called in its loop."""
        self._stop.set()

    def pause(self, why: str | None) -> None:
        """Refuse updates with this reason, until called with None. To be called in the loop of `serve`."""
        self.core.handle(ev.OperatorPaused(why), time.monotonic())
        self._status.publish()

    @property
    def federation(self) -> FederationRuntime:
        """The runtime that is open, or was last.

        Raises:
            NotOpen: nothing was opened yet.
        """
        if self._federation is None:
            raise NotOpen("This aggregator has not opened its store yet: call serve() or open() first.")
        return self._federation

    @property
    def boot(self) -> int:
        """Random bits of the current start, which its status has."""
        return self._boot

    @property
    def devices(self) -> Mapping[str, Hello]:
        """The newest status of each device."""
        return self.federation.devices

    @property
    def core(self) -> AggregatorCore:
        return self.federation.core

    @property
    def model(self) -> Model:
        return self.federation.engine.model

    @property
    def open_now(self) -> bool:
        """Whether the store was opened, so that core and model exist."""
        return self._federation is not None

    @property
    def ready(self) -> bool:
        """Whether updates are accepted."""
        return self._connected and self.federation.hold is None

    @property
    def health(self) -> Health:
        """Whether the federation learns, and what is wrong."""
        return self._status.health.health(time.monotonic())

    @property
    def outgoing(self) -> int:
        """Number of messages that wait to be published or acknowledged."""
        return len(self._outgoing)

    def open(self) -> None:
        """Lock the store and rebuild its state, or begin a lineage in it.

        Raises:
            StoreError: it cannot be used, or holds a model of other tensors.
        """
        self._boot = secrets.randbits(62)
        self._federation = self._runtime(Outlet(self._gate.put, self.tell, self.meters), time.monotonic())
        self._federation.more_alarms.append(self.evaluation.alarms)
        self.feed = StandbyFeed(self._federation, self._gate, self.tell)
        self._status = StatusPublisher(self._federation, self._boot, self._outgoing.put, self.tell)
        self._contention = Contention(self._federation, self._boot, self._status.publish, insists=self.insists)
        self._serving = True

    def _runtime(self, outlet: Outlet, now: float) -> FederationRuntime:
        """Open the store."""
        return FederationRuntime(self._config, outlet, now, issuer=self._issuer, credentials=self._credentials)

    def close(self, *, failed: bool = False) -> None:
        """Close the store, with a checkpoint unless something has failed."""
        self._serving = False
        self.feed.close()
        self.federation.close(failed=failed)

    def export(self, path: str | Path) -> None:
        """Write the exact model as safetensors."""
        self.federation.export(path)

    # ------------------------------------------------------------------- serving

    async def serve(self) -> None:
        """Serve until `stop()`. After the first connection it reconnects by itself.

        Raises:
            StoreError: the store cannot be used.
            BrokerError: the first connection failed.
            ForeignFederation: another lineage is announced on our topics.
            AnotherAggregator: another aggregator serves the federation, or has taken it over.
        """
        self.open()
        failed = True
        try:
            self.tell("start", lineage=self.core.lineage.hex(), version=self.core.version, step=self.core.step)
            async with asyncio.TaskGroup() as tasks:
                evaluating = tasks.create_task(self.evaluation.run(self.federation), name="evaluate")
                await self._reconnecting()
                evaluating.cancel()
            failed = False
        except BaseExceptionGroup as group:
            raise sole(group) from None
        finally:
            self.close(failed=failed)
            self.tell("stop", version=self.core.version, step=self.core.step)

    async def _reconnecting(self) -> None:
        pause, begun = 0.5, False
        while not self._stop.is_set():
            since = math.inf
            try:
                async with self._config.connector(self._options()) as connection:
                    if not await done_before(self._stop, self._look_around(connection, begun=begun)):
                        if begun:  # the broker may have kept an earlier status, which says that we serve
                            await self._send_last_status(connection)
                        return
                    if not begun:
                        begun = True
                        self._begin()
                    since = time.monotonic()
                    self.meters.connects += 1
                    self.tell("connected")
                    await self._serve(connection)
            except BrokerError as error:
                heed_cancellation(error)
                if isinstance(error, TriedTooMuch) or time.monotonic() >= since + _LASTING:
                    pause = 0.5
                # Only the first connection ever is fatal: an aggregator may boot before its network.
                elif not begun and (isinstance(error, BrokerRefused) or not self.federation.core.version):
                    raise
                log.log(logging.INFO if begun else logging.WARNING, "%s Trying again in about %.0f s.", error, pause)
                self.tell("disconnected", why=str(error), refused=isinstance(error, BrokerRefused))
                self._status.health.disconnected(time.monotonic())
                await happened(self._stop, pause * random.uniform(0.5, 1.0))  # noqa: S311 - spreads load
                pause = min(2 * pause, self.feed.longest_pause)

    def _options(self) -> Options:
        """The options of the next connection."""
        return connection_options(self._config, self._boot, self._status.post(AggregatorState.LOST).payload)

    async def _look_around(self, connection: Connection, *, begun: bool) -> None:
        """Check who uses our topics, before anything is published."""
        await self._fitting.fit(connection, self.federation)
        topics = self._config.topics
        marker = f"{topics.aggregator}/{self._boot:x}"
        found = await read_retained(connection, topics.announcement(), topics.aggregator, marker=marker)
        announced = refuse_foreign(self.federation, found, self.tell, begun=begun)
        self._forgotten = begun and announced is None
        await self._contention.contend(connection, found)
        take_over(self.federation, announced, time.monotonic(), self.tell)

    def _begin(self) -> None:
        """Do what is due at the start of the process: the first release, an overdue step."""
        self._contention.serving = True
        self.begun.set()
        self.federation.begin(time.monotonic())
        self.evaluation.released()

    async def _serve(self, connection: Connection) -> None:
        """Publish and read, until the connection is lost or we must stop."""
        self._connected = True
        self._standstill.begin(connection)
        self.federation.watchdog.connected(time.monotonic())
        self._outgoing.clear()
        self._gate.clear()
        for post in self.federation.everything():
            self._gate.put(post)
        self._status.publish()
        try:
            async with asyncio.TaskGroup() as tasks:
                watching = tasks.create_task(self._standstill.watch(), name="clock")
                sending = tasks.create_task(self._outgoing.send(connection), name="send")
                await connection.subscribe(*self.federation.filters)
                beside = [tasks.create_task(self.feed.send(connection), name="feed")]
                if self.federation.shards.number and not self.core.frozen:
                    shards, topics = self.federation.shards, self._config.topics
                    beside.append(tasks.create_task(shards.narrow(connection, topics, lambda: self.core.frozen)))
                self.federation.connected(time.monotonic(), forgotten=self._forgotten)
                await listen_to_operators(connection, self._config.topics)
                await self._read(connection)
                await self._drain(connection)
                for task in (*beside, sending, watching):
                    task.cancel()
        except BaseExceptionGroup as group:
            raise sole(group) from None
        except asyncio.CancelledError:
            await self._send_last_status(connection)
            raise
        finally:
            self._connected = False

    async def _drain(self, connection: Connection) -> None:
        """Publish our last status, then what waits. If the link is too slow for it, the broker publishes our will."""
        self._outgoing.put(status := self._status.post(AggregatorState.STOPPED))
        with suppress(TimeoutError):
            async with asyncio.timeout(_DRAIN):
                await self.feed.drained()
                await self._outgoing.drained()
        if self._outgoing.waits(status.topic):
            connection.abort(UNSAID)

    async def _send_last_status(self, connection: Connection) -> None:
        """Publish our last status although our task is cancelled; otherwise the broker publishes our will."""
        post = self._status.post(AggregatorState.STOPPED)
        publishing = connection.publish(post.topic, post.payload, qos=1, retain=True)
        await acknowledged_or_aborted(connection, publishing, _GOODBYE)

    async def _read(self, connection: Connection) -> None:
        """Pass on batches of deliveries, and the time."""
        async with batches(connection, self._stop) as batch:
            while not self._stop.is_set():
                deliveries = await batch(self._patience())
                self._standstill.look()
                if (sifted := await self._contention.sift(connection, deliveries, time.monotonic())) is not None:
                    self._standstill.look()
                    self._process(connection, sifted)
                    if not self.feed.followed:  # then one batch may take any time: it may include a long step
                        self._standstill.excuse()

    def _patience(self) -> float:
        due = [self._contention.due or self.core.deadline, self._status.health.due]
        deadline = min((at for at in due if at is not None), default=math.inf)
        return min(5.0, max(0.0, deadline - time.monotonic()))

    def _process(self, connection: Connection, batch: list[Delivery]) -> None:
        now, before = time.monotonic(), self.core.evaluable
        batch = self.feed.sift(connection, batch, now)
        self._see_pause(now)
        batch = self._asked(connection, batch)
        self.meters.bytes_in += sum(len(delivery.payload) for delivery in batch)
        self.federation.process(batch, now)
        for delivery in batch:
            connection.ack(delivery)
        if batch:
            failpoint("updates.acknowledged")
        if self.core.evaluable != before:
            self.evaluation.released()
        self._status.follow_hold()
        health = self._status.health
        health.look(now)
        self._outgoing.answer(health.answers(lambda: self._overview(now), now))
        self.evaluation.combine(self.federation, now)

    def _asked(self, connection: Connection, batch: list[Delivery]) -> list[Delivery]:
        """Process requests for an overview; return the devices' messages."""
        asking = [delivery for delivery in batch if delivery.topic == self._config.topics.ask]
        if not asking:
            return batch
        for delivery in asking:
            connection.ack(delivery)
            for post in self._status.health.ask(delivery.payload):
                self._outgoing.put(post)
            self.federation.revocations.hear(delivery.payload)
        return [delivery for delivery in batch if delivery.topic != self._config.topics.ask]

    def _see_pause(self, now: float) -> None:
        """Follow the operator's pause file in the store (`aggregator.store.pausing`)."""
        if now < self._pause_seen + 1:
            return
        self._pause_seen = now
        if (why := paused(self._config.directory) or self.feed.progress.hold) != self._paused:
            self._paused = why
            self.pause(why)

    def _sent(self, post: Post) -> None:
        failpoint("post.acknowledged")
        self.meters.bytes_out += len(post.payload)
        if post.since is not None:
            self.meters.receipt_seconds.observe(time.monotonic() - post.since)
        if post.withdraws is not None:
            self.federation.withdrawn(post.withdraws, time.monotonic())

    def tell(self, event: str, **fields: Any) -> None:
        """Pass an event on to the listener."""
        self.meters.events[event] += 1
        if self._config.on_event is not None:
            self._config.on_event({"event": event, "time": time.time(), **fields})

    def _overview(self, now: float) -> Overview:
        """The header of an overview."""
        spent = self.core.spent
        return Overview(
            status=self._status.status(),
            metrics=self.evaluation.sayable,
            metrics_version=self.evaluation.metrics_version,
            issued=time.time(),
            bytes_in=self.meters.bytes_in,
            bytes_out=self.meters.bytes_out,
            privacy={} if spent is None else spent.packed(),
            standby=self.feed.state(now),
        )
