"""Publishing over the connection that stands, if one does."""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, Protocol, TypeVar

from midge.broker.mqtt.connection import (
    Connection,
    ConnectionLost,
    PacketTooLarge,
    PublishRefused,
    QoS,
    SubscribeRefused,
)
from midge.broker.mqtt.message_size import SIZE_REASONS, TOO_LARGE
from midge.iot_client.connection.announcement_policy import Attention
from midge.iot_client.connection.chunk_sizer import Uplink
from midge.iot_client.parts import DeviceParts
from midge.iot_client.session import events as ev
from midge.storage.failpoints import failpoint
from midge.wire import chunks, frames
from midge.wire.messages import Announcement, Chunk, Update

log = logging.getLogger("iot_client")

_SMALLEST = 512
"""Bytes of body below which an update is not cut for its size: its header is as large."""

T = TypeVar("T")


class StartTask(Protocol):
    """Starts a task whose error ends the device."""

    def __call__(self, work: Coroutine[Any, Any, T], /) -> asyncio.Task[T]: ...


class Publisher:
    """What a device says to its broker: messages in the order of the calls, chunks, and what it listens to.

    Without a connection, and if one is lost, nothing is published: the session says it again on the next one.
    """

    def __init__(self, parts: DeviceParts, start: StartTask, put: Callable[[ev.Event], None]) -> None:
        self._parts, self._start, self._put = parts, start, put
        self.connection: Connection | None = None
        self._uplink = Uplink(parts.config.keepalive)
        self._attention = Attention()
        self.largest: int | None = None
        """Bytes of body that go at once, after the broker has refused what is larger; None as long as it has not."""
        self.carried = 0
        """Chunks that have passed, up or down."""
        self._told: set[tuple[str, int]] = set()
        """On which topic, and why, it was told that the broker refuses messages."""
        self._deaf: Connection | None = None
        """The connection over which no new version is heard of during a training."""

    def connected(self, connection: Connection) -> None:
        """Publish over this connection from now on."""
        self.connection = connection

    def disconnected(self) -> None:
        """Publish nothing until there is another."""
        self.connection = None
        self._uplink.lost()
        self._put(ev.LinkMeasured(self._uplink.chunk))

    # ---------------------------------------------------------------------- messages

    def send(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """Publish in the order of the calls, without waiting."""
        if self.connection is not None:
            self._start(self.publish(self.connection, topic, payload, retain=retain))

    async def publish(self, connection: Connection, topic: str, payload: bytes, *, retain: bool = False) -> bool:
        """Publish, and return whether the broker has acknowledged it."""
        parts = self._parts
        parts.counters.bytes_up += len(payload)
        parts.spent(len(payload))
        try:
            await connection.publish(topic, payload, qos=1, retain=retain)
            failpoint("publish.acknowledged")
        except ConnectionLost as error:
            if error.reason == TOO_LARGE:  # else the reader sees it too, and the session hears of it from there
                self._narrow(topic, len(payload))
        except (PublishRefused, PacketTooLarge) as error:
            reason = error.reason if isinstance(error, PublishRefused) else TOO_LARGE
            narrowed = reason in SIZE_REASONS and self._narrow(topic, len(payload))
            if (topic, reason) not in self._told:
                self._told.add((topic, reason))
                what = f"A message of {len(payload):,} bytes on {topic}"
                smaller = f" It goes again in chunks of {self.largest:,} bytes at most." if narrowed else ""
                why = f"{what} does not pass. {error}{smaller}"
                log.warning("%s: %s", parts.config.name, why)
                parts.tell("refused", topic=topic, why=why)
        else:
            return True
        return False

    def _narrow(self, topic: str, size: int) -> bool:
        """Have updates cut to half of what was refused; whether that helps."""
        if topic != self._parts.topics.update(self._parts.config.name) or size < 2 * _SMALLEST:
            return False
        self.largest = min(size // 2, self.largest or size)
        self._put(ev.SizeRefused(self.largest))
        return True

    def send_chunks(self, update: Update, numbers: tuple[int, ...]) -> None:
        """Publish chunks of a stored update; `ChunkDelivered` follows each."""
        size = chunks.part_size(update.size, update.parts)
        for number in numbers:
            if number < update.parts and self.connection is not None:
                body = self._parts.outbox.piece(update.seq, number * size, size)
                header = Chunk(outbox=update.outbox, first=update.first, seq=update.seq, part=number)
                self._start(self._send_chunk(self.connection, update, number, frames.encode(header, body)))
        failpoint("chunks.handed_over")

    async def _send_chunk(self, connection: Connection, update: Update, number: int, payload: bytes) -> None:
        parts = self._parts
        self._uplink.published(number, len(payload), time.monotonic())
        if await self.publish(connection, parts.topics.update(parts.config.name), payload):
            self.carried += 1
            self._uplink.acknowledged(number, time.monotonic())
            self._put(ev.LinkMeasured(self._uplink.chunk))
            self._put(ev.ChunkDelivered())
            done = min(update.size, (number + 1) * chunks.part_size(update.size, update.parts))
            parts.tell.progress("up", done, update.size)

    # ----------------------------------------------------------------- subscriptions

    async def read_again(self) -> None:
        """Have the broker send again what is retained: subscribing does that."""
        connection, topics = self.connection, self._parts.topics
        if connection is not None:
            await self._subscribe(connection, topics.aggregator)
            if connection is not self._deaf:
                await self._subscribe(connection, topics.announcement(), qos=0)

    async def ignore_versions(self, announcement: Announcement) -> None:
        """Unsubscribe from announcements during a training, if many would come."""
        connection = self.connection
        if connection is not None and self._attention.turns_away(announcement):
            self._deaf = connection
            with suppress(ConnectionLost):  # the reader sees it too
                await connection.unsubscribe(self._parts.topics.announcement())

    async def follow_versions(self, ignoring: asyncio.Task[None]) -> None:
        """Subscribe to announcements again; the newest is retained and comes at once."""
        await ignoring
        connection, self._deaf = self._deaf, None
        if connection is not None and connection is self.connection:
            await self._subscribe(connection, self._parts.topics.announcement(), qos=0)

    async def _subscribe(self, connection: Connection, topic: str, *, qos: QoS = 1) -> None:
        """Subscribe over a connection that stands. Rights may have been taken away, and may be given again."""
        try:
            await connection.subscribe(topic, qos=qos)
        except ConnectionLost:
            pass  # the reader sees it too
        except SubscribeRefused as error:
            log.warning("%s: %s", self._parts.config.name, error)
            self._parts.tell("refused", topic=topic, why=str(error))
