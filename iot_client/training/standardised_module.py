"""A user's torch module behind the standardisation that a federation provides."""

import copy
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from midge.iot_client.training.numpy_models import Task
from midge.iot_client.training.torch_trainer import Normalised


class StandardisedModule(Normalised):
    """A module that gets standardised inputs in the layout of the data, and returns logits or one column."""

    def __init__(self, layers: nn.Module, channels: int, task: Task) -> None:
        super().__init__(channels, task)
        self.layers = layers

    def normalised(self, x: Tensor) -> Tensor:
        output = super().normalised(x)
        return output[:, None] if output.ndim == 1 else output


def module_maker(given: Any) -> Callable[[], nn.Module] | None:
    """A function that makes the user's module, of a module, its class, or a function without arguments.

    None if it is none of them. An instance keeps its own initial values.
    """
    if isinstance(given, nn.Module):
        return lambda: copy.deepcopy(given)
    if callable(given) and isinstance(given(), nn.Module):
        return given  # type: ignore[no-any-return]  # known by what it returned
    return None
