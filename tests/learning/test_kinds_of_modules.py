"""Modules and outcomes as users have them: each goes round, or is refused with what to do.

Round is: the state as the aggregator reads it, published on its grid, loaded and trained on a device, made into an
update, decoded and applied. What comes out is what the module holds then. Seen to fail on: complex parts lost, int16
and uint16 refused, tied weights twice, minus infinity, brackets in names, one row before BatchNorm, extra state, 8.0.
"""

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import midge
from midge.initial import read_initial
from midge.iot_client.training.fit import Fit
from midge.iot_client.training.update_encoder import NoFit, NoRows, TrainerError, Unfit, checked, make_update
from midge.wire import codecs
from midge.wire.lineage import State, decode_snapshot, encode_snapshot, on_grid
from midge.wire.messages import Plan
from midge.wire.schema import Schema
from tests import needs
from tests.iot_client.test_session import announcement

torch = needs.module("torch", "torch")
nn = torch.nn

from torch.nn.utils import prune  # noqa: E402 (after the check that there is a torch)

from midge.iot_client.training.torch_state import load, state  # noqa: E402 (after the check that there is a torch)
from midge.iot_client.training.torch_trainer import torch_trainer  # noqa: E402 (the same)

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]

X = torch.linspace(-1, 1, 32).reshape(8, 4)


def module(forward: Callable[[Any, Any], Any] | None = None, **parts: Any) -> Any:
    """A linear layer `l` from 4 to 1 beside parameters, modules and buffers of these names."""

    class Made(nn.Module):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            super().__init__()
            self.l = nn.Linear(4, 1)
            for name, part in parts.items():
                if isinstance(part, nn.Module | nn.Parameter):
                    setattr(self, name, part)
                else:
                    self.register_buffer(name, part)

        def forward(self, x: Any) -> Any:
            return self.l(x) if forward is None else forward(self, x)

    return Made()


def tied(again: Callable[[Any], Any]) -> Any:
    made = module(lambda m, x: m.b(m.a(x)), a=nn.Linear(4, 4, bias=False), b=nn.Linear(4, 4, bias=False))
    made.b.weight = again(made.a.weight)
    return made


def frozen_first() -> Any:
    made = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
    made[0].requires_grad_(False)
    return made


def counting(self: Any, x: Any) -> Any:
    self.seen += len(x)
    self.largest = torch.maximum(self.largest, x.max().detach())
    return self.l(x)


def with_extra(value: Any) -> Any:
    own = {"get_extra_state": lambda _: value, "set_extra_state": lambda *_: None}
    return type("WithExtra", (nn.Linear,), own)(4, 1)


def with_hook() -> Any:
    """A module whose state dict is of copies, as some wrappers make it."""
    made = nn.Linear(4, 1)
    made._register_state_dict_hook(lambda _m, found, *_: {name: each.clone() for name, each in found.items()})
    return made


def not_saved() -> Any:
    made = module()
    made.register_buffer("b", X, persistent=False)
    return made


def lazy() -> Any:
    made = nn.LazyLinear(1)
    made(X)
    return made


def pruned() -> Any:
    made = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
    prune.l1_unstructured(made[0], "weight", 0.5)  # type: ignore[no-untyped-call]
    return made


def spectral(self: Any, x: Any) -> Any:
    return self.l(torch.fft.ifft(torch.fft.fft(x) * self.w).real)


