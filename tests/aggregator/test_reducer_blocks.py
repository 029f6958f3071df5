"""A plain step is made in blocks; it must be, bit for bit, what the formula gives over the whole vector."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from midge.aggregator.core.records import StepRecord
from midge.aggregator.model import reducer
from midge.aggregator.model.reducer import Contribution, ServerState, make_step
from midge.wire.schema import Schema, Tensor

SCHEMA = Schema([Tensor("a", (70,), "float32", "trained"), Tensor("b", (31,), "float32", "averaged")])


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 5),
    st.sampled_from(["weight", "count", "none"]),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_the_same_bits(  # noqa: PLR0917 - what hypothesis draws
    seed: int, count: int, normalise: str, scaled: bool, noisy: bool, parts: bool
) -> None:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=SCHEMA.size).astype(np.float32)
    x[rng.random(x.size) < 0.1] = np.float32(-0.0)
    covered: list[tuple[int, ...] | None] = [None, (0,), (1,), (0, 1)]
    contributions = [
        Contribution(
            rng.normal(size=SCHEMA.size).astype(np.float32) * (rng.random(SCHEMA.size) < 0.5).astype(np.float32),
            covered[int(rng.integers(4))] if parts else None,
            1,
            f"d{number}",
        )
        for number in range(count)
    ]
    record = StepRecord(
        lsn=1,
        step=1,
        updates=tuple((number, float(rng.random())) for number in range(count)),
        rate=float(rng.random()),
        form="delta",
        normalise=normalise,
        scales=tuple(rng.choice([1.0, 0.3], count)) if scaled else (),
    )
    noise = rng.normal(size=SCHEMA.size).astype(np.float32) if noisy else None
    whole, blocked = x.copy(), x.copy()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reducer, "_plain", lambda _: False)
        make_step(whole, SCHEMA, record, contributions, ServerState(), noise)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reducer, "_BLOCKED", 16)
        make_step(blocked, SCHEMA, record, contributions, ServerState(), noise)
    assert blocked.tobytes() == whole.tobytes()


def test_weights_of_nothing_change_nothing() -> None:
    x = np.ones(SCHEMA.size, np.float32)
    record = StepRecord(lsn=1, step=1, updates=((1, 0.0),), rate=1.0, form="delta", normalise="weight")
    make_step(x, SCHEMA, record, [Contribution(x.copy(), None, 1)], ServerState())
    assert (x == 1).all()
    make_step(x, SCHEMA, replace(record, updates=((1, 1.0),)), [Contribution(x.copy(), None, 1)], ServerState())
    assert (x == 2).all()
