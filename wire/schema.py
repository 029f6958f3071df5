"""The schema: the names, order, shapes and roles of a model's tensors, and the model's flat vector.

All tensors that are learned together (`trained` and `averaged`) lie in one contiguous float32 vector, in the order of
the schema; a tensor is a view of it, a complex one a view of pairs. A tensor that is tied to another, such as an
embedding to the head of a language model, is the same view. What is `frozen` travels once, in a snapshot. What is
`local` never leaves a device. What is `site` is averaged over a site's devices by its gateway, and goes no further.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property
from math import prod
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from midge.wire import frames
from midge.wire.errors import WireError

Role = Literal["trained", "averaged", "local", "frozen", "site"]
ROLES: tuple[Role, ...] = ("trained", "averaged", "local", "frozen", "site")
Vector = npt.NDArray[np.float32]
Vectors = npt.NDArray[np.float32]
"""Flat vectors of several devices, of shape (devices, size)."""
Parameters = Mapping[str, npt.NDArray[Any]]

_DTYPES = {
    "float32": "<f4",
    "float64": "<f8",
    "complex64": "<c8",
    "complex128": "<c16",
    "int64": "<i8",
    "int32": "<i4",
    "int16": "<i2",
    "int8": "|i1",
    "uint64": "<u8",
    "uint32": "<u4",
    "uint16": "<u2",
    "uint8": "|u1",
    "bool": "|b1",
}
_SHARED = ("float32", "complex64")
"""Dtypes of tensors that are learned together; complex64 as pairs of float32."""
MOST_SITE = 2**18
"""Most values of a site's tensors: a megabyte, because they travel whole, in one message."""
LARGEST_SITE = 2.0**80
"""Bound of a value of a site's tensors: sums of any number of them are finite."""
MAX_TENSORS = frames.MAX_ITEMS
MAX_PARAMETERS = 2**31 - 1
MAX_NAME = 255
"""Bytes of a tensor's name in UTF-8."""
MAX_SIDES = 32
"""Dimensions of a tensor; NumPy 1.26 knows no more."""
MAX_PACKED = 2**21
"""Bytes of a packed schema; more than the limits above allow to be made."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of the schema."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    role: Role
    tied: str = ""
    """The name of an earlier tensor that it is identical with, so that it never travels itself; empty if it is not
    tied."""

    @property
    def size(self) -> int:
        """Number of values; a complex value is two."""
        return prod(self.shape) * (2 if self.complex else 1)

    @property
    def complex(self) -> bool:
        return self.dtype.startswith("complex")

    @property
    def shared(self) -> bool:
        """Whether devices learn it together and it travels under this name."""
        return self.role in ("trained", "averaged") and not self.tied

    @property
    def personal(self) -> bool:
        """Whether the federation knows only its name and shape: it is a device's own, or its site's."""
        return self.role in ("local", "site")


def _is_tensor(value: Any) -> bool:
    """Whether a packed tensor has the right types; the schema checks the rest."""
    match value:
        case (str(), (tuple() | list()) as shape, str(), str()) | (
            str(),
            (tuple() | list()) as shape,
            str(),
            str(),
            str(),
        ):
            return all(type(side) is int for side in shape)
    return False


def _tied(name: str, target: Tensor | None, asked: str) -> Tensor:
    """A tensor tied to an earlier one; with values of its own if the federation does not know those of that one.

    Raises:
        ValueError: there is none before it.
    """
    if target is None:
        raise ValueError(f"{name} cannot be tied to {asked!r}: there is no such tensor before it")
    return replace(target, name=name, tied="" if target.personal else target.tied or target.name)


class Schema:
    """The ordered tensors of a model. Two schemas are equal if their hashes are."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        """Lay the tensors out in the flat vector.

        Raises:
            WireError: a duplicate name, an unknown dtype or role, a shared tensor that is not float32 or complex64, or
                a limit that is exceeded.
        """
        self.tensors = tuple(tensors)
        if len(self.tensors) > MAX_TENSORS:
            raise WireError(f"{len(self.tensors)} tensors are over {MAX_TENSORS}")
        if len({tensor.name for tensor in self.tensors}) != len(self.tensors):
            raise WireError("a tensor's name occurs twice")
        for tensor in self.tensors:
            if tensor.role not in ROLES:
                raise WireError(f"{tensor.name}: unknown role {tensor.role!r}")
            if tensor.dtype not in _DTYPES:
                raise WireError(f"{tensor.name}: unknown dtype {tensor.dtype!r}")
            if (tensor.shared or tensor.role == "site") and tensor.dtype not in _SHARED:
                raise WireError(f"{tensor.name}: {tensor.role} tensors are float32, not {tensor.dtype}")
            if len(tensor.name.encode(errors="replace")) > MAX_NAME:
                raise WireError(f"a tensor's name is over {MAX_NAME} bytes: {tensor.name}")
            if len(tensor.shape) > MAX_SIDES:
                raise WireError(f"{tensor.name}: {len(tensor.shape)} sides are over {MAX_SIDES}")
            if any(side < 0 for side in tensor.shape):
                raise WireError(f"{tensor.name}: a negative side in {tensor.shape}")
            # A side of 0 counts as 1: the other sides of an empty array must not be unbounded either.
            if prod(max(1, min(side, MAX_PARAMETERS + 1)) for side in tensor.shape) > MAX_PARAMETERS:
                raise WireError(f"{tensor.name}: more than {MAX_PARAMETERS} parameters")
        if sum(tensor.size for tensor in self.tensors) > MAX_PARAMETERS:
            raise WireError(f"more than {MAX_PARAMETERS} parameters")
        if sum(tensor.size for tensor in self.site) > MOST_SITE:
            raise WireError(f"tensors of a site have more than {MOST_SITE} values, which travel in one message")
        self._check_ties()

    def _check_ties(self) -> None:
        own: dict[str, Tensor] = {}
        for tensor in self.tensors:
            if not tensor.tied:
                own[tensor.name] = tensor
            elif replace(tensor, name=tensor.tied, tied="") != own.get(tensor.tied) or tensor.personal:
                raise WireError(f"{tensor.name}: cannot be tied to {tensor.tied!r}")

    @classmethod
    def of(cls, parameters: Parameters, roles: Mapping[str, str] | None = None) -> "Schema":
        """The schema of a dict of arrays. Without a role, float tensors are trained and all others frozen.

        A name in `roles` may be a pattern as of file names, such as `head.*`; an exact name takes precedence over
        patterns. A role may be "=" and the name of an earlier tensor: the two are tied.

        Raises:
            ValueError: a role for a tensor that does not exist, or an array of a dtype that cannot travel.
        """
        roles = roles or {}
        patterns = [name for name in roles if name not in parameters]
        unknown = sorted(each for each in patterns if not any(fnmatchcase(name, each) for name in parameters))
        if unknown:
            raise ValueError(f"roles are given for tensors that the model does not have: {', '.join(unknown)}")
        tensors: list[Tensor] = []
        for name, array in parameters.items():
            asked = next((roles[pattern] for pattern in patterns if fnmatchcase(name, pattern)), None)
            usual = "trained" if np.issubdtype(array.dtype, np.inexact) else "frozen"
            role: Any = roles.get(name) or asked or usual
            if role.startswith("="):
                tensors.append(_tied(name, next((each for each in tensors if each.name == role[1:]), None), role[1:]))
                continue
            shared = role in ("trained", "averaged", "site")
            dtype = "float32" if shared or (array.dtype.kind == "f" and array.dtype.itemsize < 8) else array.dtype.name
            if shared and array.dtype.kind == "c":
                dtype = "complex64"
            tensors.append(Tensor(name, tuple(array.shape), dtype, role))
        try:
            return cls(tensors)
        except WireError as error:
            raise ValueError(f"this model cannot be federated: {error}") from error

    # ------------------------------------------------------------------ as bytes

    def packed(self) -> list[list[Any]]:
        """As a list for a msgpack header."""
        return [
            [tensor.name, list(tensor.shape), tensor.dtype, tensor.role, *([tensor.tied] if tensor.tied else [])]
            for tensor in self.tensors
        ]

    @classmethod
    def unpacked(cls, value: Any) -> "Schema":
        """Read what `packed` made.

        Raises:
            WireError: it is no valid schema.
        """
        match value:
            case tuple() | list() if all(map(_is_tensor, value)):
                return cls([Tensor(name, tuple(shape), *rest) for name, shape, *rest in value])
        raise WireError("no schema: it is a list of name, shape, dtype and role of each tensor")

    @cached_property
    def hash(self) -> bytes:
        """16 bytes that are equal for equal schemas."""
        return hashlib.sha256(frames.pack(self.packed())).digest()[:16]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Schema) and other.hash == self.hash

    def __hash__(self) -> int:
        return hash(self.hash)

    # ---------------------------------------------------------- the shared vector

    @cached_property
    def shared(self) -> tuple[tuple[int, Tensor, slice], ...]:
        """Index, tensor and place in the flat vector of each shared tensor."""
        places = []
        offset = 0
        for index, tensor in enumerate(self.tensors):
            if tensor.shared:
                places.append((index, tensor, slice(offset, offset + tensor.size)))
                offset += tensor.size
        return tuple(places)

    @cached_property
    def size(self) -> int:
        """Length of the flat vector."""
        return sum(tensor.size for _, tensor, _ in self.shared)

    @cached_property
    def frozen(self) -> tuple[Tensor, ...]:
        """Tensors that travel once; without those tied to them."""
        return tuple(tensor for tensor in self.tensors if tensor.role == "frozen" and not tensor.tied)

    @cached_property
    def untied(self) -> "Schema":
        """The schema without ties, as an earlier version made it for the same module."""
        return Schema([replace(tensor, tied="") for tensor in self.tensors])

    def _with_ties(self, arrays: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        for tensor in self.tensors:
            if tensor.tied and tensor.tied in arrays:
                arrays[tensor.name] = arrays[tensor.tied]
        return arrays

    def flatten(self, parameters: Parameters) -> Vector:
        """Copy the shared tensors into a new float32 vector of shape (size,).

        Raises:
            ValueError: a tensor is missing or of another shape; the message names all of them.
        """
        self.check(parameters)
        vector = np.empty(self.size, np.float32)
        for _, tensor, place in self.shared:
            values = np.asarray(parameters[tensor.name], np.complex64 if tensor.complex else None).reshape(-1)
            vector[place] = values.view(np.float32) if tensor.complex else values
        return vector

    def views(self, vector: Vector) -> dict[str, npt.NDArray[Any]]:
        """The shared tensors as views of a flat vector."""
        return self._with_ties(
            {
                tensor.name: (vector[place].view(np.complex64) if tensor.complex else vector[place]).reshape(
                    tensor.shape
                )
                for _, tensor, place in self.shared
            }
        )

    def check(self, parameters: Parameters) -> None:
        """Check that a dict of arrays has every tensor that travels, in its shape.

        Raises:
            ValueError: it does not; the message names each one that is missing or different.
        """
        wrong = []
        for tensor in self.tensors:
            if tensor.personal or tensor.tied:
                continue
            if tensor.name not in parameters:
                wrong.append(f"{tensor.name} is missing")
            elif tuple(np.shape(parameters[tensor.name])) != tensor.shape:
                wrong.append(f"{tensor.name} is {np.shape(parameters[tensor.name])}, not {tensor.shape}")
            elif np.iscomplexobj(parameters[tensor.name]) and not tensor.complex:
                wrong.append(f"{tensor.name} is complex, not {tensor.dtype}")
        if wrong:
            raise ValueError("the model does not fit the federation's: " + "; ".join(wrong))

    def covered(self, tensors: Sequence[int] | None) -> Iterator[slice]:
        """Places in the flat vector of the tensors with these indices, or of all.

        Raises:
            WireError: an index is not that of a shared tensor, or the indices do not ascend.
        """
        if tensors is None:
            yield slice(0, self.size)
            return
        places = {index: place for index, _, place in self.shared}
        previous = -1
        for index in tensors:
            if index not in places or index <= previous:
                raise WireError(f"tensor {index} cannot be covered")
            previous = index
            yield places[index]

    @cached_property
    def fine(self) -> npt.NDArray[np.bool_] | None:
        """Mask over the flat vector of what no coarse codec may touch (averaged tensors); None if there are none."""
        if all(tensor.role == "trained" for _, tensor, _ in self.shared):
            return None
        mask = np.zeros(self.size, np.bool_)
        for _, tensor, place in self.shared:
            mask[place] = tensor.role == "averaged"
        return mask

    # ------------------------------------------------------------ frozen tensors

    def freeze(self, parameters: Parameters) -> bytes:
        """The frozen tensors' bytes, little-endian, one after the other."""
        return _joined(self.frozen, parameters)

    def thaw(self, data: frames.Buffer) -> dict[str, npt.NDArray[Any]]:
        """Read what `freeze` wrote, as read-only arrays.

        Raises:
            WireError: the length is not that of the schema's frozen tensors, or a bool is neither 0 nor 1.
        """
        return self._with_ties(_split(self.frozen, data, "the frozen tensors"))

    # ---------------------------------------------------------- tensors of a site

    @cached_property
    def site(self) -> tuple[Tensor, ...]:
        """Tensors that a gateway averages over the devices of its site."""
        return tuple(tensor for tensor in self.tensors if tensor.role == "site")

    @cached_property
    def site_size(self) -> int:
        """Bytes of their values; 0 if there are none."""
        return 4 * sum(tensor.size for tensor in self.site)

    def pack_site(self, parameters: Parameters) -> bytes:
        """The values of a site's tensors, float32, little-endian, one tensor after the other."""
        return _joined(self.site, parameters)

    def unpack_site(self, data: frames.Buffer) -> dict[str, npt.NDArray[Any]]:
        """Read what `pack_site` wrote, as read-only arrays.

        Raises:
            WireError: the length is not that of the schema's tensors, or a value is not finite or too large.
        """
        if len(data) % 4 == 0 and not is_sane(data):
            raise WireError("a value of the site's tensors is not finite, or beyond 2^80")
        return _split(self.site, data, "the site's tensors")


