"""Agreement with the direction of most devices."""

import numpy as np
import pytest

from midge.aggregator.model.consensus import Consensus, direction, sketch
from midge.wire.schema import Vector


def heard(consensus: Consensus, device: str, delta: Vector, base: int | None = None) -> float:
    """The agreement of a delta, which then stands for its device."""
    found = direction(delta)
    agreement = consensus.agreement(found)
    if found is not None:
        consensus.take(device, found, base)
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
    assert direction(0 * ones) is None
    assert consensus.agreement(None) == 0


def test_values_that_cannot_be_summed_up_say_nothing() -> None:
    with np.errstate(over="ignore"):
        assert direction(np.full(2048, 3e38, np.float32)) is None


def released(consensus: Consensus, version: int, model: Vector) -> None:
    consensus.released(version, sketch(model))


@pytest.mark.parametrize("size", [4, 500, 50_000])
@pytest.mark.parametrize("contraction", [0.2, 0.8])
def test_deltas_from_before_the_model_moved_do_not_vote_down_those_from_after(size: int, contraction: float) -> None:
    rng = np.random.default_rng(2)
    wanted = 10 + rng.standard_normal(size).astype(np.float32)
    consensus = Consensus()

    def trained(model: Vector) -> Vector:
        return contraction * (wanted - model) + 0.02 * rng.standard_normal(size).astype(np.float32)

    # Three versions on the way, and one that has gone too far. Twelve of sixteen devices have not seen that yet.
    models = [np.full(size, value, np.float32) for value in (0.0, 2.0, 4.0, 16.0)]
    for version, model in enumerate(models[:-1]):
        released(consensus, version, model)
        for number in range(16):
            heard(consensus, f"d{number}", trained(model), version)
    released(consensus, 3, models[3])
    fresh = [heard(consensus, f"d{number}", trained(models[3]), 3) for number in range(4)]
    late = [heard(consensus, f"d{number}", trained(models[2]), 2) for number in range(12, 16)]
    against = consensus.agreement(sketch(-trained(models[3])))
    assert min(fresh) > 0.5, "they see where the model is"
    assert max(late) < 0, "they would push on where it has been too far"
    assert against < -0.5, "and who goes on in the old direction is seen"


def test_a_first_version_of_zeros_is_known() -> None:
    rng = np.random.default_rng(4)
    wanted, moved = rng.standard_normal((2, 50)).astype(np.float32)
    consensus = Consensus()
    # The model goes on past what is wanted. Three of four devices have not seen that yet.
    for version, model in enumerate((0 * wanted, moved, 3 * wanted)):
        released(consensus, version, model)
        for device in "abcd" if version < 2 else "d":
            heard(consensus, device, wanted - model, version)
    assert consensus.agreement(sketch(-wanted)) > 0.9


def test_liars_do_not_say_how_far_the_deltas_of_others_are_moved() -> None:
    rng = np.random.default_rng(3)
    wanted = rng.standard_normal(50).astype(np.float32)
    consensus, model = Consensus(), np.zeros(50, np.float32)
    for version in range(6):
        released(consensus, version, model)
        for number in range(10):
            delta = np.float32(0.5) * (wanted - model)
            heard(consensus, f"d{number}", delta if number >= 4 else np.float32(-40) * delta, version)
        model = model + np.float32(0.4) * (wanted - model)
    assert consensus.agreement(sketch(wanted - model)) > 0.9
    assert consensus.agreement(sketch(model - wanted)) < -0.9


def test_a_version_that_was_put_back_is_where_the_model_is() -> None:
    consensus = Consensus()
    for version, value in ((1, 0.0), (2, 1.0), (3, 2.0), (2, 5.0)):
        released(consensus, version, np.full(8, value + 1, np.float32))
        for device in "abc":
            heard(consensus, device, np.full(8, 3 - value, np.float32), version)
    assert consensus.agreement(sketch(np.full(8, -1.0, np.float32))) > 0.9


def test_a_checkpoint_brings_back_the_same_direction() -> None:
    rng = np.random.default_rng(1)
    deltas = [rng.standard_normal(64).astype(np.float32) for _ in range(400)]
    whole, again = Consensus(), Consensus()
    for number, delta in enumerate(deltas):
        arrays, values = again.dump()
        again = Consensus.load({name: array.copy() for name, array in arrays.items()}, values)
        for each in (whole, again):
            released(each, number, 3 - delta)
        device, base = f"d{number % 20}", None if number % 7 == 0 else max(number - number % 90, 0)
        assert heard(whole, device, delta, base) == heard(again, device, delta, base)
    assert len(again.dump()[0]["consensus"]) < 20 + 1 + 64, "of old versions, few are kept"


def test_a_checkpoint_without_versions_is_still_read() -> None:
    unit = np.full(1024, 1 / 32, np.float32)
    found = Consensus.load({"consensus": np.stack([unit] * 4)}, [0, "a", "b", "c"])
    released(found, 7, np.ones(8, np.float32))
    assert found.agreement(unit) == pytest.approx(1.0)
    heard(found, "a", np.ones(8, np.float32), 7)


def test_a_device_that_is_forgotten_has_no_part_in_the_direction() -> None:
    consensus = Consensus()
    ones = np.ones(64, np.float32)
    for device in "abc":
        heard(consensus, device, ones)
    assert heard(consensus, "d", ones) == pytest.approx(1.0)
    for device in "bcd":
        consensus.forget(device)
    assert heard(consensus, "a", ones) == 0, "one device is no majority"
