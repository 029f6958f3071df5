"""How often a federation writes a checkpoint: all that comes meanwhile waits for it."""

import math
from pathlib import Path

import pytest

from midge.aggregator.store.store import Store
from tests.aggregator.test_full_disk import Life, one_hot


@pytest.mark.parametrize(("rate", "records"), [(1.0, 10), (50.0, 10), (300.0, 30), (1000.0, 100), (10_000.0, 100)])
def test_checkpoints_go_by_records_and_of_a_busy_federation_by_the_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rate: float, records: int
) -> None:
    """Of ten records each, at most one in a tenth of a second, and at most a hundred records behind."""
    life = Life(Store(tmp_path), records=10)
    life.federation.begin(0)
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
    life.federation.close()


def test_a_federation_that_rests_writes_four_a_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen to fail: one for each version, and with it most of what a day at rest writes."""
    life = Life(Store(tmp_path), records=1000)
    life.federation.begin(0)
    written = []
    monkeypatch.setattr(life.engine, "checkpoint", lambda core: written.append(core.lsn))
    for seq in range(1, 49):
        life.hear(life.update("a", seq, one_hot(seq), base=1), now=1800.0 * seq)
        life.hear(now=1800.0 * seq + 400)
    assert len(written) == 4
    monkeypatch.undo()
    life.federation.close()