def is_sane(data: frames.Buffer) -> bool:
    """Whether values of a site's tensors are finite, and within `LARGEST_SITE`."""
    return bool((np.abs(np.frombuffer(data, "<f4")) <= LARGEST_SITE).all())  # NaN is not


def _joined(tensors: Sequence[Tensor], parameters: Parameters) -> bytes:
    return b"".join(
        np.ascontiguousarray(parameters[tensor.name], dtype=_DTYPES[tensor.dtype]).tobytes() for tensor in tensors
    )


def _split(tensors: Sequence[Tensor], data: frames.Buffer, what: str) -> dict[str, npt.NDArray[Any]]:
    """Read what `_joined` wrote, as read-only arrays.

    Raises:
        WireError: the length is not that of these tensors, or a bool is neither 0 nor 1.
    """
    view = memoryview(data)
    arrays: dict[str, npt.NDArray[Any]] = {}
    offset = 0
    for tensor in tensors:
        dtype = np.dtype(_DTYPES[tensor.dtype])
        end = offset + prod(tensor.shape) * dtype.itemsize
        if end > len(view):
            raise WireError(f"{what} are cut short")
        if tensor.dtype == "bool" and np.any(np.frombuffer(view[offset:end], np.uint8) > 1):
            raise WireError(f"{tensor.name}: a bool is neither 0 nor 1")
        arrays[tensor.name] = np.frombuffer(view[offset:end], dtype).reshape(tensor.shape)
        offset = end
    if offset != len(view):
        raise WireError(f"bytes follow {what}")
    return arrays
