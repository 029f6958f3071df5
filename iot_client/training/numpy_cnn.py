"""A small convolutional image model in plain NumPy, equivalent to `ImageCNN` of `iot_client.training.torch_trainer`.

Two blocks of a 3 × 3 convolution, GroupNorm, ReLU and pooling, then a dense layer. Within the blocks the batch is the
last axis: convolutions are matrix products with patches, and all else works on long contiguous rows. GroupNorm is that
of Wu and He, arXiv:1803.08494.
"""

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod, sqrt
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from midge.iot_client.training.numpy_models import AT_ONCE, LOSSES, Array, Network, Task, normalisation
from midge.wire.field_checks import Count, check_fields

GROUPS: Final = 4
"""Groups of GroupNorm."""
EPSILON: Final = np.float32(1e-5)
"""Added to a variance; torch's default."""
BLOCKS: Final = ("layers.0", "layers.1"), ("layers.4", "layers.5")
"""Names of convolution and GroupNorm in torch's module."""
DENSE: Final = "layers.9"
BATCH: Final = 16
"""Rows predicted at once; a recipe's batch."""
CACHED: Final = 2**22
"""Bytes of a stack's intermediate values that fit into a processor's cache: larger stacks are slower."""


@dataclass(frozen=True)
class CNN(Network):
    """Images of shape (height, width) or (height, width, colours), with one mean and scale for all pixels."""

    image: tuple[Count, ...] = (28, 28)
    outputs: Count = 10
    task: Task = "classification"
    width: Count = 16
    """Channels of the first convolution; the second has twice as many."""

    def __post_init__(self) -> None:
        check_fields(self)
        if len(self.image) not in (2, 3):
            raise ValueError(f"image is {self.image}: it must be height and width, or height, width and colours.")
        if min(self.image[:2]) < 4:
            height, breadth = self.image[:2]
            raise ValueError(f"a convolutional model needs images of at least 4 × 4 pixels, not {height} × {breadth}")
        if self.task == "reconstruction":
            raise ValueError("a convolutional model does not reconstruct its input; take a perceptron")

    @property
    def shape(self) -> tuple[int, ...]:
        return self.image

    @property
    def _size(self) -> tuple[int, int, int]:
        """Height, width and colours."""
        height, breadth, colours = (*self.image, 1)[:3]
        return height, breadth, colours

    @cached_property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        height, breadth, channels = self._size
        found: dict[str, tuple[int, ...]] = {}
        for (convolution, norm), wide in zip(BLOCKS, (self.width, 2 * self.width), strict=True):
            found |= {f"{convolution}.weight": (wide, channels, 3, 3), f"{convolution}.bias": (wide,)}
            found |= {f"{norm}.weight": (wide,), f"{norm}.bias": (wide,)}
            channels = wide
        dense = channels * (height // 4) * (breadth // 4)
        return found | {f"{DENSE}.weight": (self.outputs, dense), f"{DENSE}.bias": (self.outputs,)}

    @cached_property
    def at_once(self) -> int:
        height, breadth, colours = self._size
        pixels, wide = height * breadth, self.width
        values = pixels * (9 * colours + 3 * wide) + pixels // 4 * (9 * wide + 3 * 2 * wide)
        return max(1, min(AT_ONCE, CACHED // (4 * BATCH * values)))

    def initial(self, seed: int = 0) -> dict[str, Array]:
        """New parameters, as in torch: uniform within ±1/√inputs, GroupNorm as the identity; no normalisation."""
        rng = np.random.default_rng(seed)
        parameters = normalisation(1, self.task)
        for weight, bias in zip(list(self.shapes)[::2], list(self.shapes)[1::2], strict=True):
            if len(shape := self.shapes[weight]) == 1:
                parameters |= {weight: np.ones(shape, np.float32), bias: np.zeros(shape, np.float32)}
                continue
            bound = 1 / sqrt(prod(shape[1:]))
            for name in (weight, bias):
                parameters[name] = rng.uniform(-bound, bound, self.shapes[name]).astype(np.float32)
        return parameters

    def _output(self, parameters: Mapping[str, Array], z: Array) -> Array:
        parts = [z[:, start : start + BATCH] for start in range(0, z.shape[1], BATCH)]
        return np.concatenate([self._forward(parameters, part)[-1] for part in parts], axis=1)

    def _forward(self, parameters: Mapping[str, Array], z: Array) -> tuple["_Block", "_Block", Array, Array]:
        """Both blocks with what backpropagation needs, the input of the dense layer, and the output."""
        images = np.moveaxis(z.reshape(*z.shape[:2], *self._size), (1, 4), (4, 1))
        first = _Block(parameters, *BLOCKS[0], images)
        second = _Block(parameters, *BLOCKS[1], first.pooled)
        flat = second.pooled.reshape(len(z), -1, z.shape[1])
        output = np.matmul(flat.swapaxes(1, 2), parameters[f"{DENSE}.weight"].swapaxes(1, 2))
        output += parameters[f"{DENSE}.bias"][:, None]
        return first, second, flat, output

    def _gradients(
        self,
        parameters: Mapping[str, Array],
        z: Array,
        targets: npt.NDArray[Any],
        sizes: Array,
        gradients: Mapping[str, Array],
        *,
        padded: npt.NDArray[np.bool_] | None = None,
    ) -> Array:
        first, second, flat, output = self._forward(parameters, z)
        losses, slope = LOSSES[self.task](output, targets, sizes)
        if padded is not None:
            slope[padded] = 0
        across = slope.swapaxes(1, 2)
        np.matmul(across, flat.swapaxes(1, 2), out=gradients[f"{DENSE}.weight"])
        slope.sum(axis=1, out=gradients[f"{DENSE}.bias"])
        pooled = np.matmul(parameters[f"{DENSE}.weight"].swapaxes(1, 2), across).reshape(second.pooled.shape)
        first.backward(second.inputs(second.backward(pooled, gradients)), gradients)
        return losses


class _Workspace(threading.local):
    """Per-thread buffers that each step reuses: allocating new pages would take as long as the arithmetic."""

    def __init__(self) -> None:
        self._held: dict[tuple[str, npt.DTypeLike], npt.NDArray[Any]] = {}

    def take(self, name: str, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """An uninitialised array; it invalidates the earlier one of that name."""
        size, held = prod(shape), self._held.get((name, dtype))
        if held is None or len(held) < size:
            held = self._held[name, dtype] = np.empty(size, dtype)
        return held[:size].reshape(shape)


_WORKSPACE: Final = _Workspace()


class _Block:
    """A convolution with GroupNorm, ReLU and pooling: its outputs `pooled`, and what backpropagation needs.

    Its arrays are in the workspace, and are valid until the next block of the same name.
    """

    def __init__(self, parameters: Mapping[str, Array], convolution: str, norm: str, x: Array) -> None:
        """Compute the block for inputs of shape (devices, channels, height, width, batch)."""
        self._names = convolution, norm
        weight, self._gain = parameters[f"{convolution}.weight"], parameters[f"{norm}.weight"][:, :, None]
        devices, channels, height, breadth, batch = x.shape
        self._shape = devices, weight.shape[1], height, breadth, batch
        self._weight = weight.reshape(devices, -1, 9 * channels)
        edged = self._edged(channels)
        edged[:, :, 1:-1, 1:-1] = x
        self._patches = self._array("patches", (devices, channels, 3, 3, height, breadth, batch))
        for i, j in np.ndindex(3, 3):
            self._patches[:, :, i, j] = edged[:, :, i : i + height, j : j + breadth]
        self._z = z = self._array("z", self._shape)
        flat = z.reshape(*z.shape[:2], -1)
        np.matmul(self._weight, self._patches.reshape(devices, 9 * channels, -1), out=flat)
        flat += parameters[f"{convolution}.bias"][:, :, None]
        z -= _spread(_grouped(_sums(z), height * breadth), breadth)
        self._normal = normal = self._array("normal", self._shape)
        variance = _grouped(_sums(np.multiply(z, z, out=normal)), height * breadth)
        self._inverse = 1 / np.sqrt(variance + EPSILON)
        np.multiply(z, _spread(self._inverse * self._gain, breadth), out=normal)
        normal += parameters[f"{norm}.bias"][:, :, None, None, None]
        self._across, self._left = self._pooled("across", normal, 3)
        self.pooled, self._top = self._pooled("pooled", self._across, 2)
        np.maximum(self.pooled, 0, out=self.pooled)

    def backward(self, slope: Array, gradients: Mapping[str, Array]) -> Array:
        """Write the gradients of its tensors, given that of `pooled`; return that of the convolution's output."""
        (convolution, norm), z = self._names, self._z
        devices, wide, height, breadth, _ = self._shape
        slope *= self.pooled > 0
        sums = _sums(slope)
        found = _unpooled(_unpooled(slope, self._top, self._across, 2), self._left, self._normal, 3)
        products = _sums(np.multiply(found, z, out=self._array("products", self._shape))) * self._inverse
        sums.sum(axis=2, out=gradients[f"{norm}.bias"])
        products.sum(axis=2, out=gradients[f"{norm}.weight"])
        z *= _spread(_grouped(self._gain * products, height * breadth) * self._inverse**2, breadth)
        z += _spread(_grouped(self._gain * sums, height * breadth) * self._inverse, breadth)
        found *= _spread(self._inverse * self._gain, breadth)
        found -= z
        flat, patches = found.reshape(devices, wide, -1), self._patches.reshape(devices, self._weight.shape[2], -1)
        weight = gradients[f"{convolution}.weight"].reshape(self._weight.shape)  # a view: only the last axes are joined
        np.matmul(flat, patches.swapaxes(1, 2), out=weight)
        _sums(found).sum(axis=2, out=gradients[f"{convolution}.bias"])
        return flat

    def inputs(self, slope: Array) -> Array:
        """The gradient of the inputs, given the result of `backward`; invalidates the patches."""
        channels, height, breadth = self._patches.shape[1], *self._shape[2:4]
        flat = self._patches.reshape(len(slope), 9 * channels, -1)
        np.matmul(self._weight.swapaxes(1, 2), slope, out=flat)
        edged = self._edged(channels)
        for i, j in np.ndindex(3, 3):
            edged[:, :, i : i + height, j : j + breadth] += self._patches[:, :, i, j]
        return edged[:, :, 1:-1, 1:-1]

    def _array(self, name: str, shape: tuple[int, ...], dtype: npt.DTypeLike | None = None) -> npt.NDArray[Any]:
        return _WORKSPACE.take(f"{self._names[0]} {name}", shape, self._weight.dtype if dtype is None else dtype)

    def _edged(self, channels: int) -> Array:
        """Zeros with a margin of one pixel around each image."""
        devices, _, height, breadth, batch = self._shape
        edged: Array = self._array("edged", (devices, channels, height + 2, breadth + 2, batch))
        edged.fill(0)
        return edged

    def _pooled(self, name: str, z: Array, axis: int) -> tuple[Array, npt.NDArray[np.bool_]]:
        """Maximum of each pair along an axis, and a mask where the first is it, ties included, as in torch."""
        pairs = np.moveaxis(z, axis, 0)[: z.shape[axis] // 2 * 2]
        shape = (*z.shape[:axis], len(pairs) // 2, *z.shape[axis + 1 :])
        greater, first = self._array(name, shape), self._array(name, shape, np.bool_)
        np.maximum(pairs[::2], pairs[1::2], out=np.moveaxis(greater, axis, 0))
        np.greater_equal(pairs[::2], pairs[1::2], out=np.moveaxis(first, axis, 0))
        return greater, first


def _sums(z: Array) -> Array:
    """Sum over the pixels, of shape (devices, channels, batch), by a product, many times faster than a sum."""
    rows = z.reshape(*z.shape[:2], -1, z.shape[-1])
    sums: Array = np.matmul(np.ones((1, rows.shape[2]), z.dtype), rows)[:, :, 0]
    return sums


def _grouped(sums: Array, pixels: int) -> Array:
    """Mean over the pixels of a group, for each of its channels."""
    devices, channels, batch = sums.shape
    grouped = sums.reshape(devices, GROUPS, -1, batch).sum(axis=2) / np.float32(pixels * (channels // GROUPS))
    return np.repeat(grouped, channels // GROUPS, axis=1)


def _spread(factors: Array, breadth: int) -> Array:
    """Values for each row of pixels, of shape (devices, channels, 1, width, batch), since long rows are fast."""
    return np.repeat(factors[:, :, None, None], breadth, axis=3)


def _unpooled(slope: Array, first: npt.NDArray[np.bool_], found: Array, axis: int) -> Array:
    """Write the gradients through pooling by pairs along an axis: to the first or the second of each pair."""
    pairs, given = np.moveaxis(found, axis, 0), np.moveaxis(slope, axis, 0)
    if len(pairs) % 2:
        pairs[-1] = 0
    np.multiply(given, np.moveaxis(first, axis, 0), out=pairs[: 2 * len(given) : 2])
    np.subtract(given, pairs[: 2 * len(given) : 2], out=pairs[1 : 2 * len(given) : 2])
    return found
