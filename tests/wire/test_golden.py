"""Bytes of version 1 of the wire, which decode to the same values for ever.

Each `golden/v1-*.bin` stands beside a `.json` that says what it holds. `python -m tests.wire.test_golden` writes those
that are missing; it never writes over one. A vector that no longer fits is a break of the protocol: see the rules of
evolution in `wire/messages/`.
"""

import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import BaseModel

from midge.wire import codecs, frames, lineage, messages
from midge.wire.lineage import State
from midge.wire.messages import (
    AggregatorState,
    AggregatorStatus,
    Announcement,
    Chunk,
    Claim,
    DeviceState,
    Fetch,
    FrameInfo,
    Grant,
    Hello,
    ModelAlias,
    Moment,
    Part,
    Plan,
    Receipt,
    Report,
    Settled,
    SiteValues,
    Statistics,
    Surveyed,
    SurveyRequest,
    Trouble,
    Update,
    Verdict,
    Vouch,
)
from midge.wire.schema import Schema, Tensor

FOLDER = Path(__file__).with_name("golden")
ID, DIGEST, SHA = bytes(range(16)), bytes(range(100, 116)), bytes(range(200, 232))
SCHEMA = Schema(
    [
        Tensor("layer.weight", (3, 7), "float32", "trained"),
        Tensor("mean", (2,), "float32", "averaged"),
        Tensor("steps", (), "int64", "frozen"),
        Tensor("mask", (3,), "bool", "frozen"),
        Tensor("personal", (4,), "float32", "local"),
        Tensor("layer.bias", (), "float32", "trained"),
    ]
)
DELTA = np.array([*(number / 8 - 1 for number in range(21)), 1e-3, -5.5, 1e-30], np.float32)
BODY = codecs.encode_delta(DELTA, SCHEMA, "int8:16")
LARGE = Schema(
    [
        Tensor("a", (20, 60), "float32", "trained"),
        Tensor("a.bias", (3,), "float32", "trained"),
        Tensor("mean", (2,), "float32", "averaged"),
        Tensor("b", (257,), "float32", "trained"),
    ]
)
LARGE_DELTA = np.array([((n * 2654435761) % 4093 - 2046) ** 5 * 2.0**-60 for n in range(LARGE.size)], np.float32)
CHAINS = {
    "bf16": "bf16",
    "int4": "int4:100:random",
    "sign": "sign:512",
    "eden": "eden:2",
    "topk": "topk:0.03|int8:64",
    "stc": "stc:0.05",
    "randk": "randk:0.1|eden:1",
    "uq": "uq:3|rice",
}
STATE = State(
    SCHEMA,
    np.array([0, 1, -1, 127, -128, 2**24 + 1, 2**31 - 1, -(2**31) + 1, *range(16)], np.int32),
    -24,
    SCHEMA.freeze({"steps": np.array(-7), "mask": np.array([True, False, True])}),
)
STEP = np.zeros(256 * 6 + 5, np.int32)  # a block of each width, one shifted, one of zeros, and a short one
STEP[0:256] = np.arange(256) - 127
STEP[256:512] = (np.arange(256) - 128) * 4
STEP[512:768] = (np.arange(256) - 128) * 257
STEP[768:1024] = (np.arange(256) - 128) * 8_388_607
STEP[1280:1536] = 1 << 30
STEP[1536:] = [1, -1, 2, -2, 2**31 - 1]


@dataclass(frozen=True)
class Vector:
    """How bytes are made today, and how they are read into what a JSON file can say."""

    made: bytes
    read: Callable[[bytes], Any]


def plain(value: Any) -> Any:
    """The value in JSON's types: bytes as hexadecimal digits, arrays as lists."""
    match value:
        case BaseModel():
            return {name: plain(item) for name, item in value}
        case bytes() | memoryview():
            return bytes(value).hex()
        case dict():
            return {key: plain(item) for key, item in value.items()}
        case tuple() | list():
            return [plain(item) for item in value]
        case np.ndarray():
            return value.tolist()
        case _:
            return value


