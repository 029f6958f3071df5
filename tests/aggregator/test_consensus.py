"""Agreement with the direction of most devices."""

import numpy as np
import pytest

from midge.aggregator.model.consensus import Consensus, sketch
from midge.wire.schema import Vector


def heard(consensus: Consensus, device: str, delta: Vector) -> float:
    """The agreement of a delta, which then stands for its device."""
    direction = sketch(delta, float(np.linalg.norm(delta)))
    agreement = consensus.agreement(direction)
    if direction is not None:
        consensus.take(device, direction)
    return agreement


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
            agreement = heard(consensus, f"d{number}", delta)
            if turn:
                found["against" if number < 4 else "honest"].append(agreement)
    assert np.mean(found["honest"]) > 0.4
    assert np.mean(found["against"]) < -0.5


def test_too_few_devices_have_no_direction() -> None:
    consensus = Consensus()
    ones = np.ones(8, np.float32)
    assert [heard(consensus, device, ones) for device in "abab"] == [0, 0, 0, 0]
    assert sketch(0 * ones, 0.0) is None
    assert consensus.agreement(None) == 0


def test_values_that_cannot_be_summed_up_say_nothing() -> None:
    with np.errstate(over="ignore"):
        assert sketch(np.full(2048, 3e38, np.float32), 1e40) is None


def test_a_checkpoint_brings_back_the_same_direction() -> None:
    rng = np.random.default_rng(1)
    deltas = [rng.standard_normal(64).astype(np.float32) for _ in range(60)]
    whole, again = Consensus(), Consensus()
    for number, delta in enumerate(deltas):
        arrays, values = again.dump()
        again = Consensus.load({name: array.copy() for name, array in arrays.items()}, values)
        assert heard(whole, f"d{number % 20}", delta) == heard(again, f"d{number % 20}", delta)


def test_a_device_that_is_forgotten_has_no_part_in_the_direction() -> None:
    consensus = Consensus()
    ones = np.ones(64, np.float32)
    for device in "abc":
        heard(consensus, device, ones)
    assert heard(consensus, "d", ones) == pytest.approx(1.0)
    for device in "bcd":
        consensus.forget(device)
    assert heard(consensus, "a", ones) == 0, "one device is no majority"
