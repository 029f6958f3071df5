"""The page on performance and the table in the README say what the stored results say."""

import json
import re
from types import ModuleType

import pytest

from benchmarks.suite import BESIDE, SUITE
from tests.docs import scripts
from tests.docs.scripts import ROOT


@pytest.fixture(name="script")
def _script() -> ModuleType:
    return scripts.script("performance")


def test_the_readmes_table_and_pictures_are_of_the_results_that_are_kept(script: ModuleType) -> None:
    results = script.load()
    readme = script.README.read_text()
    table = {"performance": "\n".join(script.summary(results))}
    assert scripts.script("marks").filled(readme, table) == readme, "run: python docs/performance.py"
    for name, drawn in script.pictures(results).items():
        assert (script.PICTURES / name).read_text() == drawn, "run: python docs/performance.py"


def test_every_benchmark_of_the_suite_has_its_place_on_the_page(script: ModuleType) -> None:
    assert set(script.NAMES) == {*SUITE, BESIDE}
    for name in (*script.NAMES, *script.NIGHTLY):
        assert f"<!-- {name} -->" in script.PAGE.read_text()
    for name in SUITE:
        assert (ROOT / "benchmarks" / f"{name}.py").exists(), f"the suite runs {name}, which is not there"


def test_rows_become_tables_and_pictures(script: ModuleType) -> None:
    """With results made up here: each value that a table is to show is in it."""
    near = {"case": "drain", "devices": 3000, "model_mb": 0.05, "p50_before_ms": 0.25, "p50_during_ms": 0.26}
    near |= {"p99_before_ms": 0.5, "p99_during_ms": 0.75, "drain_s": 40.0, "lost": 0, "p99_other_ms": 0.55}
    taken = {"params": 10_000, "codec": "float32", "devices": 100, "updates_per_s": 1234.0, "bare_per_s": 2000.0}
    taken |= {"ratio": 0.617, "receipt_p50_ms": 10.0, "receipt_p99_ms": 31.0}
    machine = {"processor": "a processor", "cores": 2, "memory_gb": 4.0, "system": "Linux", "python": "3.11"}
    about = {
        "machine": {**machine, "mosquitto": "2.0", "libraries": {"numpy": "2"}},
        "seconds": 60.0,
        "load_before": 0.1,
    }
    results = {
        "neighbour": {**about, "found": {"rows": [near]}},
        "ingest": {**about, "found": {"rows": [taken, {**taken, "params": 10**6, "codec": "uq:4|rice"}]}},
    }
    blocks = script.blocks(results)
    drain = "| 3,000 | 0.05 MB | 8 MB/s | 0.25, 0.26 | 0.50, 0.75 | 1.50 | 0.55 | 40 | 0 |"
    assert drain in "\n".join(blocks["neighbour"])
    assert "| 1,230 | 2,000 | 0.617 |" in "\n".join(blocks["ingest"])
    assert "uq:4\\|rice" in "\n".join(blocks["ingest"]), "a bar would end the cell"
    assert blocks["release"] == script.MISSING
    assert "0.50 → 0.75 ms" in "\n".join(script.summary(results))
    drawn = script.pictures(results)
    assert re.search(r"during: 0\.75 ms", drawn["performance-neighbour.svg"])
    assert set(drawn) == {"performance-neighbour.svg", "performance-ingest.svg"}
    assert json.dumps(drawn)