def message(sent: BaseModel, body: bytes = b"") -> Vector:
    return Vector(frames.encode(sent, body), partial(messages.decode, type(sent)))


def to_aggregator(sent: messages.ToAggregator, body: bytes = b"") -> Vector:
    return Vector(frames.encode(sent, body), messages.decode_update)


def delta(codec: str, tensors: tuple[int, ...] | None = None) -> Vector:
    return Vector(
        codecs.encode_delta(DELTA, SCHEMA, codec, tensors),
        lambda data: codecs.decode_delta(data, SCHEMA, codec, tensors),
    )


def chain(codec: str) -> Vector:
    return Vector(
        codecs.encode_delta(LARGE_DELTA, LARGE, codec, seed=7),
        lambda data: codecs.decode_delta(data, LARGE, codec),
    )


def snapshot(data: bytes) -> Any:
    state = lineage.decode_snapshot(data)
    return {
        "schema": state.schema.packed(),
        "schema_hash": state.schema.hash,
        "exponent": state.exponent,
        "integers": state.integers,
        "values": state.values(),
        "frozen": state.schema.thaw(state.frozen),
        "digest": state.digest(),
    }


def schema(data: bytes) -> Any:
    read = Schema.unpacked(frames.unpack(data))
    return {"tensors": read.packed(), "hash": read.hash}


ANNOUNCEMENT = Announcement(
    federation="pumps",
    lineage=ID,
    generation=1,
    version=20,
    step=25,
    phase="training",
    schema_hash=DIGEST,
    digest=DIGEST[::-1],
    frames=(
        FrameInfo(version=20, span=1, size=5_000, parts=1),
        FrameInfo(version=20, span=4, size=2**40, parts=2**20),
        FrameInfo(version=0, span=0, size=70_000, parts=2),
    ),
    moments=(Moment(name="inputs", channels=13),),
    chunk=65_536,
    plan=Plan(
        revision=3,
        codec="int8:64",
        learning_rate=0.125,
        local_steps=7,
        epochs=2,
        batch_size=32,
        proximal=0.5,
        seed=2**63 - 1,
    ),
    issued=1_767_225_600.5,
    expires=1_767_312_000.0,
)

