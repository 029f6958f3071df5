"""Beyond training: who takes part, at which pace, with which tensors, at what cost; and what a device uses."""

import asyncio
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from midge.aggregator.core.participation_controller import Pace
from midge.aggregator.core.presets import fedasync, fedbuff
from midge.aggregator.core.staleness import constant
from midge.aggregator.store.pausing import pause, resume
from midge.broker.embedded.in_memory import Twin
from midge.broker.embedded.routing import RoutedMessage
from midge.commands.words import sentence
from midge.iot_client.board.usage_budget import Budget, Costs
from midge.iot_client.config import DeviceConfig
from midge.iot_client.device import Device
from midge.iot_client.runtime import DeviceRuntime
from midge.iot_client.state.local_tensors import LocalTensors, Missing
from midge.iot_client.training.evaluation import Scores
from midge.iot_client.training.fit import Fit, Parameters, TrainingPlan
from midge.iot_client.training.throughput import Throughput
from midge.iot_client.training.update_encoder import TrainerError
from midge.wire import messages
from midge.wire.messages import AggregatorState, AggregatorStatus, Announcement, FrameInfo, Participation, Plan
from midge.wire.schema import Schema
from tests.federation.live import INITIAL, Log, aggregator, approach, device, serving

pytestmark = pytest.mark.virtual


def one(twin: Twin, name: str, log: Log, train: Any = approach, **arguments: Any) -> Device:
    return Device(
        DeviceConfig(
            connector=twin.connect,
            federation="f",
            name=name,
            train=train,
            outbox=arguments.pop("outbox", None),
            on_event=log,
            **arguments,
        )
    )


async def test_devices_evaluate_on_their_own_data_and_the_spread_is_told(tmp_path: Path) -> None:
    twin, log = Twin(), Log()

    def evaluate(rows: int, score: float) -> Any:
        return lambda parameters: Scores(
            rows, {"accuracy": score, "bad": float("nan"), "w": float(parameters["w"][0, 1])}
        )

    devices = [
        one(twin, name, log, evaluate=evaluate(rows, score))
        for name, rows, score in (("a", 30, 0.9), ("b", 10, 0.5), ("c", 0, 0.1))
    ]
    async with serving(aggregator(twin, tmp_path / "store", log), *devices):
        await log.until(lambda: [each for each in log.of("federated_evaluation") if each["devices"] == 3])
    accuracy = log.of("federated_evaluation")[-1]["metrics"]["accuracy"]
    assert accuracy["mean"] == pytest.approx((30 * 0.9 + 10 * 0.5) / 40)
    assert (accuracy["lowest"], accuracy["median"], accuracy["highest"]) == (0.1, 0.5, 0.9)
    assert "bad" not in log.of("federated_evaluation")[-1]["metrics"]
    words = sentence(log.of("federated_evaluation")[-1])
    assert "On the data of 3 devices: accuracy 0.8 (0.1 to 0.9, tenth 0.18" in words
    assert len(log.of("evaluated", device="a")) == 1, "evaluated more often than the plan asks"


async def test_the_model_for_use_reaches_devices_that_want_it(tmp_path: Path) -> None:
    twin, log = Twin(), Log()
    used: list[tuple[Parameters, int]] = []
    strategy = fedasync(
        0.5,
        constant(),
        norm_limit=None,
        serve_decay=0.5,
        serve_interval=0.0,
        plan=Plan(codec="float32"),
        form="delta",
        bounded=False,
    )
    server = aggregator(twin, tmp_path / "store", log, strategy=strategy)
    devices = [
        device(twin, "a", log),
        one(twin, "b", log, on_model=lambda parameters, version: used.append((parameters, version))),
    ]
    async with serving(server, *devices):
        await log.until(lambda: log.of("release", version=20))
        await log.until(lambda: used and used[-1][1] >= 20)
    parameters, version = used[-1]
    assert [seen for _, seen in used] == sorted({seen for _, seen in used})
    assert version <= server.core.version
    assert not np.array_equal(parameters["w"], INITIAL["w"])


