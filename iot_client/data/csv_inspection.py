"""Inspection of a CSV file before it is followed: its layout, its first rows, and which columns are inputs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from midge.iot_client.data.columns import FIRST, no_inputs
from midge.iot_client.data.csv_format import CsvError, Layout, look

BLOCK = 2**20
"""Bytes read at once."""
UNITS = 3
"""Maximum lines of text below a header: units, kinds of means."""


@dataclass(frozen=True)
class CsvOptions:
    """The owner's settings for a file's format; empty text means detection."""

    delimiter: str = ""
    encoding: str = ""
    decimal: str = ""

    def __post_init__(self) -> None:
        if self.decimal not in ("", ".", ","):
            raise ValueError(f"a decimal mark is . or ,, not {self.decimal!r}")
        if self.encoding:
            try:
                "".encode(self.encoding)
            except LookupError as error:
                raise ValueError(f"{self.encoding!r} is no encoding: say utf-8, utf-16 or cp1252, say.") from error

    @property
    def layout(self) -> Layout:
        return Layout(encoding="utf-16-le" if self.encoding.lower() in ("utf-16", "utf16") else self.encoding)


def header(path: Path, needed: Sequence[str] = (), options: CsvOptions | None = None) -> Layout:
    """The layout of a file with the names of its columns.

    Raises:
        CsvError: the file is missing, or has no complete first line.
    """
    options = options or CsvOptions()
    try:
        with path.open("rb") as file:
            data = file.read(BLOCK)
    except OSError as error:
        raise CsvError(f"{path} cannot be read: {error.strerror}.") from error
    found = look(data, needed, path, options.layout, delimiter=options.delimiter)
    if found is None:
        raise CsvError(f"{path} has no first line yet that names its columns.")
    return found


def first_rows(path: Path, layout: Layout, most: int) -> dict[str, list[str]]:
    """The values of the first rows of a file, by column; for duplicate names those of the first column."""
    with path.open("rb") as file:
        block = file.read(BLOCK)
    lines = layout.texts(block[: layout.whole(block)])[layout.lines :][: most + UNITS]
    rows = [row[: len(layout.columns)] for line in lines if len(row := layout.fields(line)) >= len(layout.columns)]
    return {name: [row[layout.columns.index(name)] for row in rows] for name in layout.columns}


def no_features(path: Path, label: str | None, layout: Layout | None = None) -> dict[str, str]:
    """Columns that are no inputs, judged by their first rows, and why: text, a clock, a counter, a constant."""
    layout = header(path) if layout is None else layout
    found = no_inputs(first_rows(path, layout, FIRST), comma_separates=layout.delimiter == ",")
    twice = {name: "two columns have this name" for name in layout.columns if layout.columns.count(name) > 1}
    return {name: why for name, why in {**found, **twice}.items() if name != label}