VECTORS: dict[str, Vector] = {
    "update": to_aggregator(
        Update(
            outbox=2**63 - 1,
            first=5,
            seq=7,
            lineage=ID,
            generation=2,
            base=19,
            schema_hash=SCHEMA.hash,
            tensors=(0, 1, 5),
            codec="int8:16",
            size=len(BODY),
            sha256=hashlib.sha256(BODY).digest(),
            examples=1_000,
            steps=40,
            seconds=1.5,
            plan=3,
            metrics={"loss": 0.25, "größe": -1e300},
        ),
        BODY,
    ),
    "update-of-defaults": to_aggregator(
        Update(
            outbox=0,
            first=1,
            seq=1,
            lineage=ID,
            generation=0,
            base=0,
            schema_hash=DIGEST,
            codec="float32",
            size=0,
            sha256=SHA,
        )
    ),
    "update-site": to_aggregator(
        Update(
            outbox=1,
            first=1,
            seq=2,
            lineage=ID,
            generation=0,
            base=3,
            codec="float32",
            size=24,
            sha256=SHA[:16],
            site_size=8,
        ),
        bytes(range(24)),
    ),
    "offer": to_aggregator(
        Update(
            kind="offer",
            outbox=1,
            first=1,
            seq=2,
            lineage=ID,
            generation=0,
            base=1,
            schema_hash=DIGEST,
            codec="float32",
            size=40_000_000,
            sha256=SHA,
            parts=153,
        )
    ),
    "chunk": to_aggregator(Chunk(outbox=1, first=1, seq=2, part=152), b"the bytes of the chunk"),
    "fetch": to_aggregator(Fetch(lineage=ID, version=12, span=4, parts=(0, 3, 2**32 - 1))),
    "statistics": to_aggregator(Statistics(lineage=ID, names=(("inputs", 1), ("outputs", 0)), missing=3), bytes(24)),
    "report": message(Report(lineage=ID, version=20, examples=50, metrics={"accuracy": 0.75})),
    "report-site": message(Report(lineage=ID, version=20, examples=500, metrics={"accuracy": 0.75}, devices=12)),
    "hello": message(
        Hello(
            state=DeviceState.READY,
            outbox=1,
            first=3,
            next=9,
            lineage=ID,
            generation=1,
            version=20,
            capabilities={"torch": True, "memory": 512, "load": 0.5, "board": "zero"},
        )
    ),
    "hello-hidden": message(Hello(state=DeviceState.READY, outbox=5, hidden=bytes(range(60)))),
    "report-hidden": message(Report(lineage=ID, version=20, examples=0, metrics={}, hidden=bytes(range(60)))),
    "statistics-hidden": to_aggregator(
        Statistics(lineage=ID, names=(("inputs", 1),), sealed="hpke", hidden=bytes(range(60))), bytes(24 + 48)
    ),
    "hello-of-defaults": message(Hello(state=DeviceState.LOST, outbox=0)),
    "receipt": message(
        Receipt(
            outbox=1,
            hi=8,
            settled=(
                Settled(seq=7, verdict=Verdict.ACCEPTED, repeat=True, weight=0.5, staleness=3),
                Settled(seq=9, verdict=Verdict.BUSY, why="too many updates wait", retry_after=2.5),
            ),
            grants=(Grant(seq=9, parts=(0, 1, 5)),),
        )
    ),
    "aggregator-status": message(
        AggregatorStatus(
            state=AggregatorState.PAUSED, boot=77, lineage=ID, generation=1, version=20, step=25, why="by hand"
        )
    ),
    "aggregator-token": message(
        AggregatorStatus(state=AggregatorState.READY, boot=77, lineage=ID, version=20, token=1_800_000_000_000)
    ),
    "aggregator-site": message(
        AggregatorStatus(state=AggregatorState.READY, boot=77, lineage=ID, name="north", site_size=136)
    ),
    "site-values": message(
        SiteValues(lineage=ID, name="north", size=8, sha256=SHA[:16], token=1_800_000_000_000, number=7, devices=12),
        b"8 values",
    ),
    "claim": message(Claim(boot=77, lineage=ID, token=1_800_000_000_000, number=2**62)),
    "claim-answer": message(Claim(boot=78, lineage=ID, token=1_800_000_000_001, to=2**62)),
    "hello-question": message(Hello(state=DeviceState.JOINING, outbox=5, number=2**62)),
    "hello-answer": message(Hello(state=DeviceState.READY, outbox=6, to=2**62)),
    "receipt-token": message(Receipt(outbox=5, hi=3, token=1_800_000_000_000)),
    "trouble": message(Trouble(why="seq: Input should be a valid integer")),
    "vouch": message(Vouch(digest=ID)),
    "alias": message(
        ModelAlias(
            name="candidate",
            federation="pumps",
            lineage=ID,
            generation=1,
            number=40,
            version=20,
            schema_hash=SCHEMA.hash,
            digest=ID,
            size=1000,
            parts=2,
            share=0.25,
            chunk=512,
            issued=1_800_000_000.0,
            expires=1_800_086_400.0,
            epoch=7,
        )
    ),
    "alias-where": message(
        ModelAlias(
            name="candidate",
            federation="pumps",
            lineage=ID,
            generation=1,
            number=42,
            version=20,
            schema_hash=SCHEMA.hash,
            digest=ID,
            size=1000,
            share=0.0,
            where={"site": "north", "class": "micro"},
            where_share=0.5,
        )
    ),
    "alias-of-none": message(ModelAlias(name="champion", federation="pumps", lineage=ID, generation=1, number=41)),
    "survey": message(
        SurveyRequest(
            federation="pumps",
            number=2**62,
            seal_key=bytes(range(32)),
            issued=1_800_000_000.0,
            expires=1_800_000_065.0,
            devices=40,
        )
    ),
    "surveyed": message(Surveyed(to=2**62, size=9, sha256=SHA), b"a summary"),
    "surveyed-without": message(Surveyed(to=2**62, state="withheld")),
    "announcement": Vector(messages.encode_announcement(ANNOUNCEMENT), messages.decode_announcement),
    "part": message(
        Part(lineage=ID, generation=1, version=20, span=4, part=1, parts=2, sha256=SHA), b"a slice of the frame"
    ),
    "schema": Vector(frames.pack(SCHEMA.packed()), schema),
    "snapshot": Vector(lineage.encode_snapshot(STATE), snapshot),
    "step": Vector(lineage.encode_step(STEP, -24), lambda data: lineage.decode_step(data, STEP.size)),
    "delta-float32": delta("float32"),
    "delta-int8": delta("int8:16"),
    "delta-int8-partial": delta("int8", (1, 5)),
    **{f"delta-{name}": chain(codec) for name, codec in CHAINS.items()},
}


