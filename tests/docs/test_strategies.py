"""The page on strategies says what the results say."""

import json

from tests.docs import scripts
from tests.docs.scripts import ROOT


def test_the_page_and_its_pictures_are_of_the_results_that_are_kept() -> None:
    script = scripts.script("strategies")
    results = json.loads(script.RESULTS.read_text())
    text = script.PAGE.read_text()
    assert script.page(text, results) == text, "run: python docs/strategies.py"
    drawn = (ROOT / "docs" / "pictures" / "strategies-speedup.svg").read_text()
    assert drawn == script.speedups(results["summary"]), "run: python docs/strategies.py"
