"""A server that says what a test tells it to: for what real brokers cannot be made to do."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from midge.broker.embedded import packets
from midge.broker.embedded.packets import Packet
from tests.waiting import LAST_RESORT

Answer = Callable[[Packet], bytes | None]
"""What to answer to a packet; None hangs up."""


class ScriptedServer:
    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.received: list[Packet] = []
        self.arrived = asyncio.Event()
        self.writers: list[asyncio.StreamWriter] = []
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        parser = packets.Parser(1 << 24)
        try:
            while data := await reader.read(65536):
                for packet in parser.feed(data):
                    self.received.append(packet)
                    self.arrived.set()
                    answer = self.answer(packet)
                    if answer is None:
                        return
                    writer.write(answer)
        except ConnectionError:
            pass
        finally:
            writer.close()

    def published(self) -> list[packets.Publish]:
        return [packet for packet in self.received if isinstance(packet, packets.Publish)]

    async def until(self, done: Callable[[], bool]) -> None:
        async with asyncio.timeout(LAST_RESORT):
            while not done():
                self.arrived.clear()
                await self.arrived.wait()


@asynccontextmanager
async def scripted(answer: Answer) -> AsyncIterator[ScriptedServer]:
    script = ScriptedServer(answer)
    server = await asyncio.start_server(script.serve, "127.0.0.1", 0)
    script.port = server.sockets[0].getsockname()[1]
    try:
        yield script
    finally:
        server.close()
        for writer in script.writers:
            writer.close()
        await server.wait_closed()
