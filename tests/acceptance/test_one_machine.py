"""What a program of a few lines can leave out: a broker, an outbox, and the loading of a torch module."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import midge
from midge.iot_client.training.fit import Fit, Parameters, TrainingPlan
from tests import needs

pytestmark = pytest.mark.alone
URL = "mqtt://broker.invalid"


def towards_one(parameters: Parameters, _: TrainingPlan) -> Fit:
    return Fit({"w": 0.5 * (parameters["w"] + 1)}, examples=1)


def server(**more: Any) -> midge.Aggregator:
    def evaluate(parameters: dict[str, Any]) -> dict[str, float]:
        return {"error": float(abs(1 - parameters["w"]).max())}

    return midge.Aggregator(URL, federation="ones", initial={"w": np.zeros(3)}, store="ones", evaluate=evaluate, **more)


def fleet(train: Any = towards_one) -> list[midge.Device]:
    return [midge.Device(URL, federation="ones", name=f"d{number}", train=train) for number in range(3)]


def test_a_federation_runs_on_this_machine_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen to fail when stores or outboxes were those of the objects."""
    monkeypatch.chdir(tmp_path)
    heard: list[str] = []
    lines: list[str] = []
    for _ in range(2):
        found = midge.local(
            server(on_event=lambda event: heard.append(event["event"])),
            fleet(),
            until=lambda found: found["error"] < 0.1,
            tell=lines.append,
        )
        assert 0 <= found["error"] < 0.1
        assert found["version"] < 100, "it began with the initial model"
    assert lines[-1].startswith("At the end: version ")
    assert "update" in heard, "the aggregator's own listener hears as well"
    assert list(tmp_path.iterdir()) == []


def test_what_ends_a_device_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def other(parameters: Parameters, _: TrainingPlan) -> Fit:
        return Fit({"w": np.zeros(7)}, examples=1)

    with pytest.raises(Exception, match=r"w is .*\(7,\)"):
        midge.local(server(), fleet(other))


def test_an_outbox_is_named_after_its_device() -> None:
    def outbox(**more: Any) -> Any:
        return midge.Device(URL, federation="ones", train=towards_one, **more).config.outbox

    assert outbox(name="aa:bb") == "aa-bb.outbox"
    assert outbox(name="d", outbox=None) is None
    assert outbox(name="d", outbox="held.db") == "held.db"


@pytest.mark.torch
@needs.torch
def test_a_torch_module_needs_no_dicts() -> None:
    """Seen to fail when an evaluator loaded into the module that the trainer trains."""
    import torch

    net = torch.nn.Linear(2, 1, bias=False)
    net.weight.data.zero_()

    @midge.torch_trainer(net)
    def train(model: torch.nn.Module, _: TrainingPlan) -> int:
        for weight in model.parameters():
            weight.data += 0.5 * (1 - weight.data)
        return 1

    @midge.torch_evaluator(net)
    def evaluate(model: torch.nn.Module) -> dict[str, float]:
        assert not model.training and model is not net
        return {"sum": float(model(torch.ones(1, 2)))}

    found = midge.simulate(train, devices=3, seconds=60.0, initial=torch.nn.Linear(2, 1, bias=False), evaluate=evaluate)
    assert found.metrics["sum"][-1] == pytest.approx(2.0, abs=0.01)
