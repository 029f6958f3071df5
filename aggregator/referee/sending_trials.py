"""Trials of sending: lost, late and foreign receipts, busy, chunks, a restored outbox."""

import asyncio
import secrets

from midge.aggregator.referee.referee import QUIET, RESENT, Referee, came_again
from midge.wire import chunks, frames
from midge.wire.messages import (
    AggregatorState,
    Chunk,
    DeviceState,
    Grant,
    Hello,
    Plan,
    Settled,
    Update,
    Verdict,
)

GREETED = 20.0
"""Seconds in which a device must send READY to an aggregator."""


async def lost_receipt(referee: Referee) -> None:
    """Do not answer an update, then answer it twice."""
    book = referee.notebook
    heard = await referee.next_update()
    if await came_again(referee, heard, RESENT) is None:
        book.failed("resending", f"an update without an answer did not come again in {RESENT:g} s")
    else:
        book.passed("resending", "it came again, the same bytes under the same seq")
    receipt = await referee.accept(heard, repeat=True)
    await referee.publish(referee.topics.receipt(referee.device), frames.encode(receipt))
    await referee.publish(
        referee.topics.receipt(referee.device), frames.encode(receipt.model_copy(update={"hi": receipt.hi - 1}))
    )
    outbox, since = referee.observer.outbox, referee.place
    await asyncio.sleep(QUIET)
    again = [
        each for each in referee.heard[since:] if isinstance(each.message, Update) and each.message.seq <= receipt.hi
    ]
    if referee.observer.outbox != outbox:
        book.failed("receipts twice", "it took a new identity")
    elif again:
        book.failed("receipts twice", "it sent again what was settled")
    else:
        book.passed("receipts twice", "nothing came of them")


async def busy(referee: Referee) -> None:
    """Ask the device to wait."""
    book, wait = referee.notebook, 6.0
    heard = await referee.next_update()
    assert isinstance(heard.message, Update)
    asked = referee.now
    await referee.answer(Settled(seq=heard.message.seq, verdict=Verdict.BUSY, why="a trial", retry_after=wait))
    again = await came_again(referee, heard, wait + RESENT)
    if again is None:
        book.failed("busy", f"it did not come again in {wait + RESENT:g} s")
    elif again.at < asked + 0.7 * wait:
        book.failed("busy", f"it came again after {again.at - asked:.1f} s of {wait:g}")
    else:
        book.passed("busy", f"it came again after {again.at - asked:.1f} s, of {wait:g} that were asked for")
    await referee.accept(heard)


async def chunked(referee: Referee) -> None:
    """A chunk size so small that the update must be offered; grants with gaps."""
    book = referee.notebook
    heard = await referee.next_update(chunk=256, plan=Plan(revision=2, codec="float32"))
    update = heard.message
    assert isinstance(update, Update)
    if update.kind == "update":
        if not book.has_failed("chunk size"):
            book.passed("chunk size", f"an update of {len(heard.body)} bytes went whole, with chunks of 256")
        book.unseen(
            "grants", f"its update has {update.size} bytes, no more than the smallest chunk: give it a larger model"
        )
        await referee.accept(heard)
        return
    book.passed("chunk size", f"{update.size} bytes are offered in {update.parts} chunks")
    size = chunks.part_size(update.size, update.parts)
    pieces: dict[int, bytes] = {}
    last = update.parts - 1
    for wanted in ([last], list(range(1, last)), [0], [0]):
        await _granted(referee, update, [number for number in wanted if number < update.parts][:8], pieces)
    for rest in range(9, last, 8):
        await _granted(referee, update, list(range(rest, min(rest + 8, last))), pieces)
    body = b"".join(pieces.get(number, b"") for number in range(update.parts))
    wrong = [number for number, piece in pieces.items() if number < last and len(piece) != size]
    if wrong:
        book.failed("grants", f"chunk {wrong[0]} has {len(pieces[wrong[0]])} bytes, not {size}")
    elif len(body) != update.size or not chunks.fits(body, update.sha256):
        book.failed("grants", "the chunks together are not what size and sha256 say")
    else:
        book.passed("grants", f"{update.parts} chunks came as they were granted, the first one twice")
        referee.observer.decoded(update, body)
    await referee.accept(heard)


async def _granted(referee: Referee, update: Update, wanted: list[int], pieces: dict[int, bytes]) -> None:
    """Grant chunks, and collect them."""
    if not wanted:
        return
    since, missing = referee.place, set(wanted)
    await referee.answer(grants=[Grant(seq=update.seq, parts=tuple(wanted))])
    while missing:
        heard = await referee.expect(Chunk, RESENT, lambda chunk: chunk.seq == update.seq, since=since)
        if heard is None:
            referee.notebook.failed("grants", f"chunks {sorted(missing)} were granted and did not come")
            return
        assert isinstance(heard.message, Chunk)
        since = referee.heard.index(heard) + 1
        if heard.message.part not in wanted:
            referee.notebook.failed("grants", f"chunk {heard.message.part} came, and {wanted} were granted")
        missing.discard(heard.message.part)
        pieces[heard.message.part] = heard.body


async def restart(referee: Referee) -> None:
    """Restart with an unanswered update."""
    book = referee.notebook
    heard = await referee.next_update()
    await referee.post_status(AggregatorState.LOST)
    since = referee.place
    referee.boot, referee.token = secrets.randbits(62), referee.token + 1
    await referee.post_status()
    hello = await referee.expect(
        Hello,
        GREETED,
        lambda hello: hello.state in (DeviceState.READY, DeviceState.TRAINING) and not hello.to,
        since=since,
    )
    if hello is None:
        book.failed("restart", f"it did not greet an aggregator of another boot within {GREETED:g} s")
    else:
        assert isinstance(hello.message, Hello)
        await referee.say_again(hello.message)
        if await came_again(referee, heard, RESENT, since=referee.heard.index(hello)) is None:
            book.failed("restart", "what was not settled did not come again")
        else:
            book.passed("restart", "it greeted, and sent what was not settled")
    await referee.accept(heard)


async def token(referee: Referee) -> None:
    """Send a receipt of the aggregator that was replaced."""
    heard = await referee.next_update()
    since = referee.place
    assert isinstance(heard.message, Update)
    settled = Settled(seq=heard.message.seq, verdict=Verdict.ACCEPTED, body=heard.message.digest)
    await referee.answer(settled, hi=heard.message.seq, token=referee.token - 1)
    if await came_again(referee, heard, RESENT, since=since) is None:
        referee.notebook.failed("token", "a receipt with a lower token settled an update")
        referee.hi = heard.message.seq
        return
    referee.notebook.passed("token", "a receipt with a lower token settled nothing")
    await referee.accept(heard)


async def old_copy(referee: Referee) -> None:
    """Claim that more was settled than the device ever sent."""
    book, since, outbox = referee.notebook, referee.place, referee.observer.outbox
    await referee.answer(hi=referee.hi + 40)
    hello = await referee.expect(
        Hello, GREETED, lambda hello: hello.state.live and hello.outbox != outbox and not hello.to, since=since
    )
    if hello is None:
        book.failed("old copy", "it kept its identity")
        return
    assert isinstance(hello.message, Hello)
    referee.renewed(hello.message)
    await referee.say_again(hello.message)
    heard = await referee.next_update()
    await referee.accept(heard)
    book.passed("old copy", "it took a new identity, and continued")
