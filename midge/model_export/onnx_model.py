"""ONNX graphs of the models in plain NumPy, and of a user's torch module: raw inputs in, what `predict` gives out.

Normalisation is in the graph, so that whoever runs it needs nothing of Midge. Operators are those of opset 17.
"""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from midge.iot_client.training.numpy_cnn import BLOCKS, CNN, DENSE, EPSILON, GROUPS
from midge.iot_client.training.numpy_models import MLP, Network, Task
from midge.iot_client.training.sample_trainer import model_of
from midge.iot_client.training.update_encoder import TrainerError

OPSET = 17
INPUT, OUTPUT = "input", "output"

Values = Mapping[str, npt.NDArray[Any]]


class ExportError(ValueError):
    """This model cannot be exported so; the message says why."""


def network_of(parameters: Values, shape: Sequence[int] | None = None, task: Task | None = None) -> Network:
    """The model in plain NumPy to which parameters belong.

    Args:
        parameters: of a version.
        shape: of one input; only a convolutional model needs it.
        task: of the model, where its tensors do not say: one that reconstructs its inputs.

    Raises:
        ExportError: it is none of these, or needs a shape.
    """
    first = np.shape(parameters.get("layers.0.weight", ()))
    if len(first) != 4 or f"{DENSE}.weight" not in parameters:
        try:
            return model_of(parameters, "reconstruction" if task == "reconstruction" else None)
        except TrainerError as error:
            raise ExportError(
                f"ONNX is made of Midge's own models, or of a torch module (--module): {error}"
            ) from error
    if shape is None:
        raise ExportError("A convolutional model does not say the size of its images: give it, as --input 28x28.")
    outputs = int(np.shape(parameters[f"{DENSE}.weight"])[0])
    found: Task = "regression" if "target_mean" in parameters else "binary" if outputs == 1 else "classification"
    net = CNN(tuple(shape), outputs, found, first[0])
    if wrong := [name for name, wanted in net.shapes.items() if np.shape(parameters.get(name, ())) != wanted]:
        raise ExportError(f"An input of {'x'.join(map(str, shape))} does not fit: {wrong[0]} has another shape.")
    return net


class _Graph:
    """Nodes and constants of a graph that is being made."""

    def __init__(self, parameters: Values) -> None:
        from onnx import helper, numpy_helper  # noqa: PLC0415 - an extra

        self._helper, self._numpy = helper, numpy_helper
        self._parameters = parameters
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}

    def tensor(self, name: str) -> str:
        """A tensor of the version."""
        return self.constant(name, np.asarray(self._parameters[name], np.float32))

    def constant(self, name: str, value: npt.ArrayLike) -> str:
        self.constants.setdefault(name, self._numpy.from_array(np.asarray(value), name))
        return name

    def add(self, operator: str, *inputs: str, out: str | None = None, **attributes: Any) -> str:
        name = out or f"{operator.lower()}_{len(self.nodes)}"
        self.nodes.append(self._helper.make_node(operator, list(inputs), [name], **attributes))
        return name

    def standardised(self) -> str:
        """As `standardise`: mean 0 and deviation 1, and 0 where a value is missing."""
        z = self.add("Div", self.add("Sub", INPUT, self.tensor("input_mean")), self.tensor("input_scale"))
        missing = self.add("Or", self.add("IsNaN", z), self.add("IsInf", z))
        return self.add("Where", missing, self.constant("zero", np.float32(0)), z)


def of_ours(parameters: Values, shape: Sequence[int] | None = None, task: Task | None = None) -> bytes:
    """The ONNX model of a version of one of Midge's own models.

    Raises:
        ExportError: it is of another model.
        ModuleNotFoundError: `onnx` is not installed.
    """
    net = network_of(parameters, shape, task)
    graph = _Graph(parameters)
    last = _cnn(graph, net) if isinstance(net, CNN) else _mlp(graph, net)
    columns = {"classification": net_outputs(net), "reconstruction": net.shape[0]}.get(net.task)
    match net.task:
        case "classification":
            graph.add("Identity", last, out=OUTPUT)
        case "reconstruction":
            scaled = graph.add("Mul", last, graph.tensor("input_scale"))
            graph.add("Add", scaled, graph.tensor("input_mean"), out=OUTPUT)
        case single:
            axis = graph.constant("last_axis", np.array([1], np.int64))
            flat = graph.add("Squeeze", last, axis)
            if single == "regression":
                scaled = graph.add("Mul", flat, graph.tensor("target_scale"))
                graph.add("Add", scaled, graph.tensor("target_mean"), out=OUTPUT)
            else:
                graph.add("Identity", flat, out=OUTPUT)
    return _model(graph, net.shape, columns)


