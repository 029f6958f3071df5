"""What is exported gives what Midge predicts, run by another runtime; and the commands on a store at rest."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from midge.__main__ import main
from midge.iot_client.training.autoencoder import Autoencoder
from midge.iot_client.training.numpy_cnn import CNN
from midge.iot_client.training.numpy_models import MLP, Linear, Logistic, Network
from midge.model_export.onnx_model import INPUT, OUTPUT, ExportError, of_ours, of_torch
from tests import needs
from tests.aggregator.test_registry import Life

Values = dict[str, npt.NDArray[Any]]


def run(model: bytes, x: npt.ArrayLike) -> npt.NDArray[Any]:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    (found,) = session.run([OUTPUT], {INPUT: np.asarray(x, np.float32)})
    return np.asarray(found)


def trained(net: Any, seed: int = 0) -> Values:
    """Values of which none is a default."""
    rng, values = np.random.default_rng(seed), dict(net.initial(seed))
    for name, value in net.initial(seed).items():
        if name.endswith("_mean"):
            values[name] = rng.normal(3, 2, value.shape).astype(np.float32)
        elif name.endswith("_scale"):
            values[name] = rng.uniform(0.5, 4, value.shape).astype(np.float32)
        elif value.ndim == 1:
            values[name] = rng.normal(0.5, 1, value.shape).astype(np.float32)
    return values


NETS: list[Network] = [
    Linear(5, outputs=3),
    Linear(4, outputs=1, task="regression"),
    Logistic(6),
    MLP(8, (16, 4), 3),
    MLP(8, (5,), 1, task="regression"),
    MLP(8, (7,), 2, channels=1),
    CNN((9, 6), 4, width=4),
    CNN((8, 8, 3), 1, "regression", 8),
    CNN((28, 28), 10),
]


@pytest.mark.parametrize("net", NETS, ids=str)
def test_onnx_predicts_what_midge_predicts_missing_values_too(net: Network) -> None:
    values = trained(net)
    x = np.random.default_rng(1).normal(3, 5, (7, *net.shape)).astype(np.float32)
    x.reshape(7, -1)[0, 0], x.reshape(7, -1)[1, -1] = np.nan, np.inf
    shape = net.shape if isinstance(net, CNN) else None
    found, wanted = run(of_ours(values, shape), x), net.predict(values, x)
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, rtol=2e-4, atol=2e-5)
    assert run(of_ours(values, shape), x[:1]).shape == wanted[:1].shape, "any number of rows"


def test_a_model_of_reconstruction_is_exported_as_what_it_is() -> None:
    """Its parameters alone do not say whether outputs are classes or inputs again: the network is given."""
    net = Autoencoder(6, (3,))
    values, x = trained(net), np.random.default_rng(1).normal(3, 5, (4, 6)).astype(np.float32)
    found = run(of_ours(values, task="reconstruction"), x)
    np.testing.assert_allclose(found, net.reconstruct(values, x), rtol=2e-4, atol=2e-5)


def test_what_cannot_be_exported_says_why() -> None:
    with pytest.raises(ExportError, match="--module"):
        of_ours({"w": np.zeros(3, np.float32)})
    with pytest.raises(ExportError, match="--input 28x28"):
        of_ours(trained(CNN((8, 8), 2)))
    with pytest.raises(ExportError, match="12x12 does not fit"):
        of_ours(trained(CNN((8, 8), 2)), (12, 12))


@pytest.mark.torch
@needs.torch
def test_a_torch_module_is_exported_by_torch() -> None:
    import torch
    from torch import nn

    from midge.iot_client.training.torch_state import arrays

    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 2))
    values = {name: np.array(each) for name, each in arrays(module).items()}
    other = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 2))
    model = of_torch(other, values, (5,))
    x = np.random.default_rng(1).normal(size=(3, 5)).astype(np.float32)
    with torch.no_grad():
        wanted = module(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(run(model, x), wanted, rtol=1e-4, atol=1e-6)
    assert run(model, x[:1]).shape == (1, 2), "any number of rows"


# ------------------------------------------------------------------------------ commands


NET = MLP(3, (4,), 2)
ROLES = {"input_mean": "frozen", "input_scale": "frozen"}


def registered(folder: Path) -> Life:
    """A store with a champion, version 2, and a candidate, version 3."""
    life = Life(folder / "store", parameters=trained(NET), roles=ROLES)
    for number in range(2):
        life.rig.send("a", number + 1, np.full(life.rig.model.schema.size, 0.5 + number, np.float32), now=life.now)
        life.order("register", attempt=True, share=0.5)
    life.keeper.evaluated(2, {"accuracy": 0.75})
    life.measured("a", v2=0.5)
    life.look()
    return life


def said(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return found


def test_the_list_has_every_version_with_its_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    life = registered(tmp_path)
    for closed in (False, True):  # beside its aggregator, and at rest
        if closed:
            life.rig.close()
        assert main(["model", "list", str(tmp_path / "store"), "--json"]) == 0
        found = said(capsys)
        assert found["aliases"] == {"champion": 2, "candidate": 3} and found["share"] == 0.5
        first, second = found["versions"]
        assert (first["version"], first["generation"], first["parent"], first["aliases"]) == (2, 0, None, ["champion"])
        assert first["digest"] == life.registry.versions[2].record.digest.hex() and first["whole"]
        assert first["metrics"]["server"] == {"accuracy": 0.75}
        assert first["metrics"]["federated"]["loss"]["median"] == 0.5 and first["metrics"]["devices"] == 1
        assert (second["parent"], second["updates"], second["aliases"]) == (2, 2, ["candidate"])
    assert main(["model", "list", str(tmp_path / "store")]) == 0
    assert "accuracy 0.75, loss 0.5 on 1 devices  champion" in capsys.readouterr().out


def test_each_format_holds_the_registered_bits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    life = registered(tmp_path)
    state, store = life.registry.versions[2], str(tmp_path / "store")
    life.rig.close()
    assert main(["model", "export", store, "champion", "--to", str(tmp_path / "m.safetensors"), "--json"]) == 0
    assert said(capsys) == {
        "ok": True,
        "version": 2,
        "digest": state.record.digest.hex(),
        "format": "safetensors",
        "path": str(tmp_path / "m.safetensors"),
    }
    values = load_file(tmp_path / "m.safetensors")
    with safe_open(tmp_path / "m.safetensors", "np") as file:
        assert file.metadata()["digest"] == state.record.digest.hex()
    assert main(["model", "export", store, "2", "--to", str(tmp_path / "m.onnx")]) == 0
    x = np.random.default_rng(2).normal(3, 2, (5, 3)).astype(np.float32)
    model = (tmp_path / "m.onnx").read_bytes()
    np.testing.assert_allclose(run(model, x), NET.predict(values, x), rtol=1e-4, atol=1e-5)
    props = {each.key: each.value for each in onnx.load_from_string(model).metadata_props}
    assert props["version"] == "2"
    assert main(["model", "export", store, "2", "--to", str(tmp_path / "hub"), "--license", "apache-2.0"]) == 0
    folder = tmp_path / "hub"
    for name, each in load_file(folder / "model.safetensors").items():
        np.testing.assert_array_equal(each, values[name])
    config = json.loads((folder / "config.json").read_text())
    assert (config["architectures"], config["hidden"], config["midge"]["version"]) == (["MLP"], [4], 2)
    card = (folder / "README.md").read_text()
    _, head, text = card.split("---\n", 2)
    metadata = {line.partition(": ")[0]: json.loads(line.partition(": ")[2]) for line in head.splitlines()}
    assert metadata["license"] == "apache-2.0" and metadata["pipeline_tag"] == "tabular-classification"
    assert metadata["model-index"][0]["results"][0]["metrics"][0]["value"] == 0.75
    assert "1 updates of 1 devices" in text and state.record.digest.hex() in text


def test_the_commands_say_what_is_in_their_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    life = registered(tmp_path)
    store = str(tmp_path / "store")
    life.rig.close()
    for words, why in [
        (["export", store, "7", "--to", str(tmp_path / "m")], "registered are: 2, 3"),
        (["export", store, "best", "--to", str(tmp_path / "m")], "name a number"),
        (["register", store, "--share", "0.5"], "go with --candidate"),
        (["register", store, "--where", "site=north"], "go with --candidate"),
        (["register", store, "--candidate", "--where", "site"], "say a name and a value, such as site=north"),
        (["register", store, "--candidate", "--where", f"site={'n' * 65}"], "at most 64 characters"),
        (["register", store, "--candidate", "--share", "1.5"], "is no order"),
        (["rollback", store, "2", "--candidate"], "no version to name"),
        *(
            (["export", store, "2", "--to", str(place), "--format", form], f"{place} cannot be written")
            for form, place in (
                ("safetensors", tmp_path / "nowhere" / "m.safetensors"),
                ("onnx", tmp_path / "nowhere" / "m.onnx"),
                ("hub", tmp_path / "store" / "store.db"),
            )
        ),
        (["list", str(tmp_path)], "no store"),
    ]:
        assert main(["model", *words]) == 2
        assert why in capsys.readouterr().err
    assert main(["model", "promote", store, "--wait", "0", "--json"]) == 1
    assert said(capsys)["waits"] is True
    life = Life(tmp_path / "store", parameters=trained(NET), roles=ROLES)
    life.wall = time.time()
    life.look()
    assert life.registry.champion == 3, "the order waited for its aggregator"
    life.rig.close()
