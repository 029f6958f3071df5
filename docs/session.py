"""Write the session of docs/session.md, byte by byte, from the wire code: python docs/session.py."""

import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
from marks import put

from midge.aggregator.referee.model import OfferedFrame, RefereedModel
from midge.wire import chunks, codecs, frames, messages, offers
from midge.wire.dissection import plain
from midge.wire.messages import (
    AggregatorState,
    AggregatorStatus,
    DeviceState,
    Hello,
    Receipt,
    Settled,
    Update,
    Verdict,
)
from midge.wire.names import NAMES
from midge.wire.schema import Vector
from midge.wire.topics import Topics

PAGE = Path(__file__).with_name("session.md")
TOPICS, DEVICE, OUTBOX, BOOT, NUMBER = Topics("pumps"), "pump-17", 5, 77, 12_345
LINEAGE = bytes(range(16))
_LINE = 28
"""Bytes per line."""
_SHOWN = 44
"""Maximum characters of a value shown beside its bytes."""


def said(payload: bytes, depth: int = 0) -> list[str]:
    """Return a frame's bytes field by field, with their meaning."""
    indent = "  " * depth
    size = int.from_bytes(payload[:2], "little")
    lines = [f"{indent}{payload[:2].hex(' '):<{2 * 14}}  header of {size} bytes", *_map(payload[2 : 2 + size], depth)]
    body = payload[2 + size :]
    if body:
        lines.append(f"{indent}body, {len(body)} bytes:")
    return lines + list(_bodies(payload, body, depth))


def _map(data: bytes, depth: int) -> Iterator[str]:
    """Yield the lines of a msgpack map, one per key."""
    unpacker = msgpack.Unpacker(strict_map_key=False)
    unpacker.feed(data)
    count = unpacker.read_map_header()
    yield _line(data[: unpacker.tell()], f"a map of {count}", depth)
    for _ in range(count):
        start = unpacker.tell()
        key, value = unpacker.unpack(), unpacker.unpack()
        name = NAMES[key] if isinstance(key, int) else key
        told = NAMES[value] if name == "kind" and isinstance(value, int) else plain(_named(value))
        if name == "frames":
            told = [f"{version}: span {span}, {size} bytes" for version, span, size, _ in offers.unpack(value)]
        whole = data[start : unpacker.tell()]
        if name == "body" and isinstance(value, bytes) and len(value) > 8:
            yield _line(whole[: len(whole) - len(value)], f"{name}: a frame of {len(value)} bytes", depth)
            yield from said(value, depth + 1)
        else:
            yield from _wrapped(whole, f"{name}: {_short(told)}", depth)


def _named(value: Any) -> Any:
    """Replace the keys of maps within a value by their names."""
    if isinstance(value, dict):
        return {NAMES[key] if isinstance(key, int) else key: _named(each) for key, each in value.items()}
    return [_named(each) for each in value] if isinstance(value, list) else value


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"


def _line(data: bytes, words: str, depth: int) -> str:
    return f"{'  ' * depth}{data.hex(' '):<28}  {words}".rstrip()


def _wrapped(data: bytes, words: str, depth: int) -> Iterator[str]:
    """Yield the lines of some bytes, with their meaning on the last."""
    pieces = [data[at : at + _LINE] for at in range(0, len(data), _LINE)]
    for piece in pieces[:-1]:
        yield _line(piece, "", depth)
    yield _line(pieces[-1], words, depth)


def _bodies(payload: bytes, body: bytes, depth: int) -> Iterator[str]:
    """Yield the lines of a body."""
    header, _ = frames.decode(payload)
    match header.get("kind"):
        case "part":
            yield from said(body, depth + 1)
        case "update":
            yield _line(body[:4], f"float32 scale of the only block: {np.frombuffer(body, '<f4', 1)[0]:.8g}", depth)
            yield _line(body[4:], f"one byte per value: {np.frombuffer(body[4:], np.int8).tolist()}", depth)
        case "snapshot":
            schema = body[: header["schema"]]
            yield from _wrapped(schema, f"the schema: {_short(frames.unpack(schema))}", depth)
            yield from _integers(body[header["schema"] + header["frozen"] :], depth)
        case "step":
            yield from _integers(body, depth)


