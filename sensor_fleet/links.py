"""Emulated links between devices and the broker, with the population's speeds, outages and duplicates.

A `DeviceLink` is a `Connector` that wraps connections in a `LinkedConnection`, so that the device that uses it is
unchanged. It duplicates some messages, cuts the connection when an outage begins, and delays a new one until the outage
is over. Outages are timers rather than tasks, since a fleet has thousands of links. Only the loop's clock is used, so
links run on a virtual clock as well.
"""

import asyncio
import math
import os
import socket
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import replace

from midge.broker.mqtt.connection import (
    BrokerUnreachable,
    Connection,
    ConnectionLost,
    Connector,
    Delivery,
    Options,
)
from midge.broker.mqtt.paho_session import PahoSession
from midge.sensor_fleet.linked_connection import PUBACK, Lane, LinkedConnection
from midge.sensor_fleet.profiles.population import Population

HANDSHAKE = 90
"""Approximate bytes of a CONNECT with a Last Will."""

PATIENCE = 60.0
"""Timeout of a connection attempt in seconds: the machine serves many others."""
_NEVER = (math.inf, math.inf)

Sever = Callable[[Connection, str], None]
"""Ends the connection of a client id without a DISCONNECT, so that the broker publishes its Last Will."""


def sever(connection: Connection, _client_id: str) -> None:
    """End a connection through paho as a dead link does: shut its socket down without a DISCONNECT."""
    assert isinstance(connection, PahoSession)
    watched = connection.client.socket()
    if watched is not None:
        with suppress(OSError), socket.socket(fileno=os.dup(watched.fileno())) as raw:  # below TLS and WebSockets
            raw.shutdown(socket.SHUT_RDWR)


