"""The helper's decisions on deposits: it trusts neither the aggregator nor the broker, and journals before it answers.

- An update counts if a device of the roster has signed it. The aggregator cannot add devices.
- A set has updates of at least K_min distinct devices for each base, one of each device; the helper deals it and
  computes its weights.
- A seed is used once, under whatever identity it comes.
- A sum that was dealt is repeated byte for byte, until the aggregator says that it has it.
"""

import hashlib
import logging
import secrets
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from midge.mask_helper.config import HelperConfig
from midge.mask_helper.dealing import Hand, deal
from midge.mask_helper.ledger import Ledger
from midge.mask_helper.opening_keys import OpeningKeys
from midge.storage.failpoints import failpoint
from midge.storage.files import make_folder
from midge.wire import chunks, envelopes, frames, masking, sealing, signing
from midge.wire.errors import WireError
from midge.wire.messages import decode
from midge.wire.messages.masking import Dealt, Deposit, HelperStatement, Piece, Rejected, SumMember, Ticket

log = logging.getLogger("mask_helper")

TICKETS = 512
"""Most tickets of a deposit."""
PIECE = 64 * 1024
"""Bytes of an answer in one message."""
_WAIT = 2
"""Updates of one device that wait at most: one before them, whose version the others have left, is refused …"""
_PASSED = 4
"""… and one after which this multiple of the roster's number of updates have come."""
_ERASED = "the key that its seed was sealed to has been erased"
_VALUES = 2**26
"""Most values of a sum: more would use up the memory."""


