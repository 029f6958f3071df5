"""The state of a torch module as arrays that travel, and back, for any dtype, tie or wrapper."""

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from midge.iot_client.training.fit import Parameters
from midge.iot_client.training.numpy_models import FROZEN
from midge.iot_client.training.update_encoder import TrainerError
from midge.wire.steps import LARGEST_VALUE

log = logging.getLogger("iot_client")

_EXTRA = "_extra_state"
"""Last part of the names of `get_extra_state`, whose values stay on each device."""


class StateError(ValueError, TypeError):
    """A module's state cannot be federated as it is; the message says what to do."""


def roles(module: nn.Module, frozen: Sequence[str] = FROZEN) -> dict[str, str]:
    """The role of each tensor of a module's state.

    Parameters are trained, float buffers averaged, integer buffers frozen. Also frozen are tensors that need no
    gradient, those whose name, whole or after its last dot, fits one of the patterns `frozen` (as of file names), and
    buffers with values that cannot be published, such as a mask of minus infinity. A tied tensor has "=" and the first
    name.

    Raises:
        StateError: the state holds something that cannot travel.
    """
    found: dict[str, str] = {}
    first: dict[Any, str] = {}
    for name, tensor in _tensors(module):
        place = _place(tensor)
        if place is not None and first.setdefault(place, name) != name:
            found[name] = f"={first[place]}"
        elif any(pattern in (name, name.rpartition(".")[2]) or _fits(name, pattern) for pattern in frozen):
            found[name] = "frozen"
        elif isinstance(tensor, nn.Parameter):
            found[name] = "trained" if tensor.requires_grad else "frozen"
        elif tensor.is_floating_point() or tensor.is_complex():
            found[name] = "averaged" if bool((_wide(tensor).detach().abs() < LARGEST_VALUE).all()) else "frozen"
        else:
            found[name] = "frozen"
    return found


