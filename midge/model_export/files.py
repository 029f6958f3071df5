"""Files of an exported version: safetensors, ONNX, and a folder with a model card."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from midge.iot_client.training.numpy_cnn import CNN
from midge.iot_client.training.numpy_models import MLP, Network, Task
from midge.model_export.onnx_model import ExportError, Values, network_of
from midge.storage.files import PUBLIC, atomic_write, make_folder

_PIPELINES = {
    "classification": "tabular-classification",
    "binary": "tabular-classification",
    "regression": "tabular-regression",
}
"""Tasks as the Hub names them, for rows of numbers."""


def write_safetensors(path: Path, parameters: Values, about: Mapping[str, Any]) -> None:
    """Write all tensors, exact, with where they come from as metadata.

    Raises:
        OSError: it cannot be written.
    """
    atomic_write(path, _packed(parameters, about), mode=PUBLIC)


def _packed(parameters: Values, about: Mapping[str, Any]) -> bytes:
    from safetensors.numpy import save  # noqa: PLC0415 - an extra

    told = {name: value if isinstance(value, str) else json.dumps(value) for name, value in about.items()}
    data: bytes = save({name: np.ascontiguousarray(each) for name, each in parameters.items()}, metadata=told)
    return data


def write_onnx(path: Path, model: bytes, about: Mapping[str, Any]) -> None:
    """Write an ONNX model, with where it comes from as metadata.

    Raises:
        OSError: it cannot be written.
    """
    import onnx  # noqa: PLC0415 - an extra

    loaded = onnx.load_from_string(model)
    onnx.helper.set_model_props(
        loaded, {name: value if isinstance(value, str) else json.dumps(value) for name, value in about.items()}
    )
    atomic_write(path, bytes(loaded.SerializeToString()), mode=PUBLIC)


def write_hub_folder(
    folder: Path,
    parameters: Values,
    about: Mapping[str, Any],
    *,
    shape: Sequence[int] | None,
    task: Task | None,
    license_: str,
) -> None:
    """Write README.md with a model card, config.json and model.safetensors.

    Raises:
        OSError: it cannot be written.
    """
    config = config_of(parameters, about, network_or_none(parameters, shape, task))
    make_folder(folder, 0o755)
    metadata = {"format": "np", "federation": about["federation"], "version": str(about["version"])}
    atomic_write(folder / "model.safetensors", _packed(parameters, metadata), mode=PUBLIC)
    atomic_write(folder / "config.json", (json.dumps(config, indent=2) + "\n").encode(), mode=PUBLIC)
    atomic_write(folder / "README.md", model_card(about, config, license_).encode(), mode=PUBLIC)


def network_or_none(parameters: Values, shape: Sequence[int] | None, task: Task | None) -> Network | None:
    """The model in plain NumPy to which parameters belong; None if they do not say, or it is another model."""
    try:
        return network_of(parameters, shape, task)
    except ExportError:
        return None


def config_of(parameters: Values, about: Mapping[str, Any], net: Network | None) -> dict[str, Any]:
    """What config.json holds: how the model is built, and which version it is."""
    version = {name: about[name] for name in ("federation", "generation", "version", "digest", "parent", "strategy")}
    built: dict[str, Any] = {"model_type": "midge", "architectures": []}
    if isinstance(net, MLP | CNN):
        kind = type(net).__name__
        built = {"model_type": f"midge-{kind.lower()}", "architectures": [kind], **asdict(net)}
    tensors = {name: {"shape": list(np.shape(each)), "dtype": str(each.dtype)} for name, each in parameters.items()}
    return {**built, "midge": version, "tensors": tensors}


def model_card(about: Mapping[str, Any], config: Mapping[str, Any], license_: str) -> str:
    """A model card: metadata as YAML, whose values are JSON and so YAML too, and what is known of the version."""
    pipeline = _PIPELINES.get(config.get("task", "")) if config["model_type"] != "midge-cnn" else "image-classification"
    name, metrics = f"{about['federation']} version {about['version']}", about["metrics"]
    found = [{"type": each, "name": f"{each} (server)", "value": value} for each, value in metrics["server"].items()]
    found += [
        {"type": each, "name": f"{each} (median of {metrics['devices']} devices)", "value": spread["median"]}
        for each, spread in metrics["federated"].items()
    ]
    data = {"name": "data of the devices, which did not leave them", "type": "private"}
    result = {"task": {"type": pipeline or "other"}, "dataset": data, "metrics": found}
    head: dict[str, Any] = {
        "license": license_,
        "library_name": "midge",
        "tags": ["federated-learning", "midge"],
        **({"pipeline_tag": pipeline} if pipeline else {}),
        **({"model-index": [{"name": name, "results": [result]}]} if found else {}),
    }
    lines = ["---", *(f"{key}: {json.dumps(value)}" for key, value in head.items()), "---", "", f"# {name}", ""]
    made = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(about["at"]))
    lines += [
        f"Trained by federated learning: {about['updates']} updates of {about['devices']} devices are in it, combined",
        f"by `{about['strategy']}`. No data left a device. It was registered on {made} by {about['by']}.",
        "",
        "| | |",
        "|---|---|",
        f"| version | {about['version']} of generation {about['generation']}, step {about['step']} |",
        f"| digest | `{about['digest']}` |",
        f"| comes from | {'version ' + str(about['parent']) if about['parent'] else 'no registered version'} |",
        "",
    ]
    if found:
        lines += ["## Results", "", "| metric | value |", "|---|---|"]
        lines += [f"| {each['name']} | {each['value']:.6g} |" for each in found]
        lines += ["", "The devices' results are on their own data, each device counted once.", ""]
    lines += [
        "## Use",
        "",
        "`model.safetensors` holds all tensors by name. Inputs are given as they are measured: `input_mean` and",
        "`input_scale`, where they are there, belong to the model. `config.json` says how it is built.",
        "",
    ]
    return "\n".join(lines)