def net_outputs(net: Network) -> int:
    """The number of outputs of the last layer."""
    assert isinstance(net, MLP | CNN)
    return net.outputs


def _model(graph: _Graph, shape: Sequence[int], columns: int | None) -> bytes:
    from onnx import TensorProto, checker, helper  # noqa: PLC0415 - an extra

    given = helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["rows", *shape])
    made = helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["rows", *([] if columns is None else [columns])])
    body = helper.make_graph(graph.nodes, "midge", [given], [made], list(graph.constants.values()))
    # The IR version that came with the opset: newer ones are refused by older runtimes.
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8, producer_name="midge")
    checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def _mlp(graph: _Graph, net: Network) -> str:
    assert isinstance(net, MLP)
    z = graph.standardised()
    for index, (weight, bias, _, _) in enumerate(net.layers):
        z = graph.add("Relu", z) if index else z
        z = graph.add("Gemm", z, graph.tensor(weight), graph.tensor(bias), transB=1)
    return z


def _cnn(graph: _Graph, net: CNN) -> str:
    height, width, colours = (*net.image, 1)[:3]
    z = graph.standardised()
    z = graph.add("Reshape", z, graph.constant("image", np.array([-1, height, width, colours], np.int64)))
    z = graph.add("Transpose", z, perm=[0, 3, 1, 2])
    for block, (convolution, norm) in enumerate(BLOCKS):
        weight, bias = graph.tensor(f"{convolution}.weight"), graph.tensor(f"{convolution}.bias")
        z = graph.add("Conv", z, weight, bias, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
        wide = net.width * 2**block
        # GroupNorm of opset 17: a group is one channel of InstanceNorm, then gain and bias of each channel.
        groups = graph.constant(f"groups_{block}", np.array([0, GROUPS, -1], np.int64))
        ones, zeros = (
            graph.constant("ones", np.ones(GROUPS, np.float32)),
            graph.constant("zeros", np.zeros(GROUPS, np.float32)),
        )
        grouped = graph.add(
            "InstanceNormalization", graph.add("Reshape", z, groups), ones, zeros, epsilon=float(EPSILON)
        )
        apart = graph.add("Reshape", grouped, graph.add("Shape", z))
        side = graph.constant(f"side_{block}", np.array([1, wide, 1, 1], np.int64))
        gain, shift = (graph.add("Reshape", graph.tensor(f"{norm}.{each}"), side) for each in ("weight", "bias"))
        z = graph.add("Add", graph.add("Mul", apart, gain), shift)
        z = graph.add("Relu", graph.add("MaxPool", z, kernel_shape=[2, 2], strides=[2, 2]))
    flat = graph.add("Flatten", z, axis=1)
    return graph.add("Gemm", flat, graph.tensor(f"{DENSE}.weight"), graph.tensor(f"{DENSE}.bias"), transB=1)


def of_torch(module: Any, parameters: Values, shape: Sequence[int]) -> bytes:
    """The ONNX model of a torch module with the values of a version, as `torch.onnx` makes it.

    Args:
        module: an instance of the model's module; the values are loaded into it.
        parameters: of a version.
        shape: of one input; a first axis of any number of rows is added.

    Raises:
        ModuleNotFoundError: torch, `onnx` or `onnxscript` is not installed.
        TrainerError: the parameters are not those of the module.
    """
    from midge.iot_client.training.torch_onnx import exported  # noqa: PLC0415 - an extra

    buffer = io.BytesIO()
    exported(module, parameters, shape, buffer, input_name=INPUT, output_name=OUTPUT)
    return buffer.getvalue()
