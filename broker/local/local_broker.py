"""A local broker for demonstrations and tests: Mosquitto if installed, otherwise our own."""

import json
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal

from midge.broker.local.mosquitto import MosquittoSettings, find_mosquitto, mosquitto_version, write_configuration
from midge.broker.local.process import Child, free_port, in_use
from midge.broker.mqtt.connection import BrokerUnreachable
from midge.broker.mqtt.endpoint import Endpoint, Tls

Kind = Literal["mosquitto", "embedded"]

ATTEMPTS = 5
"""Attempts to start on another port if another process took the chosen one."""
READY: dict[Kind, str] = {"mosquitto": " running", "embedded": '{"host"'}
"""Output that shows that a broker serves."""
SILENT = ("0.", "1.")
"""Version prefixes of Mosquitto that print no such output."""


class LocalBroker:
    """A broker in a process of its own, on the loopback. `kill` and `restart` simulate failures."""

    def __init__(
        self,
        kind: Kind,
        directory: Path,
        *,
        user: str | None,
        password: str | None,
        tls: Tls | None = None,
        port: int = 0,
    ) -> None:
        """Prepare; `local_broker` starts it.

        Raises:
            BrokerUnreachable: Mosquitto is requested and not installed.
        """
        binary = find_mosquitto() if kind == "mosquitto" else None
        if kind == "mosquitto" and binary is None:
            raise BrokerUnreachable("Mosquitto is not installed: install it, or use the embedded broker.")
        self.kind: Kind = kind
        self.directory = directory.resolve()
        self._binary = binary
        self._user = user
        self._password = password
        self._tls = tls
        self._port = port
        self._child: Child | None = None
        silent = binary is not None and mosquitto_version(binary).startswith(SILENT)
        self._ready = "" if silent else READY[kind]

    @property
    def endpoint(self) -> Endpoint:
        """Address, user and password. For TLS the caller adds what to trust."""
        scheme: Literal["mqtt", "mqtts"] = "mqtt" if self._tls is None else "mqtts"
        return Endpoint(
            scheme, "127.0.0.1", self._port, self._user, self._password, None if self._tls is None else Tls()
        )

    @property
    def running(self) -> bool:
        return self._child is not None and self._child.running

    def describe(self) -> str:
        """One line for people."""
        if self._binary is None:
            return f"the embedded broker at {self.endpoint} (for this machine and up to about 100 devices)"
        return f"Mosquitto {mosquitto_version(self._binary)} at {self.endpoint}"

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
            child = Child(self._command(port), self.directory / "broker.log", ready=self._ready)
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

    def _command(self, port: int) -> list[str]:
        if self._binary is not None:
            settings = MosquittoSettings(user=self._user, password=self._password, tls=self._tls)
            return [str(self._binary), "-c", str(write_configuration(self.directory, port, settings))]
        command = [sys.executable, "-P", "-m", "midge.broker.embedded.server", "--port", str(port)]
        if self._user is not None:
            users = self.directory / "users.json"
            users.unlink(missing_ok=True)
            users.touch(mode=0o600)
            users.write_text(json.dumps({self._user: self._password or ""}))
            command += ["--users", str(users)]
        return command


@asynccontextmanager
async def local_broker(
    kind: Literal["auto", "mosquitto", "embedded"] = "auto",
    *,
    directory: Path,
    user: str | None = None,
    password: str | None = None,
    tls: Tls | None = None,
    port: int = 0,
) -> AsyncGenerator[LocalBroker, None]:
    """Run a broker on a free port of the loopback during the block.

    Args:
        kind: `auto` takes Mosquitto if it is installed.
        directory: for its configuration and its log; it must exist.
        user: the only user that may connect; None disables authentication.
        password: that user's.
        port: of the loopback; 0 takes a free one.
        tls: the listener's certificate and key, for `mosquitto` only; with `cafile` it requires client certificates.

    Raises:
        BrokerUnreachable: it cannot be started; the message holds the end of its log.
        ValueError: TLS is requested of the embedded broker.
    """
    chosen: Kind = ("mosquitto" if find_mosquitto() else "embedded") if kind == "auto" else kind
    if tls is not None and chosen == "embedded":
        raise ValueError("The embedded broker has no TLS: install Mosquitto.")
    broker = LocalBroker(chosen, directory, user=user, password=password, tls=tls, port=port)
    try:
        await broker.start()
        yield broker
    finally:
        await broker.stop()
