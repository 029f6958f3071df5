"""Trials of a device's life: status, name, statistics, pauses, cleared topics and unknown fields."""

import asyncio
import secrets
from collections.abc import Mapping

from midge.aggregator.referee.referee import QUIET, RESENT, Referee, Silent, came_again
from midge.wire import frames
from midge.wire.errors import WireError
from midge.wire.messages import (
    AggregatorState,
    Announcement,
    DeviceState,
    Hello,
    Moment,
    Statistics,
    Trouble,
)
from midge.wire.moments import BYTES_PER_CHANNEL, Moments

ASKED = 5.0
"""Seconds in which a live device must answer another of its name, which waits three."""
LATER: Mapping[object, object] = {"zest": [1, {"a": b"\0"}], 200: "of a later version", "none": None}
"""Fields that no version has."""


async def greeting(referee: Referee, wait: float) -> None:
    """The device joins and sends READY."""
    book = referee.notebook
    await referee.post_status()
    ready = await referee.expect(Hello, wait, lambda hello: hello.state is DeviceState.READY and not hello.to, since=0)
    if ready is None:
        book.failed("greeting", f"no hello with the state ready came within {wait:g} s")
        raise Silent("it has not greeted")
    assert isinstance(ready.message, Hello)
    joined = [each.message for each in referee.heard if isinstance(each.message, Hello)]
    asked = [hello for hello in joined if hello.state is DeviceState.JOINING]
    if not asked:
        book.unseen("joining", "it was connected before: start it after the referee")
    elif asked[0].number:
        book.passed("joining", "it asked with a number")
    else:
        book.failed("joining", "it joined without a number")
    _heed_largest(referee, ready.message.largest)
    book.passed("greeting", f"it holds from seq {ready.message.first} up to {ready.message.next}")
    referee.renewed(ready.message)
    await referee.say_again(ready.message)


def _heed_largest(referee: Referee, largest: int) -> None:
    """Cut everything to the device's limit, as the aggregator does."""
    book, floor = referee.notebook, Announcement.model_fields["smallest_chunk"].default
    if not largest:
        book.unseen("largest", "it sets no limit")
    elif largest < floor:
        book.failed("largest", f"it takes {largest} bytes, and parts are cut to {floor} at the smallest")
    else:
        referee.model.largest = min(largest, referee.model.largest)


async def question(referee: Referee) -> None:
    """Play another device of its name."""
    number, since = secrets.randbits(53) + 1, referee.place
    payload = frames.encode(Hello(state=DeviceState.JOINING, outbox=secrets.randbits(53), number=number))
    referee.observer.ours.add(payload)
    await referee.publish(referee.topics.status(referee.device), payload)
    answer = await referee.expect(Hello, ASKED, lambda hello: hello.to == number, since=since)
    if answer is None:
        referee.notebook.failed("question", f"a joining device of its name was not answered within {ASKED:g} s")
    else:
        referee.notebook.passed("question", "it answered with the number of the question")


async def statistics(referee: Referee, moments: Mapping[str, int]) -> None:
    """Request statistics before there is a model to train from."""
    book = referee.notebook
    if not moments:
        book.unseen("statistics", "none were asked for: say which with --statistics")
        return
    since = referee.place
    asked = tuple(Moment(name=name, channels=count) for name, count in moments.items())
    await referee.announce([], phase="statistics", moments=asked)
    heard = await referee.expect(Statistics, referee.patience, since=since)
    if heard is None:
        book.failed("statistics", f"none came in {referee.patience:g} s")
        return
    assert isinstance(heard.message, Statistics)
    if dict(heard.message.names) != dict(moments):
        book.failed("statistics", f"{dict(heard.message.names)} came, and {dict(moments)} were asked for")
        return
    at = 0
    try:
        for _name, count in heard.message.names:
            size = count * BYTES_PER_CHANNEL
            Moments.from_bytes(heard.body[at : at + size], count)
            at += size
    except WireError as error:
        book.failed("statistics", str(error))
        return
    book.passed("statistics", f"{len(heard.body)} bytes of moments")


async def unknown(referee: Referee) -> None:
    """Send everything that a later version may add."""
    book, since = referee.notebook, referee.place
    await referee.publish(referee.topics.receipt(referee.device), frames.encode({"kind": "zest", "zest": 1}))
    await referee.publish(referee.topics.receipt(referee.device), frames.encode(Trouble(why="a trial")))
    await referee.post_status(unknown=LATER)
    version = await referee.release(unknown=LATER)
    heard = await referee.trained_from(version, since=since)
    if heard is None:
        book.failed("unknown", "no update followed an announcement with names as text and fields of a later version")
        return
    await referee.accept(heard, unknown=LATER)
    again = await came_again(referee, heard, QUIET + RESENT / 2)
    if again is not None:
        book.failed("unknown", "it ignored a receipt with names as text and fields of a later version")
        await referee.accept(heard)
        return
    book.passed("unknown", "nothing came of them")


async def paused(referee: Referee) -> None:
    """Pause, announce, resume."""
    book, since = referee.notebook, referee.place
    await referee.post_status(AggregatorState.PAUSED)
    await asyncio.sleep(1.0)
    version = await referee.release()
    early = await referee.trained_from(version, since=since, seconds=2 * QUIET)
    if early is not None:
        book.failed("paused", "an update came while the aggregator was paused")
    await referee.post_status()
    heard = early or await referee.trained_from(version, since=since, seconds=referee.patience + RESENT)
    if heard is None:
        book.failed("paused", "no update came after the pause")
        raise Silent("it does not continue after a pause")
    book.passed("paused", "nothing came during the pause, and an update after it")
    await referee.accept(heard)


async def cleared(referee: Referee) -> None:
    """Send empty payloads, as `midge clean` leaves them."""
    book, since, topics = referee.notebook, referee.place, referee.topics
    await referee.clear()
    await referee.publish(topics.status(referee.device), b"", retain=True)
    await referee.publish(topics.receipt(referee.device), b"")
    await asyncio.sleep(1.0)
    await referee.post_status()
    version = await referee.release()
    heard = await referee.trained_from(version, since=since)
    if heard is None:
        book.failed("cleared", "no update came after retained messages were cleared")
        raise Silent("it does not survive empty payloads")
    book.passed("cleared", "nothing came of them")
    await referee.accept(heard)
