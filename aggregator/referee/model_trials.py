"""Trials of fetching: missing or corrupt chunks, wrong models, merged steps, participation."""

import hashlib

from midge.aggregator.referee.model import LARGEST
from midge.aggregator.referee.referee import QUIET, RESENT, Referee, Silent
from midge.wire import frames
from midge.wire.messages import (
    Fetch,
    Participation,
    Update,
)

NEAR = 1e-3
"""Distance of a share from the device's own number: boards have float32, and 32 bits of the hash suffice."""


async def first_fetch(referee: Referee) -> None:
    """The first model, with a chunk that is published only on request."""
    book, model, since = referee.notebook, referee.model, referee.place
    snapshot = model.snapshot(parts=3)
    last = snapshot.parts - 1
    await referee.post_frame(snapshot, without=[last])
    await referee.announce([snapshot])
    fetch = await referee.expect(Fetch, RESENT, since=since)
    if fetch is None:
        book.failed("fetch", f"it did not ask for a chunk that had not come for {RESENT:g} s")
    else:
        assert isinstance(fetch.message, Fetch)
        asked = fetch.message
        right = (asked.lineage, asked.version, asked.span, asked.parts) == (model.name, 1, 0, (last,))
        if right:
            book.passed("fetch", f"it asked for chunk {last} of the snapshot")
        else:
            book.failed(
                "fetch", f"it asked for {asked.parts} of {asked.version}/{asked.span}; chunk {last} of 1/0 lacked"
            )
    await referee.post_frame(snapshot)
    heard = await referee.trained_from(1, since=since)
    if heard is None:
        raise Silent(f"no update of the first model came in {referee.patience:g} s")
    if model.largest < LARGEST and not book.has_failed("largest"):
        book.passed("largest", f"it takes parts of {model.largest} bytes at most")
    await referee.accept(heard)


async def once(referee: Referee) -> None:
    """The same announcement again."""
    heard = await referee.next_update()
    await referee.accept(heard)
    assert isinstance(heard.message, Update) and referee.announced is not None
    since, base, seq = referee.place, heard.message.base, heard.message.seq
    await referee.announce([referee.model.step(), referee.model.snapshot()])
    more = await referee.update(QUIET, since=since, of=lambda update: update.base == base and update.seq > seq)
    if more is None:
        referee.notebook.passed("once", f"version {base} gave one update")
    else:
        referee.notebook.failed("once", f"a second update of version {base} came")
        await referee.accept(more)


async def newer_while_fetching(referee: Referee) -> None:
    """Announce a version while the one before is being fetched."""
    book, model, since = referee.notebook, referee.model, referee.place
    before = model.advance()
    held = model.step(parts=2)
    await referee.post_frame(held, without=[held.parts - 1])
    await referee.announce([held])
    await referee.expect(Fetch, RESENT, since=since)
    after = model.advance()
    for frame in (model.step(), model.snapshot()):
        await referee.post_frame(frame)
    await referee.announce([model.step(), model.snapshot(), held])
    await referee.post_frame(held)
    failed = book.has_failed("base")
    first = await referee.update(since=since, of=lambda update: update.base in (before, after))
    if first is None:
        raise Silent("no update came after two announcements")
    await referee.accept(first)
    assert isinstance(first.message, Update)
    if first.message.base == before:
        later = await referee.trained_from(after, since=since)
        if later is None:
            book.failed("newer version", f"version {after}, announced during a fetch, was never trained from")
            return
        await referee.accept(later)
    digest = first.message.base_digest
    if book.has_failed("base") and not failed:
        book.failed("newer version", "the update names another version than it was trained from")
    elif not digest:
        book.unseen(
            "newer version", "its updates have no base_digest, so nothing shows which model they were trained from"
        )
    else:
        book.passed("newer version", f"the update says version {first.message.base}, with that one's digest")


async def corrupt(referee: Referee) -> None:
    """A chunk with a flipped byte, then a whole frame with another digest."""
    book = referee.notebook
    await _misled(referee, "corrupt chunk", turned=True)
    await _misled(referee, "digest", turned=False)
    if not book.has_failed("recovery"):
        book.passed("recovery", "it trained from the right model once that was there")


async def _misled(referee: Referee, rule: str, *, turned: bool) -> None:
    book, model, since = referee.notebook, referee.model, referee.place
    version = model.advance()
    right = model.step()
    if turned:
        await referee.post_frame(right, instead=0)
    else:
        wrong = frames.encode(
            {"kind": "step", "exponent": model.states[version].exponent, "size": model.schema.size},
            _integers(model.schema.size),
        )
        other = type(right)(version, 1, wrong, 1)
        right = type(right)(version, 1, wrong, 1)
        await referee.post_frame(other)
    snapshot = model.snapshot()
    await referee.announce([right])
    early = await referee.trained_from(version, since=since, seconds=3 * QUIET)
    if early is not None:
        book.failed(rule, "it trained from the wrong model")
        await referee.accept(early)
        return
    book.passed(rule, "it did not train from it")
    for frame in (model.step(), snapshot):
        await referee.post_frame(frame)
    await referee.announce([model.step(), snapshot])
    late = await referee.trained_from(version, since=since, seconds=referee.patience + RESENT)
    if late is None:
        book.failed("recovery", "it did not come to the right model when that was announced")
        raise Silent("it does not recover from a model that was wrong")
    await referee.accept(late)


def _integers(size: int) -> bytes:
    import numpy as np  # noqa: PLC0415

    from midge.wire.steps import encode_integers  # noqa: PLC0415

    return encode_integers(np.full(size, 3, np.int32))


async def merged(referee: Referee) -> None:
    """Offer only a step over two versions."""
    since, model = referee.place, referee.model
    model.advance()
    version = model.advance()
    step = model.step(span=2)
    await referee.post_frame(step)
    await referee.announce([step])
    heard = await referee.trained_from(version, since=since)
    if heard is None:
        referee.notebook.failed("merged step", f"no update of version {version} came, to which a step over two leads")
        return
    referee.notebook.passed("merged step", f"it came to version {version} by a step over two versions")
    await referee.accept(heard)


async def share(referee: Referee) -> None:
    """A share just below the device's own number, then just above it."""
    book, since, model = referee.notebook, referee.place, referee.model
    name = f"{model.name.hex()}/0/{model.version + 1}/{referee.device}".encode()
    own = int.from_bytes(hashlib.sha256(name).digest()[:8]) / 2**64
    version = await referee.release(participation=Participation(share=own * (1 - NEAR)))
    early = await referee.trained_from(version, since=since, seconds=2 * QUIET)
    if early is not None:
        book.failed("share", f"it trained from version {version}, of which a hash of its name takes it out")
        await referee.accept(early)
        return
    offered = [model.step(), model.snapshot()]
    await referee.announce(offered, participation=Participation(share=min(1.0, own * (1 + NEAR) + 1e-12)))
    heard = await referee.trained_from(version, since=since)
    if heard is None:
        book.failed("share", f"it did not train from version {version} when the share came to include it")
        return
    book.passed("share", "it trained once the share came to include it, and not before")
    await referee.accept(heard)
