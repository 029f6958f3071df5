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
from midge.iot_client.connection.announcement_policy import Attention
from midge.iot_client.connection.chunk_sizer import Uplink
from midge.iot_client.parts import DeviceParts
from midge.iot_client.session import events as ev
from midge.storage.failpoints import failpoint
from midge.wire import chunks, frames
from midge.wire.messages import Announcement, Chunk, Update

log = logging.getLogger("iot_client")

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
        except ConnectionLost:
            pass  # the reader sees it too, and the session hears of it from there
        except (PublishRefused, PacketTooLarge) as error:
            log.warning("%s: %s", parts.config.name, error)
            parts.tell("refused", topic=topic, why=str(error))
        else:
            return True
        return False

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
