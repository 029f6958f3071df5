"""The model in use: the released one first, swapped whole, there again after a restart, and never half of one."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from midge.iot_client.data.samples import Samples
from midge.iot_client.state.prediction import NoModel, Predicting
from midge.iot_client.state.verified_model import VerifiedModel
from midge.iot_client.training.fit import Recipe
from midge.iot_client.training.numpy_models import MLP, Linear
from midge.iot_client.training.sample_trainer import SampleTrainer, model_of
from midge.iot_client.training.update_encoder import TrainerError
from midge.wire.lineage import on_grid
from midge.wire.messages import Plan
from midge.wire.schema import Schema, Tensor
from midge.wire.topics import Channel

ONE, OTHER = b"1" * 16, b"2" * 16


def model(value: float, channel: Channel = "train", lineage: bytes = ONE, role: Any = "trained") -> VerifiedModel:
    schema = Schema([Tensor("w", (2,), "float32", "trained"), Tensor("own", (2,), "float32", role)])
    return VerifiedModel(channel, lineage, int(value), on_grid(np.full(schema.size, value, np.float32), schema, b""))


def predicting(path: Path | None = None) -> Predicting:
    return Predicting(path, lambda parameters, x: float(parameters["w"] @ x), lambda found, _schema: found)


X = np.array([1, 0], np.float32)


def test_what_is_released_for_use_goes_before_what_is_trained_from_until_another_lineage() -> None:
    using = predicting()
    with pytest.raises(NoModel, match="fetched"):
        using(X)
    for each, expected in [
        (model(1), 1),
        (model(2), 2),
        (model(3, "serve"), 3),
        (model(4), 3),
        (model(5, "serve"), 5),
        (model(6, lineage=OTHER), 6),
    ]:
        using.take(each, 0)
        assert using(X) == expected


def test_a_restart_predicts_at_once_and_models_are_written_seldom(tmp_path: Path) -> None:
    path = tmp_path / "a.model"
    using = predicting(path)
    for second in range(1200):
        using.take(model(second + 1), second)
    first = using.written
    assert first == 2 * 4096
    again = predicting(path)
    again.restore()
    assert again(X) == 601 and again.model is not None and again.model.version == 601
    using.close()
    again.restore()
    assert again(X) == 1200


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: data[:-9] + b"?" + data[-8:], lambda _: b""])
def test_a_broken_file_is_as_none(damage: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "a.model"
    using = predicting(path)
    using.take(model(1), 0)
    path.write_bytes(damage(path.read_bytes()))
    again = predicting(path)
    again.restore()
    with pytest.raises(NoModel):
        again(X)
    assert "not used" in caplog.text


def test_a_tensor_of_the_devices_own_is_the_newest_one() -> None:
    own = np.zeros(2, np.float32)
    using = Predicting(
        None, lambda parameters, x: float(parameters["own"] @ x), lambda found, _: {**found, "own": own.copy()}
    )
    using.take(model(1, role="local"), 0)
    own[:] = 7
    assert using(X) == 0
    using.refresh()
    assert using(X) == 7


def test_without_a_function_nothing_is_kept_and_it_says_which_is_missing() -> None:
    using = Predicting(None, None, lambda found, _: found)
    using.take(model(1), 0)
    assert using.model is None
    with pytest.raises(NoModel, match=r"Device\(predict=…\)"):
        using(X)


# ------------------------------------------------------------- ready-made models on samples


def samples(kind: Any = "regression") -> Samples:
    rng = np.random.default_rng(0)
    found = Samples(None, ["a", "b"], "y", kind=kind)
    for _ in range(300):
        x = rng.normal(size=2)
        found.observe(x, 2 * x[0] - x[1] + 5 if kind == "regression" else int(x[0] > 0))
    return found


@pytest.mark.parametrize(
    "net", [Linear(2, outputs=1, task="regression"), MLP(2, (8, 4), 3), MLP(2, (4,), 2, channels=1)]
)
def test_the_model_is_read_off_the_parameters(net: MLP) -> None:
    found = model_of(net.initial())
    assert found.layers == net.layers and found.task == net.task
    assert (found.channels or found.inputs) == (net.channels or net.inputs)


def test_it_learns_what_the_samples_say_and_predicts_it() -> None:
    trainer = SampleTrainer(samples(), model="linear", recipe=Recipe(local_steps=400, learning_rate=0.05))
    parameters = Linear(2, outputs=1, task="regression").initial()
    fit = trainer(parameters, Plan(seed=1))
    assert fit.examples == 300 and trainer.samples.new == 0
    assert trainer.predict(fit.parameters, [1, 1]) == pytest.approx(6, abs=0.1)
    assert trainer.predict(fit.parameters, [[1, 1], [0, 0]]).shape == (2,)
    trainer = SampleTrainer(samples("classification"), recipe=Recipe(local_steps=200))
    fit = trainer(MLP(2, (8,), 2).initial(), Plan(seed=1))
    assert trainer.predict(fit.parameters, [[3, 0], [-3, 0]]).tolist() == [1, 0]


def test_what_does_not_fit_is_told_in_words() -> None:
    plan = Plan()
    for parameters, match in [
        ({"w": X}, r"none of midge's own.*it has w"),
        (Linear(3, outputs=1, task="regression").initial(), r"the model has 3 inputs, this device gives 2: a, b"),
        (MLP(2, (), 2).initial(), "is for classification"),
        (MLP(2, (4,), 1, "regression").initial(), "no linear model"),
    ]:
        with pytest.raises(TrainerError, match=match):
            SampleTrainer(samples(), model="linear")(parameters, plan)
    many = samples("classification")
    many.observe([1, 2], 9)
    with pytest.raises(TrainerError, match="class 9; the federation's model has classes 0 to 1"):
        SampleTrainer(many)(MLP(2, (), 2).initial(), plan)
    with pytest.raises(TrainerError, match="no samples yet"):
        SampleTrainer(Samples(None, ["a", "b"], "y"))(Linear(2, outputs=1, task="regression").initial(), plan)
