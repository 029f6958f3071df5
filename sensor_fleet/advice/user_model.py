"""A user's torch module as the model of a fleet."""

import inspect
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from midge.iot_client.training.fit import Recipe
from midge.sensor_fleet.data import FleetData
from midge.sensor_fleet.features import by_channel, raw
from midge.sensor_fleet.models import FleetModel, WindowModel

if TYPE_CHECKING:
    from midge.iot_client.training.torch_trainer import Normalised


class UserModel(WindowModel):
    """A torch module that gets rows in the layout of the data, standardised by channel; torch only.

    Pixels of images share one channel. Of a classification it returns logits of shape (n, classes), of a regression
    one column.
    """

    def __init__(self, data: FleetData, make: Callable[[], Any], seed: int = 0) -> None:
        self._make = make
        self._channels = by_channel(raw(data.test.x[:1], data.kind), data.kind).shape[1]
        super().__init__(data, seed)
        self.recipe = Recipe(learning_rate=0.05, local_steps=20)
        if not any(one.requires_grad for one in self._evaluated.parameters()):
            raise ValueError("the module has no parameter to train.")
        outputs = self.predict(self.initial, self.prepare(data.test.x[:2]))
        expected = (2, self.outputs) if self.task == "classification" else (2,)
        if np.shape(outputs) != expected:
            raise ValueError(
                f"the module returns an array of shape {np.shape(outputs)} for two rows; this data needs {expected}."
            )

    def twin(self) -> "Normalised":
        from midge.iot_client.training.standardised_module import StandardisedModule  # noqa: PLC0415 - torch

        return StandardisedModule(self._make(), self._channels, self.task)


def model_of(given: Any, data: FleetData, seed: int = 0) -> FleetModel:
    """The fleet's model from a user's object: a torch module, its class, or a function that makes one.

    A function that takes the data may also return a `FleetModel`.

    Raises:
        ValueError: it is none of them, does not fit the data, or its own code fails.
    """
    if callable(given) and not isinstance(given, type) and _takes_data(given):
        with _own_code():
            found = given(data)
        if isinstance(found, FleetModel):
            return found
        given = found
    try:
        from midge.iot_client.training.standardised_module import module_maker  # noqa: PLC0415 - torch
    except ModuleNotFoundError as error:
        raise ValueError('a model of your own needs torch: pip install "midge[torch]"') from error
    with _own_code():
        make = module_maker(given)
    if make is None:
        raise ValueError(
            f"the model is of type {type(given).__name__}; it must be a torch module, its class, or a function that "
            "returns one."
        )
    with _own_code():
        try:
            return UserModel(data, make, seed)
        except RuntimeError as error:
            raise ValueError(f"the module does not take rows of shape {data.shape}: {error}") from error


@contextmanager
def _own_code() -> Iterator[None]:
    """An error in the block is of the user's code, unless we raised it.

    Raises:
        ValueError: says the error and its line.
    """
    try:
        yield
    except Exception as error:
        frames = list(traceback.walk_tb(error.__traceback__))
        packages = [str(frame.f_globals.get("__name__")).partition(".")[0] for frame, _ in frames]
        if isinstance(error, ValueError) and packages[-1] == "midge":
            raise
        theirs = [at for at, package in zip(frames, packages, strict=True) if package not in ("midge", "torch")]
        where = "".join(f" ({frame.f_code.co_filename}, line {line})" for frame, line in theirs[-1:])
        raise ValueError(f"the model's own code fails: {type(error).__name__}: {error}{where}") from error


def _takes_data(function: Callable[..., Any]) -> bool:
    """Whether a function, but not a torch module, has a parameter without a default."""
    if hasattr(function, "state_dict"):
        return False
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return False
    usual = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return any(one.default is inspect.Parameter.empty and one.kind in usual for one in parameters)
