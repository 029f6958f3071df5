"""The ring of samples: bounded, alive after a reboot, sparing with the flash, and robust against what sensors say."""

import os
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from midge.iot_client.data.samples import Samples
from midge.iot_client.data.samples_file import SamplesError, examine_samples


def numbered(path: Path | None, **options: object) -> Samples:
    options = {"rows": 10, "clip": None, **options}
    return Samples(path, ["a", "b"], "c", **options)  # type: ignore[arg-type]


def _segments(samples: Samples) -> list[tuple[int, int]]:
    assert samples._file is not None
    return samples._file.segments


def labels(samples: Samples) -> list[float]:
    return [float(each) for each in samples.arrays(take=False)[1]]


@settings(max_examples=30, deadline=None)
@given(
    steps=st.lists(st.one_of(st.integers(1, 25), st.sampled_from(["flush", "reboot", "power cut"])), max_size=12),
    rows=st.integers(1, 12),
)
def test_the_ring_holds_the_newest_rows_across_reboots(steps: list[int | str], rows: int) -> None:
    """Against a plain list: what is on disk survives a power cut, everything an orderly end."""
    with tempfile.TemporaryDirectory() as folder:
        path, number = Path(folder) / "a.samples", 0
        samples = numbered(path, rows=rows)
        memory: list[float] = []
        disk: list[float] = []
        for step in steps:
            if isinstance(step, int):
                for _ in range(step):
                    number += 1
                    samples.observe([number, -number], number)
                    memory = [*memory, float(number)][-rows:]
                    if samples._stored == samples.seen:
                        disk = memory
            elif step == "flush":
                samples.flush()
                disk = memory
            elif step == "reboot":
                samples.close()
                disk = memory
                samples = numbered(path, rows=rows)
            else:
                assert samples._file is not None
                samples._file.database.close()
                samples = numbered(path, rows=rows)
                memory = disk
            assert labels(samples) == memory
            assert len(samples) <= rows
        assert sum(each for _, each in _segments(samples)) < 2 * rows + 1
        samples.close()


def test_the_file_stays_bounded_however_long_it_is_written(tmp_path: Path) -> None:
    samples = Samples(tmp_path / "s", ["a"], "b", rows=500)
    sizes = []
    for number in range(20_000):
        samples.observe([number], number)
        if number % 2000 == 1999:
            sizes.append(sum(path.stat().st_size for path in tmp_path.iterdir()))
    assert max(sizes) < 400_000
    samples.close()


def test_bytes_bound_the_rows_too() -> None:
    samples = Samples(None, [f"x{number}" for number in range(9)], "y", rows=1000, size=4000)
    for number in range(300):
        samples.observe([number] * 9, number)
    assert len(samples) == 100 and samples.arrays()[0].shape == (100, 9)


def test_rows_are_written_in_batches_so_that_the_flash_lives(tmp_path: Path) -> None:
    now = 0.0
    samples = numbered(tmp_path / "s", rows=5000, every=300, clock=lambda: now)
    for _ in range(24 * 3600):
        now += 1.0
        samples.observe([now, 1], now)
    assert len(_segments(samples)) <= 24 * 12
    assert 0 < samples.written < 24 * 12 * 10 * 4096
    samples.close()


def test_what_is_new_is_counted_from_the_last_training_on_across_a_reboot(tmp_path: Path) -> None:
    samples = numbered(tmp_path / "s")
    for number in range(3):
        samples.observe([1, 2], number)
    assert samples.new == 3
    samples.arrays(take=False)
    assert samples.new == 3
    samples.arrays()
    samples.observe([1, 2], 4)
    samples.close()
    assert numbered(tmp_path / "s").new == 1


def test_missing_values_are_not_a_number_and_rows_without_a_label_are_left_out() -> None:
    samples = numbered(None)
    kept = [
        samples.observe([1, None], 5),
        samples.observe({"a": "2.5", "b": "unavailable", "c": 6}),
        samples.observe([1, 2], None),
        samples.observe([np.nan, np.inf], 7),
        samples.observe([1e300, 3], 8),
        samples.observe({"a": 1, "b": 2}),
    ]
    assert kept == [True, True, False, False, True, False]
    assert (samples.unlabelled, samples.missing) == (3, 3)
    x, y = samples.arrays()
    np.testing.assert_array_equal(x, np.array([[1, np.nan], [2.5, np.nan], [np.nan, 3]], np.float32))
    np.testing.assert_array_equal(y, [5, 6, 8])


