"""What the keeper writes beside the journal, and how often: each transaction waits for the disk."""

import math
from collections.abc import Iterable
from pathlib import Path

import pytest

from aggregator.keeper import Keeper
from aggregator.store import Store
from tests.aggregator.test_full_disk import Life, one_hot


@pytest.mark.parametrize(("rate", "records"), [(1.0, 10), (50.0, 10), (300.0, 30), (1000.0, 100), (10_000.0, 100)])
def test_checkpoints_go_by_records_and_of_a_busy_federation_by_the_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rate: float, records: int
) -> None:
    """Of ten records each, at most one in a tenth of a second, and at most a hundred records behind."""
    life = Life(Store(tmp_path))
    monkeypatch.setattr(life.keeper, "_checkpoint_records", 10)
    life.keeper.begin(0)
    written = []
    checkpoint = life.engine.checkpoint

    def counted(core: object) -> None:
        written.append(life.core.lsn)
        checkpoint(core)  # type: ignore[arg-type]

    monkeypatch.setattr(life.engine, "checkpoint", counted)
    lsn = life.core.lsn
    for seq in range(1, 201):  # three records each: the update, its step, a release
        life.hear(life.update("a", seq, one_hot(seq), base=1), now=3 * seq / rate)
    apart = (life.core.lsn - lsn) / len(written)
    assert math.isclose(apart, records, rel_tol=0.25)
    life.keeper.close()


def test_frames_that_are_off_the_broker_are_written_down_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    life = Life(Store(tmp_path))
    life.keeper.begin(0)
    calls: list[int] = []
    withdraw = life.store.withdraw

    def counted(gone: Iterable[tuple[int, int]], *, keep: bool) -> None:
        frames = list(gone)
        calls.append(len(frames))
        withdraw(frames, keep=keep)

    monkeypatch.setattr(life.store, "withdraw", counted)
    cleared: list[tuple[int, int]] = []
    for seq in range(1, 60):
        before = len(life.posts)
        life.hear(life.update("a", seq, one_hot(seq), base=1), now=float(seq))
        gone = [post.withdraws for post in life.posts[before:] if post.withdraws is not None]
        for frame in gone:
            life.keeper.withdrawn(frame)
        cleared += gone
    assert len(cleared) > 20
    assert len(cleared) == len(set(cleared)), "nothing is cleared twice"
    assert len(calls) < len(cleared) / 2
    left = {(frame.version, frame.span) for frame in life.store.published()}
    assert not left & set(cleared[:-10])
    _close_and_open_again(life, tmp_path)


def _close_and_open_again(life: Life, directory: Path) -> None:
    digest = life.model.digest()
    life.keeper.close()
    again = Life(Store(directory))
    assert isinstance(again.keeper, Keeper)
    assert again.model.digest() == digest
    again.keeper.close()