NORM = torch.nn.utils.parametrizations
ROUND: dict[str, Callable[[], Any]] = {
    "linear": lambda: nn.Linear(4, 1),
    "no bias": lambda: nn.Linear(4, 1, bias=False),
    "half": lambda: nn.Linear(4, 1).half(),
    "bfloat16": lambda: nn.Linear(4, 1).bfloat16(),
    "double": lambda: nn.Linear(4, 1).double(),
    "mixed precision": lambda: module(h=nn.Parameter(torch.ones(3, dtype=torch.bfloat16))),
    "tied layers": lambda: tied(lambda weight: weight),
    "tied by data": lambda: tied(lambda weight: nn.Parameter(weight.data)),
    "tied transposed": lambda: tied(lambda weight: nn.Parameter(weight.data.t())),
    "one layer twice": lambda: module(lambda m, x: m.b(m.a(x)), **dict.fromkeys("ab", nn.Linear(4, 4))),
    "tied buffers": lambda: module(**dict.fromkeys("ab", torch.arange(3.0))),
    "tied frozen": lambda: module(**dict.fromkeys("ab", torch.arange(3))),
    "LSTM": lambda: module(lambda m, x: m.r(x[:, None])[0], r=nn.LSTM(4, 3, batch_first=True)),
    "attention": lambda: module(lambda m, x: m.a(x, x, x)[0], a=nn.MultiheadAttention(4, 2)),
    "convolution, channels last": lambda: module(
        lambda m, x: m.c(x.reshape(8, 1, 2, 2)), c=nn.Conv2d(1, 2, 2).to(memory_format=torch.channels_last)
    ),
    "sparse embedding": lambda: module(
        lambda m, x: m.l(m.e((x.abs() * 3).long()).mean(1)), e=nn.Embedding(10, 4, sparse=True)
    ),
    "frozen first layer": frozen_first,
    "BatchNorm": lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)),
    "BatchNorm without weights": lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, affine=False)),
    "BatchNorm of each batch": lambda: nn.Sequential(nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 1)),
    "scalar and empty": lambda: module(t=nn.Parameter(torch.tensor(2.0)), e=nn.Parameter(torch.empty(0, 3))),
    "module lists": lambda: module(m=nn.ModuleList([nn.Linear(4, 1)]), p=nn.ParameterList([torch.ones(2)])),
    "not contiguous": lambda: module(w=nn.Parameter(torch.randn(1, 4).t())),
    "complex weight": lambda: module(spectral, w=nn.Parameter(torch.randn(4, dtype=torch.cfloat))),
    "complex double weight": lambda: module(w=nn.Parameter(torch.randn(4, dtype=torch.cdouble))),
    "complex buffer": lambda: module(b=torch.polar(torch.ones(3), torch.arange(3.0))),
    "conjugate buffer": lambda: module(b=torch.polar(torch.ones(3), torch.arange(3.0)).conj()),
    "odd place for complex": lambda: module(t=nn.Parameter(torch.tensor(2.0)), w=nn.Parameter(torch.ones(3) * 1j)),
    **{
        f"buffer of {kind}": lambda kind=kind: module(b=torch.arange(6).to(kind))  # type: ignore[misc]
        for kind in (
            *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.bool),
            *(torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2),
        )
    },
    "no buffer": lambda: module(b=None),
    "a buffer that is not saved": not_saved,
    "a buffer that repeats one value": lambda: module(b=torch.zeros(1).expand(4)),
    "extra state": lambda: with_extra({"calls": 1}),
    "extra state, a tensor": lambda: with_extra(torch.ones(2)),
    "copies as state": with_hook,
    "weight_norm": lambda: NORM.weight_norm(nn.Linear(4, 1)),
    "weight_norm of old": lambda: torch.nn.utils.weight_norm(nn.Linear(4, 1)),
    "spectral_norm": lambda: NORM.spectral_norm(nn.Linear(4, 1)),
    "orthogonal": lambda: NORM.orthogonal(nn.Linear(4, 4)),
    "pruned": pruned,
    "DataParallel": lambda: nn.DataParallel(nn.Linear(4, 1)),
    "torch.compile": lambda: torch.compile(nn.Linear(4, 1), backend="eager"),
    "mask of minus infinity": lambda: module(b=torch.full((2, 2), -math.inf).triu(1)),
    "mask of the least float": lambda: module(b=torch.full((2,), torch.finfo().min)),
    "a buffer that is not a number": lambda: module(b=torch.tensor(math.nan)),
    "running largest, counter": lambda: module(counting, seen=torch.tensor(0), largest=torch.tensor(-math.inf)),
    "odd names": lambda: module(p=nn.ParameterDict({"ä b/c": nn.Parameter(torch.ones(2))})),
    "brackets": lambda: module(d=nn.ModuleDict({name: nn.Linear(4, 1) for name in ("conv[1]", "conv1", "*")})),
    "lazy, made by a batch": lazy,
    "in eval and inference mode": lambda: nn.Linear(4, 1).eval(),
}  # fmt: skip


def train(model: Any, plan: Any) -> int:
    """Three steps of whatever can move, on rows in the module's own precision."""
    own = [each for each in model.parameters() if each.requires_grad]
    kind = next(each.dtype for each in own if each.ndim > 1 and not each.is_complex())
    sparse = any(getattr(layer, "sparse", False) for layer in model.modules())
    for _ in range(3):
        loss = model(X.to(kind)).square().mean()
        loss.backward()
        with torch.no_grad():
            for each in own:
                slope = None if each.grad is None else each.grad.to_dense() if sparse else each.grad
                each.sub_(0.125 if slope is None else 0.05 * slope)
                each.grad = None
    return len(X)


def published(server: Any) -> State:
    arrays, roles = read_initial(server)
    schema = Schema.of(arrays, roles)
    schema = Schema.unpacked(schema.packed())
    return decode_snapshot(encode_snapshot(on_grid(schema.flatten(arrays), schema, schema.freeze(arrays))))