EARLIER = sorted(path.stem.removeprefix("v1-") for path in FOLDER.glob("v1-*-named.bin"))
"""Messages as they were made when all names travelled as text."""


@pytest.mark.parametrize("name", [*VECTORS, *EARLIER])
def test_it_decodes_to_the_same_values_for_ever(name: str) -> None:
    expected = json.loads((FOLDER / f"v1-{name}.json").read_text(encoding="utf-8"))
    found = plain(VECTORS[name.removesuffix("-named")].read((FOLDER / f"v1-{name}.bin").read_bytes()))
    assert known(found, expected) == expected


def known(found: Any, expected: Any) -> Any:
    """What was found, without the fields that came after the vector was written."""
    match found, expected:
        case dict(), dict():
            return {key: known(item, expected[key]) for key, item in found.items() if key in expected}
        case list(), list() if len(found) == len(expected):
            return [known(item, other) for item, other in zip(found, expected, strict=True)]
    return found


@pytest.mark.parametrize("name", VECTORS)
def test_the_same_bytes_are_made_today(name: str) -> None:
    assert VECTORS[name].made == (FOLDER / f"v1-{name}.bin").read_bytes()


def test_no_vector_is_without_a_test() -> None:
    names = {f"v1-{name}{suffix}" for name in (*VECTORS, *EARLIER) for suffix in (".bin", ".json")}
    assert {path.name for path in FOLDER.iterdir()} == names | {"README.md", "vectors.txt", "vectors.h"}


def test_the_vectors_hold_what_went_in() -> None:
    """The files beside the bytes were written by the decoder; these values are not."""
    for name in ("delta-float32", "delta-int8", "delta-int8-partial"):
        values = np.array(json.loads((FOLDER / f"v1-{name}.json").read_text()), np.float32)
        covered = np.arange(24) >= 21 if name.endswith("partial") else np.ones(24, np.bool_)
        np.testing.assert_allclose(values[covered], DELTA[covered], atol=0 if name.endswith("32") else 0.007)
        np.testing.assert_array_equal(values[21:23], DELTA[21:23])
        assert not values[~covered].any()
    assert json.loads((FOLDER / "v1-step.json").read_text()) == [STEP.tolist(), -24]
    held = json.loads((FOLDER / "v1-snapshot.json").read_text())
    assert held["integers"] == STATE.integers.tolist()
    assert held["frozen"] == {"steps": -7, "mask": [True, False, True]}


def write() -> list[Path]:
    """Write the vectors that are missing, never over one that is there."""
    written = []
    FOLDER.mkdir(exist_ok=True)
    for name, vector in VECTORS.items():
        text = json.dumps(plain(vector.read(vector.made)), ensure_ascii=False, allow_nan=False, indent=1) + "\n"
        for suffix, data in ((".bin", vector.made), (".json", text.encode())):
            path = FOLDER / f"v1-{name}{suffix}"
            if not path.exists():
                path.write_bytes(data)
                written.append(path)
    return written


if __name__ == "__main__":
    sys.stdout.write("".join(f"{path}\n" for path in write()))
