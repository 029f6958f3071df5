"""A device's link to the broker as its world has it: slow, breaking, and doubling messages.

A `LinkedConnection` is a connection around another one: it delays and throttles both directions, and can be cut. A
`DeviceLink` is a `Connector` that makes them, so that the device on it is the real one, unchanged. It sends some
messages twice, breaks the connection when the world says so, and holds a new one up until the link is back. Both read
the loop's clock only and so run on a virtual one as well.
"""

import asyncio
import math
import os
import socket
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress

from broker.connection import (
    BrokerUnreachable,
    Connection,
    ConnectionLost,
    Connector,
    Delivery,
    Limits,
    Options,
    Payload,
    QoS,
)
from broker.paho_session import PahoSession
from sensor_fleet.profiles.population import Population

SUBSCRIBE = 8
"""Bytes that MQTT adds to a filter in a subscription, about."""
PUBLISH, PUBACK = 9, 4
"""Bytes that MQTT adds to a message, and that it takes for an acknowledgement, about."""
HANDSHAKE = 90
"""Bytes of a CONNECT with a Last Will, about."""

Sever = Callable[[Connection, str], None]
"""Ends a connection of a client id without a goodbye, so that the broker publishes its Last Will."""


def sever(connection: Connection, _client_id: str) -> None:
    """End a connection through paho as a dead link does: its socket is shut, and nobody says goodbye."""
    assert isinstance(connection, PahoSession)
    watched = connection.client.socket()
    if watched is not None:
        with suppress(OSError), socket.socket(fileno=os.dup(watched.fileno())) as raw:  # below TLS and WebSockets
            raw.shutdown(socket.SHUT_RDWR)


class DeviceLink:
    """The link of one device; a `Connector`. Times of its world count from `origin`, on the loop's clock."""

    def __init__(
        self,
        connector: Connector,
        world: Population,
        device: str,
        *,
        origin: float,
        sever: Sever = sever,
        watch: Callable[[Delivery], None] = lambda _: None,
    ) -> None:
        self.device = device
        self.watch = watch
        """Called with each message as the device gets it."""
        self.connected = False
        """Whether a connection stands now."""
        self.met = False
        """Whether one ever stood."""
        self._connector = connector
        self._world = world
        self._speed = world.link(device)
        self._outages = world.outages(device)
        self._origin = origin
        self._sever = sever
        self._outage: tuple[float, float] | None = next(self._outages, None)
        self._open: LinkedConnection | None = None
        self._closing = asyncio.Event()
        self._sent = 0

    def __call__(self, options: Options) -> AbstractAsyncContextManager[Connection]:
        """Connect through the link.

        Raises (on entering):
            ConnectionLost: the link is broken for longer than `options.timeout`; or the broker cannot be reached.
                A fleet starts after the aggregator has reached it, so it is down and will be back: a device retries,
                even if it never was connected before.
            BrokerError: what the connector inside raised.
        """
        return self._connect(options)

    def cut(self) -> None:
        """Break the connection that stands now, without a goodbye."""
        if self._open is not None:
            self._open.cut("The link broke.")

    def close(self) -> None:
        """Wait for no broken link any more: the device is to end."""
        self._closing.set()

    def twice(self) -> bool:
        """Whether the next message reaches the broker twice."""
        self._sent += 1
        return self._world.twice_sent(self.device, self._sent)

    @asynccontextmanager
    async def _connect(self, options: Options) -> AsyncGenerator[Connection, None]:
        await self._link_up(options.timeout)
        try:
            async with self._connector(options) as inner:
                self.met = True
                up = Lane(self._speed.bandwidth, self._speed.latency)
                down = Lane(self._speed.down, self._speed.latency)
                connection = LinkedConnection(
                    inner,
                    up,
                    down,
                    break_off=lambda: self._sever(inner, options.client_id),
                    twice=self.twice,
                    watch=self.watch,
                )
                self._open, self.connected = connection, True
                breaking = asyncio.create_task(self._break())
                try:
                    yield connection
                finally:
                    self._open, self.connected = None, False
                    await _ended(breaking)
                    await connection.close()
        except BrokerUnreachable as error:
            raise ConnectionLost(str(error)) from error

    async def _link_up(self, patience: float) -> None:
        """Wait until the link is whole.

        Raises:
            ConnectionLost: that takes too long, or there is nothing to wait for any more.
        """
        broken, whole = self._next_outage()
        now = self._now()
        if now < broken:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(min(patience, whole - now)):
                await self._closing.wait()
        if self._closing.is_set() or self._now() < whole:
            raise ConnectionLost(f"The link of {self.device} is broken.")

    async def _break(self) -> None:
        """Break the connection when the next outage begins."""
        broken, _ = self._next_outage()
        if broken < math.inf:
            await asyncio.sleep(broken - self._now())
            self.cut()

    def _next_outage(self) -> tuple[float, float]:
        """The outage that lasts or comes next."""
        while self._outage is not None and self._outage[1] <= self._now():
            self._outage = next(self._outages, None)
        return self._outage or (math.inf, math.inf)

    def _now(self) -> float:
        return asyncio.get_running_loop().time() - self._origin


class Lane:
    """One direction of a link: what enters leaves in order, after its time on the line and the way."""

    __slots__ = ("_bandwidth", "_free", "_latency", "moved")

    def __init__(self, bandwidth: float, latency: float) -> None:
        self._bandwidth, self._latency = bandwidth, latency
        self._free = -math.inf
        self.moved = 0
        """Bytes that have entered."""

    def enter(self, size: int, now: float) -> float:
        """When `size` bytes that enter now are at the other end: not before what entered earlier."""
        self.moved += size
        self._free = max(now, self._free) + size / self._bandwidth
        return self._free + self._latency


class LinkedConnection:
    """The contract of `broker.connection.Connection`, over a connection inside.

    Args:
        inner: the connection.
        up: the way to the broker.
        down: the way back.
        break_off: ends the connection inside without a goodbye.
        twice: whether the next message of QoS 1 reaches the broker twice.
        watch: called with each message as the device gets it.
        framed: whether what MQTT adds travels too: headers, and acknowledgements, for which `publish` and `subscribe`
            then wait. Pings are too few to matter.
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
        """Take the way up, in the order of the calls: the lock's queue is fair, and its holder goes on at once.

        Raises:
            ConnectionLost: the link broke on the way.
        """
        self._raise_if_cut()
        there = self._up.enter(size, self._loop.time())
        async with self._turn:
            await self._until(there)
        self._raise_if_cut()

    async def _acknowledged(self) -> None:
        """Wait until the broker's answer has come down.

        Raises:
            ConnectionLost: the link broke on the way.
        """
        if self._framed:
            await self._until(self._down.enter(PUBACK, self._loop.time()))
            self._raise_if_cut()

    async def _read(self) -> None:
        """Take in what comes, stamped with when it will be here."""
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
                self._reading.result()  # raises what ended it
                return
            else:
                self._news.clear()
                await self._news.wait()

    def waiting(self) -> Sequence[Delivery]:
        now = self._loop.time()
        taken = []
        while self._arriving and self._arriving[0][0] <= now:
            taken.append(self._arriving.popleft()[1])
        return taken

    def ack(self, delivery: Delivery) -> None:
        if self._framed and delivery.qos:
            self._up.enter(PUBACK, self._loop.time())
        self._inner.ack(delivery)

    def cut(self, why: str) -> None:
        """Break: what is on the way is lost."""
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
    """End a task of ours and raise what it died of, other than the end of its connection."""
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, ConnectionLost):
        raise error