def goes_round(server: Any, device: Any, loop: Callable[[Any, Any], Any] = train) -> tuple[State, Fit, Any]:
    """The state it began with, the fit, and the model that comes of it."""
    begun = published(server)
    fit = checked(torch_trainer(device)(loop)(begun.parameters(), Plan()))
    asked = announcement(1).model_copy(update={"plan": Plan(codec="float32"), "lineage": bytes(16)})
    made = make_update(fit, begun, asked, 0.0)
    delta = codecs.decode_delta(made.body, begun.schema, "float32", None)
    return begun, fit, {**begun.schema.thaw(begun.frozen), **begun.schema.views(begun.values() + delta)}


@pytest.mark.parametrize("kind", ROUND)
def test_a_module_goes_round(kind: str) -> None:
    torch.manual_seed(0)
    server, device = ROUND[kind](), ROUND[kind]()
    begun, fit, after = goes_round(server, device)
    arrays, _ = state(device)
    assert set(after) == set(arrays) == set(fit.parameters) and fit.examples == 8
    moved = 0.0
    for tensor in begun.schema.tensors:
        held, came = arrays[tensor.name], np.asarray(after[tensor.name])
        if tensor.role == "frozen":
            np.testing.assert_array_equal(came, begun.parameters()[tensor.name])
        else:
            np.testing.assert_allclose(came, held, rtol=2e-6, atol=2e-7)
            moved = max(moved, float(np.abs(came - begun.parameters()[tensor.name]).max(initial=0)))
    assert moved > 0
    load(device, after)
    for name, array in state(device)[0].items():
        np.testing.assert_array_equal(array, np.asarray(after[name]).astype(array.dtype), err_msg=name)


def test_what_is_tied_travels_once_and_old_stores_go_on() -> None:
    schema = published(ROUND["tied layers"]()).schema
    assert schema.size == 4 + 1 + 16 and schema.untied.size == 4 + 1 + 32
    assert [each.tied for each in schema.tensors] == ["", "", "", "a.weight"]
    parameters = published(ROUND["tied layers"]()).parameters()
    device = ROUND["tied layers"]()
    for left in ("a.weight", "b.weight"):  # a file that holds each tensor once, under either name
        given = {name: array + 1 for name, array in parameters.items() if name != left}
        load(device, given)
        np.testing.assert_array_equal(state(device)[0]["a.weight"], given["a.weight" if left[0] == "b" else "b.weight"])


def test_what_half_precision_cannot_hold_is_no_training() -> None:
    server = nn.Linear(4, 1)  # in float32, whose values bfloat16 has not
    begun, _, after = goes_round(server, nn.Linear(4, 1).bfloat16(), lambda *_: 8)
    for name, array in begun.parameters().items():
        np.testing.assert_array_equal(after[name], array)


def test_one_row_passes_batch_norm() -> None:
    make = ROUND["BatchNorm"]

    def one_row(model: Any, plan: Any) -> int:
        model(X[:1]).sum().backward()
        assert all(layer.training for layer in model.modules())
        with torch.no_grad():
            model[0].bias += model[0].bias.grad
        return 1

    _, fit, after = goes_round(make(), make(), one_row)
    assert fit.examples == 1 and np.abs(after["0.bias"]).max() > 0
    assert not after["1.running_mean"].any()


OUTCOMES: list[tuple[Any, int, dict[str, float]]] = [
    (8, 8, {}),
    (np.int64(8), 8, {}),
    (np.array([8]), 8, {}),
    (torch.tensor(8), 8, {}),
    (torch.tensor([8]), 8, {}),
    (8.0, 8, {}),
    (np.float32(8), 8, {}),
    ((8, {"loss": 0.5}), 8, {"loss": 0.5}),
    ((torch.tensor(8), {"loss": torch.tensor(0.5, requires_grad=True)}), 8, {"loss": 0.5}),
    ((8, {"loss": np.float16(0.5), "f1": np.array([1.0])}), 8, {"loss": 0.5, "f1": 1.0}),
    ((8, {"per class": [1, 2], "name": "x", "none": None, "ok": True}), 8, {"ok": 1.0}),
    (Fit({}, np.int64(8), np.int32(3)), 8, {}),  # type: ignore[arg-type]
    (Fit({}, 8, metrics=None), 8, {}),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("outcome", "examples", "metrics"), OUTCOMES)
def test_an_outcome_that_says_how_many(outcome: Any, examples: int, metrics: dict[str, float]) -> None:
    fit = goes_round(nn.Linear(4, 1), nn.Linear(4, 1), lambda *_: outcome)[1]
    assert (fit.examples, type(fit.examples), fit.metrics) == (examples, int, metrics)


@pytest.mark.parametrize("outcome", [None, True, "8", 8.5, [8], (8,), (None, {}), torch.ones(2), {"loss": 1}, object()])
def test_an_outcome_that_does_not(outcome: Any) -> None:
    with pytest.raises(NoFit, match="return the number of examples, or that and a dict of metrics"):
        goes_round(nn.Linear(4, 1), nn.Linear(4, 1), lambda *_: outcome)


