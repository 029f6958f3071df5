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
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from io import BufferedReader
from pathlib import Path

from midge.iot_client.data.samples import Samples

log = logging.getLogger("iot_client")

EVERY = 2.0
"""Seconds between two looks at the file."""
_BLOCK = 2**20
"""Bytes that are read at once."""
_TAIL = 64
"""Bytes before the place that was read to, by which a file is known again."""
_DELIMITERS = ",;\t|"


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


def _names(line: bytes) -> tuple[list[str], str]:
    """The columns that a first line names, and what separates them."""
    text = line.decode("utf-8-sig", errors="replace").strip("\r\n")
    delimiter = max(_DELIMITERS, key=text.count)
    return [name.strip() for name in next(csv.reader([text], delimiter=delimiter), [])], delimiter


class CsvRows:
    """Follows one file.

    Args:
        path: the file; it may come later.
        classes: names of the classes where the label is one, in the order of the federation's model.
    """

    def __init__(self, path: str | Path, *, classes: Sequence[str] = ()) -> None:
        self.path = Path(path)
        self._classes: Mapping[str, int] = {name: number for number, name in enumerate(classes)}
        self._file: BufferedReader | None = None
        self._columns: list[str] | None = None
        self._delimiter = ","
        self._offset = 0
        """Of the first byte that is not part of a line that was read."""
        self._tail = b""
        """The bytes before it."""
        self.broken = 0
        """Lines that have more or fewer fields than the first."""

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
            log.info("%s cannot be read now: %s", self.path, error)
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
            samples.marks[self._mark] = json.dumps({"offset": self._offset, "tail": self._tail.hex()})
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
            return False
        self._begin(self._file)
        with suppress(ValueError, KeyError, TypeError):
            place = json.loads(samples.marks[self._mark])
            offset, tail = int(place["offset"]), bytes.fromhex(place["tail"])
            self._columns, self._delimiter = _names(self._file.readline(_BLOCK))
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
            self._columns, self._delimiter = _names(first)
            lacking = [name for name in (*samples.features, samples.label) if name not in self._columns]
            if lacking:
                raise CsvError(
                    f"{self.path} has no column {', '.join(map(repr, lacking))}; "
                    f"its first line names {', '.join(self._columns)}."
                )
        # A quoted field may hold anything but a line's end: with that, where a line ends could not be told.
        lines = block.decode(errors="replace").splitlines()
        for row in csv.reader(lines, delimiter=self._delimiter):
            if row == self._columns or not row:
                continue  # a program that starts over writes its first line again
            if len(row) != len(self._columns):
                self.broken += 1
                continue
            fields: dict[str, object] = dict(zip(self._columns, row, strict=True))
            if self._classes:
                fields[samples.label] = self._classes.get(str(fields[samples.label]).strip())
            samples.observe(fields)
