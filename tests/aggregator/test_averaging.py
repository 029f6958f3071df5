"""Averaged tensors are averaged: of values that are never negative, no version of the model is either.

`test_no_variance_is_ever_negative` was seen to fail with each strategy but the mixing form where the reducer added the
deltas of averaged tensors as it does those of trained ones.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import midge
from midge.aggregator.core.optimizers import adam, sgd
from midge.aggregator.core.presets import balanced, ca2fl, fadas, fedasync, fedavg, fedbuff, private
from midge.aggregator.core.privacy import Privacy
from midge.aggregator.core.records import StepRecord
from midge.aggregator.core.staleness import constant, hinge
from midge.aggregator.core.strategy import Strategy
from midge.aggregator.model import averaging
from midge.aggregator.model.averaging import Averaging
from midge.aggregator.model.model import Model
from midge.aggregator.model.reducer import Contribution
from midge.iot_client.training.fit import Fit, Parameters, TrainingPlan
from midge.iot_client.training.update_encoder import chosen, encode
from midge.wire import lineage
from midge.wire.lineage import State
from midge.wire.messages import Plan
from midge.wire.schema import Schema
from tests.aggregator.rig import Rig

RNG = np.random.default_rng(0)
START: dict[str, Any] = {
    "w": RNG.normal(size=600).astype(np.float32),
    "var": np.ones(5, np.float32),
    "v": RNG.normal(size=(20, 30)).astype(np.float32),
    "large.var": (RNG.random(300) * 1e-3).astype(np.float32),
    "b": np.zeros(3, np.float32),
}
ROLES: dict[str, Any] = {"*var": "averaged"}
SCHEMA = Schema.of(START, ROLES)
VARIANCES = np.concatenate(
    [np.arange(place.start, place.stop) for _, each, place in SCHEMA.shared if "var" in each.name]
)
FREE: dict[str, Any] = {"norm_limit": None, "deadline": None}
STRATEGIES: dict[str, Callable[[Plan], Strategy]] = {
    "balanced": lambda plan: balanced(2, plan=plan),
    "balanced, rate 10": lambda plan: balanced(2, 10.0, even_steps=True, clip=1.1, plan=plan),
    "fedasync": lambda plan: fedasync(1.0, norm_limit=None, plan=plan, form="delta", bounded=False),
    "fedasync, rate 10": lambda plan: fedasync(
        10.0, constant(), norm_limit=None, plan=plan, form="delta", bounded=False
    ),
    "fedasync, mixing": lambda plan: fedasync(1.0, form="mixing", norm_limit=None, plan=plan),
    "fedbuff": lambda plan: fedbuff(3, plan=plan, **FREE, bounded=False),
    "fedbuff, by rows": lambda plan: fedbuff(2, 2.0, hinge(), weigh_examples=True, plan=plan, **FREE, bounded=False),
    "fedavg": lambda plan: fedavg(3, 2, max_staleness=3, plan=plan, bounded=False),
    "ca2fl": lambda plan: ca2fl(2, plan=plan, norm_limit=None, bounded=False),
    "ca2fl, half": lambda plan: ca2fl(2, calibration=0.5, plan=plan, serve_decay=0.5, bounded=False),
    "fadas": lambda plan: fadas(2, 0.1, plan=plan, bounded=False),
    "adam": lambda plan: fedbuff(2, 0.1, optimizer=adam(), plan=plan, **FREE, bounded=False),
    "momentum": lambda plan: fedbuff(2, optimizer=sgd(0.9), plan=plan, serve_decay=0.9, **FREE, bounded=False),
    "trimmed": lambda plan: fedbuff(4, combine="trimmed", trim=0.3, plan=plan, **FREE, bounded=False),
    "centred": lambda plan: fedbuff(3, 2.0, combine="centred", plan=plan, **FREE, bounded=False),
}
CODECS = [
    "uq:4|rice",
    "uq:4",
    "int8:256",
    "float32",
    "bf16",
    "int4:64",
    "sign:64",
    "topk:0.01|int8",
    "eden:1",
    "stc:0.1",
]


@dataclass(frozen=True)
class Trained:
    """One training; or, without a device, a restart, with or without a checkpoint before it."""

    device: str
    seed: int
    behind: int
    size: float
    tensors: tuple[int, ...] | None
    steps: int


TRAINED = st.builds(
    Trained,
    st.sampled_from(["", "p", "q", "r", "s"]),
    st.integers(0, 2**32 - 1),
    st.integers(0, 6),
    st.sampled_from([0.0, 1e-42, 1e-9, 1e-3, 1.0, 1e4, 2.0**40]),
    st.sampled_from([None, None, None, (0, 1), (1,), (2, 3, 4), (0, 2)]),
    st.integers(1, 40),
)


@dataclass
class Fleet:
    """Devices that train from versions old and new, over a store that may be opened again."""

    directory: Path
    strategy: Strategy
    states: dict[int, State] = field(default_factory=dict)
    left: dict[str, bytes | None] = field(default_factory=dict)
    seqs: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.life = self.open()
        self.look()

    def open(self) -> Rig:
        return Rig(self.directory, self.strategy, parameters=START, roles=ROLES).start()

    def look(self) -> None:
        """No variance is negative, wherever one looks, and a device reads the same."""
        model = self.life.model
        self.states.setdefault(self.life.core.version, model.state)
        read = lineage.decode_snapshot(lineage.encode_snapshot(model.state))
        for values in (model.x, model.state.values(), read.values(), model.used().values()):
            assert (values[VARIANCES] >= 0).all()
            assert np.isfinite(values).all()

    def restart(self, *, checkpoint: bool) -> None:
        """What was rebuilt is what had been, bit for bit."""
        before = held(self.life.model)
        if checkpoint:
            self.life.engine.checkpoint(self.life.core)
        self.life.close()
        self.life = self.open()
        assert held(self.life.model) == before

    def train(self, training: Trained) -> None:
        """As a device does: from p_v to an update in the plan's codec, with what the last one has left."""
        life, device, plan = self.life, training.device, self.strategy.plan
        base = sorted(self.states)[max(-1 - training.behind, -len(self.states))]
        state, rng = self.states[base], np.random.default_rng(training.seed)
        start = state.values()
        trained = start + (training.size * rng.normal(size=SCHEMA.size)).astype(np.float32)
        trained[VARIANCES] = training.size * rng.random(VARIANCES.size) ** 8
        trained[VARIANCES[rng.random(VARIANCES.size) < 0.3]] = 0
        delta = trained - start
        if training.tensors is not None:
            covered = np.zeros(SCHEMA.size, np.bool_)
            for place in SCHEMA.covered(training.tensors):
                covered[place] = True
            delta[~covered] = 0
        codec = chosen(plan)
        coded, (self.left[device],) = encode(
            delta[None],
            codec,
            bytes(16),
            SCHEMA,
            training.tensors,
            feedback=plan.feedback,
            left=[self.left.get(device)],
            seeds=[training.seed],
        )
        self.seqs[device] = seq = self.seqs.get(device, 0) + 1
        fields: dict[str, Any] = {"examples": 1 + training.seed % 99, "steps": training.steps}
        life.send(device, seq, delta, base=base, body=coded.body(0), codec=codec, tensors=training.tensors, **fields)


