"""What the pages name exists: files by their paths, classes and functions by their names."""

import re
from functools import cache
from pathlib import Path

import pytest

from tests.docs.scripts import ROOT

PAGES = [page for page in ROOT.glob("*.md") if page.name != "CHANGELOG.md"]
PAGES += [page for folder in ("docs", "examples", "deploy", "benchmarks") for page in (ROOT / folder).rglob("*.md")]
MODULE = re.compile(r"(?<![\w.\-/])((?:[\w.-]+/)*[\w-]+\.(?:py|j2|cddl))\b")
"""A module or template, in backticks or not."""
FILE = re.compile(r"`((?:[\w.-]+/)+[\w-]+\.(?:toml|md|json|[ch]|conf|service|yaml|svg))`")
"""Another file with its folder."""
NAME = re.compile(r"`(?:\w+\.)*([A-Z][a-z]+[A-Z]\w+|\w+(?=\(\)))(?:\(\))?`")
"""A class, or a function with its parentheses."""
MADE = {"readings.py", "aggregator.py", "fleet/README.md"}
"""Files that a reader makes, or that a command makes for them."""
SOURCES = {".py", ".c", ".h", ".ino"}


@cache
def files() -> frozenset[str]:
    """Every file of the repository, relative to its root."""
    inside = (path.relative_to(ROOT) for path in ROOT.rglob("*") if path.is_file())
    return frozenset(str(path) for path in inside if not {".venv", ".git", "runs", "build"} & {*path.parts})


@cache
def words() -> frozenset[str]:
    """Every identifier of the sources."""
    found: set[str] = set()
    for path in files():
        if Path(path).suffix in SOURCES and not path.startswith("tests/docs/"):
            found.update(re.findall(r"\w+", (ROOT / path).read_text()))
    return frozenset(found | {"DataLoader"})  # of torch


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_file_that_a_page_names_exists(page: Path) -> None:
    """By its path from the root or from the page, or its end within a package. Seen to fail on `shelf.py`, renamed."""
    text = page.read_text().partition("Every file in one phrase")[0]
    named = {*MODULE.findall(text), *FILE.findall(text)} - MADE
    beside = f"/{page.parent.relative_to(ROOT)}/"
    there = {
        name for name in named if any(f"/{each}".endswith(f"/{name}") or each == beside + name for each in files())
    }
    assert sorted(named - there) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_class_and_function_that_a_page_names_is_in_the_code(page: Path) -> None:
    """Seen to fail on a class `Thrift`, renamed."""
    assert sorted({*NAME.findall(page.read_text())} - words()) == []
