"""Puts generated parts into pages: each stands between `<!-- name -->` and `<!-- /name -->`."""

from collections.abc import Mapping
from pathlib import Path


def filled(text: str, parts: Mapping[str, str]) -> str:
    """A page whose parts are these, by their names.

    Raises:
        ValueError: the page has not each mark once.
    """
    for name, part in parts.items():
        begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        before, rest = text.split(begin)
        _, after = rest.split(end)
        text = "\n".join([before + begin, part.strip("\n"), "", end + after])
    return text


def put(page: Path, parts: Mapping[str, str]) -> None:
    """Put the parts into the page."""
    page.write_text(filled(page.read_text(encoding="utf-8"), parts), encoding="utf-8")
