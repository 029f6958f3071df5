"""A few weeks of `benchmarks.soak_year`: it lives through its disturbances, and sees what grows."""

from pathlib import Path

import pytest

from benchmarks.soak_year import Year
from midge.aggregator.store.journal import JournalTable

DAYS, DEVICES = 14, 2


@pytest.fixture(autouse=True)
def _few_records(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a store have all of its records after some days, and wait for no disk: nothing loses its power here."""
    monkeypatch.setattr("os.fdatasync", lambda _: None)
    monkeypatch.setattr("midge.aggregator.store.store.KEEP_RECORDS", 200)


def lived(directory: Path) -> Year:
    year = Year(directory, DEVICES, DAYS, trace=False)
    year.run()
    year.server.restart(clean=True)  # replays, and would refuse a damaged store
    return year


def test_a_federation_lives_on_and_its_store_stops_growing(tmp_path: Path) -> None:
    found = lived(tmp_path / "store").found()
    assert set(found["verdicts"]) == {"accepted"}
    assert found["updates"] > 10 * DAYS
    assert found["names"] == DEVICES + 1, "one is replaced every ten days"
    assert found["lives"] == 3, "the first, after an upgrade on the seventh day, and after the end"
    assert found["bounded"]["records"]
    assert found["bounded"]["frames"]


def test_a_journal_that_is_not_pruned_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(JournalTable, "prune", lambda *_: None)
    year = lived(tmp_path / "store")
    assert not year.found()["bounded"]["records"]
