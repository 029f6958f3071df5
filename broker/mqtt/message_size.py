"""How large a message a broker takes, tried with one to ourselves.

A broker of MQTT 5 names the largest packet, and may take less all the same (Mosquitto's `message_size_limit`); one of
3.1.1 names nothing. What is too large comes to one of three things: a refusal, the end of the connection, or an
acknowledgement and nothing more. So a message counts as taken once it has come back.
"""

import asyncio
from contextlib import suppress

from midge.broker.mqtt.connection import BrokerRefused, Connection, ConnectionLost, PacketTooLarge, PublishRefused

TOO_LARGE = 0x95
"""MQTT's reason for what does not fit; MQTT 5, section 2.4."""
SIZE_REASONS = frozenset({0x80, 0x83, TOO_LARGE, 0x97})
"""Reasons that brokers give for what is too large: none, one of their own, "packet too large", "quota exceeded"."""
SMALLEST = 2048
"""Bytes that a broker must take: announcements and receipts cannot be cut."""
_NEAR = 16
"""What is found is less than this part of the limit away from it."""
_TRIES = 3
"""Messages that are gone without a word before it was their size: others are lost too."""
_ENDS = 2
"""Connections that end, likewise."""


class TriedTooMuch(ConnectionLost):
    """The connection ended while a size was tried. The next one goes on with the search."""


class SizeSearch:
    """The search for the largest payload that a broker takes; it goes on over connections.

    Args:
        topic: that its user may both publish and read, and on which nothing else is published.
        wanted: bytes; if they pass at once, nothing else is tried.
        patience: seconds for a message to come back.
    """

    def __init__(self, topic: str, wanted: int, *, patience: float = 10.0) -> None:
        self._topic, self._patience = topic, patience
        self._passed, self._refused = 0, wanted + 1
        self._size = wanted
        self._lost = self._number = 0
        self._near = _NEAR

    async def run(self, connection: Connection) -> int | None:
        """Search to the end, and return what was found; None if what is published there does not come back.

        Takes the connection's messages for itself: call it before any other reader.

        Raises:
            BrokerRefused: not even `SMALLEST` bytes pass.
            TriedTooMuch: the connection ended, perhaps for the size that was tried.
        """
        await connection.subscribe(self._topic)
        if not await self._passes(connection, 1):
            return None
        while not self._passed or self._refused - self._passed > max(1, self._refused // self._near):
            try:
                passes = await self._passes(connection, self._size)
            except ConnectionLost as error:
                self._lost += 1
                if self._lost >= _ENDS or error.reason in SIZE_REASONS:
                    self._near = 1  # a connection for each step: half of what is too large must do
                    self._learn(passed=False)
                raise TriedTooMuch(f"{error} It was tried how large a message the broker takes.") from error
            self._learn(passed=passes)
            if not self._passed and self._refused <= SMALLEST:
                raise BrokerRefused(
                    f"The broker takes no message of {SMALLEST:,} bytes: raise its limit, which Mosquitto calls "
                    "message_size_limit or max_packet_size."
                )
        await connection.unsubscribe(self._topic)
        return self._passed

    def _learn(self, *, passed: bool) -> None:
        self._lost = 0
        if passed:
            self._passed = self._size
        else:
            self._refused = self._size
        self._size = (self._passed + self._refused) // 2 if self._passed else max(self._refused // 2, 1)

    async def _passes(self, connection: Connection, size: int) -> bool:
        """Whether a payload of this size comes back before a small one that is sent behind it."""
        for _ in range(_TRIES):
            self._number += 1
            end = b"end %d" % self._number
            try:
                await connection.publish(self._topic, bytes(size))
            except (PacketTooLarge, PublishRefused):
                return False
            await connection.publish(self._topic, end)
            with suppress(TimeoutError):
                async with asyncio.timeout(self._patience):
                    async for delivery in connection.messages():
                        connection.ack(delivery)
                        if len(delivery.payload) == size:
                            return True
                        if delivery.payload == end:
                            break
        return False
