"""A gateway's sums for the federation above: which waiting updates go into one, with which weights.

All updates of a sum are of one base, so the root knows how stale each is, and weighs the sum by its own rule. A sum is
made when the line is free to take it, not before: what arrives meanwhile waits, and goes into one sum for each base. So
after weeks without a line there are as many sums as versions that the site's devices trained from.
"""

from collections.abc import Sequence

from midge.aggregator.core import records as rec
from midge.aggregator.core.buffered import Buffered
from midge.aggregator.core.state import CoreState
from midge.aggregator.core.step_planner import StepPlanner
from midge.aggregator.core.strategy import Strategy

MOST = 4096
"""Most updates of one sum: a record of it is a few hundred kilobytes."""


class SiteSums:
    """Decides on the sums of one gateway; the records are for `AggregatorCore.note`.

    Args:
        strategy: weights.
        state: the durable state.
        steps: limits of a delta.
    """

    def __init__(self, strategy: Strategy, state: CoreState, steps: StepPlanner) -> None:
        self._strategy, self._state, self._steps = strategy, state, steps

    @property
    def envelope(self) -> bytes:
        """The newest announcement that was passed on, byte for byte; empty before the first."""
        return self._state.site.envelope

    @property
    def newest(self) -> rec.SumRecord | None:
        """The newest sum; None before the first."""
        return self._state.site.sum

    @property
    def waiting(self) -> int:
        """The number of devices of which an update waits."""
        return len({item.device for item in self._state.buffer})

    @property
    def known(self) -> int:
        """The number of devices that are heard of now and then."""
        return len(self._state.fleet)

    @property
    def interval(self) -> float | None:
        """The median seconds between two updates of a device; None if unknown."""
        return self._state.fleet.interval(self._state.fleet.names)

    @property
    def since(self) -> float | None:
        """When the oldest waiting update arrived; None if none waits."""
        return self._steps.since if self._state.buffer else None

    def follow(self, version: rec.FollowRecord) -> rec.FollowRecord:
        """The record of a version that is passed on, with its number in the journal."""
        return rec.FollowRecord(
            self._state.next,
            version.generation,
            version.version,
            version.step,
            version.at,
            version.digest,
            version.envelope,
        )

    def next(self, now: float, number: int) -> rec.SumRecord | None:
        """The record of the next sum, of the oldest base that updates wait for; None if none waits."""
        groups: dict[tuple[int, tuple[int, ...] | None], list[Buffered]] = {}
        for item in self._state.buffer:
            groups.setdefault((item.base, item.tensors), []).append(item)
        if not groups:
            return None
        base, tensors = min(groups, key=lambda group: group[0])
        return self._sum(base, tensors, groups[base, tensors][:MOST], now, number)

    def _sum(
        self, base: int, tensors: tuple[int, ...] | None, items: Sequence[Buffered], now: float, number: int
    ) -> rec.SumRecord:
        state = self._state
        weights = self._strategy.weights(items)
        return rec.SumRecord(
            lsn=state.next,
            number=number,
            generation=state.generation,
            base=base,
            base_digest=state.releases.digest(base),
            updates=tuple((item.lsn, weight) for item, weight in zip(items, weights, strict=True)),
            scales=tuple(self._steps.bounded(item, now) for item in items),
            devices=len({item.device for item in items}),
            tensors=tensors,
        )

    def made(self, now: float) -> None:
        """Record that a sum was made."""
        self._steps.since = now if self._state.buffer else None

    def given_up(self) -> rec.DropRecord | None:
        """A record that drops all that waits, because the store is an old copy: it may have been sent; None if none."""
        lsns = tuple(item.lsn for item in self._state.buffer)
        return rec.DropRecord(self._state.next, lsns, "put_back") if lsns else None
