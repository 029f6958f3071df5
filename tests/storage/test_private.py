"""What holds names, deltas, rows and keys is its owner's alone, whatever the umask."""

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from midge.aggregator.store import device_erasure
from midge.iot_client.data.samples import Samples
from midge.iot_client.state.outbox import Outbox
from midge.storage.database import Database
from midge.storage.files import PUBLIC, atomic_write, make_folder
from tests.iot_client.test_session import made
from tests.security.test_forgetting import Keeping

ROOT = Path(__file__).parents[2]


@pytest.fixture(params=[0o000, 0o022])
def umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


def modes(folder: Path) -> dict[str, int]:
    """Of everything below a folder, and of itself, that others may do something with."""
    return {
        str(path.relative_to(folder)): stat.S_IMODE(path.stat().st_mode)
        for path in (folder, *folder.rglob("*"))
        if path.stat().st_mode & 0o077
    }


@pytest.mark.usefixtures("umask")
def test_a_store_and_all_that_is_in_it(tmp_path: Path) -> None:
    directory = tmp_path / "a" / "store"
    keeping = Keeping(directory, checkpoint_records=2)
    for seq in range(1, 6):
        keeping.send("pump", seq, np.ones(64, np.float32))
    device_erasure.ask(directory, "pump")
    keeping.hear(later=60.0)
    device_erasure.ask(directory, "valve")
    found = {path.name.removesuffix("-wal").split("-")[0] for path in directory.rglob("*")}
    assert {"store.db", "audit.log", "checkpoint", "valve"} <= found
    assert modes(tmp_path / "a") == {}


@pytest.mark.usefixtures("umask")
def test_what_a_device_writes(tmp_path: Path) -> None:
    folder = tmp_path / "device"
    with Outbox(folder / "pump.outbox") as outbox:
        outbox.store(made(outbox=outbox.identity, seq=1), b"body", b"residual")
        samples = Samples(folder / "pump.samples", ["a"], "b")
        samples.observe([1.0], 2.0)
        samples.flush()
        samples.close()
        atomic_write(folder / "pump.usage", b"{}")
        assert len(list(folder.iterdir())) >= 5
        assert modes(folder) == {}


@pytest.mark.usefixtures("umask")
def test_a_file_of_an_earlier_version_is_narrowed_when_it_is_opened(tmp_path: Path) -> None:
    for name in ("x.db", "x.db-wal", "x.db-shm"):
        (tmp_path / name).touch()
        (tmp_path / name).chmod(0o644)
    database = Database(tmp_path / "x.db")
    database.open("CREATE TABLE IF NOT EXISTS t (x)")
    tmp_path.chmod(0o700)
    assert modes(tmp_path) == {}
    database.close()


def test_a_public_file_is_as_the_umask_says_and_a_folder_in_between_is_private(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        atomic_write(tmp_path / "release.pub", b"public", mode=PUBLIC)
        make_folder(tmp_path / "a" / "b")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "release.pub").stat().st_mode) == 0o644
    assert modes(tmp_path / "a") == {}


def test_aggregator_and_device_write_by_no_other_way() -> None:
    """A file that Python opens for writing has the mode that the umask gives it."""
    ways = re.compile(r"\.write_(text|bytes)\(|\.touch\(|\.mkdir\(|\bopen\([^)]*[\"'][wax]b?\+?[\"']")
    allowed = {"iot_client/training/subprocess_trainer.py": 1}  # /proc/self/oom_score_adj
    found = {
        str(path.relative_to(ROOT)): len(lines)
        for folder in ("aggregator", "iot_client", "storage")
        for path in sorted((ROOT / folder).rglob("*.py"))
        if (lines := ways.findall(path.read_text())) and path.name != "files.py" and "micropython" not in path.parts
    }
    assert found == allowed
