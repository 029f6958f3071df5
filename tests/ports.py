"""Ports that nobody else takes meanwhile."""

import os
import socket
from itertools import count

_FIRST, _EACH, _WORKERS = 12_000, 1_000, 20
"""Below what Linux gives to outgoing connections (32768 on): no connection of anybody takes one by chance."""
_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % _WORKERS
_numbers = count(os.getpid() % _EACH)


def free_port() -> int:
    """A TCP port of the loopback that is free, and that no other test of this run gets.

    The kernel's own choice of a free port may be its choice for somebody's next connection, too.
    """
    for _ in range(_EACH):
        port = _FIRST + _WORKER * _EACH + next(_numbers) % _EACH
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
    raise AssertionError("no port is free")
