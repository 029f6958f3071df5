"""A CSV file that another program appends to, as a source of samples.

The first line names the columns. A line counts once its newline is there, so that one half written is not read. Where
the file is replaced or cut (logrotate's `create` and `copytruncate`), what was left of the old one is read to its end
first. How far it was read is kept with the rows that were read: after a restart none comes twice. That it is still the
same file is told by the last bytes that were read, for a new one may have the old one's size and inode.
"""

import asyncio
import csv
import json
import logging
import math
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from io import BufferedReader
from itertools import pairwise
from pathlib import Path

from midge.iot_client.data.samples import Samples
from midge.iot_client.data.values import Classes, number

log = logging.getLogger("iot_client")

EVERY = 2.0
"""Seconds between two looks at the file."""
_BLOCK = 2**20
"""Bytes that are read at once."""
_TAIL = 64
"""Bytes before the place that was read to, by which a file is known again."""
_DELIMITERS = ",;\t|"
_FIRST, _FEW = 200, 16
"""Rows that are looked at to tell features from the other columns, and how many it takes at least."""
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


class CsvError(ValueError):
    """The file is none that can be read; the message says why."""


def header(path: Path) -> list[str]:
    """The names of a file's columns.

    Raises:
        CsvError: there is no such file, or no whole first line in it.
    """
    try:
        with path.open("rb") as file:
            line = file.readline(_BLOCK)
    except OSError as error:
        raise CsvError(f"{path} cannot be read: {error.strerror}.") from error
    if not line.endswith(b"\n") or not line.strip():
        raise CsvError(f"{path} has no first line yet that names its columns.")
    return _names(line)[0]


def no_features(path: Path, label: str) -> dict[str, str]:
    """Columns that are no inputs by what their first rows hold, and why: text, a clock or a counter, one value only."""
    with path.open("rb") as file:
        columns, delimiter = _names(file.readline(_BLOCK))
        lines = [line.decode(errors="replace").strip("\r\n") for line, _ in zip(file, range(_FIRST), strict=False)]
    rows = [row for line in lines if len(row := _fields(line, delimiter)) == len(columns)]
    if len(rows) < _FEW:
        return {}
    found = {}
    for name, said in zip(columns, zip(*rows, strict=True), strict=True):
        values = [number(each, decimal_comma=delimiter != ",") for each in said if each]
        if name == label:
            continue
        if not name or all(map(math.isnan, values)):
            found[name] = "no numbers"
        elif all(one < other for one, other in pairwise(values)) or all(one > other for one, other in pairwise(values)):
            found[name] = "a clock or a counter"
        elif len(set(values)) == 1:
            found[name] = "one value in all of the first rows"
    return found


def _names(line: bytes) -> tuple[list[str], str]:
    """The columns that a first line names, and what separates them."""
    text = line.decode("utf-8-sig", errors="replace").strip("\r\n")
    delimiter = max(_DELIMITERS, key=re.sub(r'"[^"]*"', "", text).count)
    return _fields(text, delimiter), delimiter


def _fields(line: str, delimiter: str) -> list[str]:
    """The fields of one line; none if it cannot be read.

    Each line has a reader of its own: with one for all, a stray quotation mark swallows whatever comes behind it.
    """
    with suppress(csv.Error):
        found = next(csv.reader((line,), delimiter=delimiter, skipinitialspace=True), [])
        return [field.strip() for field in found]
    return []


