"""Detection of a CSV file's format: its encoding, its delimiter, and the line that names its columns.

The first lines are examined: Excel's `sep=;`, titles, comments, then a line of names. It is found by the needed names;
if they are not known, it is the line above the rows that has as many fields as they.
"""

import csv
import re
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from difflib import get_close_matches

from midge.iot_client.data.values import missing, number

DELIMITERS = (",", ";", "\t", "|", " ")
"""In order of preference if two fit; a space only if nothing else does."""
_SEP = re.compile(r'"?sep=(.)"?[;,]*\s*', re.IGNORECASE)
_COMMENT = re.compile(r"(#|//|%|!)+\s*")
_NO_TEXT = re.compile(r"[\x00-\x08\x0e-\x1f\x7f]")
_MOST = 60
"""Maximum number of lines above the rows."""
_TITLES, _FEW = 20, 3
"""Lines of a growing file within which names are expected, and rows below other names that end this."""
_ROWS = 40
"""Rows below a header that confirm it."""
_BOMS = ((b"\xef\xbb\xbf", "utf-8"), (b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be"))
_SHAPES = {
    b"PK\x03\x04": "an Excel workbook or a zip file: save it as CSV",
    b"\x1f\x8b": "compressed with gzip: unpack it",
    b"SQLite format 3": "a database of SQLite: export a table as CSV",
    b"PAR1": "a Parquet file: export it as CSV",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook: save it as CSV",
    b"%PDF": "a PDF: export its table as CSV",
}


class CsvError(ValueError):
    """The file cannot be read; the message says why."""


@dataclass(frozen=True)
class Layout:
    """A file's format, known before its rows are read."""

    columns: tuple[str, ...] = ()
    delimiter: str = ","
    encoding: str = "utf-8"
    """For text in 8 bits: the encoding of lines that are not UTF-8 is `other`."""
    other: str = "cp1252"
    end: str = "\n"
    """The line end: \
    , or \\r in files of old Macs."""
    lines: int = 0
    """Number of lines up to and including the names."""
    skipped: tuple[str, ...] = ()
    """The lines above the names."""

    @property
    def wide(self) -> bool:
        return self.encoding.startswith("utf-16")

    def decode(self, line: bytes) -> str:
        """Decode a line; invalid bytes are replaced."""
        if self.encoding == "utf-8":
            with suppress(UnicodeDecodeError):
                return line.decode()
            return line.decode(self.other, errors="replace")
        return line.decode(self.encoding, errors="replace")

    def whole(self, block: bytes) -> int:
        """Bytes of a block up to the end of its last complete line."""
        if not self.wide:
            return block.rfind(self.end.encode()) + 1
        text = block[: len(block) // 2 * 2].decode(self.encoding, errors="surrogatepass")
        return len(text[: text.rfind(self.end) + 1].encode(self.encoding, errors="surrogatepass"))

    def texts(self, block: bytes) -> list[str]:
        """The complete lines of a block."""
        if self.wide:
            found = block.decode(self.encoding, errors="replace").split(self.end)
        else:
            found = [self.decode(line) for line in block.split(self.end.encode())]
        return found[:-1] if found and not found[-1] else found

    def fields(self, line: str) -> list[str]:
        return fields(line, self.delimiter)


def fields(line: str, delimiter: str) -> list[str]:
    """The fields of one line; none if it cannot be parsed.

    Each line has a reader of its own: with one for all, a stray quotation mark swallows all lines after it.
    """
    line = line.strip("\r\n\ufeff").replace("\0", "")
    if delimiter == " ":
        line = line.strip()
    with suppress(csv.Error):
        found = next(csv.reader((line,), delimiter=delimiter, skipinitialspace=True), [])
        return [field.strip() for field in found]
    return []


def joined(lines: Sequence[str], delimiter: str, columns: int) -> tuple[list[str], int]:
    """The fields of a row with line ends in quotes, and its number of lines; none if it is not such a row."""
    for more in range(2, len(lines) + 1):
        text = [f"{line}\n" for line in lines[:more]]
        with suppress(csv.Error):
            rows = list(csv.reader(text, delimiter=delimiter, skipinitialspace=True, strict=True))
            if len(rows) == 1 and len(rows[0]) == columns:
                return [field.strip() for field in rows[0]], more
            if len(rows) > 1:
                break
    return [], 0


def look(
    data: bytes, needed: Sequence[str], path: object, given: Layout, *, delimiter: str = "", growing: bool = False
) -> Layout | None:
    """Detect the format of a file from its first bytes; None if more of it is needed.

    Args:
        data: the beginning of the file.
        needed: names that the header must have; empty if any will do.
        path: the file, for messages.
        given: a layout with the encoding that the owner gave; empty text to detect it.
        delimiter: the one that the owner gave.
        growing: whether lines without names may be titles above names to come.

    Raises:
        CsvError: it is not such a file, or no line has the needed names.
    """
    for magic, what in _SHAPES.items():
        if data.startswith(magic):
            raise CsvError(f"{path} is {what}.")
    layout = _encoded(data, given)
    lines = layout.texts(data[: layout.whole(data)])
    if not any(line.strip("\r\n\ufeff \t\0") for line in lines):
        return None
    lines = lines[: _MOST + _ROWS]
    skipped: list[str] = []
    if found := _SEP.fullmatch(lines[0].strip("\ufeff\r\n")):
        delimiter = delimiter or found[1]
    tried = [delimiter] if delimiter else list(DELIMITERS)
    place = _named(lines, needed, tried) if needed else None
    if place is None:
        likely = _likely(lines, tried)
        if growing and not _settled(lines, likely):
            return None
        if needed:
            raise CsvError(_lacking(path, needed, likely[2] if likely else (), lines))
        if likely is None:
            raise CsvError(f"{path} has no line that names its columns: it begins with {lines[0].strip()[:60]!r}.")
        place = likely
    at, separator, names = place
    for line in lines[:at]:
        text = line.strip("\r\n\ufeff ")
        skipped.append(
            "blank" if not text else "sep=" if _SEP.fullmatch(text) else "comment" if _COMMENT.match(text) else "title"
        )
    return replace(layout, columns=names, delimiter=separator, lines=at + 1, skipped=tuple(skipped))


def _encoded(data: bytes, given: Layout) -> Layout:
    """Detect the encoding and the line end."""
    layout = given
    if not given.encoding:
        encoding, head = "utf-8", data[:4096]
        for bom, name in _BOMS:
            if data.startswith(bom):
                encoding = name
                break
        else:
            even, odd = head[0::2].count(0), head[1::2].count(0)
            if len(head) >= 8 and max(even, odd) > 0.4 * len(head) / 2 and min(even, odd) <= 0.02 * len(head):
                encoding = "utf-16-le" if odd > even else "utf-16-be"
        layout = replace(given, encoding=encoding)
        if encoding == "utf-8":
            layout = replace(layout, other=_eight_bits(data))
    mark, old = ("\n", "\r") if layout.wide else (b"\n", b"\r")
    text = data.decode(layout.encoding, errors="replace") if layout.wide else data
    macs = mark not in text and text.count(old) > 1  # type: ignore[operator,arg-type]
    return replace(layout, end="\r" if macs else "\n")


def _eight_bits(data: bytes) -> str:
    """The encoding of text that is not UTF-8: Windows-1252, unless that gives words of accents only."""
    with suppress(UnicodeDecodeError):
        data.decode()
        return "cp1252"
    text = data.decode("cp1252", errors="replace")
    if re.search(r"[À-ÿ]{3}", text) or "\ufffd" in text:
        with suppress(ImportError):
            from charset_normalizer import from_bytes  # noqa: PLC0415 - an extra, for few files

            if (best := from_bytes(data[:65_536]).best()) is not None and not best.encoding.startswith("utf"):
                return str(best.encoding)
    return "cp1252"


def trimmed(row: list[str], least: int = 0) -> list[str]:
    """A row without trailing delimiters, down to `least` fields."""
    while len(row) > least and not row[-1]:
        row.pop()
    return row


def names_of(line: str, delimiter: str) -> Iterator[tuple[str, ...]]:
    """The names that a line may hold: as it is, and without a comment mark."""
    text = line.strip("\r\n\ufeff ")
    if mark := _COMMENT.match(text):
        rest = text[mark.end() :]
        if rest and not rest.startswith(delimiter):
            yield tuple(trimmed(fields(rest, delimiter)))
    yield tuple(trimmed(fields(line, delimiter)))


def _named(
    lines: Sequence[str], needed: Sequence[str], delimiters: Sequence[str]
) -> tuple[int, str, tuple[str, ...]] | None:
    """The first line that has all needed names."""
    for at, line in enumerate(lines):
        found = [
            (at, delimiter, names)
            for delimiter in delimiters
            for names in names_of(line, delimiter)
            if set(needed) <= set(names) and len(names) > 1
        ]
        if found:
            return max(found, key=lambda each: (_fit(lines, *each), len(each[2])))
    return None


def _fit(lines: Sequence[str], at: int, delimiter: str, names: Sequence[str]) -> int:
    """How many of the lines below have as many fields, and a number among them."""
    fit = 0
    for line in lines[at + 1 : at + 1 + _ROWS]:
        row = trimmed(fields(line, delimiter), len(names))
        fit += len(row) == len(names) and any(number(each) == number(each) for each in row)
    return fit


def _textual(names: Sequence[str]) -> bool:
    """Whether fields look like names: no number among them, and most are not empty."""
    there = [each for each in names if each]
    return bool(there) and all(number(each) != number(each) and not missing(each) for each in there)


def _likely(lines: Sequence[str], delimiters: Sequence[str]) -> tuple[int, str, tuple[str, ...]] | None:
    """The line that looks most like names: text, above rows of as many fields."""
    best: tuple[tuple[int, int, int], tuple[int, str, tuple[str, ...]]] | None = None
    for order, delimiter in enumerate(delimiters):
        for at, line in enumerate(lines[:_MOST]):
            for names in names_of(line, delimiter):
                if len(names) > 1 and _textual(names):
                    fit = _fit(lines, at, delimiter, names)
                    if delimiter == " " and not fit:
                        continue
                    score = fit, -order, -at
                    if best is None or score > best[0]:
                        best = score, (at, delimiter, names)
    return None if best is None else best[1]


def _settled(lines: Sequence[str], likely: tuple[int, str, tuple[str, ...]] | None) -> bool:
    """Whether the needed names cannot be expected any more: rows have come, or other names only."""
    if len(lines) >= _TITLES:
        return True
    if likely is None or _COMMENT.match(lines[likely[0]].strip("\ufeff ")):
        return False
    return len(lines) == 1 or _fit(lines, *likely) >= _FEW


def _lacking(path: object, needed: Sequence[str], names: Sequence[str], lines: Sequence[str]) -> str:
    """Message that no line has the needed names, with those found."""
    lacking = [name for name in needed if name not in names]
    if not names:
        return (
            f"{path} has no column {', '.join(map(repr, lacking))}: no line names columns, and it begins with "
            f"{lines[0].strip()[:60]!r}. Give the file a first line of names."
        )
    return explain_lacking(path, lacking, names)


def explain_lacking(path: object, lacking: Sequence[str], names: Sequence[str]) -> str:
    """Message that the header lacks some names, with those it has."""
    close = [found for name in lacking for found in get_close_matches(name, names, 1, 0.7)]
    hint = f" Is {' and '.join(map(repr, close))} meant?" if close else ""
    if any(_NO_TEXT.search(each) for each in names):
        return f"{path} is no table: it holds bytes that are no text."
    listed = textwrap.shorten(", ".join(names), 300, placeholder=" …")
    return f"{path} has no column {', '.join(map(repr, lacking))}; a line that names columns has {listed}.{hint}"
