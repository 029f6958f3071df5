"""A device's link as bytes have it: between its connection and the socket, it delays and throttles both directions.

Everything passes through, greetings, acknowledgements and signs of life too, as over a real link. What enters leaves
in order, after its time on the line and the way: so a line costs timers while something is under way, and no task. A
dead link is `cut`: nobody says goodbye, and the broker publishes the Last Will.
"""

import asyncio
import math
from typing import Any

from sensor_fleet.world import Link


class Lane:
    """One direction."""

    __slots__ = ("_bandwidth", "_latency", "_there", "free", "moved")

    def __init__(self, bandwidth: float, latency: float) -> None:
        self._bandwidth, self._latency = bandwidth, latency
        self.free = self._there = -math.inf
        self.moved = 0
        """Bytes that have entered."""

    def enter(self, size: int, now: float) -> float:
        """When bytes that enter now are at the other end: later than all before them."""
        self.moved += size
        self.free = max(now, self.free) + size / self._bandwidth
        self._there = max(self.free + self._latency, math.nextafter(self._there, math.inf))
        return self._there

    def end(self, now: float) -> float:
        """When all that has entered is there."""
        return max(now, self._there)


class Line(asyncio.Transport, asyncio.Protocol):
    """To the connection a transport, to the socket's transport a protocol."""

    __slots__ = ("_broken", "_connection", "_down", "_loop", "_transport", "_up", "_way")

    def __init__(self, connection: asyncio.BufferedProtocol, link: Link) -> None:
        super().__init__()
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self._way = link.latency
        self._up = Lane(link.bandwidth, link.latency)
        self._down = Lane(link.down or link.bandwidth, link.latency)
        self._transport: asyncio.Transport | None = None
        self._broken = False

    @property
    def moved(self) -> tuple[int, int]:
        """Bytes sent and received, with all that MQTT adds."""
        return self._up.moved, self._down.moved

    def cut(self) -> None:
        """Break: what is under way is lost, and the broker has to find out by itself."""
        if self._transport is not None and not self._broken:
            self._broken = True
            self._transport.abort()

    # ------------------------------------------------------------- to the socket a protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._loop.call_later(2 * self._way, self._connection.connection_made, self)  # TCP's handshake

    def data_received(self, data: bytes) -> None:
        self._loop.call_at(self._down.enter(len(data), self._loop.time()), self._feed, data)

    def _feed(self, data: bytes) -> None:
        left = memoryview(data)
        while left and not self._broken:
            room = memoryview(self._connection.get_buffer(-1))
            size = min(len(room), len(left))
            room[:size] = left[:size]
            room.release()
            self._connection.buffer_updated(size)
            left = left[size:]

    def connection_lost(self, exc: Exception | None) -> None:
        if self._broken:
            self._connection.connection_lost(exc)
        else:
            self._loop.call_at(self._down.end(self._loop.time()), self._connection.connection_lost, exc)

    # ---------------------------------------------------------- to the connection a transport

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._loop.call_at(self._up.enter(len(data), self._loop.time()), self._pass, bytes(data))

    def _pass(self, data: bytes) -> None:
        if self._transport is not None and not self._broken:
            self._transport.write(data)

    def close(self) -> None:
        if self._transport is not None:
            self._loop.call_at(self._up.end(self._loop.time()), self._transport.close)

    def abort(self) -> None:
        self.cut()

    def is_closing(self) -> bool:
        return self._broken or self._transport is None or self._transport.is_closing()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default if self._transport is None else self._transport.get_extra_info(name, default)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Nothing is refused: what waits for the line waits in timers."""
