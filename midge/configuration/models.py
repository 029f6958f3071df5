"""The table [model]: models that Midge ships, by name, or one from a file or a program."""

from collections.abc import Callable, Mapping
from dataclasses import fields
from math import prod
from pathlib import Path
from typing import Any, Final

import numpy as np
from pydantic import Field

from midge.configuration.derived import Fields, of_dataclass, tagged
from midge.iot_client.training.autoencoder import Autoencoder
from midge.iot_client.training.numpy_cnn import CNN
from midge.iot_client.training.numpy_models import FROZEN, MLP, Linear, Logistic
from midge.wire.schema import MAX_PARAMETERS

Load = Callable[[str], Any]
"""Gives what `module:attribute` names."""

SHIPPED: Final[Mapping[str, type[Any]]] = {
    "linear": Linear,
    "logistic": Logistic,
    "mlp": MLP,
    "autoencoder": Autoencoder,
    "cnn": CNN,
}
_SAID: Final = ("inputs", "outputs", "task", "image")
"""Of a model's constructor: without a default here, because those of the classes are of the demonstration's data."""
_ALL: Final[Fields] = {
    "seed": (int, Field(0, description="Of the initial weights.")),
    "evaluate": (
        str | None,
        Field(
            None, description="A function, module:attribute: takes all tensors by name, returns numbers for the log."
        ),
    ),
}
_TEXTS: Final = {
    "inputs": "Number of inputs. The number of `federation.features` unless given.",
    "outputs": "Number of outputs, or classes. 1 for regression and two classes unless given.",
    "task": "What it predicts.",
    "image": "Height and width, or height, width and colours.",
    "hidden": "Widths of the hidden layers.",
}


def _fields(kind: type[Any]) -> Fields:
    """Keys of a model: what its constructor takes and no class of its own has fixed."""
    fixed = {
        name for base in kind.__mro__ if issubclass(base, MLP) and base is not MLP for name in base.__annotations__
    }
    keys: Fields = {}
    for name, (annotation, field) in of_dataclass(kind).items():
        if name in fixed:
            continue
        text = _TEXTS.get(name) or field.description
        if name in ("inputs", "outputs"):
            keys[name] = (annotation, Field(None, ge=1, description=text))
        elif name in _SAID:
            keys[name] = (annotation, Field(description=text))
        else:
            keys[name] = (annotation, Field(field.default, description=text))
    return {**keys, **_ALL}


MODEL: Final = tagged(
    "Model",
    "kind",
    {
        **{name: _fields(kind) for name, kind in SHIPPED.items()},
        "file": {
            "path": (str, Field(description="Weights: .safetensors, .npz, or a torch state dict as .pt.")),
            "evaluate": _ALL["evaluate"],
        },
        "python": {
            "attribute": (
                str,
                Field(
                    description="A dict of arrays or a torch module, or a function that returns one: module:attribute."
                ),
            ),
            "evaluate": _ALL["evaluate"],
        },
    },
    None,
    {
        "linear": "Linear regression, or softmax.",
        "logistic": "Logistic regression: two classes, labels 0 and 1.",
        "mlp": "A perceptron with ReLU between its layers.",
        "autoencoder": "A perceptron with a narrow layer, for anomalies; it needs no labels.",
        "cnn": "A small convolutional model of images.",
        "file": "Weights from a file.",
        "python": "A model of your own.",
    },
)


def model_of(given: Mapping[str, Any], features: int | None, load: Load) -> dict[str, Any]:
    """Arguments of `midge.Aggregator` for a model: `initial`, and what a shipped one needs beside it.

    Args:
        given: keys of [model] that were written.
        features: number of named inputs, if they are named.
        load: gives what `module:attribute` names.

    Raises:
        ValueError: a value is missing, or contradicts another one.
    """
    keys = dict(given)
    kind, seed = keys.pop("kind"), keys.pop("seed", 0)
    found: dict[str, Any] = {}
    if (evaluate := keys.pop("evaluate", None)) is not None:
        found["evaluate"] = _function(load, evaluate)
    if kind == "file":
        return {**found, "initial": Path(keys["path"])}
    if kind == "python":
        own = load(keys["attribute"])
        return {**found, "initial": own() if callable(own) and not hasattr(own, "state_dict") else own}
    names = {field.name for field in fields(SHIPPED[kind])}
    if "inputs" in names and "inputs" not in keys:
        if features is None:
            raise ValueError(f"a {kind} model needs inputs: say how many, or name them in federation.features.")
        keys["inputs"] = features
    if "task" in keys and "outputs" not in keys:
        match keys["task"]:
            case "classification":
                raise ValueError("a model for classification needs outputs: say how many classes there are.")
            case task:
                keys["outputs"] = keys["inputs"] if task == "reconstruction" else 1
    try:
        made = SHIPPED[kind](**keys)
        values = sum(map(prod, getattr(made, "net", made).shapes.values()))
        if values > MAX_PARAMETERS:
            raise ValueError(f"it would have {values:,} values, and the most are {MAX_PARAMETERS:,}")  # noqa: TRY301
        initial = made.initial(seed)
    except (ArithmeticError, IndexError, MemoryError, TypeError, ValueError) as error:
        raise ValueError(f"the {kind} model cannot be made of these values: {error}") from error
    frozen = [name for name in initial if name in FROZEN]
    moments = {name.removesuffix("_mean"): np.size(initial[name]) for name in frozen if name.endswith("_mean")}
    return {**found, "initial": initial, "roles": dict.fromkeys(frozen, "frozen"), "moments": moments}


def _function(load: Load, name: str) -> Any:
    found = load(name)
    if not callable(found):
        raise ValueError(f"model.evaluate names {name}, which is no function of the tensors.")  # noqa: TRY004 - of the file
    return found
