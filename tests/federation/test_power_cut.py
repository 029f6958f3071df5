"""The power goes: what was told before is on the disk after.

A disk is a file with ext4 on it, which lies on XFS. Copying that file by reflink takes an instant: what reached the
disk until then, and nothing else. The copy is mounted and looked at. It needs root, loop devices and mkfs.xfs.
"""

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from midge.aggregator.publish.announcement_signer import load_release_keys
from midge.aggregator.store.store import Store, StoreError
from midge.iot_client.state.outbox import Outbox
from midge.wire.signing import KeyUnusable
from tests import needs
from tests.aggregator.rig import Rig
from tests.federation import writers
from tests.mutants.launch import VARIABLE
from tests.waiting import LAST_RESORT

CUTS = (2, 50, 300)
"""After how many words the power goes; where just then, the writer and its disk decide."""
MUTANT_CUTS = 3


def command(*words: object) -> None:
    subprocess.run([str(word) for word in words], check=True, capture_output=True)


@contextmanager
def mounted(image: Path, place: Path) -> Iterator[Path]:
    place.mkdir()
    command("mount", "-o", "loop", image, place)
    try:
        yield place
    finally:
        command("umount", place)
        place.rmdir()


@pytest.fixture(scope="module")
def reflinks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory in which a copy takes an instant."""
    if shutil.which("mkfs.xfs") is None or shutil.which("mkfs.ext4") is None:
        pytest.skip(needs.DISKS)
    if os.geteuid() != 0:
        pytest.skip(needs.MOUNTS)
    home = tmp_path_factory.mktemp("disk")
    image = home / "xfs"
    with image.open("wb") as file:
        file.truncate(1 << 30)
    command("mkfs.xfs", "-q", "-m", "reflink=1", image)
    try:
        with mounted(image, home / "mounted") as place:
            yield place
    except subprocess.CalledProcessError:
        pytest.skip(needs.LOOPS)


class Writer:
    """A writer in a process, and what it has told so far."""

    def __init__(self, part: str, directory: Path, bug: str) -> None:
        script = Path(writers.__file__)
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(script), part, str(directory)],
            stdout=subprocess.PIPE,
            env={**os.environ, VARIABLE: bug},
        )
        self.told: list[str] = []
        self._ended = False
        self._news = threading.Condition()
        self._reading = threading.Thread(target=self._read)
        self._reading.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with self._news:
                self.told.append(line.decode().strip())
                self._news.notify()
        with self._news:
            self._ended = True
            self._news.notify()

    def until(self, words: int) -> None:
        """Wait until it has told so much."""
        with self._news:
            assert self._news.wait_for(lambda: len(self.told) >= words or self._ended, LAST_RESORT)
        assert len(self.told) >= words, "it ended by itself"

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self._reading.join()
        assert self._process.stdout is not None
        self._process.stdout.close()


def cut(part: str, place: Path, words: int, bug: str = "") -> tuple[list[str], Path]:
    """Let a writer tell so much, and cut the power; what it had told, and the disk as it was then."""
    disk, after = place / "disk", place / "after"
    after.unlink(missing_ok=True)
    with disk.open("wb") as file:
        file.truncate(128 << 20)
    command("mkfs.ext4", "-q", disk)
    with mounted(disk, place / "before") as directory:
        writer = Writer(part, directory, bug)
        try:
            writer.until(words)
            told = list(writer.told)
            command("cp", "--reflink=always", disk, after)
        finally:
            writer.kill()
    return told, after


def lost_by_the_server(directory: Path, told: list[str]) -> str | None:
    """What the store on a disk lacks of what was told; None where it has all."""
    last = int(told[-1])
    try:
        life = Rig(directory, parameters={"x": np.zeros(writers.PLACES, np.float32)}, store=Store(directory))
    except StoreError as error:
        return str(error)
    hi, x = life.core.hi("a", 1), life.model.x.copy()
    life.close()
    if hi < last:
        return f"{last - hi} of {last} updates that were receipted"
    assert np.array_equal(x[1 : hi + 1], np.ones(hi)) and not x[hi + 1 :].any()
    return None


def lost_by_the_device(directory: Path, told: list[str]) -> str | None:
    """What the outbox on a disk lacks of what was told; None where it has all."""
    identity, last = int(told[0].split()[1]), int(told[-1])
    with Outbox(directory / "outbox") as outbox:
        if outbox.identity != identity:
            return "its identity"
        held = {update.seq for update in outbox.held()}
        if outbox.next_seq <= last:
            return f"the numbers up to {last}; the next is {outbox.next_seq}"
        due = set(range(max(1, outbox.next_seq - 3), outbox.next_seq))
        return None if held >= due else f"updates {sorted(due - held)}"


def lost_of_the_keys(directory: Path, told: list[str]) -> str | None:
    """What of the release keys and their chains is not on a disk; None if all of it is."""
    newest = {int(fleet): int(links) for fleet, links in (line.split() for line in told)}  # the last that was told
    for fleet, links in newest.items():
        try:
            found = load_release_keys(directory / str(fleet) / "release.key")
        except KeyUnusable as error:
            return str(error)
        if len(found.chain) < links:
            return f"{links - len(found.chain)} of {links} successors of a release key"
    return None


PARTS = {"server": lost_by_the_server, "device": lost_by_the_device, "keys": lost_of_the_keys}


@pytest.mark.parametrize("part", PARTS)
def test_what_was_told_before_is_there_after(reflinks: Path, part: str) -> None:
    for words in CUTS:
        told, disk = cut(part, reflinks, words)
        with mounted(disk, reflinks / "afterwards") as directory:
            assert PARTS[part](directory, told) is None


@pytest.mark.parametrize("part", PARTS)
def test_who_does_not_wait_for_the_disk_is_caught(reflinks: Path, part: str) -> None:
    for _ in range(MUTANT_CUTS):
        told, disk = cut(part, reflinks, 200, "no_waiting_for_the_disk")
        with mounted(disk, reflinks / "afterwards") as directory:
            if PARTS[part](directory, told) is not None:
                return
    pytest.fail("nothing was lost without waiting for the disk: this test sees nothing")
