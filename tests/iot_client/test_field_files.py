"""Each file of the corpus gives the rows that it holds, and tells what it does not, in `--dry-run --json` too."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from midge.__main__ import main
from midge.commands.gateway import csv_options, kind_of, names_in
from midge.iot_client.data.csv_source import CsvRows
from midge.iot_client.data.samples import Samples
from tests.iot_client.field_files import FILES, FieldFile
from tests.iot_client.test_gateway import parse


def words(file: FieldFile, path: Path) -> list[str]:
    found = ["--csv", str(path), *file.options]
    found += ["--label", file.label] if file.label else []
    found += ["--features", file.features] if file.features else []
    return found + (["--classes", file.classes] if file.classes else [])


def dry(capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, dict[str, Any]]:
    code = main(["device", *options, "--dry-run", "--json"])
    found: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return code, found


def read(file: FieldFile, path: Path, pieces: int | None = None) -> list[tuple[float | None, ...]]:
    """The rows that come out: of the whole file, or as it grows."""
    args = parse(*words(file, path))
    features = names_in(args.features) or file.used
    samples = Samples(
        None, features, file.label, kind=kind_of(args), clip=None, rows=30_000, missing_values=names_in(args.missing)
    )
    source = CsvRows(path, classes=names_in(args.classes), options=csv_options(args))
    for end in [len(file.data)] if pieces is None else [*range(0, len(file.data), pieces), len(file.data)]:
        path.write_bytes(file.data[:end])
        while source.read(samples):
            pass
    source.close()
    x, y = samples.arrays(take=False)
    found = [[*each, label] if file.label else [*each] for each, label in zip(x.tolist(), y.tolist(), strict=True)]
    return [tuple(None if math.isnan(value) else value for value in row) for row in found]


def test_there_are_forty_at_least() -> None:
    assert len(FILES) >= 40 and len({file.name for file in FILES}) == len(FILES)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_what_comes_out(file: FieldFile, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "readings.csv"
    path.write_bytes(file.data)
    code, found = dry(capsys, *words(file, path))
    assert {reason: each["count"] for reason, each in found["dropped"].items()} == file.drops
    assert all(each["first"] is not None and each["line"] > 1 for each in found["dropped"].values())
    assert {column: each["count"] for column, each in found["values"].items()} == file.values
    assert found["kept"] == len(file.rows) and found["read"] == len(file.rows) + sum(file.drops.values())
    assert not file.skipped or found["skipped"] == file.skipped
    assert code == (0 if file.rows else 1)
    assert tuple(found["columns"]["used"]) == file.used or file.features
    rows = read(file, path)
    assert len(rows) == len(file.rows)
    for row, expected in zip(rows, file.rows, strict=True):
        assert [value is None for value in row] == [value is None for value in expected]
        there = [value for value in row if value is not None]
        assert there == pytest.approx([value for value in expected if value is not None], rel=1e-6)


TOLD_BY_MORE = ("utf-16 without a mark", "line ends of old Macs", "line ends inside quotes", "units behind the values")
"""What the first line alone does not tell."""
GROWING = [file for file in FILES if len(file.data) < 2000 and file.name not in TOLD_BY_MORE]


@pytest.mark.parametrize("file", GROWING, ids=lambda file: file.name)
def test_a_file_that_grows_gives_as_many_rows(file: FieldFile, tmp_path: Path) -> None:
    assert len(read(file, tmp_path / "readings.csv", 7)) == len(file.rows)
