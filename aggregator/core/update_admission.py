"""Admission of updates, and the weight and scale of an accepted one: from its header and its norm.

Cheap checks come before expensive ones, temporary reasons before final ones. A temporary reason (`hold`) leaves the
update with its device and no record in the journal. A final verdict (`refusal`) makes the device forget the update, so
no reason that can pass may be among them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from midge.aggregator.core import events as ev
from midge.aggregator.core import records as rec
from midge.aggregator.core.sequence_tracker import TrackedOutbox
from midge.aggregator.core.state import CoreState
from midge.aggregator.core.strategy import Strategy
from midge.wire import codecs, frames, masking, sealing, signing
from midge.wire.errors import WireError
from midge.wire.messages import Settled, Update, Verdict
from midge.wire.schema import Schema

_CLAIM = 4.0
"""Multiple of the fleet's median that a device's row count weighs at most: it is unproven, and honest counts differ."""
_EVEN = 16.0
"""Largest factor, up or down, that evens out unequal numbers of local steps: beyond it, mostly noise is amplified."""
MOST = 2**40
"""Most rows or steps of one training that are believed: no training has more, and sums of them stay exact."""
OTHER_BASE = (
    "it was trained from another model than the one released here under that number: the store or the broker was "
    "restored from a copy, or showed this device another model; train from the newest one"
)
_ROUNDING = 1 - 1e-6
"""Keeps a clipped delta below its bound in spite of float32 rounding: the privacy guarantee assumes the bound."""
_ROUNDED_UP = 1 + 1e-6
_NEXT_TO_ZERO = 1 / 64
"""Fraction of the fleet's reference norm up to which an update hides nothing of one of that norm."""
_REMEMBERED = 4096
"""Updates among which repetitions are found."""
_NO_ROOM, _HELD, _CROWDED = 300, 30, 5
"""Seconds until a device retries: until other outboxes may have been forgotten; until the operator or the disk may have
recovered; until the next step may have been made, if training takes as long."""
_SOON = 2.0
"""Seconds until a device retries an update of a version that a gateway does not know yet."""
_SOONEST = 0.5
"""Least seconds of the last one."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """Limits against peers that would exhaust the memory or push the model off its grid."""

    devices: int = 100_000
    """Most devices whose outboxes are tracked."""
    update: int = 2**30
    """Bytes of one update's encoded delta."""
    norm: float = 2.0**60
    """L2 norm beyond which an update is refused: the model's grid cannot follow it."""
    step: float = 2.0**30
    """L2 norm to which an update is scaled down in a step, whatever the fleet's norms are."""
    first: float = 2.0**30
    """The same until the norms of more than half of the devices are known: the first devices may be liars."""
    unit: float = 0.0
    """L2 norm of a delta that moves every value by 1; 0 if unknown."""
    sites: tuple[str, ...] = ()
    """Names of gateways, which alone may send sums; `*` stands for any characters."""
    site_size: int = 0
    """Of a gateway: bytes of the values of the site's tensors that may follow a delta; 0 takes none."""
    shards: tuple[str, ...] = ()
    """Names of shards, which may send sums too."""

    def is_site(self, device: str) -> bool:
        """Whether a name is that of a gateway."""
        return device in self.shards or any(fnmatchcase(device, pattern) for pattern in self.sites)

    @classmethod
    def of(cls, schema: Schema) -> "Bounds":
        """Bounds for a model: an encoded update is at most as large as its float32 values, one scale and a seal.

        One update moves parameters by at most 2^20 in root mean square, and one of the first by 4; those of normalised
        models stay within tens.
        """
        unit = max(schema.size, 1) ** 0.5
        return cls(update=4 * schema.size + 4 + sealing.OVERHEAD, step=2.0**20 * unit, first=4 * unit, unit=unit)


@dataclass(slots=True)
class Conditions:
    """Conditions of the surroundings, as the core's events report them. They are not journaled."""

    full: str | None = None
    """The error of a store without room: every update is refused for now, and no timer fires. None if it has room."""
    paused: str | None = None
    """The operator's reason for a pause; None if updates are accepted."""
    features: tuple[str, ...] = ()
    """Names of the model's inputs, in order; empty if unknown."""
    unlike: Mapping[str, str] = field(default_factory=dict)
    """Devices whose inputs differ from the model's, each with the difference: their updates are refused."""
    contested: Mapping[str, str] = field(default_factory=dict)
    """Devices whose names of inputs differ from others' while the model's are unknown: their statistics wait."""

    def take(self, event: ev.StoreFilled | ev.StoreWritable | ev.OperatorPaused | ev.InputsCompared) -> None:
        """Follow an event."""
        match event:
            case ev.StoreFilled(why):
                self.full = why
            case ev.StoreWritable():
                self.full = None
            case ev.OperatorPaused(why):
                self.paused = why
            case ev.InputsCompared(names, unlike, contested):
                self.features, self.unlike, self.contested = names, unlike, contested