def _fits(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(name.rpartition(".")[2], pattern)


def _place(tensor: Tensor) -> Any:
    """What two names of one tensor share: memory, shape and strides. None if it has no memory."""
    if not tensor.numel():
        return None
    return tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


def state(module: nn.Module, frozen: Sequence[str] = FROZEN) -> tuple[dict[str, npt.NDArray[Any]], dict[str, str]]:
    """A copy of a module's state as arrays, and the role of each.

    Warns if the module has a BatchNorm layer, or state that stays on each device.

    Raises:
        StateError: the state holds something that cannot travel.
    """
    warn(module)
    found = roles(module, frozen)  # first: it reports what cannot travel
    return arrays(module), found


def load(module: nn.Module, parameters: Parameters) -> None:
    """Copy parameters into a module.

    Raises:
        TrainerError: they are not those of the module; each missing, unexpected and differently shaped one is named.
    """
    own = dict(_tensors(module))
    tied = {name: role[1:] for name, role in roles(module).items() if role.startswith("=")}
    other = {first: name for name, first in tied.items()}
    given = {name: each for name, each in parameters.items() if name in own or not _is_extra(name)}
    for name in own:  # one of two tied tensors is enough, as in a file that holds each tensor once
        if name not in given and (twin := tied.get(name, other.get(name))) in given:
            given[name] = given[str(twin)]
    wrong = [f"{name} is missing" for name in own if name not in given]
    wrong += [f"{name} is unexpected" for name in given if name not in own]
    wrong += [
        f"{name} is {np.shape(given[name])}, not {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in given and np.shape(given[name]) != tuple(tensor.shape)
    ]
    if wrong:
        raise TrainerError(f"the parameters do not fit the module: {'; '.join(wrong)}{_wrapped(own, given)}")
    # Copies, because arrays from the wire are read-only and torch does not support that.
    values = {name: torch.from_numpy(np.array(given[name])) for name in own}
    if lost := [name for name, value in values.items() if value.is_complex() and not own[name].is_complex()]:
        raise TrainerError(f"the parameters do not fit the module: {', '.join(lost)} is complex in the federation only")
    try:
        module.load_state_dict(values, strict=False)  # local tensors are not among them
    except RuntimeError as error:  # made in inference mode, or with repeated values: harmless if it is constant
        left = [name for name, tensor in own.items() if not torch.equal(tensor.cpu(), values[name].to(tensor.dtype))]
        if left:
            raise TrainerError(f"{', '.join(left)} of the module cannot be written: {error}") from error


def _wrapped(own: Mapping[str, Any], parameters: Parameters) -> str:
    """A hint if the names differ only by a wrapper's prefix: DataParallel, or torch.compile."""
    for prefix in ("module.", "_orig_mod."):
        for wrapped, other, whose in ((own, parameters, "module"), (parameters, own, "federation's model")):
            if wrapped and {name.removeprefix(prefix) for name in wrapped} == set(other) != set(wrapped):
                return f". The {whose} is wrapped ({prefix!r} before each name): give what is inside"
    return ""


def arrays(module: nn.Module) -> dict[str, npt.NDArray[Any]]:
    """Copies of all tensors; types narrower than float32 become float32, in which models are averaged.

    Raises:
        StateError: the state holds something that cannot travel.
    """
    return {name: _array(tensor) for name, tensor in _tensors(module)}


def arrays_of(state_dict: Mapping[str, Any]) -> dict[str, npt.NDArray[Any]]:
    """The same for a state dict, or a mix of tensors and arrays.

    Raises:
        StateError: it holds something that cannot travel.
    """
    return {
        name: np.asarray(value) if isinstance(value, np.ndarray | np.generic) else _array(_checked(name, value))
        for name, value in state_dict.items()
        if not _is_extra(name)
    }


def narrow(module: nn.Module) -> list[str]:
    """Tensors that are less precise than the values loaded into them."""
    less = (torch.complex32,)
    return [
        name
        for name, tensor in _tensors(module)
        if (tensor.is_floating_point() and tensor.element_size() < 4) or tensor.dtype in less
    ]


def read_state(path: Path) -> dict[str, Any]:
    """A state dict that `torch.save` wrote; nothing in the file is executed."""
    return dict(torch.load(path, map_location="cpu", weights_only=True))


def _is_extra(name: str) -> bool:
    return name.rpartition(".")[2] == _EXTRA


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a module's state that can be learned together.

    Raises:
        StateError: something in it cannot travel; the message names it and says what to do.
    """
    for name, value in module.state_dict(keep_vars=True).items():
        if not _is_extra(name):
            yield name, _checked(name, value)


def _checked(name: str, value: Any) -> Tensor:
    out = "keep it out of the state (persistent=False)"
    match value:
        case Tensor() if is_lazy(value):
            how = "is not made yet: run the module on one batch before it is given to Midge"
        case Tensor() if value.is_quantized:
            how = (
                "is quantised and cannot be trained: federate the model before it is quantised, and quantise what comes"
            )
        case Tensor() if value.is_meta:
            how = "is on the device 'meta' and has no values: load the weights before the module is given to Midge"
        case Tensor() if value.is_nested or value.layout != torch.strided:
            how = f"is a {'nested' if value.is_nested else 'sparse'} tensor: make it an ordinary one, or {out}"
        case Tensor():
            return value
        case _:
            how = "is no tensor, and only tensors can be federated: "
            if "_packed_params" in name:
                how += "federate the model before it is quantised"
            else:
                how += f"{out}, or give it by get_extra_state"
    raise StateError(f"{name} of the module's state {how}")


def _wide(tensor: Tensor) -> Tensor:
    """The same values in a dtype that NumPy has."""
    if tensor.is_floating_point() and tensor.dtype != torch.float64:
        return tensor.float()
    return tensor.to(torch.complex64) if tensor.dtype == torch.complex32 else tensor


def _array(tensor: Tensor) -> npt.NDArray[Any]:
    return np.array(_wide(tensor.detach()).cpu().resolve_conj().resolve_neg().numpy())


def warn(module: nn.Module) -> None:
    """Warn of state that cannot be averaged meaningfully."""
    extra = [name for name in module.state_dict() if _is_extra(name)]
    if extra:
        warnings.warn(f"{', '.join(extra)}: what get_extra_state gives stays on each device", stacklevel=3)
    for name, layer in module.named_modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm):
            warnings.warn(
                f"layer {name!r} is a BatchNorm: its running statistics are those of one device's data, and averaged "
                "over devices and versions they fit no model; use GroupNorm or LayerNorm",
                stacklevel=3,
            )
            return
