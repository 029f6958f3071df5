"""Dissection of a payload for a human reader: its kind, its fields by name, and what it contains.

Nothing is executed or trusted. Memory is bounded by the bytes present, and errors are listed beside what could be read.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pydantic import BaseModel

from midge.wire import (
    chunks,
    envelopes,
    frames,
    lineage,
    messages,
    moments,
    names,
    overview,
    row_statistics,
    sealing,
    signing,
    steps,
)
from midge.wire.errors import WireError
from midge.wire.kinds import KINDS, OF_FEDERATION, PURPOSES, SENTENCES
from midge.wire.messages import Message
from midge.wire.signing import MacKey, PublicKey
from midge.wire.topic_hints import Hint

_MOST_VALUES = 2**24
"""Most values of a step whose integers are unpacked here: a few bytes can claim many."""
_DEEPEST = 4
"""Payloads within payloads; no message of ours nests so deep."""


@dataclass(frozen=True, slots=True)
class _Around:
    """Context of a payload."""

    hint: Hint
    keys: Sequence[PublicKey | MacKey] = ()
    depth: int = 0
    """Number of enclosing payloads."""

    def inside(self) -> "_Around":
        return _Around(Hint(self.hint.federation, self.hint.device), self.keys, self.depth + 1)


@dataclass(slots=True)
class Dissection:
    """A dissected payload. Bytes are as received; `plain` makes them hexadecimal."""

    what: str
    size: int
    kind: str = ""
    fields: dict[str, Any] = field(default_factory=dict)
    """Fields that travelled."""
    defaults: dict[str, Any] = field(default_factory=dict)
    """Fields that did not travel."""
    unknown: list[str] = field(default_factory=list)
    """Names and numbers that this version ignores."""
    body: dict[str, Any] = field(default_factory=dict)
    signature: str = ""
    wrong: list[str] = field(default_factory=list)
    """Violations of the protocol."""
    inside: list["Dissection"] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether neither it nor anything inside violates the protocol."""
        return not self.wrong and all(each.ok for each in self.inside)

    def plain(self) -> dict[str, Any]:
        """As JSON types, without empty entries."""
        entries: dict[str, Any] = {"ok": self.ok, "what": self.what, "size": self.size}
        for name in ("kind", "fields", "defaults", "unknown", "body", "signature", "wrong"):
            if value := getattr(self, name):
                entries[name] = plain(value)
        return entries | ({"inside": [each.plain() for each in self.inside]} if self.inside else {})


def plain(value: Any) -> Any:
    """A value as JSON types."""
    match value:
        case bytes() | memoryview():
            return bytes(value).hex()
        case BaseModel():
            return plain(value.model_dump(by_alias=True))
        case dict():
            return {str(name): plain(item) for name, item in value.items()}
        case tuple() | list():
            return [plain(item) for item in value]
        case float() if not np.isfinite(value):
            return repr(value)
        case str():
            return str(value)  # an enumeration: only its word
    return value


def dissect(payload: bytes, hint: Hint | None = None, keys: Sequence[PublicKey | MacKey] = ()) -> Dissection:
    """Dissect a payload.

    Args:
        payload: as it was published.
        hint: what its topic implies.
        keys: keys that may have signed it.
    """
    return _dissect(payload, _Around(hint or Hint(), keys))


def _dissect(payload: bytes, around: _Around) -> Dissection:
    hint = around.hint
    if not payload:
        return Dissection("empty: what was retained on this topic was cleared", 0)
    if around.depth > _DEEPEST:
        return Dissection("a payload nested too deep", len(payload), wrong=["it is not examined"])
    try:
        header, body = frames.decode(payload)
    except WireError as error:
        return Dissection(f"not Midge's: {_like(payload)}", len(payload), wrong=[str(error)])
    kind = _kind_of(header)
    found = Dissection(SENTENCES.get(kind, ""), len(payload), kind)
    found.unknown = _unknown_numbers(payload)
    if hint.wrong:
        found.wrong.append(hint.wrong)
    if hint.kinds and kind not in hint.kinds and around.depth == 0:
        found.wrong.append(f"on this topic belongs {' or '.join(hint.kinds)}, not {kind or 'this'}")
    if kind in ("snapshot", "step"):
        found.fields = {name: value for name, value in header.items() if name != "kind"}
        _look_into_model(found, kind, payload)
    elif kind == "envelope":
        envelope = _fields(found, messages.Envelope, header)
        if isinstance(envelope, messages.Envelope):
            _look_into_envelope(found, envelope, around)
    elif kind == "sealed":
        found.fields, found.body = dict(header), {"bytes": len(body)}
    elif model := KINDS.get(kind):
        message = _fields(found, model, header)
        own, signature = signing.split(message, body) if message is not None else (body, body[:0])
        _look_into_body(found, message, own, around)
        if len(signature):
            _look_at_signature(found, payload, signature, around)
    else:
        found.what = (
            "a frame as Midge's, of a kind that this version does not know" if kind else "a frame without a kind"
        )
        found.fields, found.body = dict(header), {"bytes": len(body)}
        found.wrong.append(f"unknown kind {kind!r}" if kind else "no message of Midge's has such a header")
    return found