class UpdateAdmission:
    """Judges the updates of one federation.

    Args:
        strategy: limits of staleness, weights.
        state: the durable state.
        conditions: of the surroundings.
        lineage: of the store.
        schema_hash: of the model.
        bounds: limits of one update.
    """

    def __init__(
        self,
        strategy: Strategy,
        state: CoreState,
        conditions: Conditions,
        *,
        lineage: bytes,
        schema_hash: bytes,
        bounds: Bounds,
    ) -> None:
        self._strategy, self._state, self._conditions = strategy, state, conditions
        self._lineage, self._schema_hash = lineage, schema_hash
        self._contents: dict[bytes, tuple[int, int]] = {}
        """Digests of the last deltas, each with the version that it was first trained from, the oldest first."""
        self.bounds = bounds

    def hold(self, device: str, update: Update, outbox: TrackedOutbox | None) -> Settled | None:
        """The temporary verdict on an update, after which its device keeps it and retries; None if there is none.

        `outbox` is None if there is no room for it in the table.
        """
        if outbox is None:
            why = "this aggregator tracks as many devices, or as many outboxes of this device, as it can"
            return _busy(update, why, _NO_ROOM)
        # A duplicate is answered under any condition: its device waits for the verdict to forget it.
        if update.seq <= outbox.hi:
            return None
        state, conditions, strategy = self._state, self._conditions, self._strategy
        ahead = (update.generation, update.base) > (state.generation, state.version)
        if strategy.relays and ahead and update.lineage == self._lineage:
            return _busy(update, "its version is on its way here from the federation's aggregator", _SOON)
        if conditions.full is not None:
            return _busy(update, conditions.full[:400], _HELD)
        if conditions.paused is not None:
            return Settled(seq=update.seq, verdict=Verdict.PAUSED, why=conditions.paused[:400], retry_after=_HELD)
        if strategy.groups > 1 and state.groups.suspect(device):
            why = "sums with this device's updates lay far from the others, time after time: is its data broken?"
            return Settled(seq=update.seq, verdict=Verdict.QUARANTINED, why=why, retry_after=_HELD)
        # At most one of a device in a step: the noise is scaled to hide one contribution, not two.
        waiting = 0 if device in self.bounds.shards else state.waiting(device)
        if strategy.privacy is not None and self._account_gave(device, update.outbox):
            why = "an update of this device waits for its step or release, and differential privacy allows one in each"
            return _busy(update, why, self._until_step)
        if waiting >= strategy.most_waiting:
            why = "as many updates of this device as a step may hold wait for it"
            return _busy(update, why, self._until_step)
        return None

    @property
    def _until_step(self) -> float:
        """Seconds within which a step is probable: a usual device trains once in that time."""
        usual = self._state.fleet.usual_training()
        return _CROWDED if usual is None else min(max(usual, _SOONEST), _CROWDED)

    def _account_gave(self, device: str, outbox: int) -> bool:
        """Whether an update of this device waits for its step, or for its release, under whatever name."""
        ledger = self._state.ledger
        same = ledger.same
        return ledger.account(device, outbox) in ledger.given or any(
            same(device, outbox, item.device, item.outbox) for item in self._state.buffer
        )

    def refusal(self, device: str, update: Update, now: float) -> tuple[Verdict, str] | None:
        """The final verdict on an update that is refused, and its reason; None if it can be accepted."""
        # Fit before staleness: "train again" would not help a device whose inputs differ.
        return self._unfitting(device, update) or self._inadmissible(device, update, now)

    def _unfitting(self, device: str, update: Update) -> tuple[Verdict, str] | None:
        """The verdict if an update was trained on another normalisation or on other inputs; None if it fits."""
        if update.lineage != self._lineage:
            return None  # refused as foreign below
        state = self._state
        if update.generation < state.generation and update.base not in state.versions:
            trained, now = update.generation, state.generation
            why = f"it was trained in generation {trained}; this is {now}: train again from the newest model"
            return Verdict.STALE, why
        why = self._conditions.unlike.get(device, "")
        return (Verdict.WRONG_SCHEMA, why) if why else None

    def _inadmissible(self, device: str, update: Update, now: float) -> tuple[Verdict, str] | None:
        """The verdict from the header, cheapest check first; None if the update can be accepted."""
        state, strategy = self._state, self._strategy
        if update.lineage != self._lineage:
            return (
                Verdict.FOREIGN_LINEAGE,
                "it was trained from a model of another federation or store: the device takes this one",
            )
        if update.schema_hash not in (b"", self._schema_hash):
            return Verdict.WRONG_SCHEMA, "its model has other tensors than the federation's: give both the same"
        # Ahead of this store: after a rollback, which greetings prove (`put_back`), or a claim that proves nothing.
        if update.generation > state.generation or update.base > state.version:
            return Verdict.UNKNOWN_BASE, f"version {update.generation}.{update.base} is not known here"
        if update.base not in state.versions:
            return Verdict.STALE, f"version {update.base} is no longer known here: train from the newest one"
        # Two models under one number: after a restored copy, a delta would be applied to a base that it is not from.
        if update.base_digest and state.releases.differs(update.base, update.base_digest):
            return Verdict.STALE, OTHER_BASE
        # The newest version is never too old, even if there was no release for long: there is no other to train from.
        newest = update.base == state.version or device in self.bounds.shards  # which has judged the updates in it
        if (tau := state.staleness(update.base)) > strategy.max_staleness and not newest:
            return (
                Verdict.STALE,
                f"{tau} steps old; at most {strategy.max_staleness} are allowed: train from the newest one",
            )
        limit, age = strategy.max_age, state.versions.age(update.base, now)
        if limit is not None and age > limit and not newest:
            return Verdict.STALE, f"its version was released {age:.0f} seconds ago; at most {limit:g} are allowed"
        # After staleness: a device of an earlier generation is to train again, not to hear that there is no model.
        if not state.frozen or update.base == 0:
            return Verdict.UNKNOWN_BASE, "no model has been released to train from"
        privacy = strategy.privacy
        if privacy is not None and not state.ledger.affords(privacy, device, update.outbox):
            spent = privacy.epsilon_of(state.ledger.spent(device, update.outbox))
            return Verdict.QUOTA, f"this device has spent ε = {spent:.3g}, all that ε = {privacy.epsilon:g} allows"
        if update.site_size not in {0, self.bounds.site_size} or (update.site_size and update.entry):
            return Verdict.BAD_ENCODING, self._foreign_tensors(update)
        largest = self.bounds.update + update.site_size + (sealing.LONGEST if update.confided else 0)
        if update.size > largest:
            return Verdict.TOO_LARGE, f"{update.size} bytes; at most {largest} are allowed"
        if (why := self._unlike_plan(update)) is not None:
            return Verdict.UNKNOWN_CODEC, why
        if update.entry and len(update.base_digest) != masking.DIGEST:
            return Verdict.BAD_ENCODING, f"a masked update states {masking.DIGEST} bytes of the digest of its base"
        if update.accepted and (why := self._no_sum(device, update)):
            return Verdict.BAD_ENCODING, why
        if update.entry:
            return None
        try:
            codecs.parse(update.codec)
        except WireError as error:
            return Verdict.UNKNOWN_CODEC, str(error)
        return None

    def _no_sum(self, device: str, update: Update) -> str:
        """Why a gateway's sum cannot be used; empty if it can."""
        if not self.bounds.is_site(device):
            return "it is a sum of updates, and this device is no site of the federation: midge aggregate --site NAME"
        if self._strategy.privacy is not None or self._strategy.relays:
            return "this federation takes no sums: differential privacy, or another gateway, needs single updates"
        most = MOST if self._strategy.weigh_examples else update.accepted * _ROUNDED_UP
        if not 0 < update.weight <= most or not 0 < update.devices <= update.accepted:
            return f"{update.accepted} updates of {update.devices} devices cannot weigh {update.weight:g}"
        return ""

    def _foreign_tensors(self, update: Update) -> str:
        """Why the values of a site's tensors in an update are not taken."""
        if not self.bounds.site_size:
            return "it has values of a site's tensors, which only the site's gateway may read"
        return f"its site's tensors have {update.site_size} bytes, not {self.bounds.site_size}, or it is masked"

    def _unlike_plan(self, update: Update) -> str | None:
        """Why an update that is masked, or is not, cannot be summed with the others; None if it can."""
        if not (self._strategy.masked or update.entry):
            return None
        masked = masking.is_masked(update.codec) and len(update.entry) > signing.SIGNATURE
        if self._strategy.masked and not masked:
            return "this federation accepts only masked updates, so that no single one is read: see secure aggregation"
        if masked and not self._strategy.masked:
            return "it is masked, and this federation has no mask helper: train from the newest model"
        return None

    def accepted(self, event: ev.Decoded, now: float) -> rec.UpdateRecord:
        """The record of an accepted update, with its weight and scale: a replay reads no configuration."""
        device, update, state = event.device, event.update, self._state
        tau, reference = state.staleness(update.base), state.fleet.norm(now)
        # The reference norm is in the record: it depends on which devices are recent, which a replay cannot know.
        return rec.UpdateRecord(
            lsn=state.next,
            device=device,
            outbox=update.outbox,
            seq=update.seq,
            verdict=Verdict.ACCEPTED.value,
            base=update.base,
            staleness=tau,
            weight=self._weight(device, update, tau, now),
            scale=self._scale(update, event.norm),
            norm=event.norm,
            codec=update.codec,
            tensors=update.tensors,
            examples=min(update.examples, MOST),
            steps=min(update.steps, MOST),
            size=update.size,
            agreement=event.agreement,
            reference=reference,
            body=update.digest,
            trivial=self._trivial(event, reference),
            ticket=frames.encode(masking.ticket_of(update)) if self._strategy.masked else b"",
            accepted=update.accepted,
            devices=update.devices,
            mass=update.weight if update.accepted else 1.0,
            who=update.who if update.accepted and device in self.bounds.shards else b"",
        )

    def refused(self, device: str, update: Update, verdict: Verdict, why: str) -> rec.UpdateRecord:
        """The record of an update that is settled as refused."""
        return rec.UpdateRecord(
            lsn=self._state.next,
            device=device,
            outbox=update.outbox,
            seq=update.seq,
            verdict=verdict.value,
            why=why[:400],
            base=update.base,
            codec=update.codec,
            examples=min(update.examples, MOST),
            size=update.size,
            body=update.digest,
        )

    def _weight(self, device: str, update: Update, tau: int, now: float) -> float:
        """The weight of an update in its step; what a device claims about itself is bounded by what others claim."""
        state = self._state
        age = state.versions.age(update.base, now)
        # The median is over devices, not over updates: otherwise one that sends often would set its own bound.
        examples, typical = min(update.examples, MOST), state.fleet.examples()
        if typical:
            examples = min(examples, round(_CLAIM * typical))
        examples = 1 if update.accepted else examples  # those of a sum are in its mass
        weight = self._strategy.admission_weight(tau, age, examples, state.fleet.staleness(device))
        bound = self._strategy.fairness
        return weight if bound is None else weight * state.heard.correction(device, bound)

    def _trivial(self, event: ev.Decoded, reference: float) -> bool:
        """Whether an update is next to zero, or has the content of an earlier one from another base.

        It cannot hide another device's work in a release. A device that trained from another model has another delta.
        """
        if not self._strategy.hides:
            return False
        known, base = self._contents, (event.update.generation, event.update.base)
        repeats = bool(event.content) and known.setdefault(event.content, base) != base
        while len(known) > _REMEMBERED:
            del known[next(iter(known))]
        return repeats or event.norm <= _NEXT_TO_ZERO * reference

    def _scale(self, update: Update, norm: float) -> float:
        """The factor of its delta in any step, independent of the step's other updates."""
        scale, privacy = 1.0, self._strategy.privacy
        # Clipped by its own norm alone: a bound from other devices' data would not be private.
        if privacy is not None and norm > privacy.clip:
            scale *= _ROUNDING * privacy.clip / norm
        # FedNova (arXiv:2007.07481): a device that trained more steps has moved further, not learned more.
        if self._strategy.even_steps and update.steps and (typical := self._state.fleet.steps()):
            scale *= min(max(typical / update.steps, 1 / _EVEN), _EVEN)
        return scale


def _busy(update: Update, why: str, retry_after: float) -> Settled:
    return Settled(seq=update.seq, verdict=Verdict.BUSY, why=why, retry_after=retry_after)
