"""Publishing over the current connection, if there is one."""

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
from midge.iot_client.connection.chunk_sizer import ChunkSizer
from midge.iot_client.parts import DeviceParts
from midge.iot_client.session import events as ev
from midge.storage.failpoints import failpoint
from midge.wire import chunks, frames
from midge.wire.messages import Chunk, Update

log = logging.getLogger("iot_client")

_SMALLEST = 512
"""Bytes of body below which an update is not cut further: its header is as large."""

T = TypeVar("T")


class StartTask(Protocol):
    """Starts a task whose error ends the device."""

    def __call__(self, work: Coroutine[Any, Any, T], /) -> asyncio.Task[T]: ...


class Publisher:
    """A device's messages to its broker, in the order of the calls, its chunks, and its subscriptions.

    Without a connection, and if one is lost, nothing is published: the session repeats it on the next one.
    """

    def __init__(self, parts: DeviceParts, start: StartTask, put: Callable[[ev.Event], None]) -> None:
        self._parts, self._start, self._put = parts, start, put
        self.connection: Connection | None = None
        self._chunk_sizer = ChunkSizer(parts.config.keepalive)
        self.largest: int | None = None
        """Maximum bytes of body in a message, after the broker has refused a larger one; None until then."""
        self.carried = 0
        """Chunks that have passed, up or down."""
        self._told: set[tuple[str, int]] = set()
        """Topics and reasons of refused messages that were reported."""
        self._unsubscribed: Connection | None = None
        """The connection that is unsubscribed from announcements during a training."""

    def connected(self, connection: Connection) -> None:
        """Publish over this connection from now on."""
        self.connection = connection

    def disconnected(self) -> None:
        """Publish nothing until there is another connection."""
        self.connection = None
        self._chunk_sizer.lost()
        self._put(ev.LinkMeasured(self._chunk_sizer.chunk))

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
            if error.reason == TOO_LARGE:  # otherwise the reader sees it too, and the session is notified there
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
        """Have updates cut to half of the refused size; return whether that helps."""
        if topic != self._parts.topics.update(self._parts.config.name) or size < 2 * _SMALLEST:
            return False
        self.largest = min(size // 2, self.largest or size)
        self._put(ev.SizeRefused(self.largest))
        return True

    def send_chunks(self, update: Update, numbers: tuple[int, ...], piece: Callable[[Update, int, int], bytes]) -> None:
        """Publish chunks of a stored update, whose bytes `piece` reads; `ChunkDelivered` follows each."""
        size = chunks.part_size(update.size, update.parts)
        for number in numbers:
            if number < update.parts and self.connection is not None:
                body = piece(update, number * size, size)
                header = Chunk(outbox=update.outbox, first=update.first, seq=update.seq, part=number)
                self._start(self._send_chunk(self.connection, update, number, frames.encode(header, body)))
        failpoint("chunks.handed_over")

    async def _send_chunk(self, connection: Connection, update: Update, number: int, payload: bytes) -> None:
        parts = self._parts
        self._chunk_sizer.published(number, len(payload), time.monotonic())
        if await self.publish(connection, parts.topics.update(parts.config.name), payload):
            self.carried += 1
            self._chunk_sizer.acknowledged(number, time.monotonic())
            self._put(ev.LinkMeasured(self._chunk_sizer.chunk))
            self._put(ev.ChunkDelivered())
            done = min(update.size, (number + 1) * chunks.part_size(update.size, update.parts))
            parts.tell.progress("up", done, update.size)

    # ----------------------------------------------------------------- subscriptions

    async def read_again(self) -> None:
        """Have the broker send retained messages again, by subscribing."""
        connection, topics = self.connection, self._parts.topics
        if connection is not None:
            await self._subscribe(connection, topics.aggregator)
            if connection is not self._unsubscribed:
                await self._subscribe(connection, topics.announcement(), qos=0)

    async def ignore_while_training(self) -> None:
        """Unsubscribe from announcements until `follow_after_training`."""
        self._unsubscribed = self.connection
        await self.ignore_versions()

    async def ignore_versions(self) -> None:
        """Unsubscribe from announcements."""
        if self.connection is not None:
            with suppress(ConnectionLost):  # the reader sees it too
                await self.connection.unsubscribe(self._parts.topics.announcement())

    async def follow_after_training(self, ignoring: asyncio.Task[None] | None) -> None:
        """Subscribe to announcements again, if they were ignored on this connection."""
        if ignoring is None:
            return
        await ignoring
        connection, self._unsubscribed = self._unsubscribed, None
        if connection is self.connection:
            await self.follow_versions()

    async def follow_versions(self) -> None:
        """Subscribe to announcements again; the newest is retained and comes at once."""
        if self.connection is not None:
            await self._subscribe(self.connection, self._parts.topics.announcement(), qos=0)

    async def _subscribe(self, connection: Connection, topic: str, *, qos: QoS = 1) -> None:
        """Subscribe over an established connection. A refusal is ignored: rights may come back."""
        try:
            await connection.subscribe(topic, qos=qos)
        except ConnectionLost:
            pass  # the reader sees it too
        except SubscribeRefused as error:
            log.warning("%s: %s", self._parts.config.name, error)
            self._parts.tell("refused", topic=topic, why=str(error))
