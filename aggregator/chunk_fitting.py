"""Chunk sizes that fit the broker: its announced limit, and the limit found by trials."""

import logging
from collections.abc import Callable

from midge.aggregator.federation import FederationRuntime
from midge.aggregator.publish.publish_queue import Post
from midge.broker.mqtt.connection import BrokerError, BrokerRefused, Connection, ConnectionLost, PacketTooLarge
from midge.broker.mqtt.message_size import SIZE_REASONS, SMALLEST, SizeSearch
from midge.broker.mqtt.services import least

log = logging.getLogger("aggregator")

OVERHEAD = 1024
"""Bytes of topic and headers around a chunk's body, generously."""
_DEVICE_OVERHEAD = 4096
"""The same for a device's message, whose header may hold 32 metrics: the chunk size suits both."""


class ChunkFitting:
    """The size limit of one broker. Searched once per process, and again if a message is refused for its size.

    Args:
        topic: used only for the search.
        tell: takes an event, by name and fields.
    """

    def __init__(self, topic: str, tell: Callable[..., None]) -> None:
        self._topic, self._tell = topic, tell
        self._search: SizeSearch | None = None
        """The search in progress; it continues over several connections."""
        self._largest: int | None = None
        """Bytes of the largest message that the broker takes; None until known."""

    async def fit(self, connection: Connection, federation: FederationRuntime) -> None:
        """Set the chunk size so that chunks pass. Takes the connection's messages for itself.

        Raises:
            BrokerRefused: the broker's limit is too small for a federation.
            TriedTooMuch: the connection ended because of a message that was tried.
        """
        limits = connection.limits
        if not limits.retain_available:
            raise BrokerRefused(
                "The broker keeps no retained messages, by which devices find the model: allow them (Mosquitto: "
                "retain_available true), or take another broker."
            )
        named = least(limits.maximum_packet_size, limits.service.retained)
        federation.fit_chunks(None if named is None else named - OVERHEAD)
        wanted = federation.shelf.chunk + OVERHEAD
        if self._largest is None:
            self._search = self._search or SizeSearch(self._topic, wanted)
            self._largest = await self._search.run(connection) or wanted
        if self._largest < wanted:
            federation.fit_chunks(self._body)
            if self._search is not None:
                self._report_limit(federation.shelf.chunk)
        self._search = None

    def _report_limit(self, chunk: int) -> None:
        why = (
            f"The broker takes messages of {self._largest:,} bytes and no larger ones, so models and updates go in "
            f"chunks of {chunk:,} bytes. Raise its limit (Mosquitto: message_size_limit, max_packet_size) for fewer "
            "messages."
        )
        log.warning("%s", why)
        self._tell("limited", why=why, largest=self._largest, chunk=chunk)

    @property
    def _body(self) -> int:
        """Bytes of a body that fit into the largest message, beside a device's or our own header."""
        assert self._largest is not None
        return max(self._largest - _DEVICE_OVERHEAD, self._largest // 2)

    def refused(self, post: Post, error: BrokerError) -> None:
        """Search again if the broker refuses a message of a size that it should take.

        Raises:
            ConnectionLost: the search begins on the next connection.
        """
        sized = isinstance(error, PacketTooLarge) or getattr(error, "reason", 0) in SIZE_REASONS
        if sized and self._largest is not None and SMALLEST < len(post.payload) <= self._largest:
            self._largest = None
            raise ConnectionLost(f"{error} The broker's size limit is determined again.")