async def test_tensors_of_its_own_stay_on_the_device_and_survive_it(tmp_path: Path) -> None:
    """`b` is each device's own: it goes its own way, and nobody else sees it."""
    twin, log = Twin(), Log()

    def trainer(target: float) -> Any:
        def train(parameters: Parameters, plan: TrainingPlan) -> Fit:
            fit = approach(parameters, plan)
            return Fit({**fit.parameters, "b": (parameters["b"] + target) / 2}, examples=10)

        return train

    def fleet() -> list[Device]:
        return [
            one(
                twin,
                name,
                log,
                trainer(target),
                outbox=tmp_path / name,
                local={"b": np.full(2, target / 2, np.float32)},
            )
            for name, target in (("a", 100.0), ("b", -100.0))
        ]

    server = aggregator(twin, tmp_path / "store", log, roles={"b*": "local"})
    first = fleet()
    async with serving(server, *first):
        await log.until(lambda: log.of("release", version=20))
    assert "b" not in server.model.parameters()
    (again, _) = fleet()
    kept = again._parts.personal.join({"w": INITIAL["w"]}, server.model.schema)["b"]
    assert kept == pytest.approx(100, abs=1)
    async with serving(aggregator(twin, tmp_path / "store", log, roles={"b*": "local"})):
        with pytest.raises(TrainerError, match=r"leaves these tensors to each device.*b \(2,\).*Device\(local="):
            await one(twin, "c", log, trainer(0)).serve()


def test_private_tensors_of_another_shape_begin_anew(tmp_path: Path) -> None:
    path = tmp_path / "x.local.npz"
    np.savez(path, head=np.zeros(3))
    schema = Schema.of({"w": np.zeros(2, np.float32), "head": np.zeros(2, np.float32)}, {"head": "local"})
    given = LocalTensors(path, {"head": np.ones(2, np.float32)})
    assert given.join({"w": np.zeros(2)}, schema)["head"].tolist() == [1, 1]
    with pytest.raises(Missing, match="head"):
        LocalTensors(path, None).join({"w": np.zeros(2)}, schema)
    path.write_bytes(b"no npz at all")
    assert LocalTensors(path, {"head": np.ones(2)}).join({"w": np.zeros(2)}, schema)["head"].tolist() == [1, 1]


async def test_updates_that_cover_some_tensors_combine(tmp_path: Path) -> None:
    """One device trains w alone, the other b alone: each tensor is divided among those who trained it."""
    twin, log = Twin(), Log()

    def only(name: str) -> Any:
        def train(parameters: Parameters, plan: TrainingPlan) -> Fit:
            return Fit(approach(parameters, plan).parameters, examples=10, tensors=[name])

        return train

    strategy = fedbuff(2, staleness=constant(), norm_limit=None, plan=Plan(codec="float32"), bounded=False)
    server = aggregator(twin, tmp_path / "store", log, strategy=strategy)
    async with serving(server, one(twin, "a", log, only("w")), one(twin, "b", log, only("b"))):
        await log.until(lambda: log.of("release", version=2))
        x = server.model.parameters()
    np.testing.assert_allclose(x["b"], [-0.5, 0.5])  # half of the way, by the one that trained it
    assert x["w"][3, 1] == pytest.approx(3.5)
    async with serving(aggregator(twin, tmp_path / "other", log, replace=True)):
        with pytest.raises(TrainerError, match="does not learn: no such"):
            await one(twin, "c", log, only("no such")).serve()


async def test_a_pause_by_the_operator_holds_across_a_restart(tmp_path: Path) -> None:
    twin, log = Twin(), Log()
    devices = [device(twin, name, log) for name in "ab"]

    def said() -> AggregatorStatus:
        (message,) = twin.router._retained_on("midge/1/f/aggregator")
        return messages.decode(AggregatorStatus, message.payload)[0]

    def copies(_client: str, message: RoutedMessage) -> int:
        """No word of the pause comes through, so that a device goes on to send what is held then."""
        paused = message.topic == "midge/1/f/aggregator" and b"cleaned" in message.payload
        return 0 if paused else 1

    async with serving(*devices):
        server = aggregator(twin, tmp_path / "store", log)
        async with serving(server):
            await log.until(lambda: log.of("release", version=2))
            twin.copies = copies
            pause(tmp_path / "store", "the pumps are being cleaned")
            await log.until(lambda: log.of("held", verdict="paused"))
            assert "cleaned" in log.of("held")[-1]["why"]
            version = server.core.version
        twin.copies = lambda _client, _message: 1
        server = aggregator(twin, tmp_path / "store", log)
        async with serving(server):
            await log.until(lambda: said().state is AggregatorState.PAUSED)
            assert "cleaned" in said().why
            await asyncio.sleep(60)
            assert server.core.version == version, "what was held was taken in"
            assert resume(tmp_path / "store")
            await log.until(lambda: log.of("release", version=version + 3))