def held(model: Model) -> dict[str, bytes]:
    """All arrays of a model, and those of its digest."""
    arrays, _ = model.dump()
    return {name: np.asarray(array).tobytes() for name, array in arrays.items()} | {"digest": model.digest()}


@pytest.mark.parametrize("name", STRATEGIES)
@settings(max_examples=12, deadline=None)
@given(st.lists(TRAINED, min_size=6, max_size=30), st.sampled_from(CODECS), st.booleans())
def test_no_variance_is_ever_negative(name: str, history: list[Trained], codec: str, feedback: bool) -> None:
    """In x, in what is published, served and read, at any lateness; and a restart changes no bit."""
    with tempfile.TemporaryDirectory() as directory:
        fleet = Fleet(Path(directory), STRATEGIES[name](Plan(codec=codec, feedback=feedback)))
        try:
            for training in history:
                if training.device:
                    fleet.train(training)
                else:
                    fleet.restart(checkpoint=training.seed % 2 == 0)
                fleet.look()
        finally:
            fleet.life.close()


# ------------------------------------------------------------------------- the formula

TWO = Schema.of({"w": np.zeros(2, np.float32), "m": np.zeros(3, np.float32)}, {"m": "averaged"})
MOMENTUM, ADAM = ("sgd", 0.5, 0.0, 0.0), ("adam", 0.9, 0.99, 1e-3)


