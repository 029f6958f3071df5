"""Whether another aggregator serves this federation: one store on two machines, or a machine thought dead.

Each start has a token, higher than that of every start before. A start asks on a topic that only aggregators use, and
decides nothing until its question has gone unanswered for a while; who serves answers at once, and the one that asked
ends. Receipts carry the token, and devices settle by the highest that they have seen. An aggregator that was stopped or
cut off learns from the retained status that another has taken over, before it takes anything in, and ends.

Where there is a release key, only what it has signed counts. Where there is none, a status alone ends none: whoever
says it must also answer.
"""

import asyncio
import logging
import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress

from midge.aggregator.federation import FederationRuntime
from midge.aggregator.store.errors import StoreError
from midge.broker.mqtt.connection import Connection, Delivery, PublishRefused, SubscribeRefused
from midge.wire import messages
from midge.wire.errors import WireError
from midge.wire.messages import MOST_TOKEN, AggregatorState, AggregatorStatus, Claim

log = logging.getLogger("aggregator")

PATIENCE, LONG_PATIENCE = 1.0, 3.0
"""Seconds that another aggregator has to answer; and if its status says that it serves: it may be busy with a step."""


_SERVING = (AggregatorState.READY, AggregatorState.PAUSED)
_AGAIN = 10.0
"""Seconds between two statuses that are questioned: whoever may forge them must not hold everything up."""


class AnotherAggregator(StoreError):
    """Another aggregator serves this federation."""


