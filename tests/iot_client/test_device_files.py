"""What lies beside an outbox rots too: it is as none then, told, and made again; `midge device verify` finds it."""

import json
import logging
import shutil
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from midge.__main__ import main
from midge.iot_client.board.usage_budget import Budget, Costs
from midge.iot_client.data.samples import Samples
from midge.iot_client.state.local_tensors import LocalTensors
from midge.iot_client.state.outbox import Outbox
from midge.iot_client.state.prediction import Predicting
from midge.iot_client.state.verified_model import VerifiedModel
from midge.wire.lineage import on_grid
from midge.wire.schema import Schema, Tensor
from tests.iot_client.test_outbox_rot import memory
from tests.iot_client.test_session import made

__all__ = ["memory"]
SCHEMA = Schema([Tensor("w", (3,), "float32", "trained"), Tensor("head", (2,), "float32", "local")])
OWN = np.array([1.5, -2.5], np.float32)
ZEROS = {"w": np.zeros(3, np.float32)}


def fill(folder: Path) -> Path:
    path = folder / "box"
    with Outbox(path) as box:
        for seq in (1, 2):
            box.store(made(outbox=box.identity, seq=seq), b"%d" % seq, b"left")
    personal = LocalTensors(folder / "box.local.npz", {"head": np.zeros(2, np.float32)})
    personal.join(ZEROS, SCHEMA)
    personal.keep({"head": OWN}, SCHEMA, 0.0)
    budget = Budget(folder / "box.usage.json", Costs())
    budget.spend(moved=12345)
    budget.save()
    samples = Samples(folder / "box.samples", ["a", "b"], "y")
    for row in range(50):
        samples.observe([row, 2 * row], 3 * row)
    samples.close()
    return path


def read(folder: Path) -> tuple[Any, ...]:
    """As a device that starts: its own tensors, what the month has cost, its rows."""
    own = LocalTensors(folder / "box.local.npz", {"head": np.zeros(2, np.float32)}).join(ZEROS, SCHEMA)["head"]
    month = Budget(folder / "box.usage.json", Costs()).packed()
    samples = Samples(folder / "box.samples", ["a", "b"], "y")
    x, y = samples.arrays()
    samples.close()
    return own.tolist(), month, x.tolist(), y.tolist()


@pytest.mark.parametrize("name", ["box.local.npz", "box.usage.json", "box.samples"])
def test_a_bit_of_them_is_told(memory: Path, caplog: pytest.LogCaptureFixture, name: str) -> None:
    rng = Random(3)
    (memory / "live").mkdir()
    fill(memory / "live")
    shutil.copytree(memory / "live", memory / "reference")
    before, told = read(memory / "reference"), 0
    data = (memory / "live" / name).read_bytes()
    places = range(len(data)) if len(data) < 500 else [*range(100), *rng.sample(range(len(data)), 100)]
    for place in places:
        trial = memory / "trial"
        shutil.copytree(memory / "live", trial)
        flipped = bytearray(data)
        flipped[place] ^= 1 << rng.randrange(8)
        (trial / name).write_bytes(flipped)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            changed = read(trial) != before
        assert not changed or caplog.text, f"{name} at {place}: not a word"
        told += changed
        shutil.rmtree(trial)
    assert told > 10


def test_a_model_of_which_a_bit_rotted_is_not_predicted_with(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = on_grid(np.arange(3, dtype=np.float32), Schema([Tensor("w", (3,), "float32", "trained")]), b"")
    path = tmp_path / "box.model"

    def life() -> Predicting:
        return Predicting(path, lambda parameters, x: x, lambda parameters, schema: parameters)

    first = life()
    first.take(VerifiedModel("train", b"l" * 16, 7, state), 0.0)
    first.close()
    data = path.read_bytes()
    for place in range(len(data)):
        caplog.clear()
        path.write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
        again = life()
        again.restore()
        assert again.model is None and "is not used" in caplog.text, place


def test_verify_finds_each_and_changes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = fill(tmp_path)

    def verify() -> tuple[int, dict[str, Any]]:
        code = main(["device", "verify", "--json", str(path)])
        return code, json.loads(capsys.readouterr().out.splitlines()[-1])

    with Outbox(path):  # beside a device that runs
        assert verify()[0] == 0
    code, fine = verify()
    assert (code, fine["ok"], fine["damaged"], len(fine["parts"])) == (0, True, 0, 6)
    for name in ("box.witness", "box.residual-2", "box.local.npz", "box.usage.json", "box.samples"):
        data = (tmp_path / name).read_bytes()
        place = data.find(b"12345") if name == "box.usage.json" else 5000 if len(data) > 5000 else len(data) // 2
        place = 20 if name == "box.witness" else data.rfind(np.float32(147).tobytes()) if "samples" in name else place
        (tmp_path / name).write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        files = {each.name: each.read_bytes() for each in tmp_path.iterdir() if not each.name.endswith("-shm")}
        code, found = verify()
        assert (code, found["damaged"], found["at_stake"]) == (1, 1, 0), name
        assert {each.name: each.read_bytes() for each in tmp_path.iterdir() if not each.name.endswith("-shm")} == files
        (tmp_path / name).write_bytes(data)
    (tmp_path / "box").unlink()
    code, found = verify()
    assert (code, found["damaged"], found["at_stake"]) == (1, 1, 2)


def test_a_loss_can_be_accepted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = fill(tmp_path)
    with Outbox(path) as box:
        before = box.identity
    path.write_bytes(b"rubbish" * 1000)
    (tmp_path / "box.witness").unlink()
    assert main(["device", "verify", "--accept-loss", str(path)]) == 1
    assert "Put aside" in capsys.readouterr().out
    with Outbox(path) as box:
        assert box.identity != before and box.next_seq == 1
    assert (tmp_path / "box.damaged").read_bytes() == b"rubbish" * 1000


def test_what_is_no_outbox_is_a_mistake(tmp_path: Path) -> None:
    assert main(["device", "verify", "--json", str(tmp_path / "none")]) == 2


def test_files_of_two_devices_in_one_folder_are_not_taken_for_each_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fill(tmp_path)
    for ending in ("local.npz", "usage.json"):
        shutil.copy(tmp_path / f"box.{ending}", tmp_path / f"box2.{ending}")
    own = LocalTensors(tmp_path / "box2.local.npz", {"head": np.zeros(2, np.float32)}).join(ZEROS, SCHEMA)["head"]
    assert own.tolist() == [0, 0] and "of another device" in caplog.text
    assert Budget(tmp_path / "box2.usage.json", Costs()).bytes == 0 and "box2.usage.json" in caplog.text
