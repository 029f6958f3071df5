"""Observes a federation at its broker: what is retained, receipts, and the aggregator's answers to questions."""

import asyncio
import random
import secrets
import time
from collections.abc import Callable

from midge.broker.mqtt.connection import (
    BrokerError,
    Connection,
    Connector,
    Options,
    PublishRefused,
    SubscribeRefused,
)
from midge.broker.mqtt.federation_view import ASK
from midge.dashboard.state import FederationState

_SOONEST = 2.0
"""Least seconds between two questions."""
_UNWATCHED = 5.0
"""The same while no page is open: only the curves need the answers."""
_SHARE = 100.0
"""Questions take at most one part in this many of the time, beside what the aggregator allows itself."""
_LARGEST = 2**20
"""Bytes of the largest message that is read."""


class FederationObserver:
    """Feeds a state from one broker, until cancelled; it connects again by itself.

    Args:
        state: takes everything.
        connect: the operator's connector.
        watched: whether a page is open.
        wall: seconds since 1970.
    """

    def __init__(
        self,
        state: FederationState,
        connect: Connector,
        watched: Callable[[], bool] = lambda: True,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._state, self._connect, self._watched, self._wall = state, connect, watched, wall
        self._busy = 0.0
        """Seconds of processor time that the last answer took."""

    async def run(self) -> None:
        """Observe, for ever."""
        pause = 1.0
        while True:
            try:
                options = Options(f"midge-watch-{secrets.token_hex(6)}", largest=_LARGEST)
                async with self._connect(options) as connection:
                    self._state.connected(connection.limits, self._wall())
                    pause = 1.0
                    await self._observe(connection)
            except BrokerError as error:
                self._state.disconnected(str(error), self._wall())
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - spreads load
            pause = min(2 * pause, 15.0)

    async def _observe(self, connection: Connection) -> None:
        state = self._state
        await connection.subscribe(*state.view.retained, qos=0)
        if not await self._may(connection, f"{state.topics.prefix}/receipt/+"):
            state.notice("receipts", "This user may not read receipts: verdicts are those of the last five minutes.")
        asking = None
        if await self._may(connection, state.topics.overview):
            asking = asyncio.create_task(self._ask(connection), name="ask")
        else:
            state.unasked("this user may not read the aggregator's answers.")
        try:
            async for delivery in connection.messages():
                began = time.process_time()
                for each in (delivery, *connection.waiting()):
                    connection.ack(each)
                    state.take(each, self._wall())
                    if each.topic == state.topics.overview:
                        self._busy += time.process_time() - began
                        began = time.process_time()
        finally:
            if asking is not None:
                asking.cancel()
                await asyncio.gather(asking, return_exceptions=True)

    async def _may(self, connection: Connection, topic: str) -> bool:
        try:
            await connection.subscribe(topic, qos=0)
        except SubscribeRefused:
            return False
        return True

    async def _ask(self, connection: Connection) -> None:
        """Ask now and then, as often as answers are cheap. A lost connection ends the reader as well."""
        while True:
            if self._state.serves:
                self._busy = 0.0
                try:
                    await connection.publish(self._state.topics.ask, ASK, qos=1)
                except PublishRefused as error:
                    self._state.unasked(str(error))
                    return
                self._state.asked(self._wall())
            await asyncio.sleep(_SOONEST / 4)  # until the answer is there, its cost is not known
            least = _SOONEST if self._watched() else _UNWATCHED
            await asyncio.sleep(max(least - _SOONEST / 4, _SHARE * self._busy))
