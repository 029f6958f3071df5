"""The page on sensors says what the results say, and draws what the code makes."""

import importlib.util
import json
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_page_and_its_curves_are_of_the_results_that_are_kept() -> None:
    spec = importlib.util.spec_from_file_location("sensors", ROOT / "docs" / "sensors.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    results = json.loads(script.RESULTS.read_text())
    text = script.PAGE.read_text()
    assert script.page(text, results) == text, "run: python docs/sensors.py"
    for kind in script.FLEETS:
        drawn = (ROOT / "docs" / "pictures" / f"sensors-{kind}.svg").read_text()
        assert drawn == script.curves(results, kind), "run: python docs/sensors.py"
    assert (ROOT / "docs" / "pictures" / "sensors-spectrum.svg").exists()
