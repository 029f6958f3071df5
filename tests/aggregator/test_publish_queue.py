"""What waits to be published: in an order that devices need, and no more than stands at the broker."""

import asyncio
from typing import cast

import pytest

from midge.aggregator.publish import publish_queue
from midge.aggregator.publish.byte_window import LEAST_BYTES, MOST_BYTES
from midge.aggregator.publish.publish_queue import Post, PublishQueue
from midge.broker.mqtt.connection import Connection

pytestmark = pytest.mark.virtual


class SlowBroker:
    """Acknowledges one message at a time, when it is told to."""

    def __init__(self) -> None:
        self.sent: list[Post] = []
        self._waiting: list[asyncio.Future[None]] = []

    async def publish(self, topic: str, payload: bytes, *, qos: int, retain: bool) -> None:
        assert qos == 1
        self.sent.append(Post(topic, payload, retain))
        self._waiting.append(asyncio.get_running_loop().create_future())
        await self._waiting[-1]

    @property
    def under_way(self) -> int:
        return sum(len(post.payload) for post in self.sent[-len(self._waiting) :]) if self._waiting else 0

    async def acknowledge(self, count: int = 1) -> None:
        await settled()
        for _ in range(count):
            if self._waiting:
                self._waiting.pop(0).set_result(None)
                await settled()

    @property
    def topics(self) -> list[str]:
        return [post.topic for post in self.sent]


async def settled() -> None:
    for _ in range(6):
        await asyncio.sleep(0)


def receipt(name: str, size: int = 10) -> Post:
    return Post(name, bytes(size), retain=False)


LARGE = LEAST_BYTES
"""The window at first; it opens by this with the first messages that fill it."""


async def sending(queue: PublishQueue, broker: SlowBroker) -> asyncio.Task[None]:
    task = asyncio.create_task(queue.send(cast("Connection", broker)))
    await settled()
    return task


