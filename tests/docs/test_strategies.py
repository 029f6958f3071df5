"""The page on strategies says what the results say."""

import json

from tests.docs import scripts
from tests.docs.scripts import ROOT


def test_the_page_and_its_pictures_are_of_the_results_that_are_kept() -> None:
    script = scripts.script("strategies")
    results = json.loads(script.RESULTS.read_text())
    text = script.PAGE.read_text()
    assert script.page(text, results) == text, "run: python docs/strategies.py"


def test_ratios_to_an_incomplete_search_are_withdrawn() -> None:
    for name in ("README.md", "docs/strategies.md"):
        text = (ROOT / name).read_text().partition("**Withdrawn:**")
        assert "best synchronous" not in text[0] + text[2].partition("\n\n")[2], name
