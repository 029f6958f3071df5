"""A server as a child process that does not outlive us.

It is bound to no event loop, so that a test can start it in one and stop it in another; hence the polling.
"""

import asyncio
import errno
import shutil
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from midge.broker.mqtt.connection import BrokerUnreachable

POLL = 0.02
"""Seconds between two checks whether a child serves yet."""
SETTLED = 0.5
"""Seconds after which a silent child that still runs counts as the process that listens at its port."""
PATIENCE = 10.0
"""Seconds that a child has to begin to serve, and to end when asked to, by default."""


def dying_with_parent(command: list[str]) -> list[str]:
    """Prefix a command so that the kernel kills it when the thread that started it ends.

    Needs Linux's setpriv; without it the command is unchanged. Setting this between fork and exec ourselves would run
    Python in a fork of a process with threads.
    """
    setpriv = shutil.which("setpriv") if sys.platform == "linux" else None
    return command if setpriv is None else [setpriv, "--pdeathsig", "KILL", "--", *command]


def free_port() -> int:
    """A TCP port of the loopback that is free now; another process may take it first."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        assert isinstance(port, int)
        return port


def in_use(port: int) -> bool:
    """Whether a process listens at this port of the loopback."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # ignore connections in TIME_WAIT
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            return error.errno == errno.EADDRINUSE
        return False


async def _accepts(host: str, port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection(host, port)
    except OSError:
        return False
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()
    return True


class Child:
    """One process, its output in a log file. Its standard input is a pipe that closes when we die."""

    def __init__(self, command: list[str], log: Path, ready: str, patience: float = PATIENCE) -> None:
        """Start it.

        Args:
            command: the program and its arguments.
            log: the file to which its output is appended.
            ready: output that shows that it serves; empty if there is none.
            patience: seconds that it has to begin to serve, and to end when asked to.

        Raises:
            BrokerUnreachable: the program cannot be started.
        """
        self._log = log
        self._ready = ready
        self._patience = patience
        self._log_start = log.stat().st_size if log.exists() else 0
        try:
            with log.open("ab") as output:
                self._process = subprocess.Popen(  # noqa: S603  # the command is ours
                    dying_with_parent(command), stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT
                )
        except OSError as error:
            raise BrokerUnreachable(f"{command[0]} cannot be started: {error.strerror or error}.") from error

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def _output(self) -> str:
        with suppress(OSError), self._log.open("rb") as log:
            log.seek(self._log_start)
            return log.read().decode(errors="replace")
        return ""

    def log_tail(self, lines: int = 3) -> str:
        """The end of its output, on one line."""
        return " / ".join(self._output().splitlines()[-lines:])

    async def serves(self, host: str, port: int) -> bool:
        """Wait until it accepts connections; False if it ended instead.

        Raises:
            BrokerUnreachable: it does neither in time.
        """
        try:
            async with asyncio.timeout(self._patience):
                while self.running and not await _accepts(host, port):  # noqa: ASYNC110
                    await asyncio.sleep(POLL)
                # Another process may have taken the port first and have accepted instead.
                if self._ready:
                    while self.running and self._ready not in self._output():  # noqa: ASYNC110
                        await asyncio.sleep(POLL)
                else:
                    await asyncio.sleep(SETTLED)
        except TimeoutError:
            raise BrokerUnreachable(
                f"The broker did not start within {self._patience:g} s: {self.log_tail()}"
            ) from None
        return self.running

    async def stop(self) -> None:
        """Ask it to end, and kill it if it does not."""
        if self.running:
            self._process.terminate()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._patience):
                    while self.running:  # noqa: ASYNC110
                        await asyncio.sleep(POLL)
        self.kill()

    def kill(self) -> None:
        """End it at once, with SIGKILL."""
        self._process.kill()
        self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()
