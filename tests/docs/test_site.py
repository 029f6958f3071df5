"""The site of docs/: no warning, no network, no link that leads nowhere, and an example that runs for every name."""

import doctest
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest

import midge
from tests import needs
from tests.docs.scripts import ROOT

PUBLIC = [name for name in midge.__all__ if name != "__version__"]
WITH_TORCH = {"torch_evaluator", "torch_trainer"}
LOADED = {"script": "src", "link": "href", "img": "src", "iframe": "src", "source": "src", "use": "href"}
"""What a browser fetches by itself, by element."""


class Html(HTMLParser):
    """Anchors of a page, addresses that its links lead to, and addresses that a browser fetches."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.classes: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.ids |= {found[name] for name in ("id", "name") if name in found}
        self.classes.update(found.get("class", "").split())
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        if (where := LOADED.get(tag)) in found and found.get("rel") not in {"next", "prev", "canonical"}:
            self.loads.append(found[str(where)])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("material", reason='the site needs: pip install "midge[docs]"')
    directory = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(directory)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return directory


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Html]:
    return {path: Html(path) for path in sorted(site.rglob("*.html"))}


def test_a_reader_needs_no_network(site: Path, pages: dict[Path, Html]) -> None:
    """Seen to fail on the theme's fonts, on its shim for workers, and on a diagram for which it fetches a library."""
    loads = [(path.name, each) for path, page in pages.items() for each in page.loads]
    assert loads
    assert [each for each in loads if urlsplit(each[1]).netloc] == []
    styles = [path for path in site.rglob("*.css") if re.search(r"url\(['\"]?(https?:)?//|@import", path.read_text())]
    assert styles == []
    assert not any("mermaid" in page.classes for page in pages.values()), "the theme fetches a library for these"


def test_no_link_leads_nowhere(site: Path, pages: dict[Path, Html]) -> None:
    """Seen to fail on a file that was not copied, and on an anchor that MkDocs names in another way than GitHub."""
    wrong = []
    for path, page in pages.items():
        for link in page.links:
            address = urlsplit(link)
            if address.scheme or address.netloc or path.name == "404.html":
                continue
            target = (path.parent / unquote(address.path)).resolve() if address.path else path
            target = target / "index.html" if target.is_dir() else target
            anchor = unquote(address.fragment)
            if not target.is_file() or (anchor and target in pages and anchor not in pages[target].ids):
                wrong.append(f"{path.relative_to(site)}: {link}")
    assert wrong == []


def test_the_reference_has_each_public_name_once() -> None:
    """Seen to fail on a new name."""
    text = "".join(path.read_text() for path in sorted((ROOT / "docs" / "api").glob("*.md")))
    named = re.findall(r"^::: midge\.(\w+)$", text, re.MULTILINE)
    assert sorted(named) == sorted(PUBLIC)


def test_completion_shows_the_public_names_and_nothing_else() -> None:
    assert dir(midge) == sorted(midge.__all__)


def examples(name: str) -> Iterator[doctest.Example]:
    yield from doctest.DocTestParser().get_examples(inspect.getdoc(getattr(midge, name)) or "", name)


def marked(name: str) -> Any:
    return pytest.param(name, marks=(pytest.mark.torch, needs.torch) if name in WITH_TORCH else ())


@pytest.mark.parametrize("name", [marked(each) for each in PUBLIC])
def test_an_example_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen to fail on a name without an example, and on a renamed argument."""
    monkeypatch.chdir(tmp_path)
    found = list(examples(name))
    assert found, f"midge.{name} has no example"
    names: dict[str, Any] = {"midge": midge, "np": np}
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS, verbose=False)
    said: list[str] = []
    result = runner.run(doctest.DocTest(found, names, name, None, None, None), out=said.append)
    assert result.failed == 0, "".join(said)
