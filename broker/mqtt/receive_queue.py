"""The reading side of one connection: what has come, what of it is to be acknowledged, and why it is over."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence

from midge.broker.mqtt.connection import ConnectionLost, Delivery


class Token:
    """A delivery's handle. It is compared by identity, so that none of another connection passes for ours."""

    __slots__ = ("packet_id",)

    def __init__(self, packet_id: int) -> None:
        self.packet_id = packet_id


class Inbox:
    """What every `broker.mqtt.connection.Connection` keeps of messages, whoever brings them."""

    def __init__(self) -> None:
        self.loss: ConnectionLost | None = None
        """Why the connection is over; None while it stands."""
        self._arrived: deque[Delivery] = deque()
        self._news = asyncio.Event()
        self._unacknowledged: dict[int, Token] = {}

    def expect_ack(self, packet_id: int) -> Token:
        """The handle of a delivery at QoS 1."""
        token = self._unacknowledged[packet_id] = Token(packet_id)
        return token

    def put(self, delivery: Delivery) -> None:
        """Take a message in, and wake the reader."""
        self._arrived.append(delivery)
        self._news.set()

    def end(self, loss: ConnectionLost) -> None:
        """The connection is over: the reader gets what has come, and then this."""
        self.loss = loss
        self._news.set()

    async def messages(self) -> AsyncIterator[Delivery]:
        """As of a `Connection`."""
        while True:
            while self._arrived:
                yield self._arrived.popleft()
            self.raise_if_lost()
            self._news.clear()
            await self._news.wait()

    def waiting(self) -> Sequence[Delivery]:
        """As of a `Connection`."""
        taken = tuple(self._arrived)
        self._arrived.clear()
        return taken

    def settle(self, delivery: Delivery) -> int | None:
        """The packet id to acknowledge; None where there is none, it was, or this is another connection or over."""
        token = delivery.token
        if self.loss is not None:
            return None
        if not isinstance(token, Token) or self._unacknowledged.get(token.packet_id) is not token:
            return None
        del self._unacknowledged[token.packet_id]
        return token.packet_id

    def lost(self) -> ConnectionLost:
        """A fresh exception for each who waits: a shared one would gather everybody's traceback."""
        assert self.loss is not None
        return ConnectionLost(str(self.loss), taken_over=self.loss.taken_over, reason=self.loss.reason)

    def raise_if_lost(self) -> None:
        """Raise where the connection is over.

        Raises:
            ConnectionLost: it is.
        """
        if self.loss is not None:
            raise self.lost()
