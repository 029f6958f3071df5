"""Sizes of message headers and of messages without a body, each encoded once with values of typical length."""

from functools import cache

import numpy as np

from midge.iot_client.board.hardware import capabilities
from midge.iot_client.training.fit import Recipe
from midge.iot_client.training.throughput import Throughput
from midge.wire import chunks, frames
from midge.wire.messages import (
    BODY_DIGEST,
    AggregatorState,
    AggregatorStatus,
    Chunk,
    DeviceState,
    Hello,
    Part,
    Plan,
    Receipt,
    Settled,
    Update,
    Verdict,
)
from midge.wire.schema import Schema

_ID, _OUTBOX = bytes(16), 2**62


@cache
def update() -> int:
    """Bytes of an update's header."""
    header = Update(
        outbox=_OUTBOX,
        first=41,
        seq=41,
        lineage=_ID,
        generation=0,
        base=1000,
        schema_hash=Schema.of({"w": np.zeros(1, np.float32)}).hash,
        codec=Plan().codec,
        size=1000,
        sha256=chunks.checksum(b""),
        examples=100,
        steps=Recipe().local_steps,
        seconds=0.123456,
        plan=0,
        metrics={},
    )
    return len(frames.encode(header))


@cache
def chunk() -> int:
    """Bytes of the header of an update's chunk."""
    return len(frames.encode(Chunk(outbox=_OUTBOX, first=41, seq=41, part=41)))


@cache
def hello(*, trained: bool) -> int:
    """Bytes of a greeting; it grows after the first training."""
    speed = Throughput()
    if not trained:
        greeting = Hello(
            state=DeviceState.READY, outbox=_OUTBOX, first=1, next=1, capabilities=capabilities(speed, None)
        )
        return len(frames.encode(greeting))
    speed.record(10, 160, 0.123456)
    greeting = Hello(
        state=DeviceState.READY,
        outbox=_OUTBOX,
        first=41,
        next=41,
        lineage=_ID,
        version=1000,
        capabilities=capabilities(speed, None),
    )
    return len(frames.encode(greeting))


@cache
def status() -> int:
    """Bytes of an aggregator status."""
    message = AggregatorStatus(state=AggregatorState.READY, boot=_OUTBOX, lineage=_ID, version=1000, step=4000)
    return len(frames.encode(message))


@cache
def answer() -> int:
    """Bytes of a receipt that answers a greeting."""
    return len(frames.encode(Receipt(outbox=_OUTBOX, hi=40)))


@cache
def receipt() -> int:
    """Bytes of a receipt for one update."""
    settled = Settled(seq=41, verdict=Verdict.ACCEPTED, weight=0.123456, staleness=3, body=bytes(BODY_DIGEST))
    return len(frames.encode(Receipt(outbox=_OUTBOX, hi=41, settled=(settled,))))


@cache
def part() -> int:
    """Bytes of the header of a model part."""
    header = Part(lineage=_ID, generation=0, version=1000, span=1, part=0, parts=1, sha256=chunks.checksum(b""))
    return len(frames.encode(header))
