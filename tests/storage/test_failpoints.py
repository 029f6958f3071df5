"""Failpoints: known by name, each in one place, and harmless unless they are asked for."""

import os
import re
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.device import PACKAGES
from midge.storage.failpoints import POINTS, VARIABLE, failpoint

ROOT = Path(__file__).parents[2]


def test_every_failpoint_is_registered_and_stands_in_one_place() -> None:
    sources = [path.read_text() for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    called = Counter(name for source in sources for name in re.findall(r"\bfailpoint\(([^)]*)\)", source))
    del called["name: str"]  # the function itself
    del called['"name"']  # its description
    assert called == Counter(f'"{name}"' for name in POINTS)


def program(wish: str, calls: int) -> subprocess.CompletedProcess[bytes]:
    lines = f"from midge.storage.failpoints import failpoint\nfor _ in range({calls}): failpoint('commit.after')"
    environment = {**os.environ, VARIABLE: wish}
    return subprocess.run([sys.executable, "-c", lines], env=environment, capture_output=True, check=False)


def test_the_process_is_killed_at_the_hit_that_was_asked_for() -> None:
    assert program("commit.after", 1).returncode == -signal.SIGKILL
    assert program("commit.after:3", 3).returncode == -signal.SIGKILL
    assert program("commit.after:3", 2).returncode == 0
    assert program("commit.before", 5).returncode == 0


@pytest.mark.parametrize("wish", ["commit.afer", "commit.after:0", "commit.after:x"])
def test_a_failpoint_that_does_not_exist_is_refused(wish: str) -> None:
    refused = program(wish, 1)
    assert refused.returncode == 1
    assert b"there is no such failpoint" in refused.stderr


def test_nothing_happens_where_nothing_was_asked_for() -> None:
    for name in POINTS:
        failpoint(name)
