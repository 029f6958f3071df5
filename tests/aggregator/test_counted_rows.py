"""Rows of embedding tables are averaged over the updates that changed them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from midge.aggregator.core.presets import fedbuff
from midge.aggregator.core.records import StepRecord
from midge.aggregator.core.staleness import constant
from midge.aggregator.model.reducer import Contribution, ServerState, make_step
from midge.aggregator.store.reading import ReadOnlyStore
from midge.aggregator.store.replaying import replay
from midge.wire.schema import Schema
from tests.aggregator.rig import rig

VALUES = {"embedding": np.zeros((3, 2), np.float32), "head": np.zeros((2, 2), np.float32)}
SCHEMA = Schema.of(VALUES)


def stepped(deltas: list[list[float]], weights: list[float], rows: tuple[str, ...]) -> list[float]:
    x = np.zeros(SCHEMA.size, np.float32)
    record = StepRecord(1, 1, tuple(enumerate(weights)), rate=1.0, form="delta", normalise="weight", rows=rows)
    items = [Contribution(np.array(delta, np.float32), None, 0) for delta in deltas]
    make_step(x, SCHEMA, record, items, ServerState())
    return x.tolist()


A: list[float] = [1, 2, 0, 0, 0, 0, 4, 4, 4, 4]
B: list[float] = [3, 4, 6, 8, 0, 0, 8, 8, 8, 8]


def test_a_row_counts_for_those_that_changed_it_and_other_tensors_for_all() -> None:
    """The bug: divided by all, a row that one of two devices has moves by half of what it learned."""
    assert stepped([A, B], [1, 1], ()) == [2, 3, 3, 4, 0, 0, 6, 6, 6, 6]
    assert stepped([A, B], [1, 1], ("emb*",)) == [2, 3, 6, 8, 0, 0, 6, 6, 6, 6]
    assert stepped([A, B], [1, 3], ("emb*",)) == [2.5, 3.5, 6, 8, 0, 0, 7, 7, 7, 7]
    assert stepped([A, B], [1, 1], ("nothing*",)) == stepped([A, B], [1, 1], ())
    half: list[float] = [0, 1, 0, 0, 0, 0, 0, 0, 0, 0]  # a row with one value changed is a row that was changed
    assert stepped([A, half], [1, 1], ("embedding",))[:2] == [0.5, 1.5]


def test_a_replay_gives_the_same_bits(tmp_path: Path) -> None:
    strategy = replace(
        fedbuff(3, 0.7, constant(), norm_limit=None, bounded=False, release_floor=1), count_rows=("embedding",)
    )
    rng = np.random.default_rng(0)
    with rig(tmp_path, strategy, parameters=VALUES) as life:
        for number in range(1, 5):
            for name in "abc":
                delta = rng.normal(size=SCHEMA.size).astype(np.float32)
                delta[:6].reshape(3, 2)[rng.random(3) < 0.5] = 0
                life.send(name, number, delta, base=life.core.version)
        assert life.core.step == 4
        digest = life.model.digest().hex()
    with ReadOnlyStore(tmp_path) as store:
        assert {each.whole for each in replay(store)} == {digest}


def test_what_cannot_count_rows_says_so() -> None:
    plain = fedbuff(3)
    for wrong in ({"buffer_size": 1}, {"combine": "centred"}, {"calibration": 0.5}):
        with pytest.raises(ValueError, match="count_rows"):
            replace(plain, count_rows=("a",), **wrong)
