"""The processes of a ledger's federation: started, killed, stopped, and never left behind."""

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import Process
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

from midge.broker import Endpoint
from midge.broker.local.process import dying_with_parent
from midge.sensor_fleet.setting import BrokerAddress
from midge.storage.failpoints import VARIABLE as CRASH_AT
from tests.harness.ledger import VARIABLE as BOOKS
from tests.harness.ledger import Books

ROOT = Path(__file__).parents[2]
PROGRAM = (sys.executable, "-P", "-m", "tests.harness.program")
"""What runs either part; -P, because a file in the working directory must not hide ours."""
USER_ERROR = 2
"""The exit code of an error that the user can correct, such as a broker that is not there."""


class Actor:
    """One part in the play: a process that is started again and again, over the same files."""

    def __init__(self, name: str, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
        self.name = name
        self.log = log
        self._command = list(command)
        self._environment = dict(environment)
        self._process: Process | None = None
        self.stopped = False

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    async def start(self, crash_at: str = "") -> None:
        """Start it; with a failpoint at which it is to be killed."""
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **self._environment, CRASH_AT: crash_at}
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *dying_with_parent(self._command),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
            )
        self.stopped = False

    async def ended(self) -> int:
        """Wait until it has ended; its exit code, or minus the signal."""
        assert self._process is not None
        return await self._process.wait()

    def send(self, number: signal.Signals) -> bool:
        """Send a signal, where it runs."""
        if self._process is None or self._process.returncode is not None:
            return False
        # Not by the process object: it looks first whether the child has ended, and then asyncio, which waits for the
        # child in a thread, finds nobody and reports 255.
        with suppress(ProcessLookupError):
            os.kill(self._process.pid, number)
        if number in (signal.SIGSTOP, signal.SIGCONT):
            self.stopped = number is signal.SIGSTOP
        return True

    async def kill(self) -> bool:
        """Kill it and wait until it is gone. False where it did not run."""
        killed = self.send(signal.SIGKILL)
        if self._process is not None:
            await self._process.wait()
        return killed

    def events(self, name: str) -> list[dict[str, Any]]:
        """Events of a name in what it wrote, also in earlier lives."""
        found = []
        for line in self.log.read_bytes().splitlines() if self.log.exists() else ():
            with suppress(ValueError):  # the last line of a life may be cut short
                event = json.loads(line)
                if isinstance(event, dict) and event.get("event") == name:
                    found.append(event)
        return found

    def tail(self, lines: int = 15) -> str:
        """The end of what it wrote."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n".join(text.splitlines()[-lines:])


def address(endpoint: Endpoint, port: int | None = None) -> str:
    """A plain broker's address with its user and password, as a command takes it; on another port if there is one."""
    return BrokerAddress.of(endpoint if port is None else replace(endpoint, port=port)).url


def aggregator(  # noqa: PLR0917 - a command line
    books: Books,
    url: str,
    directory: Path,
    program: Sequence[str] = PROGRAM,
    store: Path | None = None,
    environment: Mapping[str, str] | None = None,
    name: str = "aggregator",
    options: Sequence[str] = (),
) -> Actor:
    """The ledger's aggregator; its model is `model.safetensors` once it has ended in order."""
    command = [*program, "aggregate", "tests.harness.ledger:app", "--broker", url, "--json", *options]
    command += ["--model", str(directory / "model.safetensors")]
    words = {name: getattr(books, name) for name in Books.__dataclass_fields__}
    words["store"] = store or directory / "store"
    variables = {BOOKS: " ".join(f"{name}={value}" for name, value in words.items()), **(environment or {})}
    return Actor(name, command, directory / f"{name}.log", variables)


def fleet(
    books: Books,
    url: str,
    directory: Path,
    numbers: range,
    *options: str,
    program: Sequence[str] = PROGRAM,
    pages: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Actor:
    """A process with some of the ledger's devices, whose outboxes and pages lie in a folder."""
    only = f"{numbers[0]}-{numbers[-1]}"
    command = [*program, "devices", "--broker", url, "--federation", books.federation]
    command += ["--devices", str(books.devices), "--updates", str(books.updates), "--only", only]
    command += ["--directory", str(pages or directory / "devices"), *options]
    return Actor(f"devices {only}", command, directory / f"devices-{only}.log", environment or {})


_ENDED = (0, 130)
"""Exit codes of what was told to end: 130 as after Ctrl-C."""
_AGAIN = (-signal.SIGKILL, -signal.SIGTERM, USER_ERROR)
"""Exit codes after which it is started again; by SIGTERM if it was told to end before it could listen to that."""


async def keep_running(actor: Actor, crashes: list[str], random: Random) -> None:
    """Start a process again whenever it has ended, but at the end of its part; note other exits as crashes."""
    while True:
        await actor.start()
        code = await actor.ended()
        if code in _ENDED:
            return
        if code not in _AGAIN:
            crashes.append(f"{actor.name} ended with {code}: {actor.tail()}")
        await asyncio.sleep(0.3 * random.random())
