"""Models as users have them: what cannot be federated is refused with the tensor's name, before anything is trained."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import midge
from midge.iot_client.training.update_encoder import TrainerError
from midge.wire.messages import Plan
from tests import needs

torch = needs.module("torch", "torch")
nn = torch.nn

from midge.iot_client.training import torch_trainer  # noqa: E402 (after the check that there is a torch)

pytestmark = pytest.mark.torch


def aggregator(path: Path, **tensors: Any) -> midge.Aggregator:
    return midge.Aggregator("mqtt://localhost", federation="f", store=path / "store", initial=tensors)


@pytest.mark.parametrize("dtype", ["complex64", "complex128"])
def test_complex_weights_keep_both_parts(tmp_path: Path, dtype: str) -> None:
    schema = aggregator(tmp_path, w=np.zeros(2, np.float32), spectrum=np.zeros(3, dtype)).config.schema
    trained = {"w": np.ones(2, np.float32), "spectrum": np.array([1j, 2 - 3j, -4], dtype)}
    back = schema.views(schema.flatten(trained))
    assert schema.size == 8 and back["spectrum"].dtype == np.complex64
    np.testing.assert_array_equal(back["spectrum"], trained["spectrum"])
    with pytest.raises(ValueError, match="w is complex, not float32"):
        schema.flatten({**trained, "w": np.ones(2, dtype)})


@pytest.mark.parametrize("value", [-np.inf, np.nan, 1e38])
def test_a_tensor_that_is_not_finite_is_named(tmp_path: Path, value: float) -> None:
    mask = np.full((2, 2), value, np.float32)
    with pytest.raises(ValueError, match=r"attention\.mask"):
        aggregator(tmp_path, **{"w": np.zeros(2, np.float32), "attention.mask": mask})


def test_a_state_that_is_no_tensor_is_named() -> None:
    own = {"get_extra_state": lambda _: {"calls": 1}, "set_extra_state": lambda *_: None}
    module = type("WithExtraState", (nn.Linear,), own)(2, 1)
    with pytest.warns(UserWarning, match="_extra_state: what get_extra_state gives stays on each device"):
        arrays, _ = torch_trainer.state(module)
    assert set(arrays) == {"weight", "bias"}


@pytest.mark.parametrize("examples", [8, np.int64(8), np.uint32(8)])
def test_a_number_of_numpy_is_a_number_of_examples(examples: int) -> None:
    module = nn.Linear(2, 1)
    arrays, _ = torch_trainer.state(module)
    for outcome in (examples, (examples, {"loss": 1.0})):
        fit = torch_trainer.torch_trainer(module)(lambda _module, _plan, it=outcome: it)(arrays, Plan())  # type: ignore[misc]
        assert fit.examples == 8


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod."])
@pytest.mark.parametrize("whose", ["module", "federation's model"])
def test_a_wrapped_model_is_told_as_one(prefix: str, whose: str) -> None:
    module = nn.Linear(2, 1)
    arrays, _ = torch_trainer.state(module)
    wrapped = {f"{prefix}{name}": array for name, array in arrays.items()}
    if whose == "module":
        module.state_dict = lambda **_: {f"{prefix}{name}": torch.zeros(1) for name in arrays}
        wrapped = arrays
    with pytest.raises(TrainerError, match=f"{whose} is wrapped .'{prefix}'"):
        torch_trainer.load(module, wrapped)
