"""Watching the announcements of a federation over a separate connection."""

import asyncio
from contextlib import suppress

import aiomqtt

from midge.broker.mqtt.aiomqtt_client import listener
from midge.broker.mqtt.endpoint import Endpoint
from midge.wire import messages
from midge.wire.errors import WireError
from midge.wire.messages import Announcement
from midge.wire.topics import Topics

_RECONNECT_AFTER = 1.0
"""Seconds before reconnecting."""


class Watching:
    """Keeps the newest announcement of a federation."""

    def __init__(self, endpoint: Endpoint, topics: Topics) -> None:
        self._endpoint, self._topics = endpoint, topics
        self.newest: Announcement | None = None
        self.announced = asyncio.Event()
        """Set once there is one."""

    async def serve(self) -> None:
        """Listen until cancelled. The devices report why a broker cannot be reached, since they need it too."""
        while True:
            with suppress(aiomqtt.MqttError):
                async with listener(self._endpoint, "watch") as client:
                    await client.subscribe(self._topics.announcement())
                    async for message in client.messages:
                        self._take(message.payload)
            await asyncio.sleep(_RECONNECT_AFTER)

    def _take(self, payload: object) -> None:
        if isinstance(payload, bytes | bytearray):
            with suppress(WireError):
                self.newest = messages.decode_announcement(bytes(payload))
                self.announced.set()