class Contention:
    """One start of an aggregator among others.

    Args:
        federation: what it serves.
        boot: random bits of this start.
        say_status: publishes our status again.
    """

    def __init__(self, federation: FederationRuntime, boot: int, say_status: Callable[[], None]) -> None:
        self._issuer, self._topics, self._lineage = federation.issuer, federation.config.topics, federation.core.lineage
        self._boot, self._raise_token, self._say_status = boot, federation.raise_token, say_status
        self.serving = False
        """Whether this start has decided on anything."""
        self._seen = 0
        """The highest token of another, as its status says."""
        self._asking = 0
        """The number of the question whose answer is waited for; 0 if none is."""
        self.due: float | None = None
        """Until when an answer is waited for while we serve."""
        self._may_ask = self._may_say = float("-inf")
        """From when on a status of another is questioned again, and ours put in its place."""
        self._displaced = False
        """Whether another status stands where ours must."""
        self._held: list[Delivery] = []
        """What came while an answer is waited for: nothing of it is decided on until then."""

    # --------------------------------------------------------------------- at a connect

    async def contend(self, connection: Connection, retained: Sequence[Delivery]) -> None:
        """Ask whether another serves, before anything is decided.

        Args:
            connection: new, and read by nothing else meanwhile.
            retained: what stands on our topics, the status among it.

        Raises:
            AnotherAggregator: another serves, or has taken over since we did.
        """
        self._held.clear()
        self._seen, self.due = 0, None
        statuses = [delivery.payload for delivery in retained if delivery.topic == self._topics.aggregator]
        others = [other for payload in statuses if (other := self._other(payload))]
        for other in others:
            if self.serving and self._issuer.signs and other.token > self._issuer.token:
                raise AnotherAggregator(self._taken_over)
            self._seen = max(self._seen, other.token)
        try:
            await connection.subscribe(self._topics.claim, self._topics.aggregator)
            if others or not statuses or not self.serving:  # otherwise our own word stands there
                served = any(other.state in _SERVING for other in others)
                await self._ask(connection, LONG_PATIENCE if served else PATIENCE)
        except (SubscribeRefused, PublishRefused) as error:
            log.warning("Whether another aggregator serves cannot be asked: %s", error)
        self._raise_token(self._seen)

    async def _ask(self, connection: Connection, patience: float) -> None:
        await connection.publish(self._topics.claim, self._question())
        with suppress(TimeoutError):
            async with asyncio.timeout(patience):
                async for delivery in connection.messages():
                    connection.ack(delivery)
                    if delivery.topic == self._topics.claim and (answer := self._heard(delivery.payload)):
                        await connection.publish(self._topics.claim, answer)
        self._asking = 0

    # -------------------------------------------------------------------- while it serves

    async def sift(self, connection: Connection, batch: Sequence[Delivery], now: float) -> list[Delivery] | None:
        """What devices have said; None while an answer is waited for, when nothing may be decided.

        Raises:
            AnotherAggregator: another has taken over.
        """
        for delivery in batch:
            if delivery.topic == self._topics.claim:
                if (answer := self._heard(delivery.payload)) is not None:
                    await connection.publish(self._topics.claim, answer)
            elif delivery.topic == self._topics.aggregator:
                self._status(delivery.payload)
            else:
                self._held.append(delivery)
                continue
            connection.ack(delivery)
        if self.due is not None and now >= self.due:
            self._asking, self.due = 0, None
            self._raise_token(self._seen)
        elif self.due is None and self._seen > self._issuer.token and now >= self._may_ask:
            self._may_ask, self.due = now + _AGAIN, now + PATIENCE
            await connection.publish(self._topics.claim, self._question())
        if self.due is not None:
            return None
        if self._displaced and now >= self._may_say:
            # By a forged one, or by the will of an earlier start: devices would hold their updates for it.
            self._displaced, self._may_say = False, now + 1.0
            self._say_status()
        found, self._held = self._held, []
        return found

    def _status(self, payload: bytes) -> None:
        """Note a status on our topic that is not ours."""
        if payload and not self._own(payload):
            self._displaced = True
            if (other := self._other(payload)) is not None:
                self._seen = max(self._seen, other.token)

    # ----------------------------------------------------------------------------- words

    def _own(self, payload: bytes) -> bool:
        with suppress(WireError):
            return messages.decode(AggregatorStatus, payload)[0].boot == self._boot
        return False

    def _other(self, payload: bytes) -> AggregatorStatus | None:
        """Another aggregator's status that is to be heeded."""
        with suppress(WireError):
            status, _ = messages.decode(AggregatorStatus, payload)
            if status.boot != self._boot and status.token <= MOST_TOKEN and self._issuer.said_by_us(payload):
                return status
        return None

    def _question(self) -> bytes:
        self._asking = secrets.randbits(62) + 1
        return self._claim(number=self._asking)

    def _claim(self, *, number: int = 0, to: int = 0) -> bytes:
        token = self._issuer.token
        return self._issuer.said(Claim(boot=self._boot, lineage=self._lineage, token=token, number=number, to=to))

    def _heard(self, payload: bytes) -> bytes | None:
        """What another's claim is answered with, if it is a question.

        Raises:
            AnotherAggregator: it is an answer to ours, or a question of one that goes first.
        """
        try:
            claim, _ = messages.decode(Claim, payload)
        except WireError as error:
            log.warning("A claim to be this federation's aggregator cannot be read: %s", error)
            return None
        if claim.boot == self._boot or not self._issuer.said_by_us(payload):
            return None
        goes_first = (claim.token, claim.boot) > (self._issuer.token, self._boot)
        if claim.number:
            if not self.serving and goes_first:  # both start
                raise AnotherAggregator(self._serves)
            return self._claim(to=claim.number)
        if self._asking and claim.to == self._asking and (not self.serving or goes_first):
            raise AnotherAggregator(self._taken_over if self.serving else self._serves)
        return None

    @property
    def _serves(self) -> str:
        return (
            f"Another aggregator serves federation {self._topics.federation!r} under {self._topics.root!r}, perhaps "
            "from a copy of this store: stop it first, or give this one another federation name."
        )

    @property
    def _taken_over(self) -> str:
        return (
            f"Another aggregator has taken federation {self._topics.federation!r} over since this one was last heard, "
            "and devices follow that one. Start this one again only once that is stopped."
        )
