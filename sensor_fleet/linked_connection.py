"""A connection over an emulated link, which delays and throttles both directions and can be cut."""

import asyncio
import math
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress

from midge.broker.mqtt.connection import Connection, ConnectionLost, Delivery, Limits, Payload, QoS

SUBSCRIBE = 8
"""Approximate bytes that MQTT adds to a filter in a SUBSCRIBE."""
PUBLISH, PUBACK = 9, 4
"""Approximate bytes that MQTT adds to a message, and of an acknowledgement."""


class Lane:
    """One direction of a link: bytes leave in order, after transmission time and latency."""

    __slots__ = ("_bandwidth", "_free", "_latency", "moved")

    def __init__(self, bandwidth: float, latency: float) -> None:
        self._bandwidth, self._latency = bandwidth, latency
        self._free = -math.inf
        self.moved = 0
        """Bytes that have entered."""

    def enter(self, size: int, now: float) -> float:
        """The arrival time of `size` bytes that enter now, after all earlier bytes."""
        self.moved += size
        self._free = max(now, self._free) + size / self._bandwidth
        return self._free + self._latency


class LinkedConnection:
    """A `Connection` over an emulated link, wrapping another connection.

    Args:
        inner: the connection.
        up: the lane to the broker.
        down: the lane from the broker.
        break_off: ends the inner connection without a DISCONNECT.
        twice: whether the next message of QoS 1 is duplicated.
        watch: called with each message as the device receives it.
        framed: whether MQTT's headers and acknowledgements take time too, so that `publish` and `subscribe` wait for
            the
            acknowledgements. Pings are too rare to matter.
    """

    def __init__(
        self,
        inner: Connection,
        up: Lane,
        down: Lane,
        *,
        break_off: Callable[[], None],
        twice: Callable[[], bool] = lambda: False,
        watch: Callable[[Delivery], None] = lambda _: None,
        framed: bool = False,
    ) -> None:
        self._inner = inner
        self._up, self._down = up, down
        self._break_off, self._twice, self._watch = break_off, twice, watch
        self._framed = framed
        self._loop = asyncio.get_running_loop()
        self._turn = asyncio.Lock()
        self._loss: ConnectionLost | None = None
        self._arriving: deque[tuple[float, Delivery]] = deque()
        self._news = asyncio.Event()
        self._cut = asyncio.Event()
        self._reading = asyncio.create_task(self._read())
        self._reading.add_done_callback(lambda _: self._news.set())

    @property
    def limits(self) -> Limits:
        return self._inner.limits

    async def publish(self, topic: str, payload: Payload, *, qos: QoS = 1, retain: bool = False) -> None:
        for _ in range(1 + (qos == 1 and self._twice())):
            await self._pass(self._size(topic, payload))
            await self._inner.publish(topic, payload, qos=qos, retain=retain)
            if qos == 1:
                await self._acknowledged()

    async def subscribe(self, *filters: str, qos: QoS = 1) -> None:
        await self._pass(sum(len(each) + SUBSCRIBE for each in filters))
        await self._inner.subscribe(*filters, qos=qos)
        await self._acknowledged()

    async def unsubscribe(self, *filters: str) -> None:
        await self._pass(sum(len(each) + SUBSCRIBE for each in filters))
        await self._inner.unsubscribe(*filters)
        await self._acknowledged()

    def _size(self, topic: str, payload: Payload) -> int:
        return len(topic) + len(payload) + PUBLISH * self._framed

    async def _pass(self, size: int) -> None:
        """Wait until `size` bytes are across the uplink, in the order of the calls: the lock is fair.

        Raises:
            ConnectionLost: the link was cut meanwhile.
        """
        self._raise_if_cut()
        there = self._up.enter(size, self._loop.time())
        async with self._turn:
            await self._until(there)
        self._raise_if_cut()

    async def _acknowledged(self) -> None:
        """Wait until the broker's acknowledgement has arrived.

        Raises:
            ConnectionLost: the link was cut meanwhile.
        """
        if self._framed:
            await self._until(self._down.enter(PUBACK, self._loop.time()))
            self._raise_if_cut()

    async def _read(self) -> None:
        """Queue incoming messages with their arrival times."""
        async for delivery in self._inner.messages():
            there = self._down.enter(self._size(delivery.topic, delivery.payload), self._loop.time())
            self._arriving.append((there, delivery))
            self._news.set()

    async def messages(self) -> AsyncIterator[Delivery]:
        while True:
            self._raise_if_cut()
            if self._arriving:
                there, delivery = self._arriving[0]
                if self._loop.time() < there:
                    await self._until(there)
                    continue
                self._arriving.popleft()
                self._watch(delivery)
                yield delivery
            elif self._reading.done():
                self._reading.result()  # raises the reader's exception
                return
            else:
                self._news.clear()
                await self._news.wait()

    def waiting(self) -> Sequence[Delivery]:
        now = self._loop.time()
        taken = []
        while self._arriving and self._arriving[0][0] <= now:
            taken.append(self._arriving.popleft()[1])
            self._watch(taken[-1])
        return taken

    def ack(self, delivery: Delivery) -> None:
        if self._framed and delivery.qos:
            self._up.enter(PUBACK, self._loop.time())
        self._inner.ack(delivery)

    def abort(self, why: str) -> None:
        self.cut(why)

    def cut(self, why: str) -> None:
        """Cut the link: messages in transit are lost."""
        if self._loss is None:
            self._loss = ConnectionLost(why)
            self._cut.set()
            self._news.set()
            self._break_off()

    async def close(self) -> None:
        await _ended(self._reading)

    async def _until(self, there: float) -> None:
        """Sleep until then, or until the link is cut."""
        with suppress(TimeoutError):
            async with asyncio.timeout_at(there):
                await self._cut.wait()

    def _raise_if_cut(self) -> None:
        if self._loss is not None:
            raise ConnectionLost(str(self._loss))


async def _ended(task: asyncio.Task[None]) -> None:
    """Cancel a task and raise its exception, unless it is the loss of its connection."""
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, ConnectionLost):
        raise error
