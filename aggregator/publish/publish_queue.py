"""Queue of outgoing messages, with a window of unacknowledged messages and bytes.

A newer retained message replaces an older one on its topic that still waits, so that a slow link never has more pending
than the broker's retained messages and the receipts. Receipts go first, because devices wait for them; then urgent
messages, such as the aggregator's status; then releases, each announcement after its frames; then the newest answer to
an operator; last what is published again on request. One page of an answer at a time is beside the releases: on a slow
link their frames may take minutes.
"""

import asyncio
import logging
import re
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from midge.aggregator.publish.byte_window import ByteWindow
from midge.broker.mqtt.connection import BrokerError, Connection, PacketTooLarge, PublishRefused
from midge.broker.mqtt.message_size import TOO_LARGE

log = logging.getLogger("aggregator")

WINDOW = 64
"""Most messages that wait for the broker's acknowledgement."""
MOST_RECEIPTS = 2**24
"""Most bytes of waiting receipts. The oldest are dropped: their devices send again, and are answered again."""


@dataclass(frozen=True, slots=True)
class Post:
    """A message to publish at QoS 1."""

    topic: str
    payload: bytes
    retain: bool = True
    withdraws: tuple[int, int] | None = None
    """Version and span of the frame that is removed from the broker once this last post of it has been acknowledged."""
    since: float | None = None
    """Of a receipt: arrival time of the message that it answers."""
    again: bool = False
    """Whether the broker has it already, or should: a device requested it."""
    urgent: bool = False
    """Whether it goes ahead of releases: a small message of which only the newest counts."""


_NEWER = "\0"
"""Suffix of a topic: the key of the newest message on it, if an older one waits. No topic contains it."""


class PublishQueue:
    """A queue that outlives connections. After a reconnect it is cleared: then everything is published again.

    Args:
        sent: takes each message that the broker has acknowledged.
        refused: takes each message that it refused, and why.
        before: called right before each message is handed to the connection. It raises if nothing may be sent.
    """

    def __init__(
        self,
        sent: Callable[[Post], None],
        refused: Callable[[Post, BrokerError], None] = lambda _post, _error: None,
        *,
        before: Callable[[], None] = lambda: None,
    ) -> None:
        self._receipts: deque[Post] = deque()
        self._urgent: dict[str, Post] = {}
        self._retained: dict[str, Post] = {}
        self._answer: deque[Post] = deque()
        self._page: Post | None = None
        """The page of an answer that is under way beside releases."""
        self._again: dict[str, Post] = {}
        self._sent, self._refused, self._before = sent, refused, before
        self._reported: set[tuple[str, int]] = set()
        """Refusals that were reported: kind of topic, and reason."""
        self._news = asyncio.Event()
        self._idle = asyncio.Event()
        self._under_way: dict[int, Post] = {}
        """Messages that wait for the broker's acknowledgement, by their ids."""
        self._window = ByteWindow()
        """Of the retained messages: a receipt waits for those that are under way."""
        self._bytes_under_way = self._receipt_bytes = 0

    def put(self, post: Post) -> None:
        if not post.retain:
            self._receipts.append(post)
            self._receipt_bytes += len(post.payload)
            while self._receipt_bytes > MOST_RECEIPTS:
                self._receipt_bytes -= len(self._receipts.popleft().payload)
        elif post.again:
            if post.topic not in self._retained:
                self._again.setdefault(post.topic, post)
        elif post.urgent:
            self._urgent[post.topic] = post
        else:
            self._put_retained(post)
        self._idle.clear()
        self._news.set()

    def answer(self, pages: Sequence[Post]) -> None:
        """Queue an answer to an operator; it replaces the waiting rest of the last one."""
        if pages:
            self._answer = deque(pages)
            self._idle.clear()
            self._news.set()

    def _put_retained(self, post: Post) -> None:
        """Queue a retained message at the end: an announcement must not overtake its frames."""
        waiting, topic = self._retained, post.topic
        self._again.pop(topic, None)
        if not post.payload:
            waiting.pop(topic, None)
        elif topic in waiting:
            # A waiting one keeps its place: otherwise announcements faster than the link would never be sent.
            topic += _NEWER
        waiting.pop(topic, None)
        waiting[topic] = post

    def drop(self) -> None:
        """Drop what was not sent."""
        for waiting in (self._receipts, self._urgent, self._retained, self._answer, self._again):
            waiting.clear()
        self._receipt_bytes = 0

    def clear(self) -> None:
        """Begin again, on another connection."""
        self.drop()
        self._under_way.clear()
        self._window, self._bytes_under_way = ByteWindow(), 0
        self._page = None

    def __len__(self) -> int:
        waiting = (self._receipts, self._urgent, self._retained, self._answer, self._again, self._under_way)
        return sum(map(len, waiting))

    def waits(self, topic: str) -> bool:
        """Whether an urgent message on this topic is not acknowledged yet."""
        return topic in self._urgent or any(post.topic == topic for post in self._under_way.values())

    async def drained(self) -> None:
        """Wait until nothing waits and everything has been acknowledged."""
        if len(self):
            await self._idle.wait()

    async def send(self, connection: Connection) -> None:
        """Publish while the connection lives.

        Raises:
            ConnectionLost: it ended.
        """
        async with asyncio.TaskGroup() as tasks:
            while True:
                while (found := self._next()) is not None:
                    post, urgent = found
                    self._under_way[id(post)] = post
                    self._bytes_under_way += 0 if urgent else len(post.payload)
                    tasks.create_task(self._publish(connection, post, urgent=urgent))
                self._news.clear()
                await self._news.wait()

    def _next(self) -> tuple[Post, bool] | None:
        """Remove the next message that may be sent, and whether it is outside of the window of bytes."""
        if len(self._under_way) >= WINDOW:
            return None
        if self._receipts:
            post = self._receipts.popleft()
            self._receipt_bytes -= len(post.payload)
            return post, True
        if self._urgent:
            return self._urgent.pop(next(iter(self._urgent))), True
        if self._answer and self._retained and self._page is None:
            self._page = self._answer.popleft()
            return self._page, True
        if self._answer and not self._retained:
            return (self._answer.popleft(), False) if self._fits(self._answer[0]) else None
        waiting = self._retained or self._again
        if not waiting or not self._fits(waiting[topic := next(iter(waiting))]):
            return None
        return waiting.pop(topic), False

    def _fits(self, post: Post) -> bool:
        """Whether the window of bytes has room for a message; any is sent alone."""
        return self._bytes_under_way == 0 or self._bytes_under_way + len(post.payload) <= self._window.size

    async def _publish(self, connection: Connection, post: Post, *, urgent: bool) -> None:
        clock, size = asyncio.get_running_loop().time, len(post.payload)
        sent = clock()
        try:
            self._before()
            await connection.publish(post.topic, post.payload, qos=1, retain=post.retain)
        except (PublishRefused, PacketTooLarge) as error:
            # Others may still pass; the refused content is requested again.
            sort = re.sub(r"\d+", "", post.topic) if post.retain else ""
            if (key := (sort, getattr(error, "reason", TOO_LARGE))) not in self._reported:
                self._reported.add(key)
                log.warning("%s, %s bytes: %s", post.topic, f"{len(post.payload):,}", error)
            self._refused(post, error)
        else:
            self._window.acknowledged(0 if urgent else size, sent, clock())
            self._sent(post)
        finally:
            if post is self._page:
                self._page = None
            self._under_way.pop(id(post), None)
            self._bytes_under_way -= 0 if urgent else size
            self._news.set()
            if not len(self):
                self._idle.set()
