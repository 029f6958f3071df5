"""A server as a child process that does not outlive us."""

import asyncio
import shutil
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from broker.connection import BrokerUnreachable

POLL = 0.02
"""Seconds between two looks whether a child serves yet."""
PATIENCE = 10.0
"""Seconds that a child has to begin to serve, and to end when asked to."""


def _dying_with_parent(command: list[str]) -> list[str]:
    """The command so that the kernel kills it when the thread that started it ends, where Linux's setpriv is there.

    Setting this between fork and exec ourselves would run Python in a fork of a process with threads.
    """
    setpriv = shutil.which("setpriv") if sys.platform == "linux" else None
    return command if setpriv is None else [setpriv, "--pdeathsig", "KILL", "--", *command]


def free_port() -> int:
    """A TCP port of the loopback that is free now; another process may take it before we do."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        assert isinstance(port, int)
        return port


class Child:
    """One process, its output in a log file. Its standard input is a pipe that closes when we die."""

    def __init__(self, command: list[str], log: Path) -> None:
        """Start it.

        Raises:
            BrokerUnreachable: the program cannot be started.
        """
        self._log = log
        try:
            with log.open("ab") as output:
                self._process = subprocess.Popen(  # noqa: S603  # the command is ours
                    _dying_with_parent(command), stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT
                )
        except OSError as error:
            raise BrokerUnreachable(f"{command[0]} cannot be started: {error.strerror or error}.") from error

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def log_tail(self, lines: int = 3) -> str:
        """The end of what it wrote, on one line."""
        with suppress(OSError):
            return " / ".join(self._log.read_text(errors="replace").splitlines()[-lines:])
        return ""

    async def serves(self, host: str, port: int) -> bool:
        """Wait until it takes connections; False where it ended instead.

        Raises:
            BrokerUnreachable: it does neither for too long.
        """
        try:
            async with asyncio.timeout(PATIENCE):
                while self.running:
                    with suppress(OSError):
                        _, writer = await asyncio.open_connection(host, port)
                        writer.close()
                        with suppress(OSError):
                            await writer.wait_closed()
                        return self.running
                    await asyncio.sleep(POLL)
        except TimeoutError:
            raise BrokerUnreachable(f"The broker did not start within {PATIENCE:g} s: {self.log_tail()}") from None
        return False

    async def stop(self) -> None:
        """Ask it to end, and kill it where it does not."""
        if self.running:
            self._process.terminate()
            with suppress(TimeoutError):
                async with asyncio.timeout(PATIENCE):
                    while self.running:  # noqa: ASYNC110  # a process has no event that we could wait for here
                        await asyncio.sleep(POLL)
        self.kill()

    def kill(self) -> None:
        """End it at once, with SIGKILL."""
        self._process.kill()
        self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()
