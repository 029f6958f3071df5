"""What a simulation leaves out of a codec changes no value."""

from zlib import crc32

import numpy as np
import pytest

from midge.iot_client.training.update_encoder import encode
from midge.sensor_fleet.simulation.encoding import MEASURED, FleetEncoder
from midge.wire import codecs
from midge.wire.messages import Plan
from midge.wire.schema import Schema

SCHEMA = Schema.of({"a": np.zeros((64, 30), np.float32), "b": np.zeros(30, np.float32)})
LINEAGE = bytes(16)


@pytest.mark.parametrize("codec", ["uq:4|rice", "uq:0.5|rice", "int8:256|zstd", "topk:0.1|int8", "float32"])
def test_values_are_those_of_the_whole_codec_and_what_is_left_to_say_too(codec: str) -> None:
    """Of several devices at once, and as each of them keeps what is left: packed."""
    rng = np.random.default_rng(0)
    plan, encoder = Plan(codec=codec), FleetEncoder(SCHEMA)
    left: list[bytes | None] = [None] * 3
    for number in range(1, MEASURED // 2):
        deltas = [(rng.standard_t(2, SCHEMA.size) * 0.01).astype(np.float32) for _ in left]
        found = encoder.encode([(f"d{n}", number) for n in range(3)], deltas, plan, LINEAGE)
        for place, (delta, said) in enumerate(zip(deltas, found, strict=True)):
            before = left[place]
            seed = crc32(f"d{place}/{number}".encode())
            whole, (left[place],) = encode(
                delta[None], codec, LINEAGE, SCHEMA, feedback=True, left=[before], seeds=[seed]
            )
            assert said is not None
            np.testing.assert_array_equal(said.delta, codecs.decode_delta(whole.body(0), SCHEMA, codec))
            assert said.norm == pytest.approx(float(np.linalg.norm(said.delta)))
            assert said.size == pytest.approx(len(whole.body(0)), rel=0.1)


def test_an_update_that_is_encoded_again_starts_from_what_was_left_before_it() -> None:
    """One that was expected from one version and came from another must leave no trace of the first."""
    rng = np.random.default_rng(0)
    one, two, other = ((rng.standard_t(2, SCHEMA.size) * 0.01).astype(np.float32) for _ in range(3))
    straight, again = FleetEncoder(SCHEMA), FleetEncoder(SCHEMA)
    for number, delta in enumerate((one, two), 1):
        (last,) = straight.encode([("d", number)], [delta], Plan(), LINEAGE)
    again.encode([("d", 1)], [one], Plan(), LINEAGE)
    again.encode([("d", 2)], [other], Plan(), LINEAGE)
    (repeated,) = again.encode([("d", 2)], [two], Plan(), LINEAGE)
    assert last is not None and repeated is not None
    np.testing.assert_array_equal(last.delta, repeated.delta)


def test_delta_that_is_not_finite_is_told_and_leaves_others_alone() -> None:
    rng = np.random.default_rng(0)
    fine = rng.normal(size=SCHEMA.size).astype(np.float32)
    found = FleetEncoder(SCHEMA).encode([("a", 1), ("b", 1)], [np.full_like(fine, np.nan), fine], Plan(), LINEAGE)
    (alone,) = FleetEncoder(SCHEMA).encode([("b", 1)], [fine], Plan(), LINEAGE)
    assert found[0] is None and found[1] is not None and alone is not None
    np.testing.assert_array_equal(found[1].delta, alone.delta)
