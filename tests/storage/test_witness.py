"""The witness of a database: the newest note, or the one before it; never a wrong one."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from midge.storage.witness import LONGEST, CommitWitness, Noted


def noted(path: Path, notes: list[bytes]) -> Path:
    witness = CommitWitness(path)
    for note in notes:
        witness.write(note)
    witness.close()
    return path


def test_the_newest_note_is_read(tmp_path: Path) -> None:
    path = tmp_path / "db.witness"
    assert CommitWitness(path).read() == Noted(None)
    for number in range(5):
        noted(path, [b"first %d" % number, b"second %d" % number])
        assert CommitWitness(path).read() == Noted(b"second %d" % number)
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_longest_note_fits(tmp_path: Path) -> None:
    assert CommitWitness(noted(tmp_path / "w", [b"x" * LONGEST])).read().note == b"x" * LONGEST


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return noted(tmp_path_factory.mktemp("witness") / "w", [b"one", b"two", b"three"])


@given(st.data())
def test_a_flipped_bit_costs_one_slot(written: Path, data: st.DataObject) -> None:
    whole = written.read_bytes()
    place = data.draw(st.sampled_from([at for at in range(len(whole)) if any(whole[at - at % 4096 :][:32])]))
    rotten = bytearray(whole)
    rotten[place] ^= 1 << data.draw(st.integers(0, 7))
    copy = written.with_name("rotten")
    copy.write_bytes(rotten)
    assert CommitWitness(copy).read().note in {b"two", b"three"}


@pytest.mark.parametrize("left", [0, 1, 30, 4095, 4096, 4100, 8191])
def test_a_file_that_is_cut_is_damaged_and_made_again(tmp_path: Path, left: int) -> None:
    path = noted(tmp_path / "w", [b"one", b"two"])
    path.write_bytes(path.read_bytes()[:left])
    found = CommitWitness(path).read()
    assert found.damaged
    assert found.note in {None, b"one", b"two"}
    noted(path, [b"three"])
    assert CommitWitness(path).read() == Noted(b"three")


def test_a_write_that_the_power_cuts_short_leaves_the_note_before_it(tmp_path: Path) -> None:
    before = noted(tmp_path / "w", [b"one", b"two"]).read_bytes()
    after = noted(tmp_path / "w", [b"three"]).read_bytes()
    changed = [at for at in range(len(before)) if before[at] != after[at]]
    for end in range(changed[0], changed[-1] + 1):
        (tmp_path / "torn").write_bytes(after[:end] + before[end:])
        assert CommitWitness(tmp_path / "torn").read().note in {b"two", b"three"}
