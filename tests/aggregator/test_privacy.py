"""Differential privacy of the steps: noise everywhere, a sensitivity that holds, nothing beside it that tells."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from midge.aggregator.core.presets import private
from midge.aggregator.core.privacy import Privacy
from midge.aggregator.core.records import StepRecord
from midge.aggregator.model.noisy_sum import clipped
from midge.aggregator.model.reducer import Contribution, ServerState, make_step
from midge.wire import frames
from midge.wire.messages import Report, Verdict
from midge.wire.schema import Schema
from tests.aggregator.rig import TOPICS, rig

PRIVACY = Privacy(clip=1.0, noise=4.0, epsilon=60.0)
SIZE = 4000
TWO_TENSORS = {"a": np.zeros(SIZE, np.float32), "b": np.zeros(SIZE, np.float32)}


def step(privacy: Privacy, updates: int, **fields: object) -> StepRecord:
    """A step of this many updates, each of weight 1."""
    numbered = tuple((lsn, 1.0) for lsn in range(updates))
    record = StepRecord(9, 1, numbered, 1.0, "delta", "count", divisor=float(updates), noise=privacy.deviation)
    given_fields = {"clip": privacy.clip, "grid": privacy.grid, **fields}
    return StepRecord(**{**{name: getattr(record, name) for name in record.__slots__}, **given_fields})


def test_noise_is_on_tensors_that_no_update_covers(tmp_path: Path) -> None:
    """Else the noise itself would show which tensors the updates of a step covered."""
    with rig(tmp_path, private(PRIVACY, 2), parameters=TWO_TENSORS) as life:
        for device in "ab":
            life.send(device, 1, np.zeros(SIZE, np.float32), tensors=(0,))
        for name, values in life.model.parameters().items():
            assert np.std(values) == pytest.approx(PRIVACY.deviation / 2, rel=0.05), name


def test_noise_comes_from_the_systems_generator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never from a seeded one, and never the same twice."""

    def refuse(*_: object) -> None:
        raise AssertionError("a generator that can be predicted")

    models = []
    for number in range(2):
        with rig(tmp_path / str(number), private(PRIVACY, 2), parameters=TWO_TENSORS) as life:
            with monkeypatch.context() as patched:
                for name in ("default_rng", "PCG64", "Generator", "standard_normal", "seed"):
                    patched.setattr(np.random, name, refuse)
                for device in "ab":
                    life.send(device, 1, np.zeros(2 * SIZE, np.float32))
            models.append(life.model.x.copy())
    assert np.mean(models[0] == models[1]) < 0.01


@given(
    st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=20),
    st.floats(1e-6, 1e6),
    st.floats(2.0**-20, 2.0**20),
    st.floats(0.01, 1000),
)
def test_an_update_is_within_the_clip_norm_exactly(
    values: list[float], factor: float, clip: float, multiplier: float
) -> None:
    """In integers, whatever its factor is: a sensitivity that rounding exceeds is none."""
    privacy = Privacy(clip, multiplier, 1e9)
    delta = np.array(values, np.float32)
    integers = clipped(delta, factor, [slice(0, delta.size)], step(privacy, 1))
    assert sum(int(value) ** 2 for value in integers) <= int(math.ldexp(clip, -privacy.grid) * 2**40) ** 2 >> 80
    assert np.all(np.sign(integers) * np.sign(delta) >= 0)


def test_a_step_is_the_clipped_mean_to_the_resolution_of_the_grid() -> None:
    """Without its noise, and with a momentum, which is post-processing."""
    schema, rng = Schema.of(TWO_TENSORS), np.random.default_rng(1)
    deltas = [(scale * rng.standard_normal(2 * SIZE)).astype(np.float32) for scale in (1e-3, 1.0)]
    nothing = np.zeros(schema.size, np.int32)
    expected = sum(delta / max(1.0, float(np.linalg.norm(delta))) for delta in deltas) / 2
    for kind, factor in (("sgd", 1.0), ("adam", None)):
        x = np.zeros(schema.size, np.float32)
        record = step(PRIVACY, 2, optimizer=(kind, 0.5, 0.9, 1e-3))
        items = [Contribution(delta, None, 0, name) for delta, name in zip(deltas, "ab", strict=True)]
        make_step(x, schema, record, items, ServerState(), nothing)
        if factor is not None:
            np.testing.assert_allclose(x, factor * expected, atol=2.0**-19)
        else:
            assert np.corrcoef(np.sign(x), np.sign(expected))[0, 1] > 0.9


def test_a_norm_is_no_reason_to_refuse(tmp_path: Path) -> None:
    """Whether an update is refused would depend on its device's data; it is scaled down instead."""
    with rig(tmp_path, private(PRIVACY, 2)) as life:
        assert life.send("a", 1, [3e38, 3e38, 0, 0]).verdict is Verdict.ACCEPTED
        assert life.send("b", 1, [0, 0, 0, 0]).verdict is Verdict.ACCEPTED
        assert float(np.abs(life.model.x).max()) < 6 * PRIVACY.deviation


def test_norms_of_the_fleet_change_no_rate(tmp_path: Path) -> None:
    """Growing norms halve the rate of other strategies; here that would publish something about the norms."""
    rates = {}
    privacy = Privacy(clip=1e6, noise=0.01, epsilon=1e9)
    for growth in (1.0, 2.0):
        with rig(tmp_path / str(growth), private(privacy, 2)) as life:
            for seq in range(1, 40):
                for device in "ab":
                    life.send(device, seq, [growth**seq / 1e6, 0, 0, 0])
            assert life.core.growth.damping == 1.0
            rates[growth] = [
                entry.record.rate for entry in life.store.entries(0) if isinstance(entry.record, StepRecord)
            ]
    assert rates[1.0] == rates[2.0]


def test_results_on_devices_own_data_are_dropped(tmp_path: Path) -> None:
    """Observers would see them, and candidates are promoted by them: neither is charged to a budget."""
    with rig(tmp_path, private(PRIVACY, 2)) as life:
        report = Report(lineage=life.core.lineage, version=1, metrics={"loss": 0.25}, examples=7)
        life.hear((TOPICS.report("a"), frames.encode(report)))
        assert not [event for event, _ in life.told if event == "report"]
        assert life.outlet.meters.dropped["private"] == 1
    assert private(PRIVACY).plan.evaluate == 0, "devices need not measure them"


def test_an_owner_of_several_devices_is_protected_as_a_whole() -> None:
    """M devices of an owner move a sum by m clip norms: m²·ρ."""
    one, three = (Privacy(clip=1.0, noise=12.0, epsilon=8.0, owner_devices=devices) for devices in (1, 3))
    assert three.spent(4) == pytest.approx(Privacy(clip=1.0, noise=4.0, epsilon=8.0).spent(4), rel=1e-9)
    assert one.contributions == pytest.approx(9 * three.contributions, abs=9)


def test_a_step_of_an_earlier_midge_is_replayed_as_it_was() -> None:
    """Its noise was float32, and only on covered tensors."""
    schema, x = Schema.of(TWO_TENSORS), np.zeros(2 * SIZE, np.float32)
    drawn = np.random.default_rng(2).standard_normal(2 * SIZE).astype(np.float32)
    item = Contribution(np.zeros(2 * SIZE, np.float32), (0,), 0, "a")
    make_step(x, schema, step(PRIVACY, 1, clip=0.0, grid=0), [item], ServerState(), drawn)
    np.testing.assert_array_equal(x[:SIZE], drawn[:SIZE])
    assert not x[SIZE:].any()
