"""The list of frames in an announcement."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from midge.aggregator.model.step_merging import listed
from midge.wire import frames, messages
from midge.wire.errors import WireError
from midge.wire.messages import Announcement, FrameInfo
from tests.announced import announced

FRAMES = st.builds(
    FrameInfo,
    st.integers(0, 2**63 - 1),
    st.integers(0, 40) | st.integers(0, 2**32 - 1),
    st.integers(0, 2**40),
    st.integers(1, 2**20),
)


@given(st.lists(FRAMES, max_size=60))
def test_a_list_comes_back(offered: list[FrameInfo]) -> None:
    back = messages.decode_announcement(messages.encode_announcement(announced(1000, frames=tuple(offered))))
    assert sorted(back.frames) == sorted(offered)


def test_what_is_on_offer_takes_three_bytes_each() -> None:
    offered = tuple(
        FrameInfo(version, span, 900 * span, 1)
        for version in range(900, 1001)
        for span in (1, 2, 3, 4, 8, 16)
        if version % max(1, span // 4) == 0 and listed(version, span, 1000)
    )
    without = len(messages.encode_announcement(announced(1000, frames=())))
    assert len(messages.encode_announcement(announced(1000, frames=offered))) - without <= 10 + 3.3 * len(offered)


@pytest.mark.parametrize(
    "data", [b"\x80", b"\x02", b"\x02\xff" + b"\xff" * 20, b"\x02\x01" * 257, b"\x02\x01\xff\x7f\x01"]
)
def test_what_is_no_list_is_refused(data: bytes) -> None:
    with pytest.raises(WireError):
        frames.validate(Announcement, {**announced(1000, frames=()).model_dump(), "frames": data})