def _kind_of(header: Mapping[str, Any]) -> str:
    """The kind in a header, or the name of a message without one; empty if it is none of ours."""
    kind = header.get("kind")
    if kind is not None:
        return kind[:64] if isinstance(kind, str) else type(kind).__name__
    if isinstance(header.get("body"), bytes):
        return "envelope"
    inside = {*sealing.Confided.model_fields, *sealing.Details.model_fields}
    return "sealed" if header.keys() <= inside and header else ""


def _like(payload: bytes) -> str:
    """What bytes that are no frame resemble."""
    if payload[:1] in (b"{", b"["):
        return "it looks like JSON"
    if len(payload) > 2 and int.from_bytes(payload[:2], "big") + 2 <= len(payload) and payload[2] >> 4 == 8:
        return "it looks like a frame whose length is big-endian; it must be little-endian"
    if payload[0] >> 4 == 3 and len(payload) > 2 and payload[1] in (len(payload) - 2, len(payload) - 3):
        return "it looks like a whole MQTT packet; give its payload alone"
    if all(32 <= byte < 127 or byte in (9, 10, 13) for byte in payload[:256]):
        return "it is text"
    return "no frame begins so"


def _unknown_numbers(payload: bytes) -> list[str]:
    """Field numbers of a later version, at any depth of the header."""
    later: set[int] = set()

    def look(pairs: Any) -> None:
        later.update(key for key, _ in pairs if type(key) is int and not 0 <= key < len(names.NAMES))

    length = int.from_bytes(payload[:2], "little")
    with suppress(WireError):
        frames.unpack(memoryview(payload)[2 : 2 + length], items=frames.MAX_ITEMS, pairs=look)
    return [str(number) for number in sorted(later)[:32]]


def _fields(found: Dissection, model: type[Message], header: Mapping[str, Any]) -> Message | None:
    """Record the fields of a header; return the message if it is valid."""
    known = {name for name in model.model_fields if name != "kind"}
    found.unknown = [name[:64] for name in sorted(header.keys() - known - {"kind"})[:32]] + found.unknown
    try:
        message = frames.validate(model, dict(header))
    except WireError as error:
        found.wrong.append(str(error))
        found.fields = {name: value for name, value in header.items() if name in known}
        return None
    for name in sorted(known, key=list(model.model_fields).index):
        (found.fields if name in header else found.defaults)[name] = getattr(message, name)
    return message


# ------------------------------------------------------------------------- what is inside


def _look_into_envelope(found: Dissection, envelope: messages.Envelope, around: _Around) -> None:
    found.inside = [_dissect(each, around.inside()) for each in (envelope.body, *envelope.chain)]
    announced = found.inside[0]
    if not envelope.signatures:
        found.signature = "not signed"
        return
    pairs = [item for item in envelope.signatures if isinstance(item, tuple) and item and isinstance(item[0], bytes)]
    ids = ", ".join(pair[0].hex() for pair in pairs) or "of no form that this version knows"
    if not around.keys:
        found.signature = f"by the key {ids}; give --key to verify it"
        return
    purpose = {"succession": signing.SUCCESSION, "alias": signing.ALIAS, "survey": signing.SURVEY}.get(
        announced.kind, signing.ANNOUNCEMENT
    )
    federation = str(announced.fields.get("federation") or around.hint.federation)
    public = [key for key in around.keys if isinstance(key, PublicKey)]
    by = envelopes.signed_by(envelope, purpose, federation, public)
    found.signature = f"valid, by the key {by.id.hex()}" if by else f"NOT by a key that was given, but {ids}"
    if by is None:
        found.wrong.append("none of the keys has signed it")


