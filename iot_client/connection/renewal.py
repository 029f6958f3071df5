"""Renewal of a device's credentials: requests new ones in time, processes the answer, and connects with them.

The files, and the order in which they are written, are those of `broker.provisioning.held_credentials`.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

from midge.broker import Connector, connector
from midge.broker.mqtt.connection import (
    BrokerError,
    Connection,
    ConnectionLost,
    Options,
    PublishRefused,
    SubscribeRefused,
)
from midge.broker.mqtt.endpoint import Endpoint
from midge.broker.provisioning.expiry import alarms
from midge.broker.provisioning.held_credentials import HeldCredentials
from midge.wire.clocks import DAY, SANE

log = logging.getLogger("iot_client")

_LOOK = 3600.0
"""Seconds between two checks of the clock; also the window over which a fleet's requests are spread."""


def connecting(held: HeldCredentials, connect: Callable[[Endpoint], Connector] = connector) -> Connector:
    """Connect with the newest credentials that the broker accepts; new ones are then adopted."""

    @asynccontextmanager
    async def make(options: Options) -> AsyncIterator[Connection]:
        async with AsyncExitStack() as stack:
            yield await _entered(held, connect, options, stack)

    return make


async def _entered(
    held: HeldCredentials, connect: Callable[[Endpoint], Connector], options: Options, stack: AsyncExitStack
) -> Connection:
    candidates = held.candidates()
    for place, candidate in enumerate(candidates, start=1):
        try:
            connection: Connection = await stack.enter_async_context(connect(candidate.endpoint)(options))
        except BrokerError as error:
            if place == len(candidates):
                raise
            log.info("%s: with %s credentials: %s", held.bundle.name, "the next" if candidate.new else "its", error)
            continue
        if candidate.new:
            try:
                await asyncio.to_thread(held.adopt)
            except OSError as error:  # the old ones stay in the bundle; both exist, and this is tried again
                log.warning("%s: its new credentials cannot be written: %s", held.bundle.name, error)
        return connection
    raise AssertionError("there is always one to try")


class Renewal:
    """The renewal of one device's credentials.

    Args:
        held: its credentials.
        tell: takes events.
        clock: seconds since 1970.
    """

    def __init__(
        self, held: HeldCredentials, tell: Callable[..., None], *, clock: Callable[[], float] = time.time
    ) -> None:
        self._held, self._tell, self._clock = held, tell, clock
        topics, name = held.bundle.topics, held.bundle.name
        self._asks_on, self._answered_on, self._authorities_on = (
            topics.renew(name),
            topics.renewed(name),
            topics.authorities,
        )
        self._news = asyncio.Event()
        self._changed = False
        """Whether there are new credentials to connect with."""
        self._said = self._trusted_then = b""
        self._outdated_since: float | None = None
        self._not_before = 0.0
        self._reconnected = float("-inf")
        self._alarmed: tuple[str, ...] = ()

    def expects(self, topic: str) -> bool:
        """Whether a message on this topic is for us."""
        return topic in (self._answered_on, self._authorities_on)

    def deliver(self, topic: str, payload: bytes) -> None:
        """Process an answer, or a list of authorities.

        Raises:
            WireError: it is not trusted.
        """
        if not payload:
            return
        if topic == self._authorities_on:
            if self._held.trust(payload):
                self._tell("authorities", digest=self._held.trusts.hex())
            if not self._held.outdated(payload):
                self._outdated_since = None
            elif self._outdated_since is None:
                self._outdated_since = self._clock()
        elif why := self._held.take(payload):
            log.warning("%s: new credentials are refused: %s", self._held.bundle.name, why)
            self._tell("renewal_refused", why=why)
            self._held.give_up()
            self._not_before = self._clock() + DAY
        else:
            self._changed = self._held.answered
        self._news.set()

    async def follow(self, connection: Connection, reconnect: Callable[[], Any]) -> None:
        """Request over this connection when it is time; `reconnect` is called once there are new credentials."""
        try:
            self._changed, sent = False, b""  # before a retained answer comes
            await connection.subscribe(self._answered_on, self._authorities_on)
            while True:
                self._news.clear()
                self._look()
                said = await asyncio.to_thread(self._current_message)
                if said not in (b"", sent, self._said):
                    await connection.publish(self._asks_on, said, retain=True)
                    sent = said
                    if said == self._held.asked:
                        self._tell("renewing")
                    else:
                        self._said = said
                # Once an hour: a broker that does not know the new ones yet accepts the old ones.
                if self._changed and self._clock() >= self._reconnected + _LOOK:
                    self._changed, self._reconnected = False, self._clock()
                    reconnect()
                    return
                with suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK):
                        await self._news.wait()
        except (PublishRefused, SubscribeRefused) as error:  # a broker with the rights of an earlier Midge
            log.info("%s: credentials cannot be renewed: %s", self._held.bundle.name, error)
        except ConnectionLost:
            return

    def _current_message(self) -> bytes:
        """The message to retain on our topic: a request, or whom we trust."""
        held, now = self._held, self._clock()
        held.forget_unused(now - DAY)
        outdated = self._outdated_since is not None and now >= self._outdated_since + _LOOK * held.place
        due = now >= SANE and now >= self._not_before and (now >= held.due() or outdated)
        if asked := held.asked:
            return asked
        if held.answered:
            return b""
        if due:
            return held.ask()
        return self._said if self._said and held.trusts == self._trusted_then else self._trust_report()

    def _trust_report(self) -> bytes:
        self._trusted_then = self._held.trusts
        return self._held.says()

    def _look(self) -> None:
        """Report what expires soon."""
        found = alarms(self._held.files, self._clock()) if self._clock() >= SANE else ()
        for alarm in found:
            if alarm not in self._alarmed:
                log.warning("%s: %s", self._held.bundle.name, alarm)
                self._tell("alarm", why=alarm)
        self._alarmed = found
