"""A growing CSV file as a source of samples.

A line counts once its end has been written. If the file is replaced or truncated (logrotate's `create` and
`copytruncate`), the old one is read to its end first. The position is stored with the rows read: after a restart none
is read twice. The last bytes before it identify the file, because a new one may have the old one's size and inode.
"""

import asyncio
import json
import logging
import math
import os
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from io import BufferedReader
from pathlib import Path

from midge.iot_client.data.csv_format import (
    DELIMITERS,
    CsvError,
    Layout,
    explain_lacking,
    fields,
    joined,
    look,
    names_of,
    trimmed,
)
from midge.iot_client.data.csv_inspection import BLOCK, UNITS, CsvOptions
from midge.iot_client.data.intake import Intake
from midge.iot_client.data.samples import Samples, lose_unclassed
from midge.iot_client.data.values import WORDS, Classes, NumberStyle, missing, number

__all__ = ["CsvError", "CsvRows"]
log = logging.getLogger("iot_client")

EVERY = 2.0
"""Seconds between two checks of the file."""
_TAIL = 64
"""Bytes before the read position that identify a file."""
_MOST_JOINED = 20
"""Maximum lines of a quoted field."""
_SEEN = 500
"""Rows from which the number format is learned."""


class CsvRows:
    """Follows one file.

    Args:
        path: the file; it need not exist yet.
        classes: names of the classes if the label is one, in the order of the federation's model.
        options: its format, if detection fails.

    Examples:
        >>> samples = midge.Samples(None, ["speed", "heat"], label="power")
        >>> rows = midge.CsvRows("pump.csv")  # for midge.Device(samples=samples, sources=[rows], ...)
        >>> rows.path.name
        'pump.csv'
    """

    def __init__(self, path: str | Path, *, classes: Sequence[str] = (), options: CsvOptions | None = None) -> None:
        self.path = Path(path)
        self._classes, self._options = Classes(classes), options or CsvOptions()
        self._file: BufferedReader | None = None
        self._layout: Layout | None = None
        self._offset = 0
        """Offset of the first byte that is not part of a line that was read."""
        self._tail = b""
        """The bytes before it."""
        self._line = 0
        """Number of lines read."""
        self._below = 0
        """Lines below the header that were checked for units."""
        self._styles: defaultdict[str, NumberStyle] = defaultdict(NumberStyle)
        self._all = NumberStyle()
        self._styled = 0
        self.broken = 0
        """Lines that cannot be parsed, or have another number of fields than the first."""
        self._said_absent = False

    async def follow(self, samples: Samples) -> None:
        """Read existing rows, then follow the file forever.

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
        """Read a block of new rows; return whether there may be more.

        Raises:
            CsvError: a column that the samples need is missing.
        """
        try:
            return self._read(samples)
        except OSError as error:
            problem = f"{self.path} cannot be read ({error.strerror})"
            self._intake(samples).problem = problem
            samples.reject(str(self.path), problem)
            self.close()
            return False

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _intake(self, samples: Samples) -> Intake:
        return samples.intake(str(self.path))

    def _read(self, samples: Samples) -> bool:
        if self._file is None and not self._open(samples):
            return False
        assert self._file is not None
        self._file.seek(self._offset - len(self._tail))
        if self._file.read(len(self._tail)) != self._tail:
            self._begin(self._file)  # truncated and rewritten
        block = self._file.read(BLOCK)
        intake = self._intake(samples)
        if self._layout is None:
            owner = self._options
            self._layout = look(block, samples.wanted, self.path, owner.layout, delimiter=owner.delimiter, growing=True)
            if self._layout is None:
                wanted = ", ".join(samples.wanted)
                intake.problem = (
                    f"{self.path} has no line yet that names the columns {wanted}" if block else f"{self.path} is empty"
                )
        whole = 0 if self._layout is None else self._layout.whole(block)
        if whole:
            assert self._layout is not None
            intake.problem = ""
            self._process(self._layout.texts(block[:whole]), samples)
            self._offset += whole
            self._tail = (self._tail + block[:whole])[-_TAIL:]
            place = {"offset": self._offset, "tail": self._tail.hex(), "line": self._line, **asdict(self._layout)}
            samples.marks[self._mark] = json.dumps(place)
            if not intake.read and not intake.kept and not samples.seen:
                intake.problem = f"{self.path} has no row yet below the line that names its columns"
            return True
        if len(block) == BLOCK:
            raise CsvError(f"{self.path} has a line of more than {BLOCK} bytes: is it a CSV file?")
        with suppress(FileNotFoundError):
            if self.path.stat().st_ino != os.fstat(self._file.fileno()).st_ino:
                self.close()  # replaced, and the old one is read to its end
                return True
        return False

    def _open(self, samples: Samples) -> bool:
        """Open the file if it exists, and continue at the stored position if it is still the same."""
        try:
            self._file = self.path.open("rb")
        except FileNotFoundError:
            self._intake(samples).problem = f"there is no file {self.path} yet"
            if not self._said_absent:
                log.warning("There is no file %s yet: its rows are read once it comes.", self.path)
            self._said_absent = True
            return False
        self._begin(self._file)
        with suppress(ValueError, KeyError, TypeError):
            place = json.loads(samples.marks[self._mark])
            offset, tail = int(place["offset"]), bytes.fromhex(place["tail"])
            if place.get("columns"):
                known = {name: place[name] for name in ("encoding", "other", "end", "delimiter") if name in place}
                self._layout = Layout(columns=tuple(map(str, place["columns"])), **known)
                self._line = int(place.get("line", 0))
                self._offset, self._tail = offset, tail  # if it is another file, the next check detects that
        return True

    def _begin(self, file: BufferedReader) -> None:
        file.seek(0)
        self._layout, self._offset, self._tail, self._line, self._below = None, 0, b"", 0, 0

    @property
    def _mark(self) -> str:
        return f"csv {self.path.absolute()}"

    def _process(self, lines: list[str], samples: Samples) -> None:
        """Process lines: first learn their number format, then read their values."""
        assert self._layout is not None
        intake, at = self._intake(samples), 0
        if self._line < self._layout.lines:  # those above the rows, and the names
            at = self._layout.lines
            for what in (*self._layout.skipped, "header"):
                intake.skip(what)
            self._line, self._below = at, 0
            self._check(samples)
        self._learn(lines[at:], samples)
        while at < len(lines):
            at += self._line_of(lines[at : at + _MOST_JOINED], samples, intake)

    def _learn(self, lines: Sequence[str], samples: Samples) -> None:
        """Learn the number format of the needed columns."""
        assert self._layout is not None
        columns = self._layout.columns
        for line in lines[: max(0, _SEEN - self._styled)]:
            row = self._layout.fields(line)
            if len(row) >= len(columns):
                self._styled += 1
                for name, text in zip(columns, row, strict=False):
                    if name in samples.wanted:
                        self._styles[name].see(text)
                    self._all.see(text)

    def _line_of(self, lines: Sequence[str], samples: Samples, intake: Intake) -> int:
        """Process the first of these lines; return how many it took: several if quoted fields hold line ends."""
        assert self._layout is not None
        line, took = lines[0], 1
        self._line += 1
        if not line.strip("\r\n\ufeff \t"):
            intake.skip("blank")
            return 1
        row, columns = self._layout.fields(line), self._layout.columns
        row = trimmed(row, len(columns))
        if len(row) != len(columns) and '"' in line and len(lines) > 1:
            found, lasting = joined([each.strip("\r") for each in lines], self._layout.delimiter, len(columns))
            if found:
                row, took = found, lasting
        place, self._line = self._line, self._line + took - 1
        if self._is_header(row, line, samples):
            intake.skip("header")
            self._below = 0
            return took
        self._below += 1
        if self._below <= UNITS and self._is_units(row, samples):
            intake.skip("units")
            return took
        if line.lstrip().startswith("#") and (len(row) != len(columns) or not self._is_row(row, samples)):
            intake.skip("comment")
            return took
        self._below = UNITS
        if len(row) != len(columns):
            self._lose_line(row, line, place, samples, intake)
        elif not any(row):
            intake.lose("empty", f"{self.path}: a line has separators only", line.strip(), place)
            samples.unlabelled += 1
        else:
            self._observe(row, line.strip(), place, samples, intake)
        return took

    def _lose_line(self, row: list[str], line: str, place: int, samples: Samples, intake: Intake) -> None:
        assert self._layout is not None
        self.broken += 1
        what = f"{len(row)} fields, not {len(self._layout.columns)}" if row else "no fields that can be read"
        intake.lose(
            "wrong number of fields" if row else "cannot be read",
            f"{self.path}: a line has {what}",
            line.strip(),
            place,
        )
        samples.reject("lines", f"{self.path}: a line has {what}: {line[:60]!r}")

    def _is_header(self, row: list[str], line: str, samples: Samples) -> bool:
        """Whether a line is a header: written by a program that restarts, perhaps with other columns.

        Raises:
            CsvError: it lacks a column that the samples need.
        """
        assert self._layout is not None
        columns, needed = set(self._layout.columns), set(samples.wanted)
        for names in names_of(line, self._layout.delimiter):
            there = [name for name in names if name]
            known = sum(name in columns for name in there)
            if (
                needed <= set(names)
                or (known > 1 and known == len(there))
                or (
                    known > 1
                    and known >= len(there) / 2
                    and all(math.isnan(number(name)) and not missing(name) for name in there)
                )
            ):
                self._layout = replace(self._layout, columns=names)
                self._check(samples)
                return True
        if len(row) != len(columns):
            for delimiter in DELIMITERS:
                names = tuple(fields(line, delimiter))
                if len(needed) > 1 and needed <= set(names):
                    self._layout = replace(self._layout, columns=names, delimiter=delimiter)
                    self._check(samples)
                    return True
        return False

    def _check(self, samples: Samples) -> None:
        """Check the names against those that the samples need.

        Raises:
            CsvError: one is missing or a duplicate.
        """
        assert self._layout is not None
        names = self._layout.columns
        if lacking := [name for name in samples.wanted if name not in names]:
            raise CsvError(explain_lacking(self.path, lacking, names))
        if twice := sorted({name for name in samples.wanted if names.count(name) > 1}):
            raise CsvError(f"{self.path} has two columns {', '.join(map(repr, twice))}: name them differently.")

    def _is_units(self, row: list[str], samples: Samples) -> bool:
        """Whether a line right below a header holds units or similar: text in all needed columns."""
        assert self._layout is not None
        if len(row) != len(self._layout.columns):
            return False
        texts = {name: row[self._layout.columns.index(name)] for name in samples.wanted}
        there = [each for each in texts.values() if each]
        if self._classes and samples.label and self._classes.number(texts[samples.label]) is not None:
            return False
        return len(there) > 1 and all(
            math.isnan(number(each)) and not missing(each) and not any(map(str.isdigit, each)) for each in there
        )

    def _is_row(self, row: list[str], samples: Samples) -> bool:
        """Whether a line that looks like a comment holds numbers in the needed columns."""
        assert self._layout is not None
        columns = self._layout.columns
        return any(not math.isnan(number(row[columns.index(name)])) for name in samples.wanted)

    def _observe(self, row: list[str], line: str, place: int, samples: Samples, intake: Intake) -> None:
        assert self._layout is not None
        columns, values = self._layout.columns, {}
        for name in samples.wanted:
            text = row[columns.index(name)]
            values[name] = text if text.casefold() in WORDS else self._number(name, text)
        if self._classes and samples.label:
            text = row[columns.index(samples.label)]
            values[samples.label] = found = self._classes.number(text)
            if found is None and not missing(text):
                lose_unclassed(samples, intake, text, self._classes.names, text=line, line=place)
                return
        samples.observe(values, intake=intake, line=line, number_of_line=place)

    def _number(self, name: str, text: str) -> object:
        """The number in a field; the text if it is not a number."""
        found = self._styles[name].number(
            text,
            self._all,
            mark=self._options.decimal,
            separates=self._layout is not None and self._layout.delimiter == ",",
        )
        return text if math.isnan(found) else found
