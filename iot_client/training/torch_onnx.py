"""A torch module with federated values as ONNX."""

import warnings
from collections.abc import Sequence
from typing import BinaryIO

import torch
from torch.nn import Module

from midge.iot_client.training.fit import Parameters
from midge.iot_client.training.torch_state import load

__all__ = ["Module", "exported"]


def exported(
    module: Module,
    parameters: Parameters,
    shape: Sequence[int],
    to: BinaryIO,
    *,
    input_name: str,
    output_name: str,
) -> None:
    """Load values into a module, and write it as ONNX with any number of rows.

    Args:
        module: an instance of the model's module.
        parameters: of a version.
        shape: of one input.
        to: takes the bytes.
        input_name: of the graph's input.
        output_name: of its output.

    Raises:
        TrainerError: the parameters are not those of the module.
    """
    load(module, parameters)
    module.eval()
    example = torch.zeros(2, *shape)
    rows = torch.export.Dim("rows", min=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations within torch, of which the user can mend none
        program = torch.onnx.export(
            module,
            (example,),
            input_names=[input_name],
            output_names=[output_name],
            dynamic_shapes=({0: rows},),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    to.write(program.model_proto.SerializeToString())
