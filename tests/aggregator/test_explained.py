"""`midge explain` after a promotion and after a return to an earlier version: what became of each update."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from midge.__main__ import main
from midge.aggregator.core import records as rec
from midge.aggregator.core.registry_decisions import Cause
from midge.aggregator.store.inspection import Life, explain
from midge.aggregator.store.registered import snapshot_of
from midge.aggregator.store.store import Entry, Store
from tests.aggregator.rig import EVERYTHING_COUNTS, Rig, rig
from tests.aggregator.test_counterfactual import THREES, live, registered

PAIRS = replace(EVERYTHING_COUNTS, release_floor=2)
"""Each update is a step, and two devices make a release."""


def life_of(directory: Path, device: str, seq: int) -> Life:
    (life,) = explain(directory, device, seq)
    return life


def words(directory: Path, update: str, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert main(["explain", str(directory), update]) == 0
    return capsys.readouterr().out


def packed(directory: Path, update: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["explain", str(directory), update, "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert isinstance(found, dict)
    return found


def test_an_update_that_waited_when_a_what_if_was_promoted_waits_no_longer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Seen to fail: it "waits in the buffer" for ever, and the promotion did not say that it drops updates."""
    live(tmp_path, THREES)
    with rig(tmp_path, THREES) as life:
        life.send("a", 5, [1, 1, 1, 1])
    assert "waits in the buffer" in words(tmp_path, "a/5", capsys)
    assert main(["replay", str(tmp_path), "--without", "c", "--promote"]) == 0
    assert "1 accepted update that waited for a step ended" in capsys.readouterr().out
    for _ in range(2):
        said = words(tmp_path, "a/5", capsys)
        assert "buffer" not in said and "dropped while it waited for its step" in said and "without c" in said
        found = packed(tmp_path, "a/5", capsys)
        assert found["ended"]["how"] == "rollback" and not found["waits"]
        with rig(tmp_path, THREES) as life:  # the same after the next start, and later steps
            for name in "abd":
                life.send(name, 6 if name == "a" else 9, [1, 1, 1, 1], base=life.core.version, generation=1)


def test_what_a_promoted_what_if_contains_is_said_of_each_update(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Seen to fail: the promoted version was said to have released an update of the device that it is without."""
    with rig(tmp_path, PAIRS) as life:
        for device, seq in (("a", 1), ("c", 1), ("c", 2), ("a", 2), ("c", 3)):
            life.send(device, seq, [seq, 1, 2, ord(device)], base=life.core.version)
        version = life.core.version
        assert (life_of(tmp_path, "c", 3).step, life_of(tmp_path, "c", 3).release) != (None, None)
    assert main(["replay", str(tmp_path), "--without", "c", "--promote", "--release-floor", "1"]) == 0
    said = words(tmp_path, "c/3", capsys)
    assert "never released" in said and f"not in version {version + 2}" in said and "released with" not in said
    said = words(tmp_path, "c/1", capsys)
    assert "released with version 2" in said and f"not in version {version + 2} and those after it" in said
    assert packed(tmp_path, "c/1", capsys)["undone"]["since"] == version + 2
    said = words(tmp_path, "a/1", capsys)
    assert "released with version 2" in said and "not in" not in said


def test_a_promoted_what_if_releases_steps_of_others_that_no_release_had(tmp_path: Path) -> None:
    with rig(tmp_path, PAIRS) as life:
        for device, seq in (("a", 1), ("c", 1), ("a", 2)):
            life.send(device, seq, [seq, 1, 2, ord(device)], base=life.core.version)
        version = life.core.version
    assert life_of(tmp_path, "a", 2).step and not life_of(tmp_path, "a", 2).release
    assert main(["replay", str(tmp_path), "--without", "c", "--promote", "--release-floor", "1"]) == 0
    found = life_of(tmp_path, "a", 2)
    assert found.release is not None and found.release.version == version + 2 and found.undone is None


def go_back(life: Rig, version: int) -> None:
    """As `midge model rollback` has it done."""
    back = life.core.registering.roll_back(version, Cause("it diverged"))
    snapshot = snapshot_of(life.store, life.core.registry.versions[version])
    assert snapshot is not None
    key = life.ingress.bodies.keep(memoryview(snapshot))
    life.processor.shell.carry_out(life.core.roll_back(back, key, 0.0), 0.0)


def send(life: Rig, seq: int) -> None:
    life.send("a", seq, [seq, 0, 0, 0], base=life.core.version, generation=life.core.generation)


def test_a_return_to_an_earlier_version_undoes_what_came_after_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Seen to fail: an update that is in no model any more was "released with version 3", and no more was said."""
    with rig(tmp_path, EVERYTHING_COUNTS) as life:
        send(life, 1)
        registered(life)
        send(life, 2)
        registered(life)
        go_back(life, 2)
        send(life, 3)
        said = words(tmp_path, "a/2", capsys)
        assert "released with version 3" in said and "not in version 4 and those after it" in said
        assert "it diverged" in said
        assert life_of(tmp_path, "a", 1).undone is None
        newest = life_of(tmp_path, "a", 3)
        assert newest.release is not None and newest.release.version == life.core.version and newest.undone is None
        go_back(life, 3)  # and to the later one again
        assert life_of(tmp_path, "a", 2).undone is None
        assert life_of(tmp_path, "a", 3).undone is not None


def test_a_release_without_devices_work_has_no_update(tmp_path: Path) -> None:
    """Seen to fail: the first release of a generation, which publishes the model before, was said to have the step."""
    with rig(tmp_path, PAIRS) as life:
        life.send("a", 1, [1, 0, 0, 0])
        life.processor.shell.carry_out(life.core.begin_generation(1, life.core.version, 0.0), 0.0)
        assert life_of(tmp_path, "a", 1).release is None
        life.send("b", 1, [1, 1, 0, 0], base=life.core.version, generation=1)
        found = life_of(tmp_path, "a", 1).release
        assert found is not None and found.version == life.core.version


@pytest.mark.parametrize("kind", ["drop", "sum"])
def test_an_update_that_was_dropped_or_sent_on_waits_for_no_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    """Seen to fail: a gateway's update that was sent on, and a masked one without a sum, waited in the buffer."""
    with rig(tmp_path, THREES) as life:
        life.send("a", 1, [1, 1, 1, 1])
        lsn = life.core.lsn
    dropped = rec.DropRecord(lsn + 1, (lsn,), "unsummed")
    summed = rec.SumRecord(lsn + 1, 7, 0, 1, b"", ((lsn, 0.5),), (), 1)
    with Store(tmp_path) as store:
        store.commit([Entry(dropped if kind == "drop" else summed, None)])
    said = words(tmp_path, "a/1", capsys)
    assert "buffer" not in said and packed(tmp_path, "a/1", capsys)["ended"]["how"] == kind
    assert ("unsummed" if kind == "drop" else "sum 7 with weight 0.5") in said
