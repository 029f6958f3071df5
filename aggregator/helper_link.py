"""The aggregator's side of the mask helper: names accepted updates to it, and makes steps of its answers.

All of it can be lost with the process: after a restart every waiting update is named again, and the helper repeats the
answers that are not in the journal. A helper that is away delays steps; the updates stay in the journal.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from midge.aggregator.core import records as rec
from midge.aggregator.core.core import AggregatorCore
from midge.aggregator.core.masked_sums import SumName
from midge.aggregator.engine import Engine
from midge.aggregator.ingress.filter import Bodies
from midge.aggregator.model.unmasking import Opened
from midge.aggregator.processor import Processor
from midge.aggregator.publish.announcement_signer import AnnouncementSigner
from midge.aggregator.publish.outlet import Outlet
from midge.aggregator.publish.publish_queue import Post
from midge.broker.mqtt.connection import Delivery
from midge.storage.failpoints import failpoint
from midge.storage.key_files import read_key
from midge.wire import chunks, envelopes, frames, masking, messages, sealing, signing
from midge.wire.errors import WireError
from midge.wire.messages.masking import Dealt, Deposit, Piece, Ticket
from midge.wire.topics import Topics

log = logging.getLogger("aggregator")

_AGAIN = 5.0
"""Seconds after which an unanswered deposit is sent again."""
_AT_ONCE, _REPEATED = 128, 16
"""Most tickets of a deposit: about 64 KB; and those of known updates: the helper may have refused one meanwhile."""
_LONGEST = 2**28
"""Most bytes of an answer."""
_AWAY = 30.0
"""Seconds without an answer after which the helper counts as away."""


@dataclass(slots=True)
class _Assembling:
    """Pieces of one answer."""

    parts: dict[int, bytes] = field(default_factory=dict)
    size: int = 0


class HelperLink:
    """Talks to the mask helper of one federation.

    Args:
        topics: of the federation.
        key: the helper's public key, pinned: PEM, or a file.
        issuer: signs deposits, and opens answers.
        bodies: holds the sum of a step until it is journaled.
        outlet: takes messages and events.

    Raises:
        KeyUnusable: the key cannot be read.
    """

    def __init__(
        self, topics: Topics, key: bytes | str | Path, issuer: AnnouncementSigner, bodies: Bodies, outlet: Outlet
    ) -> None:
        self._key = signing.read_public(*read_key(key, "the mask helper's key"))
        self._topics, self._issuer, self._bodies, self._outlet = topics, issuer, bodies, outlet
        self._deposited: set[int] = set()
        """Waiting updates, by lsn, that the helper has."""
        self._number = self._turn = 0
        self._asked: tuple[float, int, tuple[int, ...]] | None = None
        """When the unanswered deposit was sent, its number, and its updates."""
        self._since: float | None = None
        """Since when an answer is owed."""
        self._again_at = float("-inf")
        self._assembling: dict[bytes, _Assembling] = {}
        self._told_away = False

    @property
    def filters(self) -> tuple[str, str]:
        """What to subscribe to."""
        return self._topics.helper, self._topics.dealt

    def hears(self, delivery: Delivery) -> bool:
        """Whether a message is of the helper."""
        return delivery.topic in self.filters

    # ------------------------------------------------------------------------ answers

    def take(self, deliveries: Sequence[Delivery], engine: Engine, processor: Processor, now: float) -> None:
        """Process the helper's messages. When this returns, the steps that they make are durable.

        Raises:
            StoreFull: there is no room for one; the helper repeats its answer.
        """
        for delivery in deliveries:
            try:
                if delivery.topic == self._topics.helper:
                    self._state(delivery.payload, processor)
                elif (answer := self._assembled(delivery.payload)) is not None:
                    self._answered(*self._read(answer, engine.store.lineage), engine, processor, now)
            except WireError as error:
                self._outlet.meters.dropped["helper"] += 1
                log.warning("A message of the mask helper is dropped: %s.", error)

    def _state(self, payload: bytes, processor: Processor) -> None:
        """Announce the helper's keys, if they are new."""
        if not payload or payload == self._issuer.helper:
            return
        envelopes.read_statement(payload, self._topics.federation, [self._key])
        self._issuer.helper = payload
        processor.announce()

    def _assembled(self, payload: bytes) -> bytes | None:
        piece, body = messages.decode(Piece, payload)
        found = self._assembling.setdefault(piece.sha256, _Assembling())
        if piece.part not in found.parts:
            found.parts[piece.part], found.size = bytes(body), found.size + len(body)
        if found.size > _LONGEST or len(self._assembling) > 8:
            self._assembling.clear()
            raise WireError("an answer is too large, or too many are incomplete")
        if len(found.parts) < piece.parts:
            return None
        del self._assembling[piece.sha256]
        whole = b"".join(found.parts[part] for part in sorted(found.parts))
        if not chunks.fits(whole, piece.sha256):
            raise WireError("the pieces of an answer do not fit together")
        return whole

    def _read(self, answer: bytes, lineage: bytes) -> tuple[Dealt, memoryview]:
        """Open an answer."""
        info, plain = masking.answer_info(self._topics.federation, lineage), b""
        for private in self._issuer.seal_keys:
            try:
                plain = sealing.unseal(answer, private, info)
            except WireError:
                continue
            break
        else:
            raise WireError("an answer is not sealed to this aggregator")
        header, rest = frames.decode(plain)
        body, signature = rest[: -signing.SIGNATURE], rest[-signing.SIGNATURE :]
        head = signing.head_of(plain, rest)
        if not self._key.verifies(signature, signing.HELPER, self._topics.federation, head):
            raise signing.BadSignature("an answer is not signed by the mask helper")
        dealt = frames.validate(Dealt, header)
        if not chunks.fits(body, dealt.sha256):
            raise WireError("an answer's body is not the one that was signed")
        return dealt, body

    def _answered(self, dealt: Dealt, body: memoryview, engine: Engine, processor: Processor, now: float) -> None:
        self._since = None
        if self._told_away:
            self._told_away = False
            self._outlet.tell("helper_back")
        if dealt.turn > self._turn:
            # This process has restarted: the helper takes no deposit that may be an old one, repeated by the broker.
            self._turn, self._asked, self._again_at = dealt.turn, None, float("-inf")
        if self._asked is not None and dealt.answers == self._asked[1] and not dealt.number:
            self._deposited |= set(self._asked[2])
            self._asked = None
        core = processor.shell.core
        by_name = self._by_name(core, engine)
        lost = {
            by_name[key]: each.why
            for each in dealt.rejected
            if (key := (each.device, each.outbox, each.seq)) in by_name
        }
        if lost:
            log.warning(
                "The mask helper refuses %d updates, which are dropped: %s.", len(lost), next(iter(lost.values()))
            )
            self._outlet.tell("unsummed", dropped=len(lost), why=next(iter(lost.values())))
            processor.shell.carry_out(core.note(core.sums.drop(lost, "unsummed")), now)
        name = SumName(dealt.store, dealt.number)
        if dealt.number and core.sums.is_new(name):
            self._again_at = float("-inf")  # so that the helper learns of it, and sends the next
            self._step(name, dealt, body, by_name, engine, processor, now)

    def _by_name(self, core: AggregatorCore, engine: Engine) -> dict[tuple[str, int, int], int]:
        """The lsns of the updates that wait, by device, outbox and seq."""
        found = {}
        for _, lsn in core.sums.waiting:
            record = engine.store.record(lsn)
            assert isinstance(record, rec.UpdateRecord)
            found[record.device, record.outbox, record.seq] = lsn
        return found

    def _step(  # noqa: PLR0917 - one answer and its surroundings
        self,
        name: SumName,
        dealt: Dealt,
        body: memoryview,
        by_name: dict[tuple[str, int, int], int],
        engine: Engine,
        processor: Processor,
        now: float,
    ) -> None:
        core, store = processor.shell.core, engine.store
        keys = [(each.device, each.outbox, each.seq) for each in dealt.members]
        held = [by_name[key] for key in keys if key in by_name]
        if len(held) < len(keys):
            # Without one of the bodies, the sum of the masks opens nothing.
            log.warning("Sum %d of the mask helper has an update that is not held here; it is dropped.", name.number)
            why = "an update of its sum is not held here: its device was revoked, or the store was restored"
            self._outlet.tell("unsummed", dropped=len(held), why=why)
            processor.shell.carry_out(core.note(core.sums.drop(held, "unsummed", name)), now)
            return
        count = masking.places(store.lineage, engine.model.schema.size, dealt.slices, dealt.part).size
        rows = (
            (each.weight, masking.unpack(store.body(by_name[key]), count, dealt.ring))
            for each, key in zip(dealt.members, keys, strict=True)
        )
        bases = [record.base for lsn in held if isinstance(record := store.record(lsn), rec.UpdateRecord)]
        opened = Opened.of(dealt, masking.unpack(body, count, dealt.ring), rows, min(bases))
        plan = core.strategy.plan.masking
        assert plan is not None
        factor = opened.factor(plan)
        if factor < 1:
            log.warning("Sum %d is %.1f times longer than its devices may make it.", name.number, 1 / factor)
            self._outlet.tell("sum_too_long", factor=factor, devices=len(held))
        weights = {by_name[key]: each.weight for each, key in zip(dealt.members, keys, strict=True)}
        key = self._bodies.keep(memoryview(opened.pack()))
        failpoint("sum.opened")
        if core.strategy.groups > 1:
            processor.shell.carry_out(core.note(core.sums.group(name, weights, dealt.part, factor), key), now)
        else:
            processor.shell.carry_out(core.note(core.sums.step(name, weights, factor), key), now)
        core.sums.made(now)
        self._bodies.drop(key)
        self._deposited -= set(held)
        self._combine(engine, processor, now)

    def _combine(self, engine: Engine, processor: Processor, now: float) -> None:
        """Make a step of the sums that wait, if there are enough."""
        core = processor.shell.core
        if not (groups := core.sums.complete(now)):
            return
        outliers = engine.outlying(groups)
        before = set(core.suspects)
        failpoint("sum.combined")
        processor.shell.carry_out(core.note(core.sums.group_step(groups, outliers)), now)
        core.sums.made(now)
        for device in sorted(set(core.suspects) - before):
            log.warning("Sums with updates of %s lie far from the others: its updates are held back.", device)
            self._outlet.tell("suspected", device=device)

    # ----------------------------------------------------------------------- deposits

    def look(self, processor: Processor, engine: Engine, now: float) -> None:
        """Name updates to the helper that it does not have, and ask for the next sum.

        Raises:
            StoreFull: there is no room for a step of the sums that wait.
        """
        core = processor.shell.core
        self._combine(engine, processor, now)
        waiting = [lsn for _, lsn in core.sums.waiting]
        self._deposited &= set(waiting)
        new = [lsn for lsn in waiting if lsn not in self._deposited][:_AT_ONCE]
        if self._asked is not None and now < self._asked[0] + _AGAIN:
            return
        if not new and (not waiting or now < self._again_at):
            return
        self._number += 1
        self._turn += 1
        if not new:
            first = self._number * _REPEATED % len(waiting)
            new = waiting[first : first + _REPEATED]
        self._asked, self._again_at = (now, self._number, tuple(new)), now + _AGAIN
        self._since = now if self._since is None else self._since
        if now > self._since + _AWAY and not self._told_away:
            self._told_away = True
            log.warning("The mask helper has not answered for %.0f s: steps wait for it.", now - self._since)
            self._outlet.tell("helper_away", waiting=len(waiting))
        self._outlet.put(Post(self._topics.deposit, self._deposit(core, engine, new, now), retain=False))

    def _deposit(self, core: AggregatorCore, engine: Engine, lsns: Sequence[int], now: float) -> bytes:
        body = frames.pack(list(self._tickets(engine, lsns)))
        newest = core.sums.newest
        deposit = Deposit(
            lineage=engine.store.lineage,
            number=self._number,
            turn=self._turn,
            store=newest.store,
            after=newest.number,
            size=core.sums.wanted(now),
            groups=core.sums.dealt_together(now),
            seal_key=sealing.public(self._issuer.seal_keys[0]),
            values=engine.model.schema.size,
            sha256=chunks.checksum(body),
        )
        return self._issuer.deposit(frames.encode(deposit), body)

    def _tickets(self, engine: Engine, lsns: Sequence[int]) -> Iterator[bytes]:
        for lsn in lsns:
            record = engine.store.record(lsn)
            assert isinstance(record, rec.UpdateRecord)
            header, _ = frames.decode(record.ticket)
            ticket = frames.validate(Ticket, header)
            yield frames.encode(ticket.model_copy(update={"device": record.device}))
