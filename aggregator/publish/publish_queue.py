"""What waits to be published, sent in order with a window of unacknowledged messages."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from midge.broker.mqtt.connection import Connection, PacketTooLarge, PublishRefused

log = logging.getLogger("aggregator")

WINDOW = 64
"""Messages that wait for the broker's acknowledgement at once."""


@dataclass(frozen=True, slots=True)
class Post:
    """One message to publish at QoS 1."""

    topic: str
    payload: bytes
    retain: bool = True
    withdraws: tuple[int, int] | None = None
    """Version and span of the frame that is off the broker once this last post of it has been acknowledged."""
    since: float | None = None
    """Of a receipt: when what it answers had arrived."""


class PublishQueue:
    """A queue that outlives connections. After a reconnect it is cleared: then everything is published again."""

    def __init__(self, sent: Callable[[Post], None]) -> None:
        self._waiting: deque[Post] = deque()
        self._sent = sent
        self._news = asyncio.Event()
        self._idle = asyncio.Event()
        self._under_way = 0

    def put(self, post: Post) -> None:
        self._waiting.append(post)
        self._idle.clear()
        self._news.set()

    def clear(self) -> None:
        self._waiting.clear()
        self._under_way = 0

    def __len__(self) -> int:
        return len(self._waiting) + self._under_way

    async def drained(self) -> None:
        """Wait until nothing waits and everything has been acknowledged."""
        if len(self):
            await self._idle.wait()

    async def send(self, connection: Connection) -> None:
        """Publish for as long as the connection lives.

        Raises:
            ConnectionLost: it ended.
        """
        window = asyncio.Semaphore(WINDOW)
        async with asyncio.TaskGroup() as tasks:
            while True:
                while self._waiting:
                    await window.acquire()
                    self._under_way += 1
                    tasks.create_task(self._publish(connection, self._waiting.popleft(), window))
                self._news.clear()
                await self._news.wait()

    async def _publish(self, connection: Connection, post: Post, window: asyncio.Semaphore) -> None:
        try:
            await connection.publish(post.topic, post.payload, qos=1, retain=post.retain)
        except (PublishRefused, PacketTooLarge) as error:
            log.warning("%s", error)  # the others may still pass; what this one carried is asked for again
        else:
            self._sent(post)
        finally:
            window.release()
            self._under_way -= 1
            if not len(self):
                self._idle.set()
