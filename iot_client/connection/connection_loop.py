"""The connections of a device: reconnects with back-off, sleeps between duty cycles, turns messages into events."""

import asyncio
import hashlib
import logging
import math
import random
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from midge.broker.mqtt.connection import (
    BrokerError,
    BrokerRefused,
    Connection,
    ConnectionLost,
    Delivery,
    Options,
    Will,
)
from midge.broker.mqtt.waiting import acknowledged_or_aborted, heed_cancellation
from midge.iot_client.connection.aggregator_watch import AggregatorWatch
from midge.iot_client.connection.duplicates import DuplicateCheck, DuplicateDeviceName, NameDisputed
from midge.iot_client.connection.hello import hello_frame
from midge.iot_client.connection.model_fetcher import Fetcher
from midge.iot_client.connection.publisher import Publisher
from midge.iot_client.connection.site_channel import SiteChannel
from midge.iot_client.connection.survey_channel import SurveyChannel
from midge.iot_client.parts import DeviceParts
from midge.iot_client.session import events as ev
from midge.iot_client.session.session import DeviceSession, Work
from midge.iot_client.state.outbox import OutboxFull
from midge.wire import messages, sharing
from midge.wire.errors import WireError
from midge.wire.messages import Announcement, DeviceState, Hello, Receipt, Trouble
from midge.wire.messages.proofs import Proof
from midge.wire.topics import Channel

__all__ = ["ConnectionLoop", "DuplicateDeviceName", "reconnect_delay"]

log = logging.getLogger("iot_client")

_OVERHEAD = 4096
"""Bytes of topic and headers around a body, generously: an update's header may hold 32 metrics."""
_DUPLICATE_WAIT = 3.0
"""Seconds that a live device of our name has to answer."""
_POLL = 0.2
"""Seconds between two checks whether a device on duty may sleep."""
_HANDSHAKE_MESSAGES = 12
"""Messages at the start of a connection, both ways."""
_GOODBYE_WAIT = 10.0
"""Seconds that the broker has to acknowledge our last status, behind all that is queued on a slow link."""
_CONNECTED = "connected"
"""Key in the outbox under which it records that the device was connected."""
_LASTING = 10.0
"""Seconds after which a connection without chunks resets the back-off: a broker that ends each connection at once,
because of a message that it refuses, must not be retried twice a second."""
_LONGEST_ID = 128
"""Most bytes of a client id."""
_PAUSE, _LONGEST_PAUSE = 0.5, 60.0
"""Seconds of the back-off between two attempts to connect: the first, and the last after doubling."""


def reconnect_delay(pause: float, told: Announcement | None) -> float:
    """Random seconds before the next attempt to connect: more in a large fleet, all of which may have lost the broker.

    Args:
        pause: of the back-off, seconds.
        told: the newest announcement, which gives the size of the fleet.
    """
    spread = 0.0 if told is None else sharing.spread(told.byte_rate, told.devices, 0, _HANDSHAKE_MESSAGES)
    return max(pause * random.uniform(0.5, 1.5), spread * random.random())  # noqa: S311 - spreads load


def client_id(federation: str, name: str, outbox: int, tail: str = "") -> str:
    """The client id of a device: it contains the outbox's identity, so that a second device does not evict the first.

    Long names are shortened to a hash: AWS IoT Core and others allow at most 128 bytes.
    """
    end = f"-{outbox:016x}{tail}"
    told = f"midge-{federation}-{name}"
    if len(told) + len(end) > _LONGEST_ID:
        told = f"midge-{name}-{hashlib.sha256(told.encode()).hexdigest()[:16]}"
    return told + end