def _integers(data: bytes, depth: int) -> Iterator[str]:
    """Yield the lines of coded integers of one section."""
    first, fourth = int.from_bytes(data[:4], "little"), int.from_bytes(data[4:8], "little")
    count, (shift, a, b) = int.from_bytes(data[8:10], "little"), data[10:13]
    yield _line(data[:8], f"bytes of stream 1: {first}; of stream 4: {fourth}", depth)
    yield _line(data[8:13], f"{count} nonzero values, shift {shift}, a {a}, b {b}", depth)
    at = 13
    for words, size in (
        ("zeros before each, high bits in unary", first),
        ("low bits", -(-count * a // 8)),
        ("signs", -(-count // 8)),
        ("magnitudes minus one, high bits in unary", fourth),
        ("low bits", -(-count * b // 8)),
    ):
        if size:
            piece = data[at : at + size]
            yield from _wrapped(piece, f"{words}: {''.join(f'{byte:08b}' for byte in piece)[:_SHOWN]}", depth)
        at += size
    if at < len(data):
        yield _line(data[at:], "padding", depth)


# --------------------------------------------------------------------------------- messages


def _hello(state: DeviceState, model: RefereedModel | None = None, **fields: Any) -> bytes:
    heard = {} if model is None else {"lineage": LINEAGE, "version": model.version}
    return frames.encode(Hello(state=state, outbox=OUTBOX, **heard, **fields))


def _update(model: RefereedModel, seq: int, delta: Vector) -> bytes:
    body = codecs.encode_delta(delta, model.schema, "int8:256")
    update = Update(
        outbox=OUTBOX,
        first=seq,
        seq=seq,
        lineage=LINEAGE,
        generation=0,
        base=model.version,
        base_digest=model.states[model.version].digest()[:8],
        codec="int8:256",
        size=len(body),
        sha256=chunks.checksum(body),
        examples=50,
    )
    return frames.encode(update, body)


def _accepted(seq: int) -> bytes:
    settled = Settled(seq=seq, verdict=Verdict.ACCEPTED, weight=1.0)
    return frames.encode(Receipt(outbox=OUTBOX, hi=seq, settled=(settled,)))


def _announced(model: RefereedModel, *offered: OfferedFrame) -> bytes:
    return messages.encode_announcement(model.announcement(offered, plan=messages.Plan(codec="int8:256")))


def session() -> Iterator[tuple[str, str, str, bytes]]:
    """Yield publisher, topic, purpose and payload of each message."""
    model = RefereedModel.begin(TOPICS, LINEAGE, {"w": np.zeros(3, np.float32)}, {})
    status = AggregatorStatus(state=AggregatorState.READY, boot=BOOT, lineage=LINEAGE, version=1, step=1)
    mine, receipts, updates = TOPICS.status(DEVICE), TOPICS.receipt(DEVICE), TOPICS.update(DEVICE)
    yield "the aggregator, retained", TOPICS.aggregator, "Its status.", frames.encode(status)
    snapshot = model.snapshot()
    announced = "Version 1, available as a snapshot."
    yield "the aggregator, retained", TOPICS.announcement(), announced, _announced(model, snapshot)
    ((topic, part),) = model.cut(snapshot)
    yield "the aggregator, retained", topic, "The only chunk of the snapshot: three values, all 0.", part
    asks = "The device has connected, with a Will, and asks whether another live device has its name."
    yield "the device", mine, asks, _hello(DeviceState.JOINING, number=NUMBER)
    yield (
        "the device, retained",
        mine,
        "It has received the aggregator's status; its outbox is empty.",
        _hello(DeviceState.READY),
    )
    yield (
        "the aggregator",
        receipts,
        "This outbox is unknown: nothing is settled.",
        frames.encode(Receipt(outbox=OUTBOX, hi=0)),
    )
    delta = np.array([0.5, -0.25, 0.125], np.float32)
    trained = (
        "It has fetched version 1, verified its digest, trained, and stored its first update: +0.5, −0.25, +0.125."
    )
    yield "the device", updates, trained, _update(model, 1, delta)
    yield "the aggregator", receipts, "Accepted. The device deletes the update.", _accepted(1)
    model.advance(delta)
    step = model.step()
    again = "Version 2, available as a step from version 1 and as a snapshot."
    yield "the aggregator, retained", TOPICS.announcement(), again, _announced(model, step, model.snapshot())
    ((topic, part),) = model.cut(step)
    yield "the aggregator, retained", topic, "The step, as integers on the grid of 2⁻²⁴.", part
    yield "the device", updates, "The second update, trained from version 2.", _update(model, 2, delta / 2)
    yield "the aggregator", receipts, "Accepted.", _accepted(2)
    leaves = "It disconnects properly; its Will is not published."
    yield "the device, retained", mine, leaves, _hello(DeviceState.DISCONNECTED, model, first=3, next=3)


def parts() -> dict[str, str]:
    """Return the session as shown on the page."""
    lines: list[str] = []
    for number, (who, topic, why, payload) in enumerate(session(), 1):
        lines += [f"### {number}. `{topic}`", "", textwrap.fill(f"From {who}. {why}", 118), "", "```"]
        lines += [*said(payload), "```", ""]
    return {"session": "\n".join(lines)}


def main() -> None:
    """Write the session into the page."""
    put(PAGE, parts())


if __name__ == "__main__":
    main()