class MaskHelper:
    """Sums masks for one federation. It knows no connection.

    Args:
        config: of the helper.
        clock: seconds since 1970.

    Raises:
        DatabaseError, DiskFull: its ledger cannot be used.
    """

    def __init__(self, config: HelperConfig, clock: Callable[[], float] = time.time) -> None:
        self._config = config
        make_folder(Path(config.directory))
        self._ledger = Ledger(Path(config.directory))
        self._ledger.open()
        self._keys = OpeningKeys(
            Path(config.directory) / "opening.keys", clock, config.keep, hybrid=config.post_quantum
        )
        if self._keys.dealt > self._ledger.dealt:
            log.warning("The ledger in %s is an old copy. Its opening keys are erased.", config.directory)
            self._keys.erase()
            self._tell("restored")
        self._keys.answered(self._ledger.dealt)
        self._keys.roll()

    def close(self) -> None:
        """Close the ledger."""
        self._ledger.close()

    def _tell(self, event: str, **fields: Any) -> None:
        if self._config.on_event is not None:
            self._config.on_event({"event": event, "time": time.time(), **fields})

    # ------------------------------------------------------------------------- its keys

    def roll(self) -> bool:
        """Make today's key and erase old ones. Returns whether the statement changed."""
        return self._keys.roll()

    def statement(self) -> bytes:
        """The signed statement of the current keys, to be retained."""
        config = self._config
        return envelopes.sign_statement(
            config.key,
            HelperStatement(
                federation=config.federation,
                store=self._ledger.store,
                keys=self._keys.stated,
                least=config.least,
                roster=masking.roster_digest(config.roster),
                devices=len(config.roster),
            ),
        )

    # -------------------------------------------------------------------------- deposits

    def take(self, payload: bytes) -> list[bytes]:
        """Process a deposit. When this returns, what it decided is durable.

        Returns:
            The messages to send.

        Raises:
            WireError: it is no deposit of this federation's aggregator.
        """
        deposit, tickets = self._read(payload)
        ledger, lineage = self._ledger, deposit.lineage
        acknowledgement = Dealt(store=ledger.store, lineage=lineage, answers=deposit.number, turn=deposit.turn)
        if deposit.turn < (newest := ledger.turn(lineage)):
            # A broker may repeat what it carried. An aggregator that has restarted goes on from here.
            late = acknowledgement.model_copy(update={"answers": 0, "turn": newest})
            return list(_pieces(self._sealed(late, b"", deposit)))
        before = ledger.dealt
        with ledger.transaction():
            ledger.take_turn(lineage, deposit.turn)
            if deposit.store == ledger.store:
                ledger.forget(lineage, deposit.after)
            judged = [(ticket, self._consider(deposit, ticket)) for ticket in tickets]
            judged += self._refuse(lineage, self._erased(lineage), _ERASED)
            while self._deal(deposit):
                pass
            judged += self._refuse(lineage, self._left(lineage), "too few devices have trained from its version")
        self._keys.answered(ledger.dealt)
        failpoint("helper.answered")
        if ledger.dealt > before:
            self._tell("dealt", sums=ledger.dealt - before, number=ledger.dealt)
        after = deposit.after if deposit.store == ledger.store else 0
        rejected = {
            (each.device, each.outbox, each.seq): Rejected(
                device=each.device, outbox=each.outbox, seq=each.seq, why=why[:400]
            )
            for each, why in judged
            if why
        }
        told = acknowledgement.model_copy(update={"rejected": tuple(rejected.values())})
        answers = [self._sealed(told, b"", deposit)]
        if (found := ledger.answer(lineage, after)) is not None:
            answers.append(found)
        return [piece for answer in answers for piece in _pieces(answer)]

    def _read(self, payload: bytes) -> tuple[Deposit, list[Ticket]]:
        deposit, rest = decode(Deposit, payload)
        body, signature = rest[: -signing.SIGNATURE], rest[-signing.SIGNATURE :]
        head, federation = signing.head_of(payload, rest), self._config.federation
        if not any(key.verifies(signature, signing.DEPOSIT, federation, head) for key in self._config.release_keys):
            raise signing.BadSignature("the deposit is not signed by the federation's release key")
        if not chunks.fits(body, deposit.sha256):
            raise WireError("the tickets are not those that were signed")
        listed = frames.unpack(body, items=TICKETS)
        if not isinstance(listed, tuple) or not all(isinstance(each, bytes) for each in listed):
            raise WireError("the tickets are no array of frames")
        return deposit, [frames.validate(Ticket, frames.decode(each)[0]) for each in listed]

    def _consider(self, deposit: Deposit, ticket: Ticket) -> str:
        """Add an update to those that wait. Returns why it is refused for ever; empty if it is not."""
        lineage, ledger = deposit.lineage, self._ledger
        if (known := ledger.state(lineage, ticket)) is not None:
            number, why = known
            if number:
                # The aggregator holds it although it has the sum: its store was restored, or a set could not be used.
                return "" if ledger.holds(number) else f"its mask is in sum {number}, which was answered"
            return why
        try:
            why = self._add(lineage, ticket)
        except WireError as error:
            why = str(error)
            if isinstance(error, signing.BadSignature):
                return why  # not recorded: anyone may have written it in the device's name
        if why:
            ledger.reject(lineage, ticket, why)
        return why

    def _add(self, lineage: bytes, ticket: Ticket) -> str:
        config = self._config
        if (public := config.roster.get(ticket.device)) is None:
            raise signing.BadSignature("it is of a device that is not on the helper's roster")
        entry = masking.read_entry(ticket, config.federation, lineage, public)
        if entry.part >= entry.slices:
            return "there is no such slice"
        if len(ticket.base_digest) != masking.DIGEST:
            return f"the digest of its base has {len(ticket.base_digest)} bytes, not {masking.DIGEST}"
        if entry.noise and not entry.honest:
            return "it says not how many devices share its noise"
        room = masking.room(entry.ring, entry.levels, entry.noise, entry.honest)
        if (least := max(entry.least, config.least)) > room:
            return f"a sum needs {least} devices, and its ring has room for {room}"
        if (private := self._keys.private(entry.key)) is None:
            return _ERASED
        seed = masking.open_seed(config.federation, lineage, ticket, entry, private)
        known = self._ledger.versions(lineage).get((ticket.generation, ticket.base))
        if known is not None and known != ticket.base_digest:
            return "its device trained from another model than others did under that number"
        return "" if self._ledger.add(lineage, ticket, entry, seed) else "its seed was used before"

    # ------------------------------------------------------------------------------ sums

    def _deal(self, deposit: Deposit) -> bool:
        """Deal the next sets, if there are any."""
        lineage, ledger = deposit.lineage, self._ledger
        hands = deal(
            ledger.waiting(lineage),
            ledger.versions(lineage),
            size=deposit.size,
            least=self._config.least,
            groups=deposit.groups,
            shuffle=secrets.SystemRandom().shuffle,
        )
        if not hands or not 0 < deposit.values <= _VALUES:
            return False
        for hand in hands:
            number = ledger.dealt + 1
            ledger.deal(lineage, hand, number, self._summed(deposit, hand, number))
        return True

    def _erased(self, lineage: bytes) -> list[int]:
        """Numbers of updates that wait, and whose seeds cannot be opened any more."""
        return [number for number, _, key in self._ledger.queue(lineage) if self._keys.private(key) is None]

    def _left(self, lineage: bytes) -> list[int]:
        """Numbers of updates that wait for company that will not come: it would be for ever."""
        by_device: dict[str, list[int]] = defaultdict(list)
        queue, oldest = self._ledger.queue(lineage), self._ledger.newest - _PASSED * len(self._config.roster)
        for number, device, _ in queue:
            by_device[device].append(number)
        left = {number for numbers in by_device.values() for number in numbers[:-_WAIT]}
        return [number for number, _, _ in queue if number in left or number <= oldest]

    def _refuse(self, lineage: bytes, numbers: Sequence[int], why: str) -> list[tuple[Ticket, str]]:
        """Refuse updates that waited too long, for ever."""
        self._ledger.expire(lineage, numbers, why)
        return [(self._ledger.ticket(number), why) for number in numbers]

    def _summed(self, deposit: Deposit, hand: Hand, number: int) -> bytes:
        """The answer with the sum of a set's masks."""
        lineage, entry = deposit.lineage, hand.updates[0].entry
        tickets = [self._ledger.ticket(update.number) for update in hand.updates]
        count = masking.places(lineage, deposit.values, entry.slices, entry.part).size
        rows = (
            (weight, masking.mask(self._seed(lineage, ticket), count, entry.ring))
            for weight, ticket in zip(hand.weights, tickets, strict=True)
        )
        body = masking.pack(masking.weighted(rows, count, entry.ring), entry.ring)
        members = tuple(
            SumMember(device=ticket.device, outbox=ticket.outbox, seq=ticket.seq, weight=weight)
            for weight, ticket in zip(hand.weights, tickets, strict=True)
        )
        dealt = Dealt(
            store=self._ledger.store,
            lineage=lineage,
            answers=deposit.number,
            number=number,
            members=members,
            ring=entry.ring,
            levels=entry.levels,
            scale=entry.scale,
            slices=entry.slices,
            part=entry.part,
        )
        return self._sealed(dealt, body, deposit)

    def _seed(self, lineage: bytes, ticket: Ticket) -> bytes:
        entry = masking.parse_entry(ticket.entry)
        private = self._keys.private(entry.key)
        assert private is not None  # those without one were expired
        return masking.open_seed(self._config.federation, lineage, ticket, entry, private)

    def _sealed(self, dealt: Dealt, body: bytes, deposit: Deposit) -> bytes:
        """An answer, signed, then sealed to the aggregator: the broker must not learn a sum of masks."""
        federation = self._config.federation
        head = frames.encode(dealt.model_copy(update={"sha256": chunks.checksum(body)}))
        signed = signing.sign_frame(self._config.key, signing.HELPER, federation, head, body)
        return sealing.seal(signed, deposit.seal_key, masking.answer_info(federation, dealt.lineage))


def _pieces(answer: bytes) -> Iterator[bytes]:
    """An answer in messages that any broker takes."""
    parts, digest = -(-len(answer) // PIECE), hashlib.sha256(answer).digest()[:16]
    for part in range(parts):
        header = Piece(sha256=digest, part=part, parts=parts)
        yield frames.encode(header, answer[part * PIECE : (part + 1) * PIECE])