def at(version: int, values: float) -> tuple[int, State]:
    """A version whose averaged values are all these."""
    x = np.array([0, 0, values, values, values], np.float32)
    return version, lineage.on_grid(x, TWO, b"")


def stepped(
    updates: list[tuple[float, float, int]],
    *,
    tensors: tuple[int, ...] | None = None,
    releases: tuple[tuple[int, float], ...] = ((1, 4.0), (2, 8.0)),
    **fields: Any,
) -> float:
    """What an averaged value of 8 becomes by updates of so much weight, delta and base."""
    values = Averaging(TWO)
    for version, value in releases:
        values.released(*at(version, value))
    x = np.array([1, 1, 8, 8, 8], np.float32)
    before = values.values(x)
    items = [
        values.split(Contribution(np.array([7, 7, delta, delta, delta], np.float32), tensors, base))
        for _, delta, base in updates
    ]
    assert all((item.delta == [7, 7, 0, 0, 0]).all() for item in items)
    weights = tuple((number, weight) for number, (weight, _, _) in enumerate(updates))
    record = StepRecord(1, 1, weights, **{"rate": 1.0, "form": "delta", "normalise": "weight", **fields})
    x[:] = np.nan  # whatever the rest of the step makes of these places
    values.step(x, before, record, items)
    assert len(set(x[2:].tolist())) == 1
    return float(x[2])


@pytest.mark.parametrize(
    ("updates", "fields", "expected"),
    [
        ([(1.0, 2.0, 2)], {"rate": 0.25}, 8.5),  # as x + η·Δ
        ([(0.5, 2.0, 2)], {"rate": 0.5, "normalise": "none"}, 8.5),  # as FedAsync: x + α·s·Δ
        ([(0.5, 2.0, 2), (0.5, 6.0, 2)], {"rate": 0.5, "normalise": "count"}, 9.0),  # as FedBuff: x + η·Σ s·Δ / K
        ([(1.0, -3.0, 1)], {"rate": 0.25}, 8 + 0.25 * (1 - 8)),  # to the value that the device has, 4 − 3
        ([(3.0, 0.0, 2), (1.0, -4.0, 2)], {"rate": 0.5}, 7.5),  # a weighted mean
        ([(1.0, 2.0, 2)], {"rate": 10.0}, 9.0),  # half way to one update, at most
        ([(1.0, 3.0, 2), (1.0, 3.0, 2)], {"rate": 1.0}, 10.0),  # two thirds of the way to two
        ([(1.0, 2.0, 2)], {"rate": 0.125, "optimizer": MOMENTUM}, 8.5),  # what momentum comes to
        ([(1.0, 2.0, 2)], {"rate": 1e-3, "optimizer": ADAM}, 9.0),  # a rate that is no share
        ([(1.0, 2.0, 2)], {"rate": 0.25, "scales": (1e-3,)}, 8.5),  # scales are of deltas
        ([(0.0, 2.0, 2)], {}, 8.0),
        ([(1.0, 2.0, 2)], {"rate": 0.25, "tensors": (1,)}, 8.5),
        ([(1.0, 2.0, 2)], {"tensors": (0,)}, 8.0),  # what no update covers stays
    ],
)
def test_a_step(updates: list[tuple[float, float, int]], fields: dict[str, Any], expected: float) -> None:
    assert stepped(updates, **fields) == pytest.approx(expected, rel=1e-6)