async def ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_receipt_waits_for_what_is_under_way_and_for_nothing_else() -> None:
    """Seen to fail: a queue of frames was in front of it."""
    queue, broker = PublishQueue(lambda _post: None), SlowBroker()
    for number in range(20):
        queue.put(Post(f"frame{number}", bytes(LARGE // 2)))
    task = await sending(queue, broker)
    assert broker.topics == ["frame0", "frame1"], "as many bytes as the window takes"
    queue.put(Post("again", bytes(10), again=True))
    queue.put(receipt("receipt"))
    await settled()
    assert broker.topics[2:] == ["receipt"]
    await broker.acknowledge(30)
    assert broker.topics[3:] == [f"frame{number}" for number in range(2, 20)] + ["again"]
    assert len(queue) == 0
    await asyncio.wait_for(queue.drained(), 1)
    await ended(task)


async def test_a_newer_message_takes_the_place_of_one_that_waits() -> None:
    queue, broker = PublishQueue(lambda _post: None), SlowBroker()
    for version in range(100):
        queue.put(Post(f"frame{version % 3}", f"{version}".encode()))
        queue.put(Post("announcement", f"{version}".encode()))
    queue.put(Post("frame1", b"", withdraws=(1, 1)))
    assert len(queue) <= 8
    task = await sending(queue, broker)
    await broker.acknowledge(20)
    announced = [post.payload for post in broker.sent if post.topic == "announcement"]
    assert announced == [b"0", b"99"], "one that waits keeps its place: however fast they come, some go"
    newest = {post.topic: post.payload for post in broker.sent}
    assert newest == {"frame0": b"99", "frame1": b"", "frame2": b"98", "announcement": b"99"}
    assert broker.topics.index("frame0") < broker.topics.index("announcement")
    await ended(task)


async def test_what_is_asked_for_again_and_again_waits_once() -> None:
    """Seen to fail: 350 fetches had 828 MB queued."""
    queue = PublishQueue(lambda _post: None)
    queue.put(Post("part0", bytes(1000)))
    for _ in range(100):
        for part in range(4):
            queue.put(Post(f"part{part}", bytes(1000), again=True))
    assert len(queue) == 4


async def test_an_overview_puts_off_no_receipt() -> None:
    """Seen to fail: its pages were among the receipts, and those of a large fleet pushed the oldest of them out."""
    queue, broker = PublishQueue(lambda _post: None), SlowBroker()
    queue.put(receipt("before"))
    for number in range(3):
        queue.answer([Post("overview", bytes([number]) * (LARGE // 2), retain=False) for _ in range(40)])
    queue.put(Post("again", bytes(10), again=True))
    assert len(queue) == 1 + 40 + 1, "the newest answer alone waits"
    task = await sending(queue, broker)
    assert broker.topics == ["before", "overview", "overview"], "as many bytes as the window takes"
    queue.put(receipt("after"))
    queue.put(Post("frame", bytes(10)))
    await settled()
    assert broker.topics[3:] == ["after", "overview"]
    await broker.acknowledge(60)
    assert broker.topics[5] == "frame" and broker.topics[-1] == "again"
    assert {post.payload[0] for post in broker.sent if post.topic == "overview"} == {2}
    assert len(queue) == 0
    await asyncio.wait_for(queue.drained(), 1)
    await ended(task)


async def test_frames_on_a_slow_link_put_off_no_answer() -> None:
    """Seen to fail: an operator was told for minutes that the aggregator does not answer, while it published."""
    queue, broker = PublishQueue(lambda _post: None), SlowBroker()
    for number in range(9):
        queue.put(Post(f"frame{number}", bytes(LARGE // 2)))
    task = await sending(queue, broker)
    queue.answer([Post("overview", bytes(LARGE // 4), retain=False) for _ in range(2)])
    await settled()
    assert broker.topics == ["frame0", "frame1", "overview"], "one page beside what the window takes"
    await broker.acknowledge(3)
    assert broker.topics[3:].count("overview") == 1, "the next page follows it"
    await broker.acknowledge(30)
    assert len(queue) == 0
    await ended(task)


async def test_the_newest_status_goes_ahead_of_frames_and_behind_receipts() -> None:
    """Seen to fail: the last status of an aggregator on a slow link waited for all frames, and was never sent."""
    queue, broker = PublishQueue(lambda _post: None), SlowBroker()
    for number in range(9):
        queue.put(Post(f"frame{number}", bytes(LARGE // 2)))
    task = await sending(queue, broker)
    for state in (b"ready", b"stopped"):
        queue.put(Post("status", state, urgent=True))
    queue.put(receipt("receipt"))
    await settled()
    assert broker.topics == ["frame0", "frame1", "receipt", "status"] and broker.sent[-1].payload == b"stopped"
    assert queue.waits("status") and len(queue) == 11
    await broker.acknowledge(4)
    assert not queue.waits("status")
    await broker.acknowledge(30)
    assert broker.topics.count("status") == 1 and len(queue) == 0
    await ended(task)


@pytest.mark.parametrize("rate", [2e4, 1e5, 1e6, 1e7])
@pytest.mark.parametrize("delay", [0.001, 0.05, 0.6])
async def test_frames_fill_a_link_and_hold_up_an_urgent_message_for_two_seconds_or_a_few_chunks(
    rate: float, delay: float
) -> None:
    """Seen to fail with a constant window: half a megabyte on a link of 20 kB/s takes 26 s."""
    clock, free, waits, chunk = asyncio.get_running_loop().time, 0.0, list[float](), 2**14

    class Link:
        """Carries bytes one after the other, and each acknowledgement after the delay."""

        async def publish(self, _topic: str, payload: bytes, *, qos: int, retain: bool) -> None:
            nonlocal free
            free = max(free, clock()) + len(payload) / rate
            if not payload:
                waits.append(free - clock())
            await asyncio.sleep(free - clock() + delay)

    queue = PublishQueue(lambda _post: None)
    task = asyncio.create_task(queue.send(cast("Connection", Link())))
    began, count = clock(), max(400, int(12 * rate / chunk))
    for number in range(count):
        queue.put(Post(f"frame{number}", bytes(chunk)))
    for _ in range(10):
        await asyncio.sleep(1)
        queue.put(Post("status", b"", urgent=True))
    await queue.drained()
    assert max(waits) <= max(2, 3.5 * chunk / rate) and len(waits) == 10
    limit = min(rate, MOST_BYTES / delay)
    assert count * chunk / (clock() - began) > 0.75 * limit, "and nearly all of the link is used"
    await ended(task)


async def test_receipts_are_bounded_in_bytes() -> None:
    queue, broker = PublishQueue(lambda _post: None), SlowBroker()
    for number in range(40):
        queue.put(receipt(f"r{number}", publish_queue.MOST_RECEIPTS // 16))
    assert len(queue) == 16
    task = await sending(queue, broker)
    assert broker.topics[0] == "r24", "the oldest went: their devices ask again"
    await ended(task)
    queue.clear()
    assert len(queue) == 0