async def test_a_share_of_the_devices_trains_from_each_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    twin, log = Twin(), Log()
    fetched: list[tuple[str, int]] = []
    fetch = DeviceRuntime._fetch

    async def counted(self: DeviceRuntime, announcement: Announcement, way: tuple[FrameInfo, ...]) -> None:
        fetched.append((self.parts.config.name, announcement.version))
        await fetch(self, announcement, way)

    monkeypatch.setattr(DeviceRuntime, "_fetch", counted)
    strategy = fedasync(
        0.5,
        constant(),
        norm_limit=None,
        release_floor=1,
        pace=Pace(share=0.3),
        plan=Plan(codec="float32"),
        form="delta",
        bounded=False,
    )
    devices = [device(twin, f"d{number}", log) for number in range(10)]
    async with serving(aggregator(twin, tmp_path / "store", log, strategy=strategy), *devices):
        await log.until(lambda: log.of("release", version=15))
    trained = {(each["device"], each["version"]) for each in log.of("training")}
    versions = {version for _, version in trained}
    # at most those that are asked; a device that was busy passes versions over
    assert len(trained) / len(versions) < 6
    assert len(fetched) <= len(log.of("training")) + len(devices), "fetched without being about to train"


async def test_a_condition_of_the_owner_holds_training_back_and_lets_it_go(tmp_path: Path) -> None:
    twin, log = Twin(), Log()
    allowed: list[bool] = [False]
    held = one(twin, "b", log, conditions=[lambda: None if allowed[0] else "the battery is low"])
    async with serving(aggregator(twin, tmp_path / "store", log), device(twin, "a", log), held):
        await log.until(lambda: log.of("hindered", device="b", why="the battery is low"))
        await log.until(lambda: log.of("trained", device="a"))
        assert not log.of("training", device="b")
        allowed[0] = True
        held.look()
        await log.until(lambda: log.of("release", version=3))


# ------------------------------------------------------------------------ budget and pace


def test_a_month_allows_so_much_across_restarts(tmp_path: Path) -> None:
    november, december = time.mktime((2026, 11, 20, 12, 0, 0, 0, 0, 0)), time.mktime((2026, 12, 2, 12, 0, 0, 0, 0, 0))
    costs = Costs(bytes_per_month=1000, watts=2.0, joules_per_byte=0.5)
    budget = Budget(tmp_path / "usage", costs)
    budget.spend(moved=600, trained=10, now=november)
    assert budget.spent(None, november) is None
    assert budget.joules == 320
    assert "the month allows 500" in str(budget.spent(Participation(bytes_per_month=500), november))
    assert "the month allows 300" in str(budget.spent(Participation(joules_per_month=300), november))
    budget.save()
    again = Budget(tmp_path / "usage", costs)
    again.spend(moved=400, now=november)
    assert "1,000 bytes" in str(again.spent(None, november))
    assert again.spent(None, december) is None
    assert again.spent(None, november) is None, "a clock that was put back would spend twice"
    (tmp_path / "usage").write_text("{")
    assert Budget(tmp_path / "usage", costs).bytes == 0


def test_local_steps_follow_the_measured_speed() -> None:
    speed, plan = Throughput(), Plan(seconds=2.0, fewest_steps=5, most_steps=100, epochs=3)
    assert speed.scaled(plan) is plan
    speed.record(steps=10, rows=160, seconds=1.0)
    assert speed.scaled(plan).local_steps == 20
    assert speed.scaled(plan).epochs is None
    speed.record(steps=10_000, rows=160, seconds=1.0)
    assert speed.scaled(plan).local_steps == 100
    assert speed.scaled(Plan()) == Plan()