def test_an_update_whose_version_is_no_longer_held_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    assert stepped([(1.0, 2.0, 2), (1.0, 100.0, 0)], rate=0.25) == 8.5
    assert stepped([(1.0, 100.0, 0)]) == 8.0
    monkeypatch.setattr(averaging, "MOST", 1)
    assert stepped([(1.0, 2.0, 2), (1.0, 100.0, 1)], rate=0.25) == 8.5


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """By bytes, but for a few versions of a large model."""
    for allowed, kept in ((2**24, 1024), (12 * 20, 20), (0, averaging.FEWEST)):
        monkeypatch.setattr(averaging, "KEPT_BYTES", allowed)
        values = Averaging(TWO)
        for version in range(1, 2000):
            values.released(*at(version, 1.0))
        assert values.dump()["averaged.versions"].tolist() == list(range(2000 - kept, 2000))


def test_what_no_device_changes_stays_to_the_last_bit() -> None:
    x = np.array([0, 0, *np.random.default_rng(0).random(3)], np.float32)
    values = Averaging(TWO)
    values.released(1, State(TWO, np.rint(np.ldexp(x, 30)).astype(np.int32), -30, b""))  # fine enough to be x
    record = StepRecord(1, 1, ((1, 0.3), (2, 0.7), (3, 1.1)), 0.3, "delta", "weight")
    before = x.copy()
    values.step(x, values.values(x), record, [values.split(Contribution(np.zeros(5, np.float32), None, 1))] * 3)
    assert x.tobytes() == before.tobytes()


def test_a_model_without_averaged_tensors_keeps_nothing_and_copies_nothing() -> None:
    schema = Schema.of({"w": np.ones(2, np.float32)})
    values, item = Averaging(schema), Contribution(np.ones(2, np.float32), None, 1)
    values.released(1, lineage.on_grid(np.ones(2, np.float32), schema, b""))
    assert values.split(item) is item
    assert not values.dump()


def test_no_release_has_the_values_of_the_last_device_alone(tmp_path: Path) -> None:
    """Each update is a step at the highest rate, and a release has two of them: it must tell of both."""
    life = Rig(
        tmp_path,
        fedasync(10.0, constant(), norm_limit=None, form="delta", bounded=False),
        parameters=START,
        roles=ROLES,
    ).start()
    delta = np.zeros(SCHEMA.size, np.float32)
    try:
        for device, value in (("p", 3.0), ("q", 5.0)):
            delta[VARIANCES[0]] = value - 1
            life.send(device, 1, delta, base=1, codec="float32")
        assert life.core.version == 2
        assert life.model.state.values()[VARIANCES[0]] == pytest.approx(0.25 * 1 + 0.25 * 3 + 0.5 * 5)
    finally:
        life.close()


def test_differential_privacy_refuses_averaged_tensors(tmp_path: Path) -> None:
    strategy = private(Privacy(1.0, 1.0, 8.0), 3)
    with pytest.raises(ValueError, match=r"averaged tensors \(var, large\.var\)"):
        midge.Aggregator(
            "mqtt://127.0.0.1", federation="f", initial=START, roles=ROLES, strategy=strategy, store=tmp_path
        )
    with pytest.raises(ValueError, match="GroupNorm"):
        midge.simulate(unchanged, devices=3, initial=START, roles=ROLES, strategy=strategy)
    midge.simulate(unchanged, devices=3, initial=START, roles={"*var": "frozen"}, strategy=strategy, seconds=1)


def unchanged(parameters: Parameters, plan: TrainingPlan) -> Fit:
    return Fit(dict(parameters), examples=1)
