"""A record of the flat vectors, and the two files that records make."""

import json
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from midge.wire.schema import Schema

HEAD = """\
# Midge's wire, version 1: what every device must make, or read. Made by python -m tests.wire.flat_vectors.
#
# A record is lines of "key value", and ends with an empty line. `name` comes first, `do` says what is tried:
#
#   read          `bytes` is a frame; `fields` is what its header says, as JSON (bin as hexadecimal digits); then `body`
#   delta         decode `bytes` as `codec` by `schema` (JSON) and `tensors`, to `values`, float32; `input`, or that of
#                 the record `input-of`, was encoded
#   encode        encode `input` with `left`, what earlier updates left out, both float32: `bytes`, and `after` is left
#                 (as bfloat16, widened to float32); `norms` are those before, as JSON
#   integers      decode `size` coded integers: those that are not zero are in `values`, JSON, [place, value]
#   offers        decode a list of frames: `frames`, JSON, [version, span, size, parts]
#   slot          of `device`
#   share         `hash`, eight bytes: `device` trains from `version` where it is below share · 2^64, both big-endian
#   spread        seconds, by rate, devices, bytes, messages
#   steps         `state` and `exponent`, then the digests after each step, and the steps merged into one
#   cut           a body of `size` bytes into chunks of at most `chunk`: `parts`, bytes of `each`, of the `last`
#   log           `log` follows on `before`
#   verify        `signature` by `key` (SubjectPublicKeyInfo, DER), or by HMAC's `secret`, covers `signed`; `bytes` is
#                 the whole message
#   open          `sealed` with the X25519 key `private` and `info`: `body`
#
# float32 and int32 are hexadecimal digits of their bytes, little-endian.
"""
C_HEAD = """\
/* Midge's wire, version 1: the records of vectors.txt, whose head says how to read them. What is hexadecimal digits
   there is bytes here, all else is text. Made by python -m tests.wire.flat_vectors. */
#ifndef MIDGE_VECTORS_H
#define MIDGE_VECTORS_H
#include <stddef.h>

typedef struct {
    const char *name, *what, *key;
    const void *value;
    size_t size; /* bytes; of text without its end */
} midge_vector_field;
"""
C_END = """\
    {NULL, NULL, NULL, NULL, 0}
};

#endif
"""
WIDTH = 140
_LITERAL = 4000
"""Characters of a string: C99 promises 4,095."""


@dataclass(frozen=True)
class Record:
    """One vector: what is tried, and everything that belongs to it, by name."""

    name: str
    do: str
    given: Mapping[str, Any] = field(default_factory=dict)

    def lines(self) -> str:
        """As it stands in the text."""
        return "\n".join(
            [f"name {self.name}", f"do {self.do}", *(f"{key} {_said(value)}" for key, value in self.given.items())]
        )


def _said(value: Any) -> str:
    match value:
        case bytes() | memoryview():
            return bytes(value).hex()
        case np.ndarray():
            kind = "<f4" if value.dtype.kind == "f" else "<i4"
            return value.astype(kind).tobytes().hex()
        case str():
            return value
        case Schema():
            return json.dumps(value.packed())
    return json.dumps(value, ensure_ascii=False)


def text(records: Iterable[Record]) -> str:
    """golden/vectors.txt."""
    return HEAD + "\n" + "\n\n".join(record.lines() for record in records) + "\n"


def header(records: Iterable[Record]) -> str:
    """golden/vectors.h: the same for a C compiler, a row for each key of a record."""
    arrays: list[str] = []
    rows: list[str] = []
    for record in records:
        for key, value in record.given.items():
            data = octets(record, value)
            said = data.decode(errors="replace")
            if is_binary(record, value) or len(said) > _LITERAL or not said.isascii():
                numbers = textwrap.fill(" ".join(f"{byte}," for byte in data or b"\0"), WIDTH).replace(" ", "")
                arrays.append(f"static const unsigned char midge_v{len(arrays)}[] = {{\n{numbers}\n}};")
                literal = f"midge_v{len(arrays) - 1}"
            else:
                literal = json.dumps(said)
            rows.append(f'    {{"{record.name}", "{record.do}", "{key}", {literal}, {len(data)}}},')
    return "\n".join([C_HEAD, *arrays, "", "static const midge_vector_field midge_vectors[] = {", *rows, C_END])


def is_binary(record: Record, value: Any) -> bool:
    """Whether hexadecimal digits stand for it in the text."""
    return isinstance(value, bytes | memoryview | np.ndarray) or record.do == "open"


def octets(record: Record, value: Any) -> bytes:
    """A value as it stands in the header."""
    said = _said(value)
    return bytes.fromhex(said) if is_binary(record, value) else said.encode()
