"""Whether an update can be taken, and what it then counts: decided from its header and its norm.

The order is from cheap to dear and from what passes to what stays. First what holds everything off for now (`hold`):
the device keeps the update, and nothing is journaled. Then what no waiting changes (`refusal`): a final verdict, and
the device forgets the update for it; so a reason that could pass must never stand there.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from midge.aggregator.core import events as ev
from midge.aggregator.core import records as rec
from midge.aggregator.core.sequence_tracker import TrackedOutbox
from midge.aggregator.core.state import CoreState
from midge.aggregator.core.strategy import Strategy
from midge.wire import codecs, sealing
from midge.wire.errors import WireError
from midge.wire.messages import Settled, Update, Verdict
from midge.wire.schema import Schema

_CLAIM = 4.0
"""Times the fleet's median that a device's own count of rows weighs at most: nothing proves it, and unequal fleets are
honest."""
_EVEN = 16.0
"""Times up or down that unlike numbers of local steps are evened out: beyond that it amplifies noise, not work."""
MOST = 2**40
"""Rows or steps of one training beyond which a device's word counts as these: no training has more, and sums of them
stay exact."""
OTHER_BASE = (
    "it was trained from another model than was released here under that number: a store or a broker was put back, or "
    "showed this device another one; train from the newest one"
)
_ROUNDING = 1 - 1e-6
"""A clipped delta stays below its bound whatever float32 makes of the product."""
_NO_ROOM, _HELD, _CROWDED = 300, 30, 5
"""Seconds after which a device comes again: when others were forgotten; when the operator or the disk may have changed
its mind; when the next step may have been made."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """Limits of what the core takes on, against peers that would fill the memory or run the model off its grid."""

    devices: int = 100_000
    update: int = 2**30
    """Bytes of one update's encoded delta."""
    norm: float = 2.0**60
    """L2 norm beyond which an update is refused: the model's grid cannot follow it."""
    step: float = 2.0**30
    """L2 norm that an update is scaled down to in a step, whatever the fleet's norms are."""
    first: float = 2.0**30
    """The same as long as the norms of fewer than half of the devices are known: those that came first may be liars."""

    @classmethod
    def of(cls, schema: Schema) -> "Bounds":
        """With an update of any codec no larger than the model's values as they are, and one scale, and sealed.

        One update moves a parameter by a million in the root mean square at most, and one of the first by 16:
        normalised models stay within tens.
        """
        unit = max(schema.size, 1) ** 0.5
        return cls(update=4 * schema.size + 4 + sealing.OVERHEAD, step=2.0**20 * unit, first=16 * unit)


@dataclass(slots=True)
class Conditions:
    """What holds around the core, as its events tell. Nothing of it is journaled."""

    full: str | None = None
    """Why nothing can be decided if the store has no room: all is refused for now, and no timer does anything."""
    paused: str | None = None
    """Why nothing is accepted if the operator has paused."""
    features: tuple[str, ...] = ()
    """Names of the model's inputs, in order; empty if they are not known."""
    unlike: Mapping[str, str] = field(default_factory=dict)
    """Devices whose inputs are not the model's, each with why in words: nothing of theirs is taken."""


