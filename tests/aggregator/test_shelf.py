"""From the frames on offer there is always a way to the newest version."""

from pathlib import Path

import numpy as np
import pytest

from midge.aggregator.model.model import SERVED, SMALL
from midge.aggregator.model.step_merging import SMALL_STEPS
from midge.aggregator.publish.model_publisher import SNAPSHOTS
from midge.aggregator.publish.part_sizes import PART
from midge.wire import lineage, messages
from midge.wire.lineage import State, route
from midge.wire.messages import FrameInfo
from tests.aggregator.rig import TOPICS, Rig, rig


def fetched(life: Rig, held: tuple[int, State] | None) -> State:
    """What a device that holds a version comes to by the way it would choose."""
    way = route(life.shelf._offered(), None if held is None else held[0], life.core.version)
    assert way is not None, f"no way from {held and held[0]} to {life.core.version}"

    def stored(frame: FrameInfo) -> bytes:
        data = life.store.frame(frame.version, frame.span)
        assert data is not None
        return data

    state = lineage.follow(way, stored, None if held is None else held[1])
    assert state is not None
    return state


@pytest.fixture(autouse=True, params=[SMALL, 0], ids=["small", "merged"])
def small(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Up to how many parameters a model comes with a snapshot at each version: the tests' models with and without."""
    monkeypatch.setattr("midge.aggregator.model.model.SMALL", request.param)
    return int(request.param)


def test_a_small_model_leaves_few_retained_messages(tmp_path: Path, small: int) -> None:
    """Seen to fail: 56 frames of a model of three parameters stood at the broker, and most were longer than it."""
    with rig(tmp_path) as life:
        for seq in range(1, 100):
            life.send("a", seq, [1, 0.5, seq / 7, -seq], now=100 * seq)
            life.shelf.withdrawn([post.withdraws for post in life.posts if post.withdraws is not None])
            life.posts.clear()
        stand = [frame for frame in life.store.published() if frame.span != SERVED]
        assert len(stand) <= 2 * (SNAPSHOTS + SMALL_STEPS) or not small
        assert len(stand) > 20 or small


def test_a_new_device_and_a_late_one_always_find_a_way(tmp_path: Path) -> None:
    past: list[tuple[int, State]] = []
    with rig(tmp_path) as life:
        for seq in range(1, 150):
            life.send("a", seq, [1, 0.5, seq / 7, -seq])
            for held in [None, *past[-70::9]]:
                assert fetched(life, held).digest() == life.model.state.digest()
            past.append((life.core.version, life.model.state))


def test_a_keyframe_in_the_middle_of_a_window_leaves_no_hole(tmp_path: Path) -> None:
    with rig(tmp_path) as life:
        for seq in range(1, 80):
            life.send("a", seq, [1e12 if seq == 37 else 1, 0, 0, 0])  # outgrows the grid, which becomes coarser
            assert fetched(life, None).digest() == life.model.state.digest()


def test_what_has_left_the_list_stays_for_who_is_on_the_way_to_it(tmp_path: Path) -> None:
    """At a hundred versions a second, a device that has read an announcement finds its frames gone otherwise."""
    with rig(tmp_path) as life:
        for seq in range(1, 60):
            life.send("a", seq, [1, 1, 1, 1], now=seq / 100)
        assert not [post for post in life.posts if not post.payload]
        assert list(life.shelf.again(5, 1, [0]))
        life.send("a", 60, [1, 1, 1, 1], now=20)
        assert {post.withdraws for post in life.posts if not post.payload} >= {(5, 1), (6, 1)}


def test_what_is_off_the_shelf_is_cleared_once(tmp_path: Path) -> None:
    with rig(tmp_path) as life:
        for seq in range(1, 45):
            life.send("a", seq, [1, 1, 1, 1], now=seq)
        cleared = [post for post in life.posts if not post.payload]
        assert {post.withdraws for post in cleared} >= {(2, 1), (3, 1)}
        life.shelf.withdrawn([post.withdraws for post in cleared if post.withdraws is not None])
        assert life.store.frame(2, 1) is None
        rest = [post.withdraws for post in life.shelf.everything() if post.withdraws is not None]
        assert rest, "after a connect nobody is on the way to anything"
        life.shelf.withdrawn(rest)
        assert not [post for post in life.shelf.everything() if not post.payload]


def test_two_releases_of_one_batch_are_each_announced_as_they_are(tmp_path: Path) -> None:
    """The core decides a whole batch first; a device must never see a version with the digest of another."""
    with rig(tmp_path) as life:
        life.posts.clear()
        life.hear(*[life.update("a", seq, [seq, 1, 0, 0], base=1) for seq in range(1, 6)])
        announced = [
            messages.decode_announcement(post.payload) for post in life.posts if post.topic == TOPICS.announcement()
        ]
        assert [each.version for each in announced] == [2, 3, 4, 5, 6]
        assert [each.step for each in announced] == [1, 2, 3, 4, 5]
        assert len({each.digest for each in announced}) == 5
        assert announced[-1].digest == life.model.state.digest()
        for each in announced:
            assert max(frame.version for frame in each.frames) == each.version


def test_a_release_asks_the_store_once_what_is_on_offer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = 0
    with rig(tmp_path) as life:
        published = life.store.published

        def counted() -> object:
            nonlocal asked
            asked += 1
            return published()

        monkeypatch.setattr(life.store, "published", counted)
        for seq in range(1, 30):
            asked, version = 0, life.core.version
            life.send("a", seq, [1, 1, 1, 1], now=seq)
            assert (asked, life.core.version) == (1, version + 1)


def test_what_is_withdrawn_is_not_cleared_again(tmp_path: Path) -> None:
    with rig(tmp_path) as life:
        cleared = []
        for seq in range(1, 45):
            before = len(life.posts)
            life.send("a", seq, [1, 1, 1, 1], now=seq)
            gone = [post.withdraws for post in life.posts[before:] if post.withdraws is not None]
            life.shelf.withdrawn(gone)
            cleared += gone
        assert len(cleared) > 20
        assert len(cleared) == len(set(cleared))


def test_frames_are_cut_small_where_updates_may_be_large(tmp_path: Path) -> None:
    model = {"x": np.random.default_rng(0).normal(size=400_000).astype(np.float32)}
    with rig(tmp_path, parameters=model, chunk=4 * PART) as life:
        bodies = [post.payload for post in life.posts if "/0-" in post.topic]
        assert len(bodies) > 3
        assert max(map(len, bodies)) < PART + 200
        announced = messages.decode_announcement(life.posts[-1].payload)
        assert announced.chunk == 4 * PART
        assert announced.frames[0].parts == len(bodies)
