"""Rows without a label, of an autoencoder: kept, trained on, and scored by how unusual they are."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from midge.aggregator.core.presets import fedasync
from midge.broker.embedded.in_memory import Twin
from midge.commands.gateway import gateway
from midge.commands.parts import Problem
from midge.iot_client.data import csv_source
from midge.iot_client.data.samples import Samples
from midge.iot_client.training.autoencoder import Autoencoder
from midge.iot_client.training.fit import Recipe
from midge.iot_client.training.numpy_models import FROZEN, Linear, Logistic
from midge.iot_client.training.sample_trainer import SampleTrainer
from midge.iot_client.training.update_encoder import TrainerError
from midge.wire.messages import Plan
from tests.federation.live import Log, aggregator, serving
from tests.iot_client.test_gateway import parse

pytestmark = pytest.mark.virtual

NAMES = ["u", "v", "w", "x"]


def normal(number: int) -> np.ndarray:
    rng = np.random.default_rng(number)
    one = rng.normal(20, 5)
    return np.array([one, 2 * one + rng.normal(0, 0.2), 50 - one + rng.normal(0, 0.2), one / 2], np.float32)


def test_samples_without_a_label_keep_rows_with_any_feature_and_outlive_a_restart(tmp_path: Path) -> None:
    samples = Samples(tmp_path / "s", NAMES, least=2)
    assert samples.kind == "reconstruction" and samples.label is None
    assert samples.observe([1, 2, None, 4]) and samples.observe({"u": "5,5", "x": 6, "y": 9})
    assert not samples.observe([None] * 4) and not samples.observe({"y": 1})
    x, y = samples.arrays(take=False)
    assert x.shape == y.shape == (2, 4) and x[1, 0] == 5.5
    assert set(samples.moments()) == {"input"}
    samples.close()
    again = Samples(tmp_path / "s", NAMES)
    assert len(again) == 2 and again.absent == ("w",)
    again.close()


@pytest.mark.parametrize(("label", "kind"), [("y", "reconstruction"), (None, "regression"), (None, "classification")])
def test_a_label_too_many_or_too_few_is_told(label: str | None, kind: str) -> None:
    with pytest.raises(ValueError, match="leave it out" if label else "name it"):
        Samples(None, ["a"], label, kind=kind)  # type: ignore[arg-type]


def test_a_trainer_learns_what_is_normal_and_scores_what_is_not() -> None:
    samples, net = Samples(None, NAMES), Autoencoder(4, (16, 2, 16))
    for number in range(300):
        samples.observe(normal(number))
    parameters = net.initial()
    parameters["input_mean"], parameters["input_scale"] = (
        f(samples.arrays(take=False)[0], axis=0) for f in (np.mean, np.std)
    )
    trainer = SampleTrainer(samples, model="autoencoder", recipe=Recipe(learning_rate=0.05, epochs=150))
    fit = trainer(parameters, Plan())
    parameters = {**parameters, **fit.parameters}
    odd = normal(7) * np.array([1, 0.4, 1, 1], np.float32)
    usual = trainer.predict(parameters, np.array([normal(number) for number in range(1000, 1040)]))
    assert usual.shape == (40,) and trainer.predict(parameters, odd) > 5 * np.median(usual)


def test_a_logistic_model_takes_two_classes() -> None:
    samples, net = Samples(None, ["u"], "y", kind="classification"), Logistic(1)
    for number in range(200):
        samples.observe([number - 100], number > 100)
    trainer = SampleTrainer(samples, recipe=Recipe(learning_rate=0.1, epochs=20))
    parameters = {**net.initial(), "input_scale": np.full(1, 50, np.float32)}
    parameters = {**parameters, **trainer(parameters, Plan()).parameters}
    assert trainer.predict(parameters, [[-50], [50]]).tolist() == [0, 1] and trainer.predict(parameters, [50]) == 1
    with pytest.raises(TrainerError, match="is for binary; the samples are for regression"):
        SampleTrainer(Samples(None, ["u"], "y")).predict(parameters, [50])


def test_a_model_that_predicts_is_told_from_one_that_reconstructs() -> None:
    samples = Samples(None, NAMES)
    samples.observe(normal(1))
    trainer = SampleTrainer(samples)
    with pytest.raises(TrainerError, match=r"for regression; the samples have no label"):
        trainer(Linear(4, outputs=1, task="regression").initial(), Plan())
    with pytest.raises(TrainerError, match="learns to copy"):
        trainer(Linear(4, outputs=4, task="classification").initial(), Plan())


@pytest.mark.parametrize(
    ("words", "match"), [([], "--model autoencoder"), (["--label", "u", "--model", "autoencoder"], "leave --label out")]
)
def test_a_gateway_without_a_label_says_so(words: list[str], match: str) -> None:
    where = ["--broker", "mqtt://localhost", "--federation", "f", "--name", "a"]
    with pytest.raises(Problem, match=match):
        gateway(parse("--csv", "x", "--features", "u,v", *words, *where))


async def test_two_gateways_learn_what_is_normal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_source, "EVERY", 0.05)
    twin, log, apps = Twin(), Log(), []
    server = aggregator(
        twin, tmp_path / "store", log,
        initial=Autoencoder(4, (8, 2, 8)).initial(),
        roles=dict.fromkeys(FROZEN[:2], "frozen"),
        moments={"input": 4},
        strategy=fedasync(0.6, norm_limit=None, plan=Plan(local_steps=50), form="delta", bounded=False),
    )  # fmt: skip
    for name in "ab":
        path = tmp_path / f"{name}.csv"
        rows = [",".join(f"{value:.3f}" for value in normal(number)) for number in range(200)]
        path.write_text("\n".join(["time," + ",".join(NAMES), *(f"{i},{row}" for i, row in enumerate(rows)), ""]))
        what = ["--csv", str(path), "--model", "autoencoder", "--outbox", str(tmp_path / f"{name}.box")]
        app = gateway(parse(*what, "--broker", "mqtt://localhost", "--federation", "f", "--name", name))
        app.config = replace(app.config, connector=twin.connect, on_event=log, look_every=0.05)
        apps.append(app)
    assert apps[0].config.samples is not None and apps[0].config.samples.features == tuple(NAMES)
    async with serving(server, *apps):
        await log.until(lambda: {"a", "b"} <= {each["device"] for each in log.of("receipt")})
    assert {each["verdict"] for each in log.of("receipt")} == {"accepted"}
    assert float(apps[0].predict(normal(3))) >= 0
