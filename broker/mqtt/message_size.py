"""Search for the largest message that a broker takes, by sending messages to ourselves.

An MQTT 5 broker announces its largest packet, but may take less (Mosquitto's `message_size_limit`); one of 3.1.1
announces nothing. A message that is too large is refused, ends the connection, or is acknowledged and dropped. So a
message counts as taken once it has come back.
"""

import asyncio
from contextlib import suppress

from midge.broker.mqtt.connection import BrokerRefused, Connection, ConnectionLost, PacketTooLarge, PublishRefused

TOO_LARGE = 0x95
"""MQTT's reason code "packet too large"; MQTT 5, section 2.4."""
SIZE_REASONS = frozenset({0x80, 0x83, TOO_LARGE, 0x97})
"""Reason codes that brokers give for oversized messages: unspecified, implementation specific, too large, quota
exceeded."""
SMALLEST = 2048
"""Bytes that a broker must take: announcements and receipts cannot be cut."""
_NEAR = 16
"""Precision of the search, as a fraction of the limit."""
_TRIES = 3
"""Lost messages before the size is blamed: others are lost too."""
_ENDS = 2
"""Lost connections before the size is blamed."""


class TriedTooMuch(ConnectionLost):
    """The connection ended while a size was tried. The search continues with the next one."""


class SizeSearch:
    """The search for the largest payload that a broker takes; it continues over several connections.

    Args:
        topic: one that its user may both publish and read, and that nothing else uses.
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
        """Search to the end and return the size; None if messages on the topic do not come back.

        Takes the connection's messages for itself: call it before any other reader.

        Raises:
            BrokerRefused: not even `SMALLEST` bytes pass.
            TriedTooMuch: the connection ended, perhaps because of the size that was tried.
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
                    self._near = 1  # each step may cost a connection: half of a size that failed is tried next
                    self._learn(passed=False)
                raise TriedTooMuch(f"{error} The size limit of the broker was being determined.") from error
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
        """Whether a payload of this size comes back before a small one that is sent after it."""
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