class CsvRows:
    """Follows one file.

    Args:
        path: the file; it may come later.
        classes: names of the classes where the label is one, in the order of the federation's model.
    """

    def __init__(self, path: str | Path, *, classes: Sequence[str] = ()) -> None:
        self.path = Path(path)
        self._classes = Classes(classes)
        self._file: BufferedReader | None = None
        self._columns: list[str] | None = None
        self._delimiter = ","
        self._offset = 0
        """Of the first byte that is not part of a line that was read."""
        self._tail = b""
        """The bytes before it."""
        self.broken = 0
        """Lines that cannot be read, or have more or fewer fields than the first."""
        self._said_absent = False

    async def follow(self, samples: Samples) -> None:
        """Read what there is, and then what comes, for ever.

        Raises:
            CsvError: a column is missing.
        """
        try:
            while True:
                if not self.read(samples):
                    await asyncio.sleep(EVERY)
                await asyncio.sleep(0)
        finally:
            self.close()

    def read(self, samples: Samples) -> bool:
        """Read a block of what is new; whether there may be more.

        Raises:
            CsvError: a column that the samples need is missing.
        """
        try:
            return self._read(samples)
        except OSError as error:
            samples.reject(str(self.path), f"{self.path} cannot be read ({error.strerror})")
            self.close()
            return False

    def close(self) -> None:
        """Let the file go."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _read(self, samples: Samples) -> bool:
        if self._file is None and not self._open(samples):
            return False
        assert self._file is not None
        self._file.seek(self._offset - len(self._tail))
        if self._file.read(len(self._tail)) != self._tail:
            self._begin(self._file)  # cut and rewritten
        block = self._file.read(_BLOCK)
        whole = block.rfind(b"\n") + 1
        if whole:
            self._take(block[:whole], samples)
            self._offset += whole
            self._tail = (self._tail + block[:whole])[-_TAIL:]
            place = {"offset": self._offset, "tail": self._tail.hex(), "columns": self._columns}
            samples.marks[self._mark] = json.dumps({**place, "delimiter": self._delimiter})
            return True
        if len(block) == _BLOCK:
            raise CsvError(f"{self.path} has a line of more than {_BLOCK} bytes: is it a CSV file?")
        with suppress(FileNotFoundError):
            if self.path.stat().st_ino != os.fstat(self._file.fileno()).st_ino:
                self.close()  # replaced, and the old one is read to its end
                return True
        return False

    def _open(self, samples: Samples) -> bool:
        """Open the file where there is one, and go on where an earlier life ended, if it is still the same."""
        try:
            self._file = self.path.open("rb")
        except FileNotFoundError:
            if not self._said_absent:
                log.warning("There is no file %s yet: its rows are read once it comes.", self.path)
            self._said_absent = True
            return False
        self._begin(self._file)
        with suppress(ValueError, KeyError, TypeError):
            place = json.loads(samples.marks[self._mark])
            offset, tail = int(place["offset"]), bytes.fromhex(place["tail"])
            self._columns, self._delimiter = _names(self._file.readline(_BLOCK))
            if place.get("columns"):  # a header further down may have named others
                self._columns, self._delimiter = [str(name) for name in place["columns"]], str(place["delimiter"])
            self._offset, self._tail = offset, tail  # where it is another file, the next look sees it
        return True

    def _begin(self, file: BufferedReader) -> None:
        file.seek(0)
        self._columns, self._offset, self._tail = None, 0, b""

    @property
    def _mark(self) -> str:
        return f"csv {self.path.absolute()}"

    def _take(self, block: bytes, samples: Samples) -> None:
        if self._columns is None:
            first, _, block = block.partition(b"\n")
            if first.startswith(_UTF16):
                raise CsvError(f"{self.path} is in UTF-16: save it as UTF-8.")
            self._name_columns(*_names(first), samples)
        assert self._columns is not None
        # A quoted field may hold anything but a line's end: with that, where a line ends could not be told.
        for line in block.decode(errors="replace").split("\n"):
            if line.strip() and (row := self._row(line, samples)) is not None:
                samples.observe(row)

    def _name_columns(self, names: list[str], delimiter: str, samples: Samples) -> None:
        """Read what follows under these names.

        Raises:
            CsvError: the samples need one that is not among them.
        """
        if lacking := [name for name in (*samples.features, samples.label) if name not in names]:
            raise CsvError(
                f"{self.path} has no column {', '.join(map(repr, lacking))}; "
                f"a line that names columns has {', '.join(names)}."
            )
        needed = (*samples.features, samples.label)
        if twice := sorted({name for name in needed if names.count(name) > 1}):
            raise CsvError(f"{self.path} has two columns {', '.join(map(repr, twice))}: name them differently.")
        self._columns, self._delimiter = names, delimiter

    def _row(self, line: str, samples: Samples) -> dict[str, object] | None:
        """The values of a line by column; None if it is another header, or broken.

        Raises:
            CsvError: it is a header that lacks a column which the samples need.
        """
        assert self._columns is not None
        columns, needed = self._columns, {*samples.features, samples.label}
        row = _fields(line.strip("\r\ufeff"), self._delimiter)
        if needed <= set(row) or (len(row) > 1 and all(row) and set(row) <= set(columns)):
            # A program that starts over writes its first line again, perhaps with its columns in another order.
            self._name_columns(row, self._delimiter, samples)
            return None
        if len(row) == len(columns) + 1 and not row[-1]:
            row.pop()  # a separator behind the last value
        elif len(row) == len(columns) - 1 and not columns[-1]:
            row.append("")
        if len(row) != len(columns):
            self.broken += 1
            fields = f"{len(row)} fields, not {len(columns)}" if row else "no fields that can be read"
            samples.reject("lines", f"{self.path}: a line has {fields}: {line[:60]!r}")
            return None
        values: dict[str, object] = dict(zip(columns, row, strict=True))
        if self._delimiter != ",":
            values.update({name: _pointed(values[name]) for name in needed})
        if self._classes:
            said = row[columns.index(samples.label)]
            values[samples.label] = self._classes.number(said)
            if said and values[samples.label] is None:
                samples.reject("classes", f"{samples.label} is {said[:60]!r}, none of {', '.join(self._classes.names)}")
        return values


def _pointed(value: object) -> object:
    """A number with a decimal comma, where commas do not separate; else the value."""
    found = number(value, decimal_comma=True)
    return value if math.isnan(found) else found
