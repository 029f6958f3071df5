"""A federation whose aggregator has shards, in a world that kills its processes, the broker and the devices."""

from contextlib import suppress
from pathlib import Path

from tests.harness.processes import Actor


def shards_of(root: Actor) -> list[int]:
    """The process numbers of a root's shards that run."""
    if not root.running:
        return []
    found = []
    for pid in _children(root.pid):
        with suppress(OSError):
            if b"MIDGE_SHARD=" in Path(f"/proc/{pid}/environ").read_bytes():
                found.append(pid)
    return found


def _children(pid: int) -> list[int]:
    with suppress(OSError):
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []
