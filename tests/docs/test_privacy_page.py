"""The pages on privacy and strategies say what the stored results of `benchmarks.privacy` say."""

import json
from collections.abc import Mapping
from typing import Any

import pytest

from tests.docs import scripts

PRIVACY = scripts.script("privacy")
ROWS: list[dict[str, Any]] = json.loads(PRIVACY.RESULTS.read_text())["rows"]
MASKED = [row for row in ROWS if row["mode"].startswith("secure") and "kind" not in row]
PROMISE = (
    "masking costs at most half a point of accuracy on each set, and half a cycle for the engines, with slices too; at "
    "most 1.3 bytes a parameter, 0.35 with slices, and 1 s of processor time for a step"
)
"""The sentence of the page that the tests below check by what was measured."""


@pytest.mark.parametrize("name", PRIVACY.PAGES)
def test_the_tables_are_of_the_stored_results(name: str) -> None:
    assert PRIVACY.page(name, ROWS) == (PRIVACY.ROOT / "docs" / name).read_text(), "run: python docs/privacy.py"


def test_the_page_promises_what_is_checked_here() -> None:
    assert PROMISE in " ".join((PRIVACY.ROOT / "docs" / "privacy.md").read_text().split())


@pytest.mark.parametrize("mode", ["secure", "secure, slices=4"])
def test_masking_costs_at_most_half_a_point_on_four_sets(mode: str) -> None:
    found = {row["data"]: row for row in MASKED if row["mode"] == mode and row["data"]}
    assert set(found) == set(PRIVACY.NAMES)
    lost = {name: _lost(name, row) for name, row in found.items()}
    assert {name: each for name, each in lost.items() if each > 0.5 + 1e-9} == {}


def _lost(name: str, row: Mapping[str, Any]) -> float:
    """In points of accuracy; for the engines in cycles of error, of which more are worse."""
    worse: float = row["float32_accuracy"] - row["accuracy"]
    return -worse if name == "cmapss_fd001" else 100 * worse


def test_masking_costs_few_bytes_and_at_most_a_second_of_a_step() -> None:
    costs = {row["mode"]: row for row in MASKED if row["bytes_per_param"]}
    assert {"secure", "secure, slices=4"} <= set(costs)
    for mode, row in costs.items():
        assert row["bytes_per_param"] <= (0.35 if "slices" in mode else 1.3), row
        assert 0 < row["step_seconds"] <= 1, row


def test_what_an_audit_shows_is_below_what_is_accounted_for() -> None:
    """Of the same releases: the rows of one small sum, which earlier results have, state its ε beside it."""
    noisy = [row for row in ROWS if row["mode"] in {"central", "shared"}]
    assert noisy
    for row in noisy:
        assert row["epsilon_lower"] <= row.get("epsilon_one", row["epsilon"]), row


def test_noise_and_clipping_do_not_gain_on_a_baseline_of_the_same_freedom() -> None:
    """At ε = 8 noise gained 1.2 points, because only the noisy rows had a rate that was chosen."""
    tuned = [row for row in ROWS if "float32_rate" in row]
    assert all(row["accuracy"] <= row["float32_accuracy"] + 0.01 for row in tuned)
