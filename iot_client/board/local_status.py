"""Current figures of a running device, over a UNIX socket beside its outbox.

The files beside the outbox are written rarely, to spare the flash; they are some minutes old.
"""

import asyncio
import hashlib
import json
import logging
import os
import socket
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

from midge.storage.read_only import kept_closed

log = logging.getLogger("iot_client")

_LONGEST = 100
"""Maximum bytes of a socket's path on every system (macOS: 104 with its terminator)."""
_LONGEST_NAME = 60
"""Maximum bytes of the last part of it; a longer one is shortened to a hash."""
_DESCRIPTORS = Path("/proc/self/fd")
_PATIENCE = 2.0
"""Seconds to wait for an answer."""
_MOST = 2**20
"""Maximum bytes of an answer."""


def _place(outbox: Path) -> Path:
    """The path of the socket."""
    name = f"{outbox.name}.sock"
    if len(name.encode()) > _LONGEST_NAME:
        name = f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.sock"
    return outbox.with_name(name).absolute()


@contextmanager
def _address(place: Path) -> Generator[str | None, None, None]:
    """The address of the socket, during the block; None if this system or this path cannot have one."""
    if not hasattr(socket, "AF_UNIX"):
        yield None
    elif len(bytes(place)) <= _LONGEST:
        yield str(place)
    elif not _DESCRIPTORS.is_dir():
        yield None
    else:  # Linux takes a path from an open folder on
        folder = os.open(place.parent, os.O_RDONLY)
        try:
            yield str(_DESCRIPTORS / str(folder) / place.name)
        finally:
            os.close(folder)


@asynccontextmanager
async def answering(outbox: Path | None, figures: Callable[[], Mapping[str, Any]]) -> AsyncGenerator[None, None]:
    """Answer each connection with the figures as JSON, during the block. The outbox must be locked.

    Without a socket the device runs all the same; readers then use the files.
    """
    if outbox is None:
        yield
        return
    place, server = _place(outbox), None

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            writer.write(json.dumps(figures()).encode())
            writer.close()
            await writer.wait_closed()

    try:
        with _address(place) as address:
            if address is not None:
                place.unlink(missing_ok=True)  # left by a killed process: the outbox is ours
                server = await asyncio.start_unix_server(answer, address)
                place.chmod(0o600)
    except OSError as error:
        log.info("No socket %s (%s): `midge device status` reads files only.", place, error.strerror)
    try:
        yield
    finally:
        if server is not None:
            server.close()
            with suppress(OSError):
                place.unlink()


def ask(outbox: Path) -> dict[str, Any] | None:
    """The figures of the device that runs with this outbox; None if there is no answer."""
    place = _place(outbox)
    with suppress(OSError, ValueError), _address(place) as address:
        if address is None or not place.exists():
            return None
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(_PATIENCE)
            connection.connect(address)
            answer = bytearray()
            while len(answer) < _MOST and (some := connection.recv(65_536)):
                answer += some
        found = json.loads(answer)
        return found if isinstance(found, dict) else None
    return None


def runs(outbox: Path) -> bool:
    """Whether a device has this outbox open, also one that does not answer."""
    with kept_closed(outbox.with_name(f"{outbox.name}.lock")) as closed:
        return not closed
