"""The ring's arithmetic: sums of masked integers, minus sums of masks, are exact."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from midge.wire import masking
from midge.wire.errors import WireError
from midge.wire.masking import HEAVIEST
from midge.wire.messages import Plan
from midge.wire.messages.masking import Masking
from tests.announced import announced

LINEAGE = bytes(range(16))


def seeds(count: int) -> list[bytes]:
    return [hashlib.sha256(bytes([number])).digest() for number in range(count)]


@given(st.data(), st.integers(1, 12), st.integers(1, 40), st.sampled_from([1, 7, 100]))
@settings(deadline=None)
def test_masked_sums_minus_masks_are_the_sums(data: st.DataObject, devices: int, count: int, levels: int) -> None:
    ring = masking.ring_for(devices, levels)
    weights = data.draw(st.lists(st.integers(1, HEAVIEST), min_size=devices, max_size=devices))
    values = st.lists(st.integers(-levels, levels), min_size=count, max_size=count)
    rows = [np.array(data.draw(values)) for _ in range(devices)]
    masks = [masking.mask(seed, count, ring) for seed in seeds(devices)]
    added = [masking.added(row, mask, ring) for row, mask in zip(rows, masks, strict=True)]
    sent = [masking.unpack(masking.pack(each, ring), count, ring) for each in added]
    total = masking.weighted(zip(weights, sent, strict=True), count, ring)
    hidden = masking.weighted(zip(weights, masks, strict=True), count, ring)
    expected = sum(weight * row for weight, row in zip(weights, rows, strict=True))
    assert masking.unmasked(total, hidden, ring).tolist() == np.asarray(expected).tolist()


def test_the_ring_is_the_smallest_that_holds_the_largest_sum() -> None:
    assert masking.ring_for(10, 7) == 10  # 280 of 512
    for devices, levels in ((10, 7), (1, 1), (5, 7), (100, 7), (73, 7)):
        largest = devices * levels * HEAVIEST
        ring = masking.ring_for(devices, levels)
        assert largest < 2 ** (ring - 1) <= 2 * largest


@given(st.integers(4, 24), st.integers(1, 40), st.sampled_from([0.0, 3.0, 1000.0]), st.integers(1, 9))
@settings(deadline=None)
def test_a_ring_has_room_for_as_many_as_it_says(ring: int, levels: int, noise: float, honest: int) -> None:
    room, half = masking.room(ring, levels, noise, honest), 2 ** (ring - 1)
    assert room == 0 or masking.reach(room, levels, noise, honest) < half
    assert masking.reach(room + 1, levels, noise, honest) >= half


def test_values_without_a_level_end_no_device() -> None:
    """With a scale of 1e-320 the loop had no end."""
    with pytest.raises(ValueError, match="levels of"):
        masking.shortened(np.array([0.1, 0.2], np.float32), 1e-320, 1024)


@pytest.mark.parametrize("ring", [4, 8, 9, 10, 16, 17, 31])
def test_packing_is_exact_and_as_small_as_its_bits(ring: int) -> None:
    words = masking.mask(seeds(1)[0], 1001, ring)
    data = masking.pack(words, ring)
    assert len(data) == masking.size(1001, ring) == -(-1001 * ring // 8)
    assert (masking.unpack(data, 1001, ring) == words).all()
    with pytest.raises(WireError):
        masking.unpack(data + b"\0", 1001, ring)


def test_masks_are_uniform_and_of_the_published_stream() -> None:
    # RFC 8439, appendix A.1, test vector 1: key, counter and nonce of zeros.
    assert masking.keystream(bytes(32), 8, 1).hex() == "76b8e0ada0f13d90"
    words = masking.mask(seeds(1)[0], 2**16, 4)
    counts = np.bincount(words, minlength=16)
    assert (abs(counts - 4096) < 6 * 64).all()  # six standard deviations


@given(st.integers(1, 2000), st.sampled_from([1, 2, 4, 7]))
@settings(deadline=None, max_examples=30)
def test_slices_are_a_partition(count: int, slices: int) -> None:
    parts = [masking.places(LINEAGE, count, slices, part) for part in range(slices)]
    assert sorted(np.concatenate(parts).tolist()) == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_rounding_is_unbiased() -> None:
    values = np.full(100_000, 0.3, np.float32)
    assert abs(masking.quantised(values, 1.0, 7, seeds(1)[0]).mean() - 0.3) < 0.01


def test_weights_follow_the_bases_and_reveal_no_residue_of_few() -> None:
    assert masking.weights([9] * 6 + [6] * 6, 10, 7, 5) == (4,) * 6 + (2,) * 6
    # One late device among nine: modulo 4 the sum would be its own value.
    assert masking.weights([9] * 9 + [2], 12, 7, 5) == (1,) * 10
    assert masking.weights([9] * 10, 10, 7, 5) == (1,) * 10
    assert masking.weights([9] * 6 + [6] * 6, 8, 7, 5) == (1,) * 12  # 36 times 7 does not fit into 7 bits


@given(st.lists(st.integers(0, 60), min_size=1, max_size=30), st.integers(2, 8))
def test_no_modulus_singles_out_fewer_than_the_least(bases: list[int], least: int) -> None:
    found = masking.weights(bases, 16, 7, least)
    assert all(1 <= weight <= HEAVIEST for weight in found)
    for modulus in range(2, HEAVIEST + 1):
        exposed = sum(weight % modulus != 0 for weight in found)
        assert exposed == 0 or exposed >= min(least, len(bases))


def test_terms_are_the_same_for_all_devices_and_versions_of_midge() -> None:
    """Devices whose terms differ are not summed together: a field of a plan that is at its default leaves them."""
    asked = announced(plan=Plan(local_steps=5, masking=Masking(ring=10, scale=0.05, clip=4.0)))
    assert masking.terms(asked).hex() == "ac9dffec358e68679e1c65f81ac4100f"
    assert masking.terms(asked.model_copy(update={"issued": 9.0, "byte_rate": 1.0})) == masking.terms(asked)
    seeded = asked.plan.model_copy(update={"seed": 7})
    assert masking.terms(asked.model_copy(update={"plan": seeded})) == masking.terms(asked)
    for other in (asked.plan.model_copy(update={"local_steps": 6}), Plan()):
        assert masking.terms(asked.model_copy(update={"plan": other})) != masking.terms(asked)
