"""Proofs that updates of this device are in releases: asked of the aggregator, verified here.

It needs no running device: a second connection reads the announcement, whose signature covers the root of the log, and
asks on the device's own topic. What was verified before is remembered beside the outbox, so that a log whose history
was changed is found.
"""

import asyncio
import json
import os
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from midge.broker.mqtt.connection import Connection, Connector, Delivery, Options
from midge.iot_client.session.trust import Trust
from midge.iot_client.state.given import GivenUpdate
from midge.storage.files import atomic_write
from midge.wire import frames, messages
from midge.wire.errors import WireError
from midge.wire.ledger import Head, LoggedRelease, TakenUpdate, Unproven, check
from midge.wire.messages import Announcement
from midge.wire.messages.proofs import Proof, Prove
from midge.wire.topics import Topics

PATIENCE = 10.0
"""Seconds to wait for the announcement, and for each proof."""


class NotAnswered(Exception):
    """The broker or the aggregator did not answer; the message says which."""


@dataclass(frozen=True, slots=True)
class Proven:
    """What was found about one update."""

    given: GivenUpdate
    release: LoggedRelease | None
    """The release that has it; None if that is not proven."""
    weight: float = 0.0
    why: str = ""
    """Why there is no proof."""
    forged: bool = False
    """Whether the aggregator gave a proof that proves nothing: then it is lying, or its log was changed."""


@dataclass(frozen=True, slots=True)
class VerifiedHead:
    """The head of a federation's log that was verified last, in a file beside the outbox."""

    path: Path

    def read(self, lineage: bytes) -> Head | None:
        """The head of this lineage's log; None if there is none."""
        with suppress(OSError, ValueError, KeyError, TypeError):
            kept = json.loads(self.path.read_text())
            if kept["lineage"] == lineage.hex():
                return Head(int(kept["entries"]), bytes.fromhex(kept["root"]))
        return None

    def write(self, lineage: bytes, head: Head) -> None:
        """Replace it."""
        kept = {"lineage": lineage.hex(), "entries": head.size, "root": head.root.hex()}
        atomic_write(self.path, json.dumps(kept).encode())


async def prove(
    connector: Connector,
    topics: Topics,
    device: str,
    updates: Sequence[GivenUpdate],
    *,
    trust: Trust,
    verified: VerifiedHead,
    now: tuple[float, float],
) -> list[Proven]:
    """Ask for the proofs of some updates and verify them.

    Args:
        connector: to the broker.
        topics: of the federation.
        device: the name that gave them.
        updates: what the device remembers of them.
        trust: verifies the announcement.
        verified: the head that was verified before; replaced if all proofs hold.
        now: the clock's seconds since 1970, and seconds of a monotonic clock.

    Raises:
        BrokerError: the connection failed.
        NotAnswered: nothing was announced, or there was no answer.
        Unproven: the log is shorter than the one that was verified before, or gone.
        WireError: the announcement is not to be trusted.
    """
    client = f"midge-proof-{os.getpid()}-{secrets.token_hex(4)}"
    async with connector(Options(client_id=client)) as connection:
        deliveries = aiter(connection.messages())
        await connection.subscribe(topics.announcement(), topics.receipt(device))
        announcement = await _announced(connection, deliveries, topics, trust, now)
        head = Head.unpacked(announcement.ledger)
        earlier = verified.read(announcement.lineage)
        if head is None and earlier is not None:
            raise Unproven(
                f"no log of releases is announced, and one of {earlier.size} entries was when this device verified it: "
                "it was removed, or the aggregator is now an older one, or a gateway's"
            )
        if head is None:
            raise NotAnswered("The federation keeps no log of its releases: its aggregator is older, or a gateway's.")
        if earlier is not None and earlier.size > head.size:
            raise Unproven(
                f"the log has {head.size} entries, and had {earlier.size} when this device verified it: its store was "
                "restored from a copy, or its history was changed"
            )
        found = []
        for given in updates:
            asked = Prove(
                outbox=given.outbox, seq=given.seq, entries=head.size, earlier=0 if earlier is None else earlier.size
            )
            await connection.publish(topics.update(device), frames.encode(asked))
            found.append(_verified(given, await _answer(connection, deliveries, asked), head, earlier))
    if not any(one.forged for one in found) and any(one.release for one in found):
        verified.write(announcement.lineage, head)
    return found


def _verified(given: GivenUpdate, proof: Proof, head: Head, earlier: Head | None) -> Proven:
    if proof.why:
        return Proven(given, None, why=proof.why)
    taken = TakenUpdate(given.outbox, given.seq, given.body, proof.generation, given.base, proof.version, proof.weight)
    try:
        return Proven(given, check(proof, head, taken, earlier), proof.weight)
    except Unproven as error:
        return Proven(given, None, why=str(error), forged=True)


async def _announced(
    connection: Connection, deliveries: AsyncIterator[Delivery], topics: Topics, trust: Trust, now: tuple[float, float]
) -> Announcement:
    try:
        async with asyncio.timeout(PATIENCE):
            while True:
                delivery = await anext(deliveries)
                connection.ack(delivery)
                if delivery.topic == topics.announcement() and delivery.payload:
                    return trust.announcement(delivery.payload, *now)
    except TimeoutError:
        raise NotAnswered(f"Nothing is announced on {topics.announcement()}: does the aggregator serve?") from None


async def _answer(connection: Connection, deliveries: AsyncIterator[Delivery], asked: Prove) -> Proof:
    try:
        async with asyncio.timeout(PATIENCE):
            while True:
                delivery = await anext(deliveries)
                connection.ack(delivery)
                with suppress(WireError):  # receipts come on the same topic
                    proof, _ = messages.decode(Proof, delivery.payload)
                    if (proof.outbox, proof.seq, proof.entries) == (asked.outbox, asked.seq, asked.entries):
                        return proof
    except TimeoutError:
        raise NotAnswered(
            "The aggregator does not answer: it is away, older than its log, or takes no more requests of this device "
            "for now."
        ) from None
