"""Reports on the aggregator to the device's owner: its state, or that no aggregator was announced."""

import asyncio
import logging
from contextlib import suppress

from midge.broker.mqtt.connection import Connection, ConnectionLost, SubscribeRefused
from midge.iot_client.parts import EventLog
from midge.wire.messages import AggregatorStatus
from midge.wire.topics import Topics, explain_absence

log = logging.getLogger("iot_client")

_PATIENCE = 4.0
"""Seconds after connecting until the aggregator's retained status must have arrived: a slow link takes one or two."""
_GATHERING = 1.5
"""Seconds in which the broker sends the retained statuses of all federations."""


class AggregatorWatch:
    """The watch of one device.

    Args:
        topics: of its federation.
        tell: takes events; a state and its reason are reported once until they change.
    """

    def __init__(self, topics: Topics, tell: EventLog) -> None:
        self._topics, self._tell = topics, tell
        self._told: tuple[str, str] | None = None
        """The last reported state and reason; None before the first."""
        self._announced: set[str] | None = None
        """Federations heard of while their names are collected, otherwise None."""
        self._looked = False

    @property
    def known(self) -> str:
        """A short description of the aggregator's state."""
        return self._told[0] if self._told is not None else "not announced" if self._looked else "not heard"

    def seen(self, status: AggregatorStatus) -> None:
        """Process the aggregator's status."""
        found = status.state.value, status.why
        if found != self._told:
            self._told = found
            self._tell("aggregator", state=status.state.value, why=status.why, version=status.version)
            if status.why or not status.state.serves:
                self._log(f"The aggregator is {status.state.value}{': ' + status.why if status.why else '.'}")

    def _log(self, words: str) -> None:
        """Log it if there is no listener."""
        if self._tell.listener is None:
            log.warning("%s: %s", self._tell.name, words)

    def expects(self, topic: str) -> bool:
        """Whether this topic is the status of an aggregator while names are collected."""
        return self._announced is not None and topic != self._topics.aggregator and topic.endswith("/aggregator")

    def deliver(self, topic: str, payload: bytes) -> None:
        """Record the name of a federation."""
        if payload and self._announced is not None:
            self._announced.add(topic.removeprefix(f"{self._topics.root}/").partition("/")[0])

    async def follow(self, connection: Connection) -> None:
        """If no status came over this connection, report that once, with the federations that are announced."""
        await asyncio.sleep(_PATIENCE)
        if self._told is not None or self._looked:
            return
        self._looked, self._announced = True, set()  # once: a broker may punish it
        try:
            with suppress(SubscribeRefused):
                await connection.subscribe(self._topics.of_all_aggregators, qos=0)
                await asyncio.sleep(_GATHERING)
                await connection.unsubscribe(self._topics.of_all_aggregators)
            if self._told is None:
                why = explain_absence(self._topics, self._announced)
                self._tell("unannounced", why=why)
                self._log(why)
        except ConnectionLost:
            return
        finally:
            self._announced = None
