"""Which step is released next: near x in the end, few bytes on the way, within the grid always."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from midge.aggregator.model.quantiser import Quantiser
from midge.wire import lineage
from midge.wire.lineage import State
from midge.wire.schema import Schema, Tensor

Vector = npt.NDArray[np.float32]


def plain(size: int) -> Schema:
    return Schema([Tensor("w", (size,), "float32", "trained")])


class Follower:
    """A published state that follows x from zeros."""

    def __init__(self, schema: Schema, x: Vector | None = None, exponent: int | None = None) -> None:
        self.state = lineage.on_grid(np.zeros(schema.size, np.float32) if x is None else x, schema, b"")
        if exponent is not None:
            self.state = State(schema, self.state.integers, exponent, b"")
        self.quantiser = Quantiser()
        self.quantiser.begin(self.state.values(), self.state)

    def release(self, x: Vector) -> Vector:
        """The values after a release."""
        step = self.quantiser.step(x, self.state)
        assert step is not None
        self.state = self.state.advance(step)
        self.step = step
        return self.state.values()


@pytest.mark.parametrize("size", [1, 9, 300, 5000])
@pytest.mark.parametrize("alike", [True, False])
def test_a_model_that_stands_still_is_reached(size: int, *, alike: bool) -> None:
    goal = np.full(size, 0.3, np.float32) if alike else np.random.default_rng(size).normal(size=size).astype(np.float32)
    follower = Follower(plain(size))
    for _ in range(400):
        values = follower.release(goal)
    assert np.abs(values - goal).max() <= 2.0**follower.state.exponent


@pytest.mark.parametrize("size", [3, 1500])
@pytest.mark.parametrize("gain", [0.1, 0.2])
def test_a_model_that_follows_its_own_published_state_comes_to_rest(size: int, gain: float) -> None:
    """Without the finer scale that is tried now and then it swings for ever, as wide as its scale."""
    goal, x = np.random.default_rng(size).normal(size=size).astype(np.float32), np.zeros(size, np.float32)
    follower = Follower(plain(size))
    values = follower.state.values()
    for _ in range(1500):
        x += np.float32(gain) * (goal - values)
        values = follower.release(x)
    assert np.abs(goal - values).mean() < 1e-2


@pytest.mark.parametrize(("late", "ratio", "behind"), [(4, 30, 20e-3), (0, 17, 6e-3)])
def test_noise_is_said_in_few_bytes_and_stays_near(late: int, ratio: int, behind: float) -> None:
    """The nearer, the less updates are late."""
    size = 20_000
    rng = np.random.default_rng(1)
    follower, x = Follower(plain(size)), np.zeros(size, np.float32)
    follower.quantiser.late([late] * 500)
    sizes = []
    for _ in range(120):
        x += rng.laplace(scale=1e-3, size=size).astype(np.float32)
        values = follower.release(x)
        sizes.append(len(lineage.encode_step(follower.step, follower.state.exponent)))
    assert sum(sizes[60:]) / len(sizes[60:]) < 4 * size / ratio
    assert np.sqrt(np.mean(np.square(x - values))) < behind


GRID = st.one_of(
    st.integers(-(2**30) + 64, 2**30 - 64),
    st.sampled_from([0, 1, -1, 127, 2**24 + 1, 2**30 - 64, -(2**30) + 64, 2**29 + 33, -(2**29) - 33]),
)


@given(st.lists(st.lists(GRID, min_size=6, max_size=6), min_size=1, max_size=8), st.sampled_from([-40, -24, 0, 60]))
def test_no_walk_within_the_grid_leaves_it(walk: list[list[int]], exponent: int) -> None:
    """Half of the values are averaged: those are exact after each release."""
    schema = Schema([Tensor("w", (3,), "float32", "trained"), Tensor("mean", (3,), "float32", "averaged")])
    follower = Follower(schema, exponent=exponent)
    for place in walk:
        x = np.ldexp(np.array(place, np.float32), exponent)
        values = follower.release(x)
        assert values[3:].tolist() == x[3:].tolist()
        assert np.abs(follower.state.integers.astype(np.int64)).max() <= 2**31 - 1


def test_a_value_that_outgrows_the_grid_needs_a_snapshot() -> None:
    follower = Follower(plain(3))
    edge = np.float32(2.0 ** (30 + follower.state.exponent))
    follower.release(np.array([np.nextafter(edge, np.float32(0)), 0, 0], np.float32))
    for value in (edge, -edge, np.float32(3e38)):
        assert follower.quantiser.step(np.array([0, value, 0], np.float32), follower.state) is None
    with pytest.raises(ValueError, match="not finite"):
        follower.quantiser.step(np.array([np.nan, 0, 0], np.float32), follower.state)


def test_a_state_at_its_limits_still_gives_a_step() -> None:
    schema = Schema([Tensor("mean", (2,), "float32", "averaged")])
    follower = Follower(schema)
    follower.state = State(schema, np.array([2**31 - 1, -(2**31) + 1], np.int32), 0, b"")
    x = np.array([-(2.0**30) + 64, 2.0**30 - 64], np.float32)
    follower.release(x)
    assert follower.release(x).tolist() == x.tolist()


def test_what_was_dumped_goes_on_to_the_bit() -> None:
    rng = np.random.default_rng(2)
    schema = Schema([Tensor("w", (40, 40), "float32", "trained"), Tensor("b", (40,), "float32", "trained")])
    follower, x = Follower(schema), np.zeros(schema.size, np.float32)
    for _ in range(90):
        x += rng.normal(size=schema.size).astype(np.float32) * np.float32(1e-3)
        follower.quantiser.late([3, 9])
        before = follower.quantiser.dump()
        again = Quantiser.load(*before).step(x, follower.state)
        state = follower.state
        follower.release(x)
        assert again is not None
        assert (state.integers + again == follower.state.integers).all()