def test_outliers_are_clipped_and_counted_and_nothing_else_is_touched() -> None:
    rng = np.random.default_rng(0)
    samples = Samples(None, ["normal", "flag"], "y", rows=1000)
    x, y = rng.normal(20, 2, 500), rng.normal(size=500)
    for number in range(500):
        samples.observe([85_000 if number == 7 else x[number], number == 9], -1e9 if number == 8 else y[number])
    read, label = samples.arrays()
    assert samples.clipped == 2
    assert 20 < read[7, 0] < 20 + 12 * 2 and -12 < label[8] < 0
    others = np.arange(500) != 7
    np.testing.assert_allclose(read[others, 0], x[others], rtol=1e-6)
    assert read[9, 1] == 1  # a rare flag is no outlier: most of its channel is one value


def test_classes_are_whole_numbers_and_come_back_as_such() -> None:
    samples = Samples(None, ["a"], "b", kind="classification")
    assert [samples.observe([1], y) for y in (0, 3, 1.5, -1)] == [True, True, False, False]
    assert samples.arrays()[1].dtype == np.int64


def test_statistics_are_those_of_the_rows_and_none_without_any() -> None:
    samples = Samples(None, ["a", "b"], "c", least=4)
    assert samples.moments() == {}
    for number in range(4):
        assert samples.moments() == {} and samples.scarce == "statistics need 4 rows, and there are fewer"
        samples.observe([number, None], 2 * number)
    found = samples.moments()
    assert found["input"].count.tolist() == [4, 0] and found["target"].mean.tolist() == [3]
    assert samples.new == 4 and samples.scarce is None


def test_a_ring_that_is_smaller_than_what_statistics_need_gives_them_when_it_is_full() -> None:
    samples = Samples(None, ["a"], "b", rows=3)
    assert [samples.observe([number], 0) and bool(samples.moments()) for number in range(3)] == [False, False, True]


@pytest.mark.parametrize("value", [3.4028e38, -3.4028e38, 1e38, -1e38])
def test_a_sentinel_is_missing_and_told_once(value: float, caplog: pytest.LogCaptureFixture) -> None:
    samples = Samples(None, ["a", "b"], "c")
    assert samples.observe([value, 1], 2) and samples.observe([value, 1], 2)
    assert not samples.observe([1, 1], value), "a label that is missing"
    assert np.isnan(samples.arrays()[0][:, 0]).all() and samples.sentinels == {"a": 2, "c": 1}
    assert len([each for each in caplog.records if each.message.startswith("a is ")]) == 1


def test_how_far_a_source_was_read_is_as_durable_as_what_was_read(tmp_path: Path) -> None:
    samples = numbered(tmp_path / "s")
    samples.observe([1, 2], 3)
    samples.marks["csv"] = "100"
    samples.flush()
    samples.observe([1, 2], 4)
    samples.marks["csv"] = "200"
    assert samples._file is not None
    samples._file.database.close()  # the power fails
    again = numbered(tmp_path / "s")
    assert again.marks["csv"] == "100" and len(again) == 1


def test_other_columns_and_other_files_are_told(tmp_path: Path) -> None:
    numbered(tmp_path / "s").close()
    samples = numbered(tmp_path / "s")
    samples.observe([1, 2], 3)
    samples.close()
    with pytest.raises(
        SamplesError, match=r"other columns, a, b with the label c \(regression\): move it .* with a, x with"
    ):
        Samples(tmp_path / "s", ["a", "x"], "c")
    (tmp_path / "t").write_text("no database at all, but long enough to be taken for one" * 100)
    with pytest.raises(SamplesError, match="move the file away"):
        numbered(tmp_path / "t")


