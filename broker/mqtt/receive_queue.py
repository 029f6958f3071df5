"""The receiving side of one connection: arrived messages, pending acknowledgements, and the reason of its end."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from itertools import takewhile

from midge.broker.mqtt.connection import ConnectionLost, Delivery


class Token:
    """A delivery's handle. Compared by identity, so that handles of other connections are not accepted."""

    __slots__ = ("packet_id", "settled")

    def __init__(self, packet_id: int) -> None:
        self.packet_id = packet_id
        self.settled = False


class Inbox:
    """Received messages of a connection, for any implementation of `broker.mqtt.connection.Connection`."""

    def __init__(self) -> None:
        self.loss: ConnectionLost | None = None
        """Why the connection ended; None while it stands."""
        self._arrived: deque[Delivery] = deque()
        self._news = asyncio.Event()
        self._unacknowledged: dict[int, Token] = {}
        """By packet id, in order of arrival."""

    def expect_ack(self, packet_id: int) -> Token:
        """Make the handle of a delivery at QoS 1."""
        token = self._unacknowledged[packet_id] = Token(packet_id)
        return token

    def put(self, delivery: Delivery) -> None:
        """Add a message, and wake the reader."""
        self._arrived.append(delivery)
        self._news.set()

    def end(self, loss: ConnectionLost) -> None:
        """End the connection: the reader gets what has arrived, and then this error."""
        self.loss = loss
        self._news.set()

    async def messages(self) -> AsyncIterator[Delivery]:
        """As in `Connection`."""
        while True:
            while self._arrived:
                yield self._arrived.popleft()
            self.raise_if_lost()
            self._news.clear()
            await self._news.wait()

    def waiting(self) -> Sequence[Delivery]:
        """As in `Connection`."""
        taken = tuple(self._arrived)
        self._arrived.clear()
        return taken

    def settle(self, delivery: Delivery) -> list[int]:
        """The packet ids to acknowledge now; none for QoS 0, a duplicate call, another connection, or one that ended.

        Acknowledgements must be sent in the order in which the messages arrived (MQTT 5, section 4.6), and rumqttd
        disconnects for one that is not. So one waits for those of all earlier messages.
        """
        token = delivery.token
        if self.loss is not None:
            return []
        if not isinstance(token, Token) or self._unacknowledged.get(token.packet_id) is not token:
            return []
        token.settled = True
        ready = [each.packet_id for each in takewhile(lambda each: each.settled, self._unacknowledged.values())]
        for packet_id in ready:
            del self._unacknowledged[packet_id]
        return ready

    def lost(self) -> ConnectionLost:
        """A new exception for each waiter: a shared one would collect everyone's traceback."""
        assert self.loss is not None
        return ConnectionLost(str(self.loss), taken_over=self.loss.taken_over, reason=self.loss.reason)

    def raise_if_lost(self) -> None:
        """Raise if the connection is over.

        Raises:
            ConnectionLost: it is.
        """
        if self.loss is not None:
            raise self.lost()
