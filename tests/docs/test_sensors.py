"""The page on sensors says what the results say, and draws what the code makes."""

from tests.docs import scripts
from tests.docs.scripts import ROOT


def test_the_curves_are_of_the_results_that_are_kept() -> None:
    script = scripts.script("sensors")
    results = script.load()
    for kind in script.FLEETS:
        drawn = (ROOT / "docs" / "pictures" / f"sensors-{kind}.svg").read_text()
        assert drawn == script.curves(results, kind), "run: python docs/sensors.py"
    assert (ROOT / "docs" / "pictures" / "sensors-spectrum.svg").exists()
