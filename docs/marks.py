"""Puts generated sections into pages: each begins and ends with a line that marks its place."""

from collections.abc import Iterable
from pathlib import Path


def put(page: Path, sections: Iterable[str]) -> None:
    """Replace what a page has between the first and the last line of each section, and these lines."""
    text = page.read_text()
    for section in sections:
        begin, end = section.split("\n", 1)[0], section.rsplit("\n", 1)[1]
        text = text[: text.index(begin)] + section + text[text.index(end) + len(end) :]
    page.write_text(text)
