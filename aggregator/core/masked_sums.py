"""Steps from sums of masked updates (`wire.masking`): one device's delta is never known here.

The mask helper decides which updates are summed, and with which weights. The core decides the rate of the step, and
when it asks for a smaller set. The records are for `AggregatorCore.note`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from midge.aggregator.core import records as rec
from midge.aggregator.core.buffered import Buffered
from midge.aggregator.core.state import CoreState
from midge.aggregator.core.step_planner import StepPlanner
from midge.aggregator.core.strategy import LATE_GROUPS, Strategy
from midge.wire import frames
from midge.wire.masking import parse_entry
from midge.wire.messages.masking import Masking, Ticket

MEDIAN = 0.4
"""Share of the groups that the trimmed mean of a step leaves out at either end: two of five, so the median is left."""


@dataclass(frozen=True, slots=True)
class SumName:
    """Which of the helper's sums this is."""

    store: bytes
    """Of the helper."""
    number: int


class MaskedSums:
    """Decides on sums of masked updates.

    Args:
        strategy: size of a sum, rate of its step.
        state: the durable state.
        steps: rates and timers.
    """

    def __init__(self, strategy: Strategy, state: CoreState, steps: StepPlanner) -> None:
        self._strategy, self._state, self._steps = strategy, state, steps

    @property
    def newest(self) -> SumName:
        """The newest sum that is in the journal."""
        return SumName(self._state.groups.helper, self._state.groups.dealt)

    def is_new(self, name: SumName) -> bool:
        """Whether a sum is not in the journal yet."""
        return name.store != self.newest.store or name.number > self.newest.number

    def wanted(self, now: float) -> int:
        """Number of devices to ask for in a sum: once the deadline has passed, the fewest that the plan allows."""
        strategy, masking = self._strategy, self._strategy.plan.masking
        assert masking is not None
        return masking.least if self._late(now) else strategy.group_size or masking.least

    def dealt_together(self, now: float) -> int:
        """Number of sets that the helper is to deal at random at once; 1 once the deadline has passed."""
        return 1 if self._late(now) else self._strategy.groups

    def _late(self, now: float) -> bool:
        since, deadline = self._steps.since, self._strategy.deadline
        return since is not None and deadline is not None and now >= since + deadline

    @property
    def waiting(self) -> dict[tuple[str, int], Buffered]:
        """Masked updates that wait for their sum, by device and lsn."""
        return {(item.device, item.lsn): item for item in self._state.buffer if item.masked and not item.group}

    def unlike(self, ticket: Callable[[int], bytes]) -> rec.DropRecord | None:
        """A record that drops waiting updates which this strategy cannot use; `ticket` reads one's ticket by lsn.

        Masked ones, or unmasked ones; and masked ones with another noise than this strategy charges for.
        """
        plan = self._strategy.plan.masking
        lsns = [
            item.lsn
            for item in self._state.buffer
            if item.masked != (plan is not None) or (plan is not None and not _has_noise_of(plan, ticket(item.lsn)))
        ]
        return self.drop(lsns, "strategy") if lsns else None

    def step(self, name: SumName, weights: Mapping[int, int], factor: float) -> rec.StepRecord:
        """The record of a step of these updates, given by lsn with their weights.

        `factor` is below 1 if the sum was longer than honest devices can make it.
        """
        items = [item for item in self._state.buffer if item.lsn in weights]
        planned = self._steps.record([1.0] * len(items), items)
        return replace(
            planned,
            updates=tuple((item.lsn, float(weights[item.lsn])) for item in items),
            rate=planned.rate * factor,
            combine="masked",
            helper=name.store,
            dealt=name.number,
        )

    def group(self, name: SumName, weights: Mapping[int, int], part: int, factor: float) -> rec.OpenedSumRecord:
        """The record of a sum that waits for others: its updates by lsn with their weights."""
        updates = tuple((lsn, float(weight)) for lsn, weight in weights.items())
        privacy = self._strategy.privacy
        noise, clip = (0.0, 0.0) if privacy is None else (privacy.deviation, privacy.clip)
        return rec.OpenedSumRecord(self._state.next, updates, name.store, name.number, part, factor, noise, clip)

    def complete(self, now: float) -> tuple[int, ...]:
        """Sums, by lsn, of which a step can be made: the oldest of one slice; empty if there are too few."""
        needed = LATE_GROUPS if self._strategy.groups > 1 and self._late(now) else self._strategy.groups
        parts: dict[int, list[int]] = {}
        for lsn, opened in self._state.groups.open.items():
            parts.setdefault(opened.part, []).append(lsn)
        ready = (tuple(lsns) for lsns in parts.values() if len(lsns) >= needed)
        return next(ready, ())

    def group_step(self, groups: Sequence[int], outliers: Sequence[int]) -> rec.StepRecord:
        """The record of a step of sums, by lsn; some are far from the others."""
        items = [item for item in self._state.buffer if item.group in groups]
        planned = self._steps.record([1.0] * len(items), items)
        factors = tuple(self._state.groups.open[lsn].factor for lsn in groups)
        return replace(
            planned,
            updates=tuple((item.lsn, 1.0) for item in items),
            combine="groups",
            trim=MEDIAN,
            scales=factors,
            groups=tuple(groups),
            outliers=tuple(outliers),
        )

    def drop(self, lsns: Iterable[int], why: str, name: SumName | None = None) -> rec.DropRecord:
        """The record of updates that can never be in a sum; with a name, those of a sum that cannot be opened."""
        store, number = (b"", 0) if name is None else (name.store, name.number)
        return rec.DropRecord(self._state.next, tuple(sorted(lsns)), why, store, number)

    def made(self, now: float) -> None:
        """Record that a step was made."""
        self._steps.made(now)


def _has_noise_of(plan: Masking, packed: bytes) -> bool:
    """Whether a device has added the noise of this plan to its masked update, by its ticket."""
    entry = parse_entry(frames.validate(Ticket, frames.decode(packed)[0]).entry)
    return (entry.noise / entry.levels, entry.honest) == (plan.noise / plan.levels, plan.honest)