class ConnectionLoop:
    """The device's connections, one after the other, until it is stopped.

    Args:
        parts: of the device.
        session: its state; only read here.
        publisher: publishes over the current connection.
        fetcher: collects the model's chunks.
        put: passes an event to the session.
        look: called after a sleep: conditions may have changed.
    """

    def __init__(
        self,
        parts: DeviceParts,
        session: DeviceSession,
        publisher: Publisher,
        fetcher: Fetcher,
        *,
        put: Callable[[ev.Event], None],
        look: Callable[[], None],
    ) -> None:
        self._parts, self._session, self._publisher, self._fetcher = parts, session, publisher, fetcher
        self._put, self._look = put, look
        self.failed = False
        """Whether the device ends because of an error."""
        self._stop = asyncio.Event()
        self._parting: asyncio.Future[DeviceState] | None = None
        """The status with which to end the current connection."""
        self._watch = AggregatorWatch(parts.topics, parts.tell)
        self._surveys = SurveyChannel(parts, publisher)
        self._sites = SiteChannel(parts)
        self._duplicates = DuplicateCheck(parts, publisher, self._hello, self._count)
        self._aggregator_online = False
        """Whether the aggregator is online, as reported over this connection: then its announcements are current."""
        self._clock_reported = False
        """Whether a wrong clock was reported."""

    @property
    def aggregator(self) -> str:
        """A short description of the aggregator's state."""
        return self._watch.known

    def stop(self) -> None:
        """End cleanly, with a last status."""
        self._stop.set()
        self.part(DeviceState.DISCONNECTED)

    async def stopped(self) -> None:
        """Wait until it is stopped."""
        await self._stop.wait()

    def part(self, state: DeviceState) -> None:
        """End the current connection with this status; the connector returns when there is another."""
        if self._parting is not None and not self._parting.done():
            self._parting.set_result(state)

    async def run(self) -> None:
        """Connect and reconnect until `stop`.

        Raises:
            BrokerError: the very first connection failed, of a device that has never taken part and does not wait, or
                that wakes only once.
            DuplicateDeviceName: another live device has our name.
        """
        config, duty = self._parts.config, self._parts.duty
        once = duty.duty is not None and duty.duty.once
        pause, connected_before = _PAUSE, (config.wait or self._was_connected) and not once
        duty.wake(time.monotonic())
        while not self._stop.is_set():
            since, carried = math.inf, self._publisher.carried
            try:
                async with config.connector(self._options()) as connection:
                    await self._duplicates.run(connection, _DUPLICATE_WAIT)
                    connected_before, since = True, time.monotonic()
                    self._note_connected()
                    await self._use(connection)
                pause = _PAUSE
            except (BrokerError, NameDisputed) as error:
                heed_cancellation(error)
                if isinstance(error, ConnectionLost):
                    self._duplicates.evicted |= error.taken_over
                elif isinstance(error, NameDisputed):
                    log.warning("%s", error)
                elif not connected_before:
                    raise
                connected_before = True
                if time.monotonic() >= since + _LASTING or self._publisher.carried > carried:
                    pause = _PAUSE
                log.info("%s: %s Trying again in about %.0f s.", config.name, error, pause)
                self._parts.tell("disconnected", why=str(error), refused=isinstance(error, BrokerRefused))
                await self._wait(reconnect_delay(pause, self._session.announcement))
                pause = min(2 * pause, _LONGEST_PAUSE)
            if not self._stop.is_set() and (duty.asleep or self._may_sleep(connected=False)):
                await self._sleep()
                pause = _PAUSE

    @property
    def _was_connected(self) -> bool:
        """Whether it has taken part before: then its settings are right, and a board often boots before its network."""
        outbox = self._parts.outbox
        return outbox.next_seq > 1 or outbox.remembered(_CONNECTED) is not None

    def _note_connected(self) -> None:
        """Record the first connection ever."""
        if not self._was_connected:
            self._parts.outbox.pending[_CONNECTED] = b"1"
            with suppress(OutboxFull):  # it is written with the next update
                self._parts.outbox.write_pending()

    async def _wait(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stop.wait()

    # -------------------------------------------------------------------- duty cycle

    def _may_sleep(self, *, connected: bool) -> bool:
        busy = self._session.work is Work.TRAINING
        busy_beside = self._parts.serving.busy or self._parts.aliases.busy or self._surveys.busy
        at_rest = connected and self._session.at_rest and not busy_beside
        return self._parts.duty.over(time.monotonic(), at_rest=at_rest, busy=busy)

    async def _sleep_when_idle(self) -> None:
        while not self._may_sleep(connected=True):  # noqa: ASYNC110 - of many things, some of them times
            await asyncio.sleep(_POLL)
        self.part(DeviceState.SLEEPING)

    def _fall_asleep(self) -> float:
        """Begin to sleep; seconds until the next wake-up."""
        return self._parts.duty.sleep(time.monotonic(), time.time(), random.random())  # noqa: S311 - spreads load

    async def _sleep(self) -> None:
        """Sleep until the next wake-up; end if the duty is to wake once."""
        duty = self._parts.duty
        seconds = max(0.0, duty.wakes - time.time()) if duty.asleep else self._fall_asleep()
        if duty.duty is not None:  # the clock may have been set back: never sleep for a year
            seconds = min(seconds, 2 * duty.duty.every)
        self._parts.flush()
        self._parts.tell("sleeping", wakes=duty.wakes, seconds=seconds)
        if duty.duty is not None and duty.duty.once:
            self.stop()
        await self._wait(seconds)
        if not self._stop.is_set():
            duty.wake(time.monotonic())
            self._look()
            self._parts.tell("awake")

    # ---------------------------------------------------------------- one connection

    def _options(self) -> Options:
        topics, config = self._parts.topics, self._parts.config
        will = Will(topics.status(config.name), self._hello(DeviceState.LOST))
        tail = f"-{secrets.token_hex(4)}" if self._duplicates.evicted else ""  # tell both apart
        identity = client_id(topics.federation, config.name, self._parts.outbox.identity, tail)
        return Options(client_id=identity, will=will, keepalive=config.keepalive)

    def _hello(self, state: DeviceState, number: int = 0, to: int = 0) -> bytes:
        return hello_frame(self._parts, self._session, state, number, to)

    async def _use(self, connection: Connection) -> None:
        """Take part over one connection, until it is lost or stopped."""
        serving = self._parts.serving
        self._parting, self._aggregator_online = asyncio.get_running_loop().create_future(), False
        reading = asyncio.create_task(self._read(connection))
        beside = [asyncio.create_task(each.follow(connection)) for each in (self._watch, self._surveys, self._sites)]
        beside += [asyncio.create_task(serving.follow(connection))] if serving.wanted else []
        beside += [asyncio.create_task(self._parts.aliases.follow(connection))] if self._parts.aliases.wanted else []
        if (renewal := self._parts.renewal) is not None:
            beside.append(asyncio.create_task(renewal.follow(connection, lambda: self.part(DeviceState.DISCONNECTED))))
        if self._parts.duty.duty is not None:
            beside.append(asyncio.create_task(self._sleep_when_idle()))
        if self._stop.is_set():
            self.part(DeviceState.DISCONNECTED)
        last = DeviceState.LOST
        try:
            either: set[asyncio.Future[Any]] = {reading, self._parting}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if reading.done():
                await reading
            last = self._parting.result() if self._parting.done() else DeviceState.DISCONNECTED
            if last is DeviceState.SLEEPING:
                self._fall_asleep()
        except asyncio.CancelledError:
            last = DeviceState.LOST if self.failed else DeviceState.DISCONNECTED
            raise
        finally:
            # Also if the trainer raised: an orderly end discards the Last Will.
            self._publisher.disconnected()
            self._put(ev.Disconnected())
            try:
                if not reading.done() or reading.cancelled():  # the end of a loop cancels all its tasks
                    await self._send_last_status(connection, last)
            finally:
                self._parting = None
                for task in (reading, *beside):
                    task.cancel()
                await asyncio.gather(reading, *beside, return_exceptions=True)

    async def _send_last_status(self, connection: Connection, state: DeviceState) -> None:
        """Publish our last status; without an acknowledgement in time, have the broker publish our will instead."""
        status = self._parts.topics.status(self._parts.config.name)
        publishing = self._publisher.publish(connection, status, self._hello(state), retain=True)
        await acknowledged_or_aborted(connection, publishing, _GOODBYE_WAIT)

    async def _read(self, connection: Connection) -> None:
        topics, name = self._parts.topics, self._parts.config.name
        await connection.subscribe(topics.aggregator, topics.receipt(name))
        await connection.subscribe(topics.announcement(), qos=0)
        if self._parts.serving.wanted:
            await connection.subscribe(topics.announcement("serve"), qos=0)
        if self._parts.aliases.wanted:
            await connection.subscribe(*self._parts.aliases.topics, qos=0)
        await self._surveys.subscribe(connection)
        named = connection.limits.maximum_packet_size
        bounds = [self._publisher.largest, None if named is None else max(256, named - _OVERHEAD)]
        self._publisher.connected(connection)
        self._put(ev.Connected(min((bound for bound in bounds if bound is not None), default=None)))
        self._parts.tell("connected")
        async for delivery in connection.messages():
            self._count(delivery)
            try:
                self._deliver(delivery.topic, delivery.payload)
            except WireError as error:
                log.warning("%s: a message on %s was dropped: %s", name, delivery.topic, error)
            connection.ack(delivery)

    def _count(self, delivery: Delivery) -> None:
        self._parts.counters.bytes_down += len(delivery.payload)
        self._parts.spent(len(delivery.payload))

    def _deliver(self, topic: str, payload: bytes) -> None:
        """Turn a message into an event.

        Raises:
            WireError: it is invalid, or not trusted.
        """
        parts = self._parts
        topics, name = parts.topics, parts.config.name
        if self._fetcher.expects(topic):
            self._publisher.carried += 1
            self._fetcher.deliver(topic, payload)
        elif parts.serving.fetcher.expects(topic):
            parts.serving.fetcher.deliver(topic, payload)
        elif parts.aliases.fetcher.expects(topic):
            parts.aliases.fetcher.deliver(topic, payload)
        elif parts.renewal is not None and parts.renewal.expects(topic):
            parts.renewal.deliver(topic, payload)
        elif self._watch.expects(topic):
            self._watch.deliver(topic, payload)
        elif not payload:
            pass  # a retained message was cleared
        elif self._surveys.expects(topic):
            self._surveys.deliver(payload)
        elif self._sites.expects(topic):
            self._sites.deliver(payload)
        elif topic == topics.announcement():
            announcement = self._announcement(payload, "train")
            parts.aliases.announced(announcement.lineage)
            self._put(ev.Announced(announcement))
        elif (alias := parts.aliases.named(topic)) is not None:
            parts.aliases.told(parts.identity.alias(payload, alias, time.time(), time.monotonic()))
        elif topic == topics.announcement("serve"):
            parts.serving.announced(self._announcement(payload, "serve"))
        elif topic == topics.receipt(name):
            match parts.identity.read_answer(payload, time.monotonic()):
                case Receipt() as receipt:
                    self._put(ev.Receipted(receipt))
                case Trouble(why=why):
                    parts.troubled(why)
                case Proof():
                    pass  # for `midge device proof`, which listens itself
        elif topic == topics.aggregator:
            status = parts.identity.status(payload, time.monotonic())
            self._aggregator_online = status.state.serves
            parts.aliases.seen(status.boot)
            self._sites.seen(status)
            self._put(ev.AggregatorSeen(status))
            self._watch.seen(status)
        elif topic == topics.status(name):
            hello, _ = messages.decode(Hello, payload)
            if self._duplicates.asks(hello):
                self._publisher.send(topic, self._hello(DeviceState.READY, to=hello.number), retain=True)

    def _announcement(self, payload: bytes, channel: Channel) -> Announcement:
        """Read an announcement, and report it if it is not trusted.

        Raises:
            WireError: it is not.
        """
        parts, wall = self._parts, time.time()
        try:
            announcement = parts.identity.announcement(payload, channel, wall, time.monotonic())
        except WireError as error:
            parts.tell("untrusted", channel=channel, why=str(error))
            raise
        parts.budget.heard(announcement.issued, wall, current=self._aggregator_online)
        if (doubt := parts.identity.doubt) and not self._clock_reported:
            log.warning("%s: %s.", parts.config.name, doubt)
            parts.tell("clock", why=doubt)
        self._clock_reported = bool(doubt)
        return announcement
