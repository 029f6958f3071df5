"""A TCP proxy that is a bad network: slow, thin, in small slices, silent, or breaking off in the middle."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from random import Random

SLICE = 700
"""Bytes that go through at once in a sliced stream: MQTT packets are cut anywhere."""
WHOLE = 65_536


@dataclass(frozen=True, slots=True)
class Weather:
    """What the network is like. The default does nothing."""

    latency: float = 0.0
    """Seconds that each piece is held up, at most."""
    bandwidth: float = float("inf")
    """Bytes a second, in each direction of each connection."""
    slice: int = WHOLE
    """Bytes of a piece, at most."""
    reset_after: int | None = None
    """Bytes after which a connection is reset, without what was on its way."""
    silent: bool = False
    """Whether nothing gets through, and nobody is told."""

    @classmethod
    def by_chance(cls, random: Random) -> "Weather":
        """Half of the time it is fine."""
        kinds = (
            cls(latency=0.05),
            cls(slice=SLICE),
            cls(slice=7, latency=0.002),
            cls(bandwidth=random.uniform(20_000, 200_000)),
            cls(reset_after=random.randrange(1, 20_000)),
            cls(silent=True),
        )
        return random.choice((*kinds, *[cls()] * len(kinds)))


class Proxy:
    """Passes connections on to a port of this machine, as its `weather` is now."""

    def __init__(self, port: int, random: Random) -> None:
        self.weather = Weather()
        self.port = 0
        """Where it listens."""
        self.passed = [0, 0]
        """Bytes that were carried to the target, and back."""
        self.breaks = 0
        """Connections that the weather broke off."""
        self._target = port
        self._random = random
        self._changed = asyncio.Event()

    def change(self, weather: Weather) -> None:
        """Have other weather from now on, also for connections that stand."""
        self.weather = weather
        self._changed.set()
        self._changed = asyncio.Event()

    @asynccontextmanager
    async def serving(self) -> AsyncIterator["Proxy"]:
        """Listen for as long as the block lasts; then every connection ends."""
        carrying: set[asyncio.Task[None]] = set()
        async with asyncio.TaskGroup() as tasks:

            def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                if not server.is_serving():
                    writer.transport.abort()
                    return
                task = tasks.create_task(self._connected(reader, writer))
                carrying.add(task)
                task.add_done_callback(carrying.discard)
                task.add_done_callback(lambda _: writer.transport.abort())  # a task may be cancelled before it began

            server = await asyncio.start_server(accept, "127.0.0.1", 0)
            self.port = server.sockets[0].getsockname()[1]
            try:
                yield self
            finally:
                server.close()
                for task in carrying:
                    task.cancel()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            return
        pumps = {
            asyncio.create_task(self._pump(reader, there_writer, 0)),
            asyncio.create_task(self._pump(there_reader, writer, 1)),
        }
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)  # the end of one is the end of both
        finally:
            for pump in pumps:
                pump.cancel()
            for end in (writer, there_writer):
                _reset(end)
            await asyncio.gather(*pumps, return_exceptions=True)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: int) -> None:
        """Carry one direction, until it ends or is to break."""
        passed = 0
        with suppress(OSError):
            while data := await reader.read(self.weather.slice):
                while self.weather.silent:
                    await self._changed.wait()
                weather = self.weather
                passed += len(data)
                if weather.reset_after is not None and passed > weather.reset_after:
                    self.breaks += 1
                    return
                await asyncio.sleep(weather.latency * self._random.random() + len(data) / weather.bandwidth)
                self.passed[way] += len(data)
                writer.write(data)
                await writer.drain()


def _reset(writer: asyncio.StreamWriter) -> None:
    """End with RST, not with FIN."""
    raw = writer.get_extra_info("socket")
    with suppress(OSError):
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