@pytest.mark.parametrize("outcome", [0, (0, {"loss": 1.0})])
def test_a_training_on_no_rows_sends_nothing(outcome: Any) -> None:
    with pytest.raises(NoRows, match="no rows"):
        goes_round(nn.Linear(4, 1), nn.Linear(4, 1), lambda *_: outcome)


def quantised() -> Any:
    return torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(4, 1)))


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "lazy": (lambda: nn.LazyLinear(1), "weight .* is not made yet: run the module on one batch before"),
    "quantised": (quantised, "federate the model before it is quantised"),
    "quantised buffer": (
        lambda: module(b=torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)), "b .* is quantised",
    ),
    "without values": (lambda: nn.Linear(4, 1, device="meta"), "weight .* has no values: load the weights before"),
    "sparse": (lambda: module(b=torch.eye(3).to_sparse()), r"b .* is a sparse tensor: .*persistent=False"),
    "sparse rows": (lambda: module(b=torch.eye(3).to_sparse_csr()), "b .* is a sparse tensor"),
    "nested": (lambda: module(b=torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])), "b .* is a nested tensor"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_federated_is_refused_with_what_to_do(kind: str, tmp_path: Path) -> None:
    make, match = REFUSED[kind]
    for refusing in (
        lambda: midge.Aggregator("mqtt://localhost", federation="f", store=tmp_path / "store", initial=make()),
        lambda: torch_trainer(make()),
    ):
        with pytest.raises(ValueError, match=match):
            refusing()


def test_a_weight_that_is_not_a_number_is_named(tmp_path: Path) -> None:
    broken = nn.Linear(4, 1)
    nn.init.constant_(broken.bias, math.nan)
    with pytest.raises(ValueError, match="bias holds values that are not finite"):
        midge.Aggregator("mqtt://localhost", federation="f", store=tmp_path / "store", initial=broken)


def wider(model: Any, _: Any) -> int:
    model.l = nn.Linear(5, 1)
    return 8


def gone(model: Any, _: Any) -> int:
    del model.l
    return 8


@pytest.mark.parametrize(
    ("loop", "match"),
    [(wider, r"changed the module: l.weight was \(1, 4\) and is \(1, 5\)"), (gone, "l.weight was .* and is gone")],
)
def test_a_loop_that_makes_another_module_is_told(loop: Any, match: str) -> None:
    with pytest.raises(TrainerError, match=match):
        goes_round(module(), module(), loop)


def test_a_loop_that_replaces_a_layer_by_its_like_goes_round() -> None:
    def fresh(model: Any, _: Any) -> int:
        model.l = nn.Linear(4, 1)
        model.register_buffer("mine", torch.ones(3))
        return 8

    device = module()
    _, _, after = goes_round(module(), device, fresh)
    np.testing.assert_allclose(after["l.weight"], device.l.weight.detach().numpy(), rtol=2e-6, atol=2e-7)


def test_a_loss_that_is_not_a_number_sends_nothing() -> None:
    def diverges(model: Any, _: Any) -> Any:
        with torch.no_grad():
            model.bias.fill_(math.nan)
        return 8, {"loss": math.nan}

    with pytest.raises(Unfit, match="did not stay finite"):
        goes_round(nn.Linear(4, 1), nn.Linear(4, 1), diverges)


def test_a_module_of_inference_mode_is_told() -> None:
    with torch.inference_mode():
        made = nn.Linear(4, 1)
    with pytest.raises(ValueError, match=r"weight was made in inference mode and cannot be trained"):
        torch_trainer(made)


def test_a_fit_of_torchs_own_tensors_is_one() -> None:
    given = published(nn.Linear(4, 1))
    tensors = {name: torch.ones(array.shape, requires_grad=True) for name, array in given.parameters().items()}
    fit = checked(Fit({**tensors, "bias": torch.ones(1, dtype=torch.bfloat16)}, 3))
    np.testing.assert_array_equal(given.schema.flatten(fit.parameters), np.ones(5))
    for wrong in (None, [1, 2], "w"):
        with pytest.raises(NoFit, match="a dict of all tensors by name"):
            checked(Fit(wrong, 3))  # type: ignore[arg-type]
    with pytest.raises(TrainerError, match="returned what it was not given"):
        make_update(Fit({**given.parameters(), "bias": np.array(["a"])}, 3), given, announcement(1), 0.0)


def test_roles_by_pattern_go_before_what_the_module_says(tmp_path: Path) -> None:
    made = nn.ModuleDict({"body": nn.Linear(4, 4), "head": nn.Linear(4, 1)})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        app = midge.Aggregator(
            "mqtt://localhost", federation="f", store=tmp_path / "store", initial=made, roles={"head.*": "local"}
        )
    assert [each.role for each in app.config.schema.tensors] == ["trained", "trained", "local", "local"]
