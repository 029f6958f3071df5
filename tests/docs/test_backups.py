"""The commands of docs/backups.md do what the page says."""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from midge.aggregator.store.manifest import read_backup
from midge.aggregator.store.put_back import marked
from midge.aggregator.store.store import Store
from tests.aggregator.rig import rig
from tests.docs.scripts import ROOT

PAGE = ROOT / "docs" / "backups.md"


def commands(section: str) -> list[str]:
    """The lines of a section that are code."""
    text = PAGE.read_text().split(f"\n## {section}\n")[1].split("\n## ")[0]
    return re.findall(r"^    (\S.*)$", text, re.MULTILINE)


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., str]:
    """Runs a line of the page, with its places below a folder of the test's."""
    (tmp_path / "backup").mkdir()
    (tmp_path / "midge").write_text(f'#!/bin/sh\nexec {sys.executable} -m midge "$@"\n')
    (tmp_path / "midge").chmod(0o755)

    def line(command: str, code: int = 0) -> str:
        command = command.replace("/backup/", f"{tmp_path}/backup/").replace("/var/lib/midge", str(tmp_path / "var"))
        command = re.sub(r"^midge ", f"{tmp_path}/midge ", command)
        done = subprocess.run(["sh", "-ec", command], check=False, capture_output=True, text=True)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    return line


def test_the_pages_commands_back_a_running_store_up_and_put_it_back(tmp_path: Path, run: Callable[..., str]) -> None:
    with rig(tmp_path / "var" / "store") as life:
        for seq in range(1, 6):
            life.send("a", seq, [1, 0, 0, 0])
        making = commands("Making a backup")
        assert "version 6" in run(making[0])
        (nightly, clearing) = (line for line in making if line.startswith(("17 ", "47 ")))
        run(nightly.removeprefix("17 2 * * * ").replace("\\%", "%"))
        (tonight,) = (tmp_path / "backup").glob("store-*")
        assert read_backup(tonight).version == 6
        run(clearing.removeprefix("47 2 * * * ").replace("find /backup ", f"find {tmp_path}/backup "))
        assert tonight.exists()
        assert "All the same." in run(making[-1])
        life.send("a", 6, [1, 0, 0, 0])
    for line in commands("Restoring a backup"):
        run(line)
    with Store(tmp_path / "var" / "store") as store:
        assert store.newest_lsn() == read_backup(tmp_path / "backup" / "first").lsn
        assert marked(store) == 0
    assert (tmp_path / "var" / "store.old" / "store.db").exists()


def test_the_pages_commands_look_at_a_store_and_salvage_a_damaged_one(tmp_path: Path, run: Callable[..., str]) -> None:
    verifying, looking, accepting = commands("A damaged store")
    store = tmp_path / "var" / "store"
    with rig(tmp_path / "running") as life:
        for seq in range(1, 6):
            life.send("a", seq, [1, 0, 0, 0])
        shutil.copytree(tmp_path / "running", store)
    assert "Everything is undamaged." in run(verifying)
    (store / "store.db-wal").unlink()
    assert "DAMAGED" in run(verifying, code=1)
    assert "5 updates" in run(looking, code=1)
    assert "is made" in run(accepting)
    with Store(tmp_path / "var" / "salvaged") as salvaged:
        assert marked(salvaged) == 0
