"""Current figures of a running device, over a UNIX socket beside its outbox.

The files beside the outbox are written rarely, to spare the flash; they are some minutes old.
"""

import asyncio
import json
import logging
import socket
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

log = logging.getLogger("iot_client")

_LONGEST = 100
"""Maximum bytes of a socket's path on every system (macOS: 104 with its terminator)."""
_PATIENCE = 2.0
"""Seconds to wait for an answer."""
_MOST = 2**20
"""Maximum bytes of an answer."""


def _place(outbox: Path) -> Path | None:
    """The path of the socket; None if this system or this path cannot have one."""
    place = outbox.with_name(f"{outbox.name}.sock").absolute()
    return place if hasattr(socket, "AF_UNIX") and len(bytes(place)) <= _LONGEST else None


@asynccontextmanager
async def answering(outbox: Path | None, figures: Callable[[], Mapping[str, Any]]) -> AsyncGenerator[None, None]:
    """Answer each connection with the figures as JSON, during the block. The outbox must be locked.

    Without a socket the device runs all the same; readers then use the files.
    """
    place = None if outbox is None else _place(outbox)
    if place is None:
        yield
        return

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            writer.write(json.dumps(figures()).encode())
            writer.close()
            await writer.wait_closed()

    try:
        place.unlink(missing_ok=True)  # left by a killed process: the outbox is ours
        server = await asyncio.start_unix_server(answer, place)
        place.chmod(0o600)
    except OSError as error:
        log.info("No socket %s (%s): `midge device status` reads files only.", place, error.strerror)
        yield
        return
    try:
        yield
    finally:
        server.close()
        with suppress(OSError):
            place.unlink()


def ask(outbox: Path) -> dict[str, Any] | None:
    """The figures of the device that runs with this outbox; None if there is no answer."""
    place = _place(outbox)
    if place is None or not place.exists():
        return None
    with suppress(OSError, ValueError), socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(_PATIENCE)
        connection.connect(str(place))
        answer = bytearray()
        while len(answer) < _MOST and (some := connection.recv(65_536)):
            answer += some
        found = json.loads(answer)
        return found if isinstance(found, dict) else None
    return None
