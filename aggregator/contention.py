"""Detection of a second aggregator for this federation: a copied store, or a machine that was thought dead.

Each start has a fencing token, higher than that of every earlier start. A starting aggregator asks on a topic that only
aggregators use, and decides nothing until its question has gone unanswered for a while; a serving one answers at once,
and the one that asked ends. Receipts carry the token, and devices obey the highest that they have seen. An aggregator
that was suspended or cut off sees in the retained status that another has taken over, before it processes anything, and
ends.

With a release key, only signed messages count. Without one, a status alone ends no aggregator: its sender must also
answer.
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
"""Seconds that another aggregator has to answer; the second if its status says that it serves, because it may be busy
with a step."""
_SERVING = (AggregatorState.READY, AggregatorState.PAUSED)
_AGAIN = 10.0
"""Least seconds between two statuses that are questioned: a forger must not block everything."""


class AnotherAggregator(StoreError):
    """Another aggregator serves this federation."""


class Contention:
    """One start of an aggregator among others.

    Args:
        federation: the federation that it serves.
        boot: random bits of this start.
        publish_status: publishes our status again.
        insists: whether to serve although another one did since this store was written: a standby leaves that to its
            operator.
    """

    def __init__(
        self, federation: FederationRuntime, boot: int, publish_status: Callable[[], None], *, insists: bool = False
    ) -> None:
        self._issuer, self._topics, self._lineage = federation.issuer, federation.config.topics, federation.core.lineage
        self._boot, self._raise_token, self._publish_status = boot, federation.issued.raise_token, publish_status
        standby = federation.config.standby.follow and not insists
        self._newest = federation.issued.before if standby else MOST_TOKEN
        """The highest token with which another one may have served before this start."""
        self.serving = False
        """Whether this start has decided anything."""
        self._seen = 0
        """The highest token in another's status."""
        self._asking = 0
        """The number of our pending question; 0 if there is none."""
        self.due: float | None = None
        """Deadline of an answer to a question that was asked while we serve."""
        self._may_ask = self._may_publish = float("-inf")
        """Earliest times at which another's status is questioned again, and at which ours replaces it."""
        self._displaced = False
        """Whether another status has replaced ours."""
        self._held: list[Delivery] = []
        """Messages received while an answer is pending: none of them is decided until then."""

    # ------------------------------------------------------------------- at connect

    async def contend(self, connection: Connection, retained: Sequence[Delivery]) -> None:
        """Ask whether another one serves, before anything is decided.

        Args:
            connection: new, and not read by anything else meanwhile.
            retained: messages on our topics, the status among them.

        Raises:
            AnotherAggregator: another one serves, or has taken over since we did.
        """
        self._held.clear()
        self._seen, self.due = 0, None
        statuses = [delivery.payload for delivery in retained if delivery.topic == self._topics.aggregator]
        others = [other for payload in statuses if (other := self._foreign_status(payload))]
        for other in others:
            if self.serving and self._issuer.signs and other.token > self._issuer.token:
                raise AnotherAggregator(self._taken_over)
            if not self.serving and other.token > self._newest:
                raise AnotherAggregator(self._served_since)
            self._seen = max(self._seen, other.token)
        try:
            await connection.subscribe(self._topics.claim, self._topics.aggregator)
            if others or not statuses or not self.serving:  # otherwise our own message stands there
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
                    if delivery.topic == self._topics.claim and (answer := self._process_claim(delivery.payload)):
                        await connection.publish(self._topics.claim, answer)
        self._asking = 0

    # ------------------------------------------------------------------ while serving

    async def sift(self, connection: Connection, batch: Sequence[Delivery], now: float) -> list[Delivery] | None:
        """The messages of devices; None while an answer is pending, when nothing may be decided.

        Raises:
            AnotherAggregator: another one has taken over.
        """
        for delivery in batch:
            if delivery.topic == self._topics.claim:
                if (answer := self._process_claim(delivery.payload)) is not None:
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
        if self._displaced and now >= self._may_publish:
            # By a forger, or by an earlier start's will: devices would hold back their updates.
            self._displaced, self._may_publish = False, now + 1.0
            self._publish_status()
        found, self._held = self._held, []
        return found

    def _status(self, payload: bytes) -> None:
        """Process a status on our topic that is not ours.

        Raises:
            AnotherAggregator: a later start serves, and has signed that.
        """
        if payload and not self._is_own(payload):
            self._displaced = True
            if (other := self._foreign_status(payload)) is not None:
                # It may be too busy to answer a question, and has accepted what this store does not have.
                if self._issuer.signs and other.state in _SERVING and other.token > self._issuer.token:
                    raise AnotherAggregator(self._taken_over)
                self._seen = max(self._seen, other.token)

    # ----------------------------------------------------------------------- messages

    def _is_own(self, payload: bytes) -> bool:
        with suppress(WireError):
            return messages.decode(AggregatorStatus, payload)[0].boot == self._boot
        return False

    def _foreign_status(self, payload: bytes) -> AggregatorStatus | None:
        """Another aggregator's status, if it is trusted."""
        with suppress(WireError):
            status, _ = messages.decode(AggregatorStatus, payload)
            if status.boot != self._boot and status.token <= MOST_TOKEN and self._issuer.is_own_message(payload):
                return status
        return None

    def _question(self) -> bytes:
        self._asking = secrets.randbits(62) + 1
        return self._claim(number=self._asking)

    def _claim(self, *, number: int = 0, to: int = 0) -> bytes:
        token = self._issuer.token
        return self._issuer.own_message(
            Claim(boot=self._boot, lineage=self._lineage, token=token, number=number, to=to)
        )

    def _process_claim(self, payload: bytes) -> bytes | None:
        """Process another one's claim; return the answer if it is a question.

        Raises:
            AnotherAggregator: it answers our question, or is a question of one with precedence.
        """
        try:
            claim, _ = messages.decode(Claim, payload)
        except WireError as error:
            log.warning("A claim to be this federation's aggregator cannot be read: %s", error)
            return None
        if claim.boot == self._boot or not self._issuer.is_own_message(payload):
            return None
        goes_first = (claim.token, claim.boot) > (self._issuer.token, self._boot)
        if claim.number:
            if not self.serving and goes_first:  # both are starting
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
    def _served_since(self) -> str:
        return (
            f"Another aggregator has served federation {self._topics.federation!r} since this store was written, which "
            "may lack what that one accepted."
        )

    @property
    def _taken_over(self) -> str:
        return (
            f"Another aggregator has taken federation {self._topics.federation!r} over since this one was last heard, "
            "and devices follow that one. Start this one again only once that is stopped, or with --standby to follow "
            "it."
        )
