"""A CSV that is appended to, rotated, cut and half written is read line by line, each once."""

import asyncio
import os
from pathlib import Path

import pytest

from midge.iot_client.data import csv_source as csv_rows
from midge.iot_client.data.csv_inspection import header
from midge.iot_client.data.csv_source import CsvError, CsvRows
from midge.iot_client.data.samples import Samples
from tests.waiting import eventually

pytestmark = pytest.mark.virtual


def samples(path: Path | None = None, *, kind: str = "regression") -> Samples:
    return Samples(path, ["speed", "heat"], "power", rows=100, clip=None, kind=kind)  # type: ignore[arg-type]


def drain(rows: CsvRows, into: Samples) -> list[float]:
    while rows.read(into):
        pass
    return [float(each) for each in into.arrays(take=False)[1]]


def append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


HEAD = "time,power,heat,speed\n"


def test_columns_are_found_by_name_and_a_line_counts_once_it_is_whole(tmp_path: Path) -> None:
    path, into = tmp_path / "r.csv", samples()
    rows = CsvRows(path)
    assert drain(rows, into) == []  # there is none yet
    append(path, "time,pow")
    assert drain(rows, into) == []
    append(path, "er,heat,speed\n0,1,20,3\n1,2,30,4\n2,1")
    assert drain(rows, into) == [1, 2]
    append(path, "7,,5\n")
    assert drain(rows, into) == [1, 2, 17]
    assert into.arrays()[0][:2].tolist() == [[3, 20], [4, 30]] and into.missing == 1
    rows.close()


@pytest.mark.parametrize(("delimiter", "end"), [(";", "\n"), ("\t", "\r\n")])
def test_other_delimiters_marks_and_line_ends(tmp_path: Path, delimiter: str, end: str) -> None:
    path, into = tmp_path / "r.csv", samples()
    lines = ["\ufeff" + "power,heat,speed", "1,2,3", "broken,line", "power,heat,speed", '"4",5,6', ""]
    path.write_bytes(end.join(line.replace(",", delimiter) for line in lines).encode())
    rows = CsvRows(path)
    assert drain(rows, into) == [1, 4]
    assert rows.broken == 1
    rows.close()


def test_a_rotated_file_is_read_to_its_end_and_then_the_new_one(tmp_path: Path) -> None:
    path, into = tmp_path / "r.csv", samples()
    rows = CsvRows(path)
    append(path, HEAD + "0,1,1,1\n")
    drain(rows, into)
    append(path, "0,2,1,1\n")
    path.rename(tmp_path / "r.csv.1")
    append(path, "power,speed,heat,more\n3,1,1,1\n")  # other columns, too
    assert drain(rows, into) == [1, 2, 3]
    os.truncate(path, 0)
    append(path, HEAD + "0,4,1,1\n")
    assert drain(rows, into) == [1, 2, 3, 4]
    rows.close()


def test_a_restart_reads_nothing_twice_and_misses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    append(path, HEAD + "0,1,1,1\n0,2,1,1\n")
    into, rows = samples(tmp_path / "s"), CsvRows(path)
    drain(rows, into)
    into.close()
    append(path, "0,3,1,1\n")
    drain(rows, into)  # lost with the power: nothing of it was written, nor that it was read
    rows.close()
    again = samples(tmp_path / "s")
    rows = CsvRows(path)
    assert drain(rows, again) == [1, 2, 3]
    again.close()
    rows.close()
    path.unlink()
    append(path, HEAD + "0,9,1,1\n" * 3)
    again, rows = samples(tmp_path / "s"), CsvRows(path)
    assert drain(rows, again) == [1, 2, 3, 9, 9, 9]  # another file, perhaps of the same inode, and larger
    again.close()
    rows.close()


def test_classes_are_numbered_as_the_owner_says(tmp_path: Path) -> None:
    path, into = tmp_path / "r.csv", samples(kind="classification")
    append(path, "power,heat,speed\nfault,1,1\nnormal,1,1\nwhatever,1,1\n")
    rows = CsvRows(path, classes=["normal", "fault"])
    assert drain(rows, into) == [1, 0] and into.unlabelled == 1
    rows.close()


def test_a_column_that_is_missing_is_named_with_those_that_are_there(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    with pytest.raises(CsvError, match="cannot be read"):
        header(path)
    append(path, "power,heat,velocity\n")
    assert header(path).columns == ("power", "heat", "velocity")
    rows = CsvRows(path)
    with pytest.raises(CsvError, match=r"no column 'speed'.*power, heat, velocity"):
        rows.read(samples())
    rows.close()


async def test_it_follows_until_it_is_cancelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_rows, "EVERY", 0.001)
    path, into = tmp_path / "r.csv", samples()
    following = asyncio.create_task(CsvRows(path).follow(into))
    append(path, HEAD)
    for number in range(3):
        append(path, f"0,{number},1,1\n")
        await eventually("the line", lambda least=number: len(into) > least)  # type: ignore[misc]
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)


def test_bytes_that_are_no_text_are_not_shown_as_names(tmp_path: Path) -> None:
    """Seen to fail: kilobytes of what the file holds, to the terminal."""
    (tmp_path / "b.csv").write_bytes(bytes(number * 37 % 256 for number in range(4000)))
    with pytest.raises(CsvError) as told:
        header(tmp_path / "b.csv", ["y"])
    assert len(str(told.value)) < 200 + len(str(tmp_path))
