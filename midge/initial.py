"""The initial model: arrays by name, from a dict, a torch module, or a file of pre-trained weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from midge.extras import how_to_get

_KINDS = ".safetensors, .npz, or a torch state dict as .pt or .pth"


def read_initial(initial: Any, like: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arrays by name, and the roles from a torch module.

    Args:
        initial: a dict of arrays, a torch state dict, a torch module, or the path of the user's file.
        like: what a file must fit: a dict of arrays or a torch module; None checks nothing.

    Raises:
        ValueError: it is none of these, the file cannot be read, or it does not fit `like`.
    """
    if like is not None:
        parameters, roles = read_initial(like)
        found, _ = read_initial(initial)
        _see_it_fits(found, parameters, initial)
        return {name: np.asarray(found[name], dtype=parameters[name].dtype) for name in parameters}, roles
    if hasattr(initial, "state_dict"):
        from midge.iot_client.training.torch_state import state  # noqa: PLC0415 - torch is here, for there is a module

        return state(initial)
    if isinstance(initial, str | Path):
        return _read_file(Path(initial)), {}
    if not isinstance(initial, Mapping) or not initial:
        raise ValueError(
            f"initial must be a dict of arrays by name, a torch state dict, a torch module, or a file ({_KINDS})."
        )
    if any(hasattr(value, "detach") for value in initial.values()):
        from midge.iot_client.training.torch_state import arrays_of  # noqa: PLC0415 - torch is here, for there is a tensor

        return arrays_of(initial), {}
    return {name: np.asarray(value) for name, value in initial.items()}, {}


def _read_file(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"initial: there is no file {path}.")
    try:
        match path.suffix:
            case ".npz":
                with np.load(path, allow_pickle=False) as file:
                    return {name: file[name] for name in file.files}
            case ".safetensors":
                from safetensors.numpy import load_file  # noqa: PLC0415 - an extra

                return dict(load_file(path))
            case ".pt" | ".pth":
                from midge.iot_client.training.torch_state import arrays_of, read_state  # noqa: PLC0415 - an extra, and the file is of it

                return arrays_of(read_state(path))
    except ModuleNotFoundError as error:
        raise ValueError(f"initial: {path.name} needs more: {how_to_get(error) or error}") from error
    except Exception as error:  # each reader has exceptions of its own, including pickle's
        raise ValueError(f"initial: {path} cannot be read as {path.suffix[1:]} ({error}).") from error
    raise ValueError(f"initial: {path.name} is no file of weights that is known here: {_KINDS}.")


def _see_it_fits(found: Mapping[str, Any], wanted: Mapping[str, Any], source: Any) -> None:
    wrong = [
        f"{name} is {np.shape(found[name])}, not {np.shape(array)}" if name in found else f"{name} is missing"
        for name, array in wanted.items()
        if name not in found or np.shape(found[name]) != np.shape(array)
    ]
    wrong += [f"{name} is not in the model" for name in found if name not in wanted]
    if wrong:
        where = source if isinstance(source, str | Path) else "the initial weights"
        raise ValueError(f"{where} does not fit the model: {'; '.join(wrong[:8])}{' …' if len(wrong) > 8 else ''}.")