class DeviceLink:
    """The link of one device; a `Connector`. It works from the start, and has outages once `begin` is called.

    Args:
        connector: makes connections to the broker.
        population: gives the link's speed, outages and duplicates.
        device: the device's name.
        sever: ends a connection without a DISCONNECT.
        watch: called with each message as the device receives it.
        gate: held from a connection attempt until `establish`, to limit concurrent attempts.
        framed: whether handshakes, headers and acknowledgements take time too.
        patient: whether an unreachable broker counts as a lost connection even before the first one, so that the device
            retries: for a fleet whose aggregator has reached the broker.
    """

    def __init__(
        self,
        connector: Connector,
        population: Population,
        device: str,
        *,
        sever: Sever = sever,
        watch: Callable[[Delivery], None] = lambda _: None,
        gate: asyncio.Semaphore | None = None,
        framed: bool = False,
        patient: bool = False,
    ) -> None:
        self._connector, self._population, self._device = connector, population, device
        self._sever, self._watch, self._gate = sever, watch, gate
        self._framed, self._patient = framed, patient
        self.on_outage: Callable[[], None] = self.cut
        """Called when an outage begins, to end the connection."""
        self.connected = self.established = False
        """Whether a connection exists, and whether the device has sent its greeting over it."""
        self._outages = population.outages(device)
        self._outage = next(self._outages, _NEVER)
        """The current outage, or the next one."""
        self._away: asyncio.Future[None] | None = None
        """Done when the outage ends; None if there is no outage."""
        self._origin = 0.0
        self._open: LinkedConnection | None = None
        self._up, self._down = self._lanes()
        self._earlier = (0, 0)
        """Bytes of earlier connections."""
        self._sent = 0
        self._in_gate = self._closed = False

    @property
    def whole_at_first(self) -> bool:
        """Whether it has no outage when the fleet begins."""
        return self._outage[0] > 0

    @property
    def moved(self) -> tuple[int, int]:
        """Bytes sent and received over all connections, MQTT overhead included if `framed`."""
        up, down = self._earlier
        return up + self._up.moved, down + self._down.moved

    def begin(self, origin: float) -> None:
        """Start the population's outages, in seconds since `origin` on the loop's clock."""
        self._origin = origin
        self._expect_outage()

    def cut(self) -> None:
        """Cut the current connection: messages in transit are lost, and no DISCONNECT is sent."""
        if self._open is not None:
            self._open.cut("The link broke.")

    def close(self) -> None:
        """Stop waiting for outages, and have no more of them: the device is about to end."""
        self._closed = True
        self._come_back()

    def establish(self) -> None:
        """Let the next device connect: this one has sent its greeting."""
        self.established = self.connected
        if self._in_gate and self._gate is not None:
            self._in_gate = False
            self._gate.release()

    # ------------------------------------------------------------------------- outages

    def _expect_outage(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time() - self._origin
        while self._outage[1] <= now:
            self._outage = next(self._outages, _NEVER)
        if self._outage[0] <= now:
            self._break()
        elif self._outage[0] < math.inf:
            loop.call_at(self._origin + self._outage[0], self._break)

    def _break(self) -> None:
        if self._closed:
            return
        loop = asyncio.get_running_loop()
        self._away = loop.create_future()
        self.on_outage()
        if self._outage[1] < math.inf:
            loop.call_at(self._origin + self._outage[1], self._heal)

    def _heal(self) -> None:
        self._come_back()
        if not self._closed:
            self._expect_outage()

    def _come_back(self) -> None:
        away, self._away = self._away, None
        if away is not None and not away.done():
            away.set_result(None)

    # ---------------------------------------------------------------------- connecting

    def __call__(self, options: Options) -> AbstractAsyncContextManager[Connection]:
        """Connect through the link, after any outage and once the gate is free.

        Raises (on entering):
            ConnectionLost: an outage began meanwhile, or the link is closed; or the broker is unreachable, if
                `patient`.
            BrokerError: raised by the inner connector.
        """
        return self._connect(replace(options, timeout=max(options.timeout, PATIENCE)))

    @asynccontextmanager
    async def _connect(self, options: Options) -> AsyncGenerator[Connection, None]:
        while self._away is not None:
            await self._away
        if self._gate is not None:
            await self._gate.acquire()
            self._in_gate = True
        try:
            self._raise_if_gone()  # an outage may have begun while waiting for the gate
            await self._shake_hands()
            async with self._connector(options) as inner:
                if self._gone:
                    self._sever(inner, options.client_id)
                    self._raise_if_gone()
                connection = self._open = self._around(inner, options.client_id)
                self.connected = True
                try:
                    yield connection
                finally:
                    self._open, self.connected, self.established = None, False, False
                    await connection.close()
        except BrokerUnreachable as error:
            if self._patient:
                raise ConnectionLost(str(error)) from error
            raise
        finally:
            self.establish()

    async def _shake_hands(self) -> None:
        """Wait for the TCP and MQTT handshakes on this link, with empty lanes."""
        self._earlier = self.moved
        self._up, self._down = self._lanes()
        if self._framed:
            now, latency = asyncio.get_running_loop().time(), self._population.link(self._device).latency
            there = self._up.enter(HANDSHAKE, now + 2 * latency)
            await asyncio.sleep(self._down.enter(PUBACK, there) - now)

    def _around(self, inner: Connection, client_id: str) -> LinkedConnection:
        return LinkedConnection(
            inner,
            self._up,
            self._down,
            break_off=lambda: self._sever(inner, client_id),
            twice=self._twice,
            watch=self._watch,
            framed=self._framed,
        )

    def _twice(self) -> bool:
        """Whether the next message is duplicated."""
        self._sent += 1
        return self._population.twice > 0 and self._population.twice_sent(self._device, self._sent)

    @property
    def _gone(self) -> bool:
        return self._closed or self._away is not None

    def _raise_if_gone(self) -> None:
        if self._gone:
            raise ConnectionLost(f"The link of {self._device} is broken.")

    def _lanes(self) -> tuple[Lane, Lane]:
        link = self._population.link(self._device)
        return Lane(link.bandwidth, link.latency), Lane(link.down, link.latency)
