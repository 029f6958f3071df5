"""Follows the values of a site's tensors, which its gateway publishes at the site's broker."""

import asyncio
import logging

from midge.broker.mqtt.connection import BrokerError, Connection, ConnectionLost
from midge.iot_client.parts import DeviceParts
from midge.wire.messages import AggregatorStatus

log = logging.getLogger("iot_client")


class SiteChannel:
    """The tensors of one device's site.

    Args:
        parts: of the device.
    """

    def __init__(self, parts: DeviceParts) -> None:
        self._parts, self._site = parts, parts.personal.site
        self._news = asyncio.Event()

    def seen(self, status: AggregatorStatus) -> None:
        """Follow the aggregator, by its verified status."""
        self._site.seen(status)
        if self._parts.identity.site_size:
            self._news.set()

    def expects(self, topic: str) -> bool:
        """Whether a message on this topic has such values."""
        return topic == self._parts.topics.site_values

    def deliver(self, payload: bytes) -> None:
        """Take values.

        Raises:
            WireError: they are none, not trusted, or older than known ones.
        """
        parts = self._parts
        header, values = parts.identity.site_values(payload)
        if self._site.take(header, values):
            parts.tell("site_values", site=header.name, devices=header.devices)
            parts.predicting.refresh()

    async def follow(self, connection: Connection) -> None:
        """Subscribe over this connection, once a gateway says that it has such tensors: others cost nothing."""
        self._news.clear()
        await self._news.wait()
        try:
            await connection.subscribe(self._parts.topics.site_values, qos=0)
        except ConnectionLost:
            return
        except BrokerError as error:
            log.warning("%s: the site's tensors are not followed: %s", self._parts.config.name, error)
