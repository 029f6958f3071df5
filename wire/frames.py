"""A frame: a u16 length, a msgpack header of that length, a raw body.

The header is small and validated by pydantic. The body is never inside msgpack, where a large one would cost many times
the copy; it is passed on as a memoryview of the payload. Names in `wire.names` travel as numbers.
"""

import struct
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import msgpack
from pydantic import BaseModel, ValidationError

from midge.wire import names
from midge.wire.errors import WireError

_LENGTH = struct.Struct("<H")
MAX_HEADER = 0xFFFF
MAX_ITEMS = 4096
"""Most items of an array from a peer."""

Buffer = bytes | bytearray | memoryview
M = TypeVar("M", bound=BaseModel)


def pack(value: Any) -> bytes:
    """Encode as msgpack, with text and bytes as different types."""
    packed: bytes = msgpack.packb(value, use_bin_type=True)
    return packed


def unpack(data: Buffer, *, items: int | None = None, pairs: Callable[[Any], Any] | None = None) -> Any:
    """Read msgpack: arrays become tuples, map keys must be text or bytes, nothing may follow the value.

    `pairs` makes a map from its keys and values, of any type; it gets them before any is hashed.

    Raises:
        WireError: the bytes are not msgpack, claim more than they hold, or have an array of more than `items`.
    """
    try:
        # msgpack reserves memory for the claimed length of an array or map before it reads the items, and again at each
        # depth: 3 kB took 38 MB. So a first pass checks that all items are there.
        claims = msgpack.Unpacker(max_buffer_size=max(1, len(data)))
        claims.feed(data)
        claims.skip()
        return msgpack.unpackb(
            data,
            raw=False,
            use_list=False,
            strict_map_key=pairs is None,
            object_pairs_hook=pairs,
            max_ext_len=0,
            max_array_len=-1 if items is None else items,  # -1: as long as the input
        )
    except WireError:
        raise
    except Exception as error:  # msgpack raises half a dozen unrelated types
        raise WireError(f"not msgpack: {type(error).__name__}") from error


def encode(header: BaseModel | Mapping[str, Any], body: Buffer = b"") -> bytes:
    """Encode header and body as one payload."""
    fields = header.model_dump(exclude_defaults=True, by_alias=True) if isinstance(header, BaseModel) else dict(header)
    kind = getattr(header, "kind", None)
    if kind is not None:
        fields["kind"] = names.number(kind)
    packed = pack(names.numbered(fields))
    if len(packed) > MAX_HEADER:
        raise ValueError(f"a header of {len(packed)} bytes is over {MAX_HEADER}")
    return b"".join((_LENGTH.pack(len(packed)), packed, body))


def decode(payload: Buffer) -> tuple[dict[str, Any], memoryview]:
    """Return the header as a plain dict, not yet validated, and the body as a view of the payload.

    Raises:
        WireError: the payload is no frame.
    """
    view = memoryview(payload)
    if len(view) < _LENGTH.size:
        raise WireError("a frame has at least 2 bytes")
    (length,) = _LENGTH.unpack_from(view)
    if len(view) < _LENGTH.size + length:
        raise WireError(f"the frame ends within its header of {length} bytes")
    header = unpack(view[_LENGTH.size : _LENGTH.size + length], items=MAX_ITEMS, pairs=names.named)
    if not isinstance(header, dict):
        raise WireError("the header is no map")
    if "kind" in header:
        header["kind"] = names.word(header["kind"])
    return header, view[_LENGTH.size + length :]


def validate(model: type[M], fields: Any) -> M:
    """Validate a header's fields against its model.

    Raises:
        WireError: naming the first wrong field and why.
    """
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "header"
        raise WireError(f"{where}: {first['msg']}") from error