def _look_at_signature(found: Dissection, payload: bytes, signature: memoryview, around: _Around) -> None:
    kind, keys, hint = found.kind, around.keys, around.hint
    context = hint.federation if kind in OF_FEDERATION else signing.of_device(hint.federation, hint.device)
    if not keys:
        found.signature = "64 bytes behind the body; give --key to verify it"
        return
    if not hint.federation or (kind not in OF_FEDERATION and not hint.device):
        found.signature = "64 bytes behind the body; give --topic: a signature names federation and device"
        return
    head = memoryview(payload)[: 2 + int.from_bytes(payload[:2], "little")]
    by = [key for key in keys if key.verifies(signature, PURPOSES.get(kind, ""), context, head)]
    found.signature = f"valid, by {_named(by[0])}" if by else "NOT by a key that was given"
    if not by:
        found.wrong.append(f"none of the keys has signed it for {context}")


def _named(key: PublicKey | MacKey) -> str:
    return f"the key {key.id.hex()}" if isinstance(key, PublicKey) else "the shared secret"


def _look_into_body(found: Dissection, message: Message | None, body: memoryview, around: _Around) -> None:
    if len(body):
        found.body = {"bytes": len(body)}
    match message:
        case messages.Update(kind="update"):
            if len(body) != message.size:
                found.wrong.append(f"the body has {len(body)} bytes, and size says {message.size}")
            elif not chunks.fits(body, message.sha256):
                found.wrong.append("sha256 is not that of the body")
            elif not message.sealed and message.codec != "float32" and not message.codec.startswith("int8"):
                found.body["coded"] = bytes(body[:1]) == b"\1"
        case messages.SiteValues():
            if len(body) != message.size or not chunks.fits(body, message.sha256):
                found.wrong.append("size or sha256 is not that of the body")
        case messages.Statistics() if not message.sealed:
            _look_into_moments(found, message, body)
        case messages.Surveyed():
            _look_into_summary(found, message, body)
        case messages.Part() if message.parts == 1:
            if not chunks.fits(body, message.sha256):
                found.wrong.append("sha256 is not that of the body, which is the whole frame")
            else:
                found.inside.append(_dissect(bytes(body), around.inside()))
        case overview.Overview():
            with_rows = frames.encode({"kind": "overview", **found.fields}, body)
            try:
                found.body["rows"] = [
                    row.model_dump(exclude_defaults=True) for row in overview.decode_page(with_rows)[1]
                ]
            except WireError as error:
                found.wrong.append(str(error))
        case messages.Chunk() | messages.Part() | None:
            pass
        case _ if len(body) and found.kind != "statistics":
            found.wrong.append(f"{len(body)} bytes follow a header that has no body")


def _look_into_moments(found: Dissection, message: messages.Statistics, body: memoryview) -> None:
    at = 0
    try:
        for name, channels in message.names:
            piece = body[at : at + channels * moments.BYTES_PER_CHANNEL]
            read = moments.Moments.from_bytes(piece, channels)
            found.body[name] = {"counts": read.count[:8].tolist(), "means": read.mean[:8].tolist()}
            at += len(piece)
        if at != len(body):
            found.wrong.append(f"{len(body) - at} bytes follow the moments")
    except WireError as error:
        found.wrong.append(str(error))


def _look_into_summary(found: Dissection, message: messages.Surveyed, body: memoryview) -> None:
    if len(body) != message.size:
        found.wrong.append(f"the body has {len(body)} bytes, and size says {message.size}")
    elif message.sha256 and not chunks.fits(body, message.sha256):
        found.wrong.append("sha256 is not that of the body")
    elif message.state == "rows" and not message.sealed:
        try:
            columns, statistics = row_statistics.unpacked(found.kind, body)
            found.body |= {"rows": statistics.rows, "task": columns.task, "features": list(columns.features)}
            found.body["means"] = statistics.moments.mean[:8].tolist()
        except WireError as error:
            found.wrong.append(str(error))


def _look_into_model(found: Dissection, kind: str, payload: bytes) -> None:
    try:
        if kind == "snapshot":
            state = lineage.decode_snapshot(payload)
            found.body = {"values": state.schema.size, "schema_hash": state.schema.hash, "digest": state.digest()}
            found.body["tensors"] = [
                [tensor.name, list(tensor.shape), tensor.dtype, tensor.role] for tensor in state.schema.tensors[:256]
            ]
            return
        size = found.fields.get("size")
        if type(size) is int and size > _MOST_VALUES:
            found.body = {"values": size, "unpacked": False}
            return
        step, _ = steps.decode_step(payload, size if type(size) is int else 0)
        not_zero = np.count_nonzero(step)
        largest = int(np.abs(step.astype(np.int64)).max(initial=0))
        found.body = {"values": int(step.size), "not_zero": int(not_zero), "largest": largest}
    except WireError as error:
        found.wrong.append(str(error))
