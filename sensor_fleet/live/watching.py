"""What is announced, heard over a connection of one's own."""

import asyncio
import secrets
from contextlib import suppress

from broker import ConnectionLost, Connector, Options
from wire import messages
from wire.errors import WireError
from wire.messages import Announcement
from wire.topics import Topics

_AGAIN = 1.0
"""Seconds before a connection that was lost is made again."""


class Watching:
    """Keeps the newest announcement of a federation."""

    def __init__(self, connect: Connector, topics: Topics) -> None:
        self._connect, self._topics = connect, topics
        self.newest: Announcement | None = None
        self.announced = asyncio.Event()
        """Whether there is one."""

    async def serve(self) -> None:
        """Listen, for ever.

        Raises:
            BrokerError: the broker is not to be reached.
        """
        while True:
            with suppress(ConnectionLost):
                async with self._connect(Options(client_id=f"midge-watch-{secrets.token_hex(6)}")) as connection:
                    await connection.subscribe(self._topics.announcement(), qos=0)
                    async for delivery in connection.messages():
                        with suppress(WireError):
                            self.newest = messages.decode_announcement(delivery.payload)
                            self.announced.set()
            await asyncio.sleep(_AGAIN)
