"""How large a chunk a link bears."""

from hypothesis import given
from hypothesis import strategies as st

from midge.iot_client.connection.chunk_sizer import SMALLEST, ChunkSizer


@given(st.floats(2_000, 1e7), st.integers(1, 8))
def test_a_chunk_takes_a_quarter_of_the_keep_alive(rate: float, window: int) -> None:
    uplink, now = ChunkSizer(keepalive=20), 100.0
    for _ in range(30):
        for key in range(window):
            uplink.published(key, 10_000, now)
        for key in range(window):  # one after the other: they share the link
            now += 10_000 / rate
            uplink.acknowledged(key, now)
        now += 3.0
    assert uplink.chunk is not None
    assert abs(uplink.chunk / max(SMALLEST, 5 * rate) - 1) < 0.01


def test_where_none_comes_through_they_are_halved_until_one_does() -> None:
    uplink = ChunkSizer(keepalive=20)
    size, now = 256_000, 0.0
    while size > 8_000:  # what this link carries in the time that it is given
        uplink.published(1, size, now)
        now += 30
        uplink.lost()
        assert uplink.chunk is not None
        assert size / 2 - 1 <= uplink.chunk <= size / 2
        size = uplink.chunk
    uplink.published(1, size, now)
    uplink.acknowledged(1, now + 10)
    uplink.lost()
    assert uplink.chunk == max(SMALLEST, size // 2)  # ten seconds are twice a quarter of the keep-alive


def test_a_break_after_some_came_through_says_nothing_of_the_rest() -> None:
    uplink = ChunkSizer(keepalive=20)
    uplink.published(1, 10_000, 0.0)
    uplink.published(2, 10_000, 0.0)
    uplink.acknowledged(1, 1.0)
    before = uplink.chunk
    uplink.lost()
    assert uplink.chunk == before == 50_000
