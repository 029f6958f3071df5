"""The model to begin with comes from many places, and what does not fit is named."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from midge.initial import read_initial
from tests import needs

WEIGHTS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(2, np.float32)}


def written(directory: Path, kind: str) -> Path:
    path = directory / f"weights.{kind}"
    if kind == "npz":
        np.savez(path, **WEIGHTS)  # type: ignore[arg-type]
    else:
        save_file(WEIGHTS, path)
    return path


@pytest.mark.parametrize("kind", ["npz", "safetensors"])
def test_a_file_of_weights_is_read_as_it_was_written(tmp_path: Path, kind: str) -> None:
    found, roles = read_initial(written(tmp_path, kind), like=WEIGHTS)
    assert roles == {}
    assert list(found) == ["a", "b"]
    for name, array in WEIGHTS.items():
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.torch
@needs.torch
def test_a_torch_state_dict_is_read_without_running_anything(tmp_path: Path) -> None:
    import torch

    module = torch.nn.Linear(3, 2)
    torch.save(module.state_dict(), tmp_path / "weights.pt")
    found, roles = read_initial(tmp_path / "weights.pt", like=module)
    np.testing.assert_array_equal(found["weight"], module.weight.detach().numpy())
    assert roles == {"weight": "trained", "bias": "trained"}
    torch.save({"x": Path("/")}, tmp_path / "code.pt")
    with pytest.raises(ValueError, match="cannot be read as pt"):
        read_initial(tmp_path / "code.pt")


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    path = written(tmp_path, "npz")
    with pytest.raises(
        ValueError, match=r"weights\.npz does not fit the model: a is \(2, 3\), not \(3, 2\); c is missing; b is not"
    ):
        read_initial(path, like={"a": np.zeros((3, 2)), "c": np.zeros(1)})
    with pytest.raises(ValueError, match="there is no file"):
        read_initial(tmp_path / "nothing.npz")
    (tmp_path / "weights.onnx").write_bytes(b"")
    with pytest.raises(ValueError, match="no file of weights that is known here"):
        read_initial(tmp_path / "weights.onnx")
    with pytest.raises(ValueError, match="must be a dict of arrays"):
        read_initial({})
    path.write_bytes(b"rubbish")
    with pytest.raises(ValueError, match="cannot be read as npz"):
        read_initial(path)
