"""The way that a device takes to a version is the cheapest there is."""

from itertools import permutations

from hypothesis import given
from hypothesis import strategies as st

from midge.wire.lineage import route
from midge.wire.messages import FrameInfo

FRAMES = st.builds(
    FrameInfo, version=st.integers(0, 5), span=st.integers(0, 5), size=st.integers(0, 400), parts=st.integers(1, 3)
)


def cost(way: tuple[FrameInfo, ...]) -> int:
    return sum(frame.size + 64 * frame.parts for frame in way)


def leads(way: tuple[FrameInfo, ...], have: int | None, target: int) -> bool:
    """Whether these frames, in this order, take a device from what it has to the target."""
    at = have
    for frame in way:
        if frame.span and at != frame.version - frame.span:
            return False
        at = frame.version
    return at == target


@given(st.lists(FRAMES, max_size=6), st.none() | st.integers(0, 5), st.integers(0, 5))
def test_the_route_is_the_cheapest_of_all_orders_of_all_frames(
    known: list[FrameInfo], have: int | None, target: int
) -> None:
    ways = [way for count in range(len(known) + 1) for way in permutations(known, count) if leads(way, have, target)]
    found = route(known, have, target)
    if found is None:
        assert not ways
    else:
        assert leads(found, have, target)
        assert cost(found) == min(map(cost, ways))


def info(version: int, span: int, size: int) -> FrameInfo:
    return FrameInfo(version=version, span=span, size=size, parts=1)


def test_steps_merged_steps_and_a_snapshot() -> None:
    steps = [info(version, 1, 100) for version in range(1, 9)]
    merged = [info(4, 4, 250), info(8, 4, 250)]
    snapshot = info(8, 0, 1000)
    known = [*steps, *merged, snapshot]
    assert route(known, 8, 8) == ()
    assert route(known, 7, 8) == (steps[7],)
    assert route(known, 0, 8) == tuple(merged)
    assert route(known, 3, 8) == (steps[3], merged[1])
    assert route(known, None, 8) == (snapshot,)
    assert route(known, 99, 8) == (snapshot,)
    assert route(steps, None, 8) is None
    assert route([], None, 0) is None
