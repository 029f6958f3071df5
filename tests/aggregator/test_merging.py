"""Merged steps: exact, and enough of them that nobody is far away."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from midge.aggregator.model import step_merging as merging_module
from midge.aggregator.model.step_merging import Merging, listed, narrowed
from midge.wire import lineage
from midge.wire.lineage import Integers, route
from midge.wire.messages import FrameInfo

LARGEST = 2**31 - 1


def frames_of(steps: list[Integers], *, restart: int | None = None) -> dict[tuple[int, int], bytes]:
    """All that is made of steps to the versions 1, 2, …; behind a dump and a load where one is asked for."""
    merging = Merging()
    made: dict[tuple[int, int], bytes] = {}
    for version, step in enumerate(steps, start=1):
        if version == restart:
            merging = Merging.load(merging.dump())
        data = lineage.encode_step(step, 0)
        merged, whole = merging.add(version, step, data, 0)
        assert whole
        made |= {(version, 1): data} | {(version, span): frame for span, frame in merged}
    return made


@given(st.lists(st.lists(st.integers(-9, 9), min_size=3, max_size=3), min_size=1, max_size=40), st.integers(1, 40))
def test_each_is_the_exact_sum_of_its_steps(values: list[list[int]], restart: int) -> None:
    steps = [np.array(step, np.int32) for step in values]
    made = frames_of(steps, restart=restart)
    for (version, span), data in made.items():
        total = np.sum(steps[version - span : version], axis=0)
        np.testing.assert_array_equal(lineage.decode_step(data, 3)[0], total)
    ends = {span: [version for version, of in made if of == span] for span in (1, 2, 3, 4, 8, 16)}
    every = {1: 1, 2: 1, 3: 4, 4: 1, 8: 2, 16: 4}
    assert ends == {
        span: [version for version in range(span, len(steps) + 1) if version % every[span] == 0] for span in every
    }


def test_from_each_of_the_last_versions_a_few_frames_lead_to_the_newest() -> None:
    ones = [np.ones(3, np.int32)] * 100
    made = frames_of(ones)
    for newest in range(60, 101):
        offer = [FrameInfo(version, span, 10, 1) for version, span in made if listed(version, span, newest)]
        assert len([frame for frame in offer if frame.version <= newest]) <= 60
        ways = [route(offer, newest - lag, newest) for lag in range(33)]
        assert all(way is not None for way in ways)
        hops = [len(way or ()) for way in ways]
        assert max(hops[:6]) <= 2
        assert max(hops[:17]) <= 5
        assert max(hops) <= 6


def test_a_sum_beyond_32_bits_is_left_out_and_said() -> None:
    merging = Merging()
    large = np.array([LARGEST], np.int32)
    assert merging.add(1, large, lineage.encode_step(large, 0), 0) == ([], True)
    assert merging.add(2, large, lineage.encode_step(large, 0), 0) == ([], False)
    back, whole = merging.add(3, -large, lineage.encode_step(-large, 0), 0)
    assert whole
    assert [span for span, _ in back] == [2]


def test_no_step_leads_across_a_keyframe() -> None:
    merging = Merging()
    one = np.ones(1, np.int32)
    for version in (1, 2, 3):
        merging.add(version, one, lineage.encode_step(one, 0), 0)
    merging.clear()
    assert merging.add(5, one, lineage.encode_step(one, 0), 0) == ([], True)


@given(st.lists(st.integers(-LARGEST, LARGEST), min_size=1, max_size=5))
def test_integers_are_kept_in_the_narrowest_type_that_holds_them(values: list[int]) -> None:
    kept = narrowed(np.array(values, np.int32))
    assert kept.astype(np.int64).tolist() == values
    assert kept.itemsize == 4 or max(map(abs, values)) < 2 ** (8 * kept.itemsize - 1)


def test_frames_that_are_not_kept_as_integers_are_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = [np.arange(3, dtype=np.int32) * version for version in range(20)]
    made = frames_of(steps)
    monkeypatch.setattr(merging_module, "_ROOM", 7)
    assert frames_of(steps) == made
