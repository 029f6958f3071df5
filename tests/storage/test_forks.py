"""A worker that outlives the process that forked it keeps neither its lock nor its connection."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from midge.storage import forks
from midge.storage.database import Database, InUse


@contextmanager
def worker() -> Iterator[None]:
    """A forked process that lives for as long as the block lasts."""
    ours, its = socket.socketpair()
    child = os.fork()
    if not child:
        ours.close()
        its.sendall(b"x")
        its.recv(1)
        os._exit(0)
    its.close()
    assert ours.recv(1) == b"x", "it is up"
    yield
    ours.close()
    os.waitpid(child, 0)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_worker_that_is_left_over_does_not_keep_the_outbox_locked(tmp_path: Path) -> None:
    """Seen to fail: "in use by another device" at each start, until the worker was ended."""
    first = Database(tmp_path / "box", lock=tmp_path / "lock")
    first.lock()
    with worker():
        with pytest.raises(InUse):
            Database(tmp_path / "box", lock=tmp_path / "lock").lock()
        first.close()  # as the end of a killed process does it
        second = Database(tmp_path / "box", lock=tmp_path / "lock")
        second.lock()
        second.close()


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_worker_that_is_left_over_does_not_keep_the_connection() -> None:
    ours, theirs = socket.socketpair()
    forks.own(ours.fileno())
    theirs.settimeout(10)
    with worker():
        ours.sendall(b"x")
        assert theirs.recv(1) == b"x", "the child has not closed it for us"
        forks.disown(ours.fileno())
        ours.close()
        assert theirs.recv(1) == b""
    theirs.close()
