"""A real broker, a real aggregator and devices on MicroPython, for tests and for `tests.micropython.resets`."""

import asyncio
import json
import signal
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from midge.broker.local.local_broker import LocalBroker, local_broker
from midge.broker.local.process import dying_with_parent
from tests.harness.ledger import Audit, Books, audit
from tests.harness.processes import Actor, aggregator
from tests.micropython.board import PROGRAMS, command, environment
from tests.ports import free_port


class Board:
    """A device of a ledger, which can be reset at any moment."""

    def __init__(self, federation: "Federation", number: int, code: Path | None, heap: int, *options: object) -> None:
        folder = federation.directory / "devices"
        folder.mkdir(exist_ok=True)
        books, port = federation.books, federation.broker.endpoint.port
        words = (PROGRAMS / "ledger.py", port, books.federation, number, books.updates, folder / f"flash-{number}")
        self._command = command(*words, *options, heap=heap)
        self._environment = environment(code)
        self._folder, self._log = folder, federation.directory / f"board-{number}.log"
        self._process: Process | None = None

    async def start(self) -> None:
        """Power on."""
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *dying_with_parent(self._command), stdout=log, stderr=log, env=self._environment, cwd=self._folder
            )

    async def reset(self) -> None:
        """Take the power away, and give it back."""
        await self.kill()
        await self.start()

    async def kill(self) -> None:
        """Take the power away."""
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(signal.SIGKILL)
            await self._process.wait()

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def ended(self) -> None:
        """Wait until it has done all that it is to do.

        Raises:
            AssertionError: it ended otherwise; with what it said.
        """
        assert self._process is not None
        assert await self._process.wait() == 0, self.said()

    def said(self) -> str:
        """All that it printed."""
        return self._log.read_text(errors="replace")

    def events(self) -> list[dict[str, Any]]:
        """What went wrong, and at its end what it counted."""
        lines = self.said().splitlines()
        assert not [line for line in lines if "Error" in line and not line.startswith("{")], self.said()
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]


class Federation:
    """A ledger's broker and aggregator."""

    def __init__(self, books: Books, broker: LocalBroker, directory: Path) -> None:
        self.books, self.broker, self.directory = books, broker, directory
        url = f"mqtt://127.0.0.1:{broker.endpoint.port}"
        self.aggregator: Actor = aggregator(books, url, directory)

    async def audit(self) -> Audit:
        """End the aggregator in order, and compare its model with what devices were told."""
        self.aggregator.send(signal.SIGTERM)
        assert await self.aggregator.ended() == 0, self.aggregator.tail()
        return audit(self.directory / "model.safetensors", self.directory / "devices")


@asynccontextmanager
async def federation(books: Books, directory: Path) -> AsyncIterator[Federation]:
    """A federation for as long as the block lasts."""
    async with local_broker("mosquitto", directory=directory, port=free_port()) as broker:
        found = Federation(books, broker, directory)
        await found.aggregator.start()
        try:
            yield found
        finally:
            await found.aggregator.kill()
