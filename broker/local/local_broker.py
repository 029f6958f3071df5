"""A local broker for demonstrations and tests: Mosquitto if installed, otherwise our own, or another program."""

import json
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from midge.broker.local.mosquitto import MosquittoSettings, find_mosquitto, mosquitto_version, write_configuration
from midge.broker.local.process import PATIENCE, Child, free_port, in_use
from midge.broker.mqtt.connection import BrokerUnreachable
from midge.broker.mqtt.endpoint import Endpoint, Tls

Kind = Literal["mosquitto", "embedded"]

ATTEMPTS = 5
"""Attempts to start on another port if another process took the chosen one."""
SILENT = ("0.", "1.")
"""Version prefixes of Mosquitto that do not print that they serve."""


class BrokerProgram(Protocol):
    """A broker that can be run on this machine."""

    kind: str
    user: str | None
    """The user that clients connect as; None connects them without."""
    password: str | None
    tls: Tls | None
    ready: str
    """Output that shows that it serves; empty if there is none."""
    patience: float
    """Seconds that it has to begin to serve."""

    def describe(self) -> str:
        """Name and version."""

    def command(self, directory: Path, port: int) -> list[str]:
        """The command that serves at this port of the loopback, with its files in the directory.

        Raises:
            BrokerUnreachable: the program is not installed; the message says what brings it.
        """


class MosquittoProgram:
    """Mosquitto, with a generated configuration.

    Raises:
        BrokerUnreachable: it is not installed.
    """

    kind = "mosquitto"
    patience = PATIENCE

    def __init__(self, user: str | None = None, password: str | None = None, tls: Tls | None = None) -> None:
        binary = find_mosquitto()
        if binary is None:
            raise BrokerUnreachable("Mosquitto is not installed: install it, or use the embedded broker.")
        self.user, self.password, self.tls = user, password, tls
        self._binary, self._version = binary, mosquitto_version(binary)
        self.ready = "" if self._version.startswith(SILENT) else " running"

    def describe(self) -> str:
        return f"Mosquitto {self._version}"

    def command(self, directory: Path, port: int) -> list[str]:
        settings = MosquittoSettings(user=self.user, password=self.password, tls=self.tls)
        return [str(self._binary), "-c", str(write_configuration(directory, port, settings))]


@dataclass
class EmbeddedProgram:
    """Our own broker."""

    user: str | None = None
    password: str | None = None
    options: tuple[str, ...] = ()
    """Further options of `midge.broker.embedded.server`."""
    kind: str = "embedded"
    tls: Tls | None = None
    ready: str = '{"host"'
    patience: float = PATIENCE

    def describe(self) -> str:
        return "the embedded broker"

    def command(self, directory: Path, port: int) -> list[str]:
        command = [sys.executable, "-P", "-m", "midge.broker.embedded.server", "--port", str(port), *self.options]
        if self.user is not None:
            users = directory / "users.json"
            users.unlink(missing_ok=True)
            users.touch(mode=0o600)
            users.write_text(json.dumps({self.user: self.password or ""}))
            command += ["--users", str(users)]
        return command


class LocalBroker:
    """A broker in a process of its own, on the loopback. `kill` and `restart` simulate failures."""

    def __init__(self, program: BrokerProgram, directory: Path, *, port: int = 0) -> None:
        """Prepare; `local_broker` starts it."""
        self.program = program
        self.kind = program.kind
        self.directory = directory.resolve()
        self._port = port
        self._child: Child | None = None

    @property
    def endpoint(self) -> Endpoint:
        """Address, user and password. For TLS the caller adds what to trust."""
        program = self.program
        scheme: Literal["mqtt", "mqtts"] = "mqtt" if program.tls is None else "mqtts"
        tls = None if program.tls is None else Tls()
        return Endpoint(scheme, "127.0.0.1", self._port, program.user, program.password, tls)

    @property
    def running(self) -> bool:
        return self._child is not None and self._child.running

    def describe(self) -> str:
        """One line for people."""
        told = f"{self.program.describe()} at {self.endpoint}"
        return f"{told} (for this machine and up to about 100 devices)" if self.kind == "embedded" else told

    async def start(self) -> None:
        """Start it, on its earlier port if it had one.

        Raises:
            BrokerUnreachable: it does not start.
        """
        if self._port and in_use(self._port):
            raise BrokerUnreachable(
                f"Port {self._port} of 127.0.0.1 is in use by another program: stop it, or take another port."
            )
        attempts = ATTEMPTS if self._port == 0 else 1
        for _ in range(attempts):
            port = self._port or free_port()
            command = self.program.command(self.directory, port)
            child = Child(command, self.directory / "broker.log", self.program.ready, self.program.patience)
            self._child = child
            if await child.serves("127.0.0.1", port):
                self._port = port
                return
            child.kill()
        assert self._child is not None
        raise BrokerUnreachable(f"The broker ended as it started: {self._child.log_tail()}")

    async def stop(self) -> None:
        """Stop it with SIGTERM."""
        if self._child is not None:
            await self._child.stop()

    def kill(self) -> None:
        """Kill it as in a power cut: no DISCONNECT, nothing is kept."""
        if self._child is not None:
            self._child.kill()

    async def restart(self) -> None:
        """Start it again on the same port, after `kill` or from running."""
        await self.stop()
        await self.start()


@asynccontextmanager
async def local_broker(
    kind: Literal["auto", "mosquitto", "embedded"] | BrokerProgram = "auto",
    *,
    directory: Path,
    user: str | None = None,
    password: str | None = None,
    tls: Tls | None = None,
    port: int = 0,
) -> AsyncGenerator[LocalBroker, None]:
    """Run a broker on a free port of the loopback during the block.

    Args:
        kind: `auto` takes Mosquitto if it is installed. A program has its own user and TLS.
        directory: for its configuration and its log; it must exist.
        user: the only user that may connect; None disables authentication.
        password: that user's.
        port: of the loopback; 0 takes a free one.
        tls: the listener's certificate and key, for `mosquitto` only; with `cafile` it requires client certificates.

    Raises:
        BrokerUnreachable: it cannot be started; the message holds the end of its log.
        ValueError: TLS is requested of the embedded broker.
    """
    if isinstance(kind, str):
        chosen: Kind = ("mosquitto" if find_mosquitto() else "embedded") if kind == "auto" else kind
        if tls is not None and chosen == "embedded":
            raise ValueError("The embedded broker has no TLS: install Mosquitto.")
        mosquitto = chosen == "mosquitto"
        kind = MosquittoProgram(user, password, tls) if mosquitto else EmbeddedProgram(user, password)
    broker = LocalBroker(kind, directory, port=port)
    try:
        await broker.start()
        yield broker
    finally:
        await broker.stop()
