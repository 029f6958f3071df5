"""The mask helper as a process: reads deposits from the broker, and publishes its keys and its answers."""

import asyncio
import logging
import secrets
import time
from typing import Any

from midge.broker.mqtt.connection import BrokerError, Connection, Delivery, Options
from midge.broker.mqtt.waiting import batches, happened
from midge.mask_helper.config import HelperConfig
from midge.mask_helper.helper import PIECE, TICKETS, MaskHelper
from midge.wire.errors import WireError

log = logging.getLogger("mask_helper")

_PAUSE, _LONGEST_PAUSE = 0.5, 30.0
_TEND = 60.0
"""Seconds between two checks whether a new key is due."""
_LARGEST = PIECE + 4096 * TICKETS
"""Bytes of the largest deposit that is read."""


class HelperService:
    """Serves one federation until it is stopped.

    Args:
        config: of the helper.
    """

    def __init__(self, config: HelperConfig) -> None:
        self._config = config
        self._stop = asyncio.Event()

    def stop(self) -> None:
        """End `serve`. To be called in its loop."""
        self._stop.set()

    async def serve(self) -> None:
        """Answer deposits until stopped; reconnects by itself.

        Raises:
            BrokerError: the very first connection failed.
            DatabaseError, DiskFull: the ledger cannot be used.
        """
        helper, pause, before = MaskHelper(self._config), _PAUSE, False
        try:
            while not self._stop.is_set():
                name = f"midge-{self._config.federation}-helper-{secrets.token_hex(4)}"
                try:
                    async with self._config.connector(Options(client_id=name, largest=_LARGEST)) as connection:
                        before, pause = True, _PAUSE
                        self._tell("connected")
                        await self._answer(connection, helper)
                except BrokerError as error:
                    if not before:
                        raise
                    log.info("%s Trying again in about %.0f s.", error, pause)
                    self._tell("disconnected", why=str(error), refused=False)
                    await happened(self._stop, pause)
                    pause = min(2 * pause, _LONGEST_PAUSE)
        finally:
            helper.close()

    async def _answer(self, connection: Connection, helper: MaskHelper) -> None:
        topics = self._config.topics
        await connection.subscribe(topics.deposit)
        helper.roll()
        await connection.publish(topics.helper, helper.statement(), retain=True)
        async with batches(connection, self._stop) as batch:
            while not self._stop.is_set():
                deliveries = await batch(_TEND)
                if helper.roll():
                    await connection.publish(topics.helper, helper.statement(), retain=True)
                for delivery in deliveries:
                    await self._take(connection, helper, delivery)

    async def _take(self, connection: Connection, helper: MaskHelper, delivery: Delivery) -> None:
        try:
            for answer in helper.take(delivery.payload):
                await connection.publish(self._config.topics.dealt, answer)
        except WireError as error:
            log.warning("A deposit is dropped: %s", error)
            self._tell("dropped", why=str(error))
        connection.ack(delivery)

    def _tell(self, event: str, **fields: Any) -> None:
        if self._config.on_event is not None:
            self._config.on_event({"event": event, "time": time.time(), **fields})
