"""Agreement with the direction of most devices."""

import numpy as np
import pytest

from aggregator.consensus import Consensus


@pytest.mark.parametrize("size", [50, 500, 5_000, 100_000])
def test_pushing_against_what_most_have_learned_is_seen(size: int) -> None:
    rng = np.random.default_rng(0)
    direction = rng.standard_normal(size).astype(np.float32)
    consensus = Consensus()
    found: dict[str, list[float]] = {"honest": [], "against": []}
    for turn in range(6):
        for number in range(20):
            noise = rng.standard_normal(size).astype(np.float32)
            delta = direction + noise if number >= 4 else -direction
            agreement = consensus.agreement(f"d{number}", delta, float(np.linalg.norm(delta)))
            if turn:
                found["against" if number < 4 else "honest"].append(agreement)
    assert np.mean(found["honest"]) > 0.4
    assert np.mean(found["against"]) < -0.5


def test_too_few_devices_have_no_direction() -> None:
    consensus = Consensus()
    ones = np.ones(8, np.float32)
    assert [consensus.agreement(device, ones, 1.0) for device in "abab"] == [0, 0, 0, 0]
    assert consensus.agreement("c", 0 * ones, 0.0) == 0


def test_values_that_cannot_be_summed_up_say_nothing() -> None:
    consensus = Consensus()
    huge = np.full(2048, 3e38, np.float32)
    with np.errstate(over="ignore"):
        assert [consensus.agreement(device, huge, 1e40) for device in "abcd"] == [0, 0, 0, 0]