def test_a_disk_that_takes_nothing_costs_no_row_in_memory(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    samples = numbered(tmp_path / "s", rows=500)
    assert samples._file is not None
    samples._file.database.connection.execute("PRAGMA max_page_count=1")  # SQLite then says that the disk is full
    for row in range(500):
        samples.observe([1, 2], row)
    samples.flush()
    assert "is full" in caplog.text
    assert labels(samples) == list(range(500))
    samples._file.database.connection.execute(f"PRAGMA max_page_count={2**31}")
    samples.close()
    assert labels(numbered(tmp_path / "s", rows=500)) == list(range(500))


@pytest.mark.parametrize("features", [[], ["a", "a"], ["a", "y"]])
def test_columns_have_names_of_their_own(features: list[str]) -> None:
    with pytest.raises(ValueError, match="name of its own"):
        Samples(None, features, "y")


def test_a_row_of_another_length_is_told() -> None:
    with pytest.raises(ValueError, match=r"2 values \(a, b\), not 1"):
        numbered(None).observe([1], 2)


def test_how_far_a_file_was_read_is_not_changed_by_a_bit(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Seen to fail: a flipped digit left rows out, or read them twice, and nothing was said."""
    with closing(Samples(tmp_path / "s", ["a"], "y")) as samples:
        samples.marks["csv"] = "1234"
        samples.observe([1.0], 2.0)
    with closing(Samples(tmp_path / "s", ["a"], "y")) as samples:
        assert samples.marks["csv"] == "1234" and len(samples) == 1
    examine_samples(tmp_path / "s")
    with closing(sqlite3.connect(tmp_path / "s")) as db, db:
        db.execute("UPDATE marks SET value = '1264' WHERE name = 'csv'")
    with pytest.raises(sqlite3.DatabaseError, match="read positions"):
        examine_samples(tmp_path / "s")
    with closing(Samples(tmp_path / "s", ["a"], "y")) as samples:
        assert "csv" not in samples.marks and len(samples) == 1
    assert "read again from their beginning" in caplog.text


@pytest.mark.parametrize("expire", [float("nan"), 0.0, -1.0])
def test_rows_expire_after_a_time_above_zero(expire: float) -> None:
    """Seen to fail: with NaN no row ever expired."""
    with pytest.raises(ValueError, match="cannot expire after"):
        Samples(None, ["a"], "b", kind="regression", expire=expire)


def test_rows_expire_in_memory_and_on_the_disk(tmp_path: Path) -> None:
    """The bug: a row that only leaves the ring stays in the file, and comes back with a restart."""
    now, path = [1.8e9], tmp_path / "a.samples"

    def made() -> Samples:
        return Samples(path, ["a"], "b", kind="regression", expire=10.0, every=1e9, wall=lambda: now[0])

    samples = made()
    samples.observe([123456.0], 1.0)
    samples.flush()
    now[0] += 6.0
    samples.observe([2.0], 2.0)
    samples.flush()
    assert len(samples) == 2 and samples.expire() == 0
    now[0] += 5.0
    assert samples.expire() == 1 and len(samples) == 1 and samples.expired == 1
    assert samples.arrays()[1].tolist() == [2.0]
    samples.close()
    assert np.float32(123456.0).tobytes() not in path.read_bytes()
    again = made()
    assert again.arrays()[1].tolist() == [2.0]
    now[0] += 6.0
    assert again.arrays()[1].tolist() == [] and len(again) == 0 and again.new == 0
    again.observe([3.0], 3.0)
    assert again.arrays()[1].tolist() == [3.0]
    again.close()


NOW, LIFETIME = 1.8e9, 1000.0


class Expiring:
    """Samples whose rows expire, at a clock that is set by hand; each row has numbers of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.now, self.rows = folder, NOW, 0
        self.samples = self.opened()

    def opened(self, expire: float | None = LIFETIME) -> Samples:
        def wall() -> float:
            return self.now

        path = self.folder / "s"
        return Samples(path, ["a"], "b", kind="regression", rows=8, clip=None, expire=expire, every=1e9, wall=wall)

    def observe(self) -> None:
        self.rows += 1
        self.samples.observe([1e6 + self.rows], 2e6 + self.rows)

    def restart(self, *, cleanly: bool = True, expire: float | None = LIFETIME) -> None:
        if cleanly:
            self.samples.close()
        else:
            assert self.samples._file is not None
            self.samples._file.database.close()
        self.samples = self.opened(expire)

    def close_and_edit(self, statement: str) -> None:
        """Close the samples, and change their file as another program does."""
        self.samples.close()
        with closing(sqlite3.connect(self.folder / "s")) as db, db:
            db.execute(statement)

    def on_disk(self) -> set[int]:
        """The rows of which bytes are in any file of the folder."""
        contents = b"".join(path.read_bytes() for path in self.folder.iterdir())
        return {row for row in range(1, self.rows + 1) if np.array([1e6 + row, 2e6 + row], "<f4").tobytes() in contents}


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.sampled_from([*["observe"] * 3, *["flush"] * 2, "expire", "restart", "keep all", "power cut"]),
            st.sampled_from([0.0, NOW - 9e8, NOW - 400, NOW, NOW + 400, NOW + 1.6e9]),
        ),
        max_size=30,
    )
)
def test_no_byte_of_an_expired_row_stays_whatever_the_clock_said(steps: list[str | float]) -> None:
    """Seen to fail: rows that were dated ahead came back with a restart for good; the open file's log kept bytes."""
    with tempfile.TemporaryDirectory() as folder:
        life = Expiring(Path(folder))
        for step in steps:
            match step:
                case float():
                    life.now = step
                case "observe":
                    life.observe()
                case "restart" | "power cut":
                    life.restart(cleanly=step == "restart")
                case "keep all":
                    life.restart(expire=None)
                case _:
                    getattr(life.samples, step)()
        life.now = NOW + 1e6
        life.restart()
        life.samples.expire()  # the clock is right from now on, and rows that were dated ahead begin to age
        life.samples.flush()
        life.restart()
        life.now += LIFETIME + 1
        life.observe()
        life.samples.flush()
        life.samples.expire()
        assert len(life.samples) == 1 and life.on_disk() == {life.rows}
        life.restart()
        assert len(life.samples) == 1
        life.samples.close()


