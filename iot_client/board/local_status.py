"""What a running device tells its own board of itself: figures of now, over a UNIX socket beside its outbox.

The files beside the outbox are written rarely, to spare the flash; so they say what was so some minutes ago.
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
"""Bytes of a path that a socket may have on every system (macOS: 104 with its end)."""
_PATIENCE = 2.0
"""Seconds to wait for an answer."""
_MOST = 2**20
"""Bytes of an answer that are read."""


def _place(outbox: Path) -> Path | None:
    """Where the socket lies; None if this system or this path cannot have one."""
    place = outbox.with_name(f"{outbox.name}.sock").absolute()
    return place if hasattr(socket, "AF_UNIX") and len(bytes(place)) <= _LONGEST else None


@asynccontextmanager
async def answering(outbox: Path | None, figures: Callable[[], Mapping[str, Any]]) -> AsyncGenerator[None, None]:
    """Answer whoever connects with the figures as JSON, for as long as the block lasts. The outbox must be locked.

    Without a socket everything goes on; then the files must do.
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
        place.unlink(missing_ok=True)  # of one that was killed: the outbox is ours
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
    """The figures of the device that runs with this outbox; None if none answers."""
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
