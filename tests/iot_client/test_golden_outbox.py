"""Outboxes of each format that was released open, and send what they held.

`golden/outbox-1` was written before there was a witness: identity, updates 3 to 5 of five, what the fifth left to say,
local tensors, samples and the month's costs; its log is not yet in the file.
"""

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest

from midge.iot_client.board.usage_budget import Budget, Costs
from midge.iot_client.data.samples import Samples
from midge.iot_client.state.local_tensors import LocalTensors
from midge.iot_client.state.outbox import Outbox
from midge.wire.schema import Schema, Tensor

GOLDEN = Path(__file__).parent / "golden"
IDENTITY = 4028336805342247919


def body(seq: int) -> bytes:
    return hashlib.sha256(b"%d" % seq).digest() * 5


@pytest.fixture
def first(tmp_path: Path) -> Path:
    return shutil.copytree(GOLDEN / "outbox-1", tmp_path / "first")


def test_the_first_format_is_migrated_and_sends_the_same(first: Path, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        with Outbox(first / "pump.box") as outbox:
            assert (outbox.identity, outbox.next_seq, outbox.sent, outbox.lost) == (IDENTITY, 6, 5, 0)
            assert [(update.seq, update.base, outbox.body(update.seq)) for update in outbox.held()] == [
                (seq, seq, body(seq)) for seq in (3, 4, 5)
            ]
            assert outbox.residual() == b"left of 5"
            assert outbox.remembered("trust.train") == b"remembered"
    assert not caplog.text
    assert (first / "pump.box.format-1").exists(), "what was there is kept"


def test_the_first_format_that_was_put_back_after_that_is_behind(first: Path, tmp_path: Path) -> None:
    shutil.copytree(first, tmp_path / "backup")
    with Outbox(first / "pump.box") as outbox:
        outbox.forget(4)
        (update,) = outbox.held()
        outbox.store(update.model_copy(update={"seq": 6}), body(5))
    for name in ("pump.box", "pump.box-wal"):
        shutil.copy(tmp_path / "backup" / name, first / name)
    with Outbox(first / "pump.box") as outbox:
        assert ([update.seq for update in outbox.held()], outbox.next_seq, outbox.lost) == ([5], 7, 1)


def test_what_lies_beside_it_is_taken_up(first: Path) -> None:
    schema = Schema([Tensor("w", (3,), "float32", "trained"), Tensor("head", (2,), "float32", "local")])
    own = LocalTensors(first / "pump.box.local.npz", None).join({"w": np.zeros(3, np.float32)}, schema)
    assert own["head"].tolist() == [1.5, -2.5]
    assert Budget(first / "pump.box.usage.json", Costs()).packed()["bytes"] == 12345
    samples = Samples(features=["a", "b"], label="y", path=first / "pump.samples")
    x, y = samples.arrays()
    samples.close()
    assert x[-1].tolist() == [49, 98] and y[-1] == 147