@pytest.mark.parametrize("power", ["restart", "power cut"])
def test_a_clock_that_was_never_set_removes_no_row(tmp_path: Path, power: str) -> None:
    """Seen to fail: rows of the seconds before the clock is set, dated 1970, took all others with them."""
    life = Expiring(tmp_path)
    life.observe()
    life.samples.flush()
    life.restart(cleanly=power == "restart")
    life.now = 5.0
    life.observe()
    life.samples.flush()
    assert life.samples.expire() == 0
    life.now = NOW + LIFETIME / 2
    assert life.samples.expire() == 0 and len(life.samples) == 2
    life.now = NOW + LIFETIME + 1
    assert life.samples.expire() == 1
    life.now = NOW + 2 * LIFETIME
    assert life.samples.expire() == 1 and len(life.samples) == 0
    life.samples.close()


def test_rows_that_made_room_before_rows_expired_leave_no_bytes(tmp_path: Path) -> None:
    """Seen to fail: with `--rows-expire` from now on, pages that had been freed without it kept their rows."""
    life = Expiring(tmp_path)
    life.restart(expire=None)
    for _ in range(12):
        life.observe()
        life.samples.flush()
    assert life.on_disk() > set(range(5, 13)), "otherwise this shows nothing"
    life.restart()
    life.samples.expire()
    assert life.on_disk() == set(range(5, 13))
    life.samples.close()


def test_what_is_damaged_expires_too(tmp_path: Path) -> None:
    """Seen to fail: a segment that fails its checksum, and a file that was put aside, were kept for good."""
    life = Expiring(tmp_path)
    life.observe()
    life.close_and_edit("UPDATE segments SET crc = crc + 1")
    (tmp_path / "s.damaged").write_bytes((tmp_path / "s").read_bytes())
    os.utime(tmp_path / "s.damaged", (NOW + 1e9, NOW + 1e9))
    life.samples = life.opened()
    assert len(life.samples) == 0 and life.samples.expire() == 0 and life.on_disk() == {1}
    life.now += LIFETIME + 1
    life.samples.expire()
    assert life.on_disk() == set()
    life.samples.close()


def test_a_row_is_as_old_in_the_file_as_it_is_in_memory(tmp_path: Path) -> None:
    """Seen to fail: a row that waited to be written was dated when it was written."""
    life = Expiring(tmp_path)
    life.observe()
    life.now += LIFETIME - 1
    life.samples.flush()
    life.now += 2
    life.samples.expire()
    life.restart()
    assert len(life.samples) == 0 and life.on_disk() == set()
    life.samples.close()


def test_rows_of_an_earlier_midge_age_from_when_they_are_first_seen(tmp_path: Path) -> None:
    """Seen to fail: they had no date, and stayed."""
    life = Expiring(tmp_path)
    life.observe()
    life.close_and_edit("UPDATE segments SET at = NULL")
    life.samples = life.opened()
    assert life.samples.expire() == 0 and len(life.samples) == 1
    life.restart()
    life.now += LIFETIME + 1
    assert life.samples.expire() == 1 and life.on_disk() == set()
    life.samples.close()


def test_an_expired_row_is_in_no_count_no_memory_and_no_later_write(tmp_path: Path) -> None:
    """Seen to fail: it counted as new, stayed in the ring, was written as an empty segment, or was tried a model on."""
    now = [NOW]
    samples = Samples(tmp_path / "a", ["a"], "b", kind="regression", expire=10.0, every=1e9, wall=lambda: now[0])
    samples.observe([123456.0], 1.0)
    now[0] += 11.0
    assert samples.newest(5)[0].shape == (0, 1) and samples.new == 0
    assert np.float32(123456.0) not in samples._ring[:1]
    before = samples.written
    samples.flush()
    assert samples.written == before
    samples.close()


def test_a_clock_that_went_back_keeps_no_row_longer() -> None:
    """Seen to fail: an older row, with a later time, stayed in place of the one that had expired."""
    now = [NOW]
    samples = Samples(None, ["a"], "b", kind="regression", expire=10.0, wall=lambda: now[0])
    for at in (NOW, NOW - 100, NOW - 86):
        now[0] = at
        samples.observe([at - NOW], at - NOW)
    now[0] = NOW - 85
    assert samples.expire() == 2 and samples.arrays()[1].tolist() == [-86.0]