class UpdateAdmission:
    """Judges the updates of one federation.

    Args:
        strategy: how stale an update may be, and what it weighs.
        state: what is remembered.
        conditions: what holds around the core.
        lineage: of the store.
        schema_hash: of the model.
        bounds: what is taken at most.
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
        self.bounds = bounds

    def hold(self, device: str, update: Update, outbox: TrackedOutbox | None) -> Settled | None:
        """What an update is refused with for now: the device keeps it and comes again; None if it need not be."""
        if outbox is None:
            why = "this aggregator knows as many devices, or as many outboxes of this device, as it can"
            return _busy(update, why, _NO_ROOM)
        # A repeat is answered whatever holds: its device waits for the verdict to forget it.
        if update.seq <= outbox.hi:
            return None
        state, conditions, strategy = self._state, self._conditions, self._strategy
        if conditions.full is not None:
            return _busy(update, conditions.full[:400], _HELD)
        if conditions.paused is not None:
            return Settled(seq=update.seq, verdict=Verdict.PAUSED, why=conditions.paused[:400], retry_after=_HELD)
        # One in each step: the noise of a step hides one contribution of a device, not two.
        waiting = state.waiting(device)
        if strategy.privacy is not None and waiting:
            why = "an update of this device waits for its step, and differential privacy allows one in each"
            return _busy(update, why, _CROWDED)
        if waiting >= strategy.most_waiting:
            return _busy(update, "as many updates of this device as a step takes wait for it", _CROWDED)
        return None

    def refusal(self, device: str, update: Update, now: float) -> tuple[Verdict, str] | None:
        """Why an update cannot be taken, now or ever; None if it can."""
        return self._unfitting(device, update) or self._inadmissible(device, update, now)

    def _unfitting(self, device: str, update: Update) -> tuple[Verdict, str] | None:
        """Why an update means something else than the model does: other statistics, other inputs; None if it fits."""
        if update.lineage != self._lineage:
            return None  # told as such
        state = self._state
        if update.generation < state.generation and update.base not in state.versions:
            trained, now = update.generation, state.generation
            why = f"it was trained in generation {trained}; this is {now}: train again from the newest model"
            return Verdict.STALE, why
        why = self._conditions.unlike.get(device, "")
        return (Verdict.WRONG_SCHEMA, why) if why else None

    def _inadmissible(self, device: str, update: Update, now: float) -> tuple[Verdict, str] | None:
        """Why an update cannot be taken, cheapest reason first; None if it can."""
        state, strategy = self._state, self._strategy
        if update.lineage != self._lineage:
            return (
                Verdict.FOREIGN_LINEAGE,
                "it was trained from a model of another federation or store: the device takes this one",
            )
        if update.schema_hash not in (b"", self._schema_hash):
            return Verdict.WRONG_SCHEMA, "its model has other tensors than the federation's: give both the same"
        if update.generation > state.generation or update.base > state.version:
            return Verdict.UNKNOWN_BASE, f"version {update.generation}.{update.base} is not known here"
        if update.base not in state.versions:
            return Verdict.STALE, f"version {update.base} is not remembered here any more: train from the newest one"
        if update.base_digest and state.releases.differs(update.base, update.base_digest):
            return Verdict.STALE, OTHER_BASE
        # The newest version is never too old, however long nothing has been released: from what else could one train?
        newest = update.base == state.version
        if (tau := state.staleness(update.base)) > strategy.max_staleness and not newest:
            return (
                Verdict.STALE,
                f"{tau} steps old; at most {strategy.max_staleness} are taken: train from the newest one",
            )
        limit, age = strategy.max_age, state.versions.age(update.base, now)
        if limit is not None and age > limit and not newest:
            return Verdict.STALE, f"its version was released {age:.0f} seconds ago; at most {limit:g} are taken"
        # Behind staleness: a device of an earlier generation is told to train again, not that there is no model.
        if not state.frozen or update.base == 0:
            return Verdict.UNKNOWN_BASE, "no model has been released to train from"
        privacy = strategy.privacy
        if privacy is not None and state.heard.given(device) >= privacy.contributions:
            why = f"this device has given {privacy.contributions} updates, all that ε = {privacy.epsilon:g} allows"
            return Verdict.QUOTA, why
        # The size is a number to compare, a codec's name a text to parse: the cheaper one first.
        largest = self.bounds.update + (sealing.LONGEST if update.confided else 0)
        if update.size > largest:
            return Verdict.TOO_LARGE, f"{update.size} bytes; at most {largest} are taken"
        try:
            codecs.parse(update.codec)
        except WireError as error:
            return Verdict.UNKNOWN_CODEC, str(error)
        return None

    def accepted(self, event: ev.Decoded, now: float) -> rec.UpdateRecord:
        """The record of an update that is taken. What it counts is in it, so that a replay reads no configuration."""
        device, update, state = event.device, event.update, self._state
        tau = state.staleness(update.base)
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
            reference=state.fleet.norm(now),
            body=update.digest,
        )

    def refused(self, device: str, update: Update, verdict: Verdict, why: str) -> rec.UpdateRecord:
        """The record of an update that is settled without being taken."""
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
        """How much an update counts in its step: what a device says of itself is bounded by what others say."""
        state = self._state
        # Against the median over devices, not over updates: one that sends often would set its own measure.
        age = state.versions.age(update.base, now)
        examples, typical = min(update.examples, MOST), state.fleet.examples()
        if typical:
            examples = min(examples, round(_CLAIM * typical))
        weight = self._strategy.admission_weight(tau, age, examples, state.fleet.staleness(device))
        bound = self._strategy.fairness
        return weight if bound is None else weight * state.heard.correction(device, bound)

    def _scale(self, update: Update, norm: float) -> float:
        """What its delta is multiplied by, whatever else is in its step."""
        scale, privacy = 1.0, self._strategy.privacy
        if privacy is not None and norm > privacy.clip:
            scale *= _ROUNDING * privacy.clip / norm
        # FedNova's idea: a device that trained longer has gone further, not learned more.
        if self._strategy.even_steps and update.steps and (typical := self._state.fleet.steps()):
            scale *= min(max(typical / update.steps, 1 / _EVEN), _EVEN)
        return scale


def _busy(update: Update, why: str, again: int) -> Settled:
    return Settled(seq=update.seq, verdict=Verdict.BUSY, why=why, retry_after=again)
