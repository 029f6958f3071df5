"""Export of the model as a safetensors file."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from midge.storage.files import PUBLIC, atomic_write
from midge.wire.schema import Parameters


def write_model(path: str | Path, parameters: Parameters, about: Mapping[str, str]) -> None:
    """Write all tensors by name as safetensors, with text metadata; atomically."""
    arrays = {name: np.ascontiguousarray(array) for name, array in parameters.items()}
    atomic_write(Path(path), save(arrays, metadata=dict(about)), mode=PUBLIC)
