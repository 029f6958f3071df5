"""The outbox in memory answers as the one on disk does, whatever is done to both."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from midge.iot_client.state.memory_outbox import AnyOutbox, MemoryOutbox, outbox_at
from midge.iot_client.state.outbox import Outbox
from midge.wire import chunks
from midge.wire.messages import Update

DEEDS = st.one_of(
    st.tuples(st.just("store"), st.binary(max_size=20), st.none() | st.binary(max_size=5)),
    st.tuples(st.just("forget"), st.integers(0, 8)),
    st.tuples(st.just("renew"), st.sets(st.integers(0, 3))),
    st.tuples(st.just("remember"), st.sampled_from("ab"), st.binary(max_size=3)),
)


def made(outbox: AnyOutbox, body: bytes) -> Update:
    return Update(
        outbox=outbox.identity,
        first=1,
        seq=outbox.next_seq,
        lineage=bytes(16),
        generation=0,
        base=1,
        codec="float32",
        size=len(body),
        sha256=chunks.checksum(body),
        examples=1,
        steps=1,
        seconds=1.0,
        plan=0,
        metrics={},
    )


def do(outbox: AnyOutbox, deed: tuple[Any, ...]) -> None:
    match deed:
        case ("store", body, residual):
            outbox.store(made(outbox, body), body, residual)
        case ("forget", through):
            outbox.forget(through)
        case ("renew", places):
            held = [update.seq for update in outbox.held()]
            outbox.renew([seq for place, seq in enumerate(held) if place in places])
        case ("remember", name, value):
            outbox.pending[name] = value


def seen(outbox: AnyOutbox) -> tuple[Any, ...]:
    held = outbox.held()
    assert all(update.outbox == outbox.identity for update in held)
    return (
        [(update.seq, update.first, update.size) for update in held],
        [(outbox.body(update.seq), outbox.piece(update.seq, 1, 3)) for update in held],
        outbox.next_seq,
        outbox.residual(),
        [outbox.remembered(name) for name in "ab"],
        dict(outbox.pending),
    )


@settings(max_examples=30, deadline=None)
@given(st.lists(DEEDS, max_size=8))
def test_both_answer_alike(deeds: list[tuple[Any, ...]]) -> None:
    with TemporaryDirectory() as directory, Outbox(Path(directory) / "o") as disk, MemoryOutbox() as memory:
        for deed in deeds:
            do(disk, deed)
            do(memory, deed)
            assert seen(memory) == seen(disk)
        before = memory.identity
        do(memory, ("renew", set()))
        assert memory.identity != before


def test_it_goes_on_where_it_was_left() -> None:
    outbox = outbox_at(None)
    with outbox:
        outbox.store(made(outbox, b"one"), b"one", b"left")
    with outbox:
        assert ([update.seq for update in outbox.held()], outbox.residual()) == ([1], b"left")
