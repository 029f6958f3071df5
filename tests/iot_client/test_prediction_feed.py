"""Predictions, scores and alarms as JSON on an MQTT topic, while the broker is there and when it is back."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from midge.broker.embedded.in_memory import Twin, _TwinConnection
from midge.broker.mqtt.connection import PublishRefused
from midge.commands.parts import Problem
from midge.commands.publishing import publish
from midge.iot_client.config import DeviceConfig
from midge.iot_client.connection.prediction_topic import PredictionTopic
from midge.iot_client.data.samples import Samples
from midge.iot_client.device import Device
from midge.iot_client.state.outbox import Outbox, OutboxError
from midge.iot_client.state.prediction import NoModel
from midge.wire.schema import Parameters
from tests.federation.live import Log, aggregator, approach, device, overheard, serving
from tests.iot_client.test_gateway import options, parse

pytestmark = pytest.mark.virtual

NAMES = ["a", "b", "c", "d"]


def total(parameters: Parameters, x: Any) -> Any:
    """A model of its own: what does not depend on the training."""
    return np.atleast_2d(x).sum(axis=1) if np.ndim(x) > 1 else float(np.sum(x))


class Gateway:
    """A device that publishes, beside an aggregator and another device."""

    def __init__(self, tmp_path: Path, kind: str = "regression", predict: Any = total, **to: Any) -> None:
        self.twin, self.log = Twin(), Log()
        self.seen = overheard(self.twin)
        self.samples = Samples(None, NAMES, "y", kind="classification" if kind == "classification" else "regression")
        self.samples.kind = kind  # type: ignore[assignment]  # without a label: of another intake
        self.app = device(
            self.twin, "a", self.log, tmp_path / "a.outbox", samples=self.samples, predict=predict,
            publish=PredictionTopic("plant/pump", every=0.0, **to),
        )  # fmt: skip
        self.server = aggregator(self.twin, tmp_path / "store", self.log)
        self.other = device(self.twin, "b", self.log)

    def said(self, topic: str = "plant/pump") -> list[dict[str, Any]]:
        return [json.loads(each.payload) for each in self.seen if each.topic == topic]

    async def models(self) -> None:
        await self.log.until(lambda: self.app._parts.predicting.model is not None)

    async def row(self, *x: float, y: float | None = None) -> dict[str, Any]:
        """What is published of a row."""
        before = len(self.said())
        self.samples.observe(list(x), y)
        await self.log.until(lambda: len(self.said()) > before)
        return self.said()[-1]


async def test_a_prediction_is_published_for_each_row_with_a_label_or_without(tmp_path: Path) -> None:
    gateway = Gateway(tmp_path)
    async with serving(gateway.server, gateway.other, gateway.app):
        await gateway.models()
        found = await gateway.row(1, 2, 3, 4)
        assert (found["device"], found["federation"], found["label"], found["prediction"]) == ("a", "f", "y", 10)
        assert found["version"] >= 1 and found["time"] > 0 and "alarm" not in found
        assert (await gateway.row(1, 2, 3, 5, y=0.5))["prediction"] == 11
        assert (await gateway.row(1, 2, 3, float("nan")))["prediction"] is None
    assert len(gateway.samples) == 1 and not any(each.retain for each in gateway.seen if each.topic == "plant/pump")


@pytest.mark.parametrize("retain", [False, True])
async def test_an_alarm_begins_and_ends_on_a_topic_of_its_own(tmp_path: Path, retain: bool) -> None:
    gateway = Gateway(tmp_path, alarm=10.0, retain=retain)
    async with serving(gateway.server, gateway.other, gateway.app):
        await gateway.models()
        for value, alarm in [(1, False), (9, True), (8, True), (0, False)]:
            found = await gateway.row(value, 1, 1, 1)
            assert (found["threshold"], found["alarm"]) == (10, alarm)
    assert [each["prediction"] for each in gateway.said("plant/pump/alarm")] == [12, 3]
    assert [each["event"] for each in gateway.log.events if each["event"] in ("unusual", "usual")] == [
        "unusual",
        "usual",
    ]
    kept = [each.payload for each in gateway.twin.router._retained_on("plant/#")]
    assert len(kept) == (2 if retain else 0)


async def test_classes_are_named_and_one_is_the_alarm(tmp_path: Path) -> None:
    def sign(_: Parameters, x: Any) -> Any:
        return np.int64(np.sum(x) > 0)

    gateway = Gateway(tmp_path, "classification", sign, classes=["normal", "fault"], alarm="fault")
    async with serving(gateway.server, gateway.other, gateway.app):
        await gateway.models()
        assert (await gateway.row(-1, 0, 0, 0))["class"] == "normal"
        found = await gateway.row(1, 0, 0, 0)
        assert (found["class"], found["alarm"]) == ("fault", True)


async def test_a_score_is_unusual_beside_those_of_the_devices_own_rows(tmp_path: Path) -> None:
    gateway = Gateway(tmp_path, "reconstruction")
    async with serving(gateway.server, gateway.other, gateway.app):
        await gateway.models()
        assert "alarm" not in await gateway.row(0, 0, 0, 0, y=0)
        rng, hears = np.random.default_rng(1), gateway.samples.on_row
        gateway.samples.on_row = None  # of an earlier life
        for _ in range(100):
            gateway.samples.observe(rng.normal(size=4), 0)
        gateway.samples.on_row = hears
        usual, unusual = await gateway.row(2, 0, 0, 0, y=0), await gateway.row(99, 0, 0, 0, y=0)
        assert (usual["alarm"], unusual["alarm"]) == (False, True)
        assert unusual["score"] == 99 and 10 < unusual["threshold"] < 40


async def test_what_was_predicted_while_the_broker_was_away_is_the_newest_when_it_is_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sensors = Twin()
    gateway = Gateway(tmp_path, alarm=10.0, connector=sensors.connect)
    gateway.seen = overheard(sensors)
    async with serving(gateway.server, gateway.other, gateway.app):
        await gateway.models()
        await gateway.row(1, 1, 1, 1)
        sensors.kill()
        for value in (20, 30, 40):
            gateway.samples.observe([value, 0, 0, 0], 1.0)
        await gateway.log.until(lambda: "predictions cannot be published" in caplog.text)
        sensors.restart()
        await gateway.log.until(lambda: gateway.said()[-1]["prediction"] == 40)
    assert [each["prediction"] for each in gateway.said()] == [4, 40]
    assert [each["prediction"] for each in gateway.said("plant/pump/alarm")] == [20]
    assert caplog.text.count("cannot be published") == 1


async def test_a_broker_that_refuses_is_told_once_and_a_predict_that_raises_ends_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def raising(_: Parameters, x: Any) -> Any:
        if np.sum(x) < 0:
            raise StopIteration
        return [1.0, float(np.sum(x))] if np.sum(x) < 50 else float(np.sum(x))

    gateway = Gateway(tmp_path, predict=raising)
    async with serving(gateway.server, gateway.other, gateway.app):
        await gateway.models()
        gateway.samples.observe([-1, 0, 0, 0], 0.0)
        gateway.samples.observe([-1, 0, 0, 0], 0.0)
        assert (await gateway.row(1, 1, 1, 1))["prediction"] == [1, 4]
        assert caplog.text.count("predict() failed") == 1
        refusals, publishing = 0, _TwinConnection.publish

        async def refuse(connection: Any, topic: str, payload: Any, **how: Any) -> None:
            nonlocal refusals
            if topic.startswith("plant/"):
                refusals += 1
                raise PublishRefused("not authorized", 0x87)
            await publishing(connection, topic, payload, **how)

        with monkeypatch.context() as patch:
            patch.setattr(_TwinConnection, "publish", refuse)
            for value in (60, 70):
                before = refusals
                gateway.samples.observe([value, 0, 0, 0], 0.0)
                await gateway.log.until(lambda seen=before: refusals > seen)  # type: ignore[misc]
        assert caplog.text.count("took no prediction on plant/pump") == 1
        assert (await gateway.row(80, 0, 0, 0))["prediction"] == 80


async def test_nothing_is_predicted_with_a_model_of_other_inputs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gateway = Gateway(tmp_path)
    gateway.server = aggregator(gateway.twin, tmp_path / "store", gateway.log, features=["b", "a", "c", "d"])
    async with serving(gateway.server, gateway.other, gateway.app):
        await gateway.log.until(lambda: gateway.app._runtime is not None and gateway.app._runtime.session.unsuited)
        gateway.samples.observe([1, 2, 3, 4], 1.0)
        await gateway.log.until(lambda: "nothing is predicted: the model's inputs are b, a, c, d" in caplog.text)
    assert not gateway.said()


async def test_a_kept_model_of_other_inputs_predicts_nothing_after_a_restart_either(tmp_path: Path) -> None:
    gateway = Gateway(tmp_path)
    gateway.server = aggregator(gateway.twin, tmp_path / "store", gateway.log, features=NAMES)
    async with serving(gateway.server, gateway.other, gateway.app):
        await gateway.models()
    again = device(Twin(), "a", Log(), tmp_path / "a.outbox", predict=total, features=NAMES)
    assert again.predict([1, 2, 3, 4]) == 10
    other = device(Twin(), "a", Log(), tmp_path / "a.outbox", predict=total, features=NAMES[::-1])
    with pytest.raises(NoModel, match="another order, d, c, b, a"):
        other.predict([1, 2, 3, 4])


def config(**arguments: Any) -> DeviceConfig:
    return DeviceConfig(connector=Twin().connect, federation="f", name="a", train=approach, outbox=None, **arguments)


def test_what_cannot_be_published_is_told() -> None:
    samples = Samples(None, NAMES, "y")
    cases: list[tuple[Callable[[], Any], str]] = [
        (lambda: PredictionTopic("a/#"), "no topic name"),
        (lambda: PredictionTopic("a", alarm="fault"), "'fault' is no number, and no class, and none are named"),
        (lambda: PredictionTopic("a", alarm="fault", classes=["ok"]), "no class: it is one of ok"),
        (lambda: PredictionTopic("a", every=-1), "publish.every is -1"),
        (lambda: config(publish=PredictionTopic("a")), "samples=…, predict=…"),
        (
            lambda: config(samples=samples, predict=total, publish=PredictionTopic("midge/1/f/announce")),
            "is a topic of the federation",
        ),
    ]
    for make, match in cases:
        with pytest.raises(ValueError, match=match):
            make()


def test_options_become_a_topic() -> None:
    app = Device(config(samples=Samples(None, NAMES, "y"), predict=total))
    words = ["--publish", "plant/pump", "--publish-retained", "--classes", "ok,fault", "--alarm", "fault"]
    publish(app, parse("x:y", *words, "--publish-broker", "mqtt://localhost:1"))
    to = app.config.publish
    assert to is not None and (to.topic, to.retain, to.alarm, to.classes) == (
        "plant/pump",
        True,
        "fault",
        ["ok", "fault"],
    )
    assert to.connector is not None
    publish(app, parse("x:y", "--publish", "plant/pump", "--alarm", "3.5"))
    assert app.config.publish is not None and app.config.publish.alarm == 3.5
    for wrong, match in [
        (["--alarm", "3"], "--alarm goes with --publish"),
        (["--publish", "a/+"], "no topic name"),
        (["--publish", "a", "--alarm", "high"], "'high' is no number"),
        (["--publish", "a", "--publish-broker", "localhost"], "mqtt://"),
    ]:
        with pytest.raises(Problem, match=match):
            publish(app, parse("x:y", *wrong))
    with pytest.raises(Problem, match="samples"):
        publish(options(), parse("x:y", "--publish", "a"))


async def test_a_disk_that_cannot_be_written_any_more_ends_no_predictions(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = Gateway(tmp_path)

    def read_only(*_: Any, **__: Any) -> None:
        raise OutboxError("The outbox a.outbox cannot be written any more (Read-only file system).")

    async with serving(gateway.server, gateway.other, gateway.app):
        await gateway.models()
        with monkeypatch.context() as patch:
            patch.setattr(Outbox, "store", read_only)
            await gateway.log.until(lambda: gateway.log.of("predicts_only", device="a"))
        assert (await gateway.row(1, 2, 3, 4))["prediction"] == 10
        assert gateway.app.predict([1, 1, 1, 1]) == 4
    assert "Read-only file system). It takes no part until" in caplog.text
