"""Planning of steps: when one is made of the buffered updates, and the weight and scale of each update."""

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence

from midge.aggregator.core import records as rec
from midge.aggregator.core.buffered import Buffered, counted
from midge.aggregator.core.fleet_statistics import FEWEST
from midge.aggregator.core.growth_guard import GrowthGuard
from midge.aggregator.core.influence import Influence, Push
from midge.aggregator.core.participation_controller import ParticipationController
from midge.aggregator.core.participation_counts import HALF_LIFE
from midge.aggregator.core.state import CoreState
from midge.aggregator.core.strategy import Form, Strategy
from midge.aggregator.core.turn import Turn
from midge.aggregator.core.update_admission import Bounds

_FIRST_WAIT = 10.0
"""Seconds for which the first step waits for the norms of three devices: some devices may never train."""
_TRAININGS = 5.0
"""Median trainings for which a round waits at most."""
_OUTSIZED = 20.0
"""Typical norm of a device, in multiples of the reference norm, above which its clipped deltas count less: those of
devices with other data stay below it once most devices have converged."""
_LEAST = 0.25
"""Least factor for such a device: it may be the first to see a change of the data."""


class StepPlanner:
    """Plans the steps of one federation. Its own attributes are timers, which restart with the process.

    Args:
        strategy: size of a buffer, weights of its updates.
        state: the durable state.
        steering: number of live devices.
        bounds: of a delta's L2 norm in a step, independent of the fleet's norms.
        turn: whether updates are still expected.
    """

    def __init__(
        self, strategy: Strategy, state: CoreState, steering: ParticipationController, bounds: Bounds, turn: Turn
    ) -> None:
        self._strategy, self._state, self._steering, self._bounds = strategy, state, steering, bounds
        self._turn = turn
        self.growth = GrowthGuard()
        self._influence = Influence()
        self.since: float | None = None
        """When the oldest update of the buffer arrived; None if it is empty."""
        self.first_heard_at: float | None = None
        self.measuring = False
        """Whether the distances of the buffer's deltas were requested: until they are here, no other step is made."""

    def arrived(self, now: float) -> None:
        """Record that an accepted update joined the buffer."""
        # `since` may be that of updates which a revocation has dropped: then this one is alone.
        if self.since is None or len(self._state.buffer) == 1:
            self.since = now

    def heard(self, now: float) -> None:
        """Record that an update was decoded, accepted or not."""
        self._turn.heard_at = now
        if self.first_heard_at is None:
            self.first_heard_at = now

    @property
    def filled(self) -> bool:
        """Whether the buffer is full: it has K updates, or one from each device that trains: no more are expected.

        In a robust strategy one device fills at most half of a buffer, however often it sends.
        """
        if self.measuring or self._sums_elsewhere:
            return False  # the mask helper decides what is summed, or the gateway's line
        strategy, buffer = self._strategy, self._state.buffer
        shares, hidden = Counter[str](), Counter[str]()
        for item in buffer:
            summed = item.summed and strategy.sums
            shares[item.device] += item.count if summed else 1
            hidden[item.device] = max(hidden[item.device], item.devices if summed else 1)
        if (self._voices(shares) if strategy.by_device else shares.total()) >= strategy.size(self._steering.live):
            return True
        # A private step takes exactly K: its size must not depend on how many devices are online.
        if strategy.privacy is not None or not (training := self._steering.training):
            return False
        return hidden.total() >= max(training, strategy.release_floor) or self._completes_turn

    @property
    def _completes_turn(self) -> bool:
        """Whether the buffer has the last updates of a turn whose others are in steps that cannot be released.

        A device that sends more of them from the same version completes nothing: each would be a step of its own.
        """
        state = self._state
        if not self._turn.over or not (self._waits_for_ever or state.hiding < self._strategy.release_floor):
            return False
        before = state.contributors | state.trivial
        return any(not before.issuperset(item.names) for item in state.buffer)

    @property
    def _waits_for_ever(self) -> bool:
        """Whether only further updates can make a step of a buffer that is not full."""
        return self._strategy.deadline is None and not self._sums_elsewhere

    @property
    def _sums_elsewhere(self) -> bool:
        return self._strategy.masked or self._strategy.relays

    def _voices(self, shares: Mapping[str, int]) -> float:
        """Number of updates that the buffer counts as, from the number of updates by device.

        A device that floods counts as less than one update: it is in every buffer, and must leave room for the others.
        """
        size = self._strategy.size(self._steering.live)
        if sum(shares.values()) < size:
            return 0.0
        half, voices = max(size / 2, 1.0), 0.0
        for device, count in shares.items():
            excess = self._state.heard.excess(device)
            voices += min(count, half) if excess == 1 else excess
        return voices

    @property
    def _patience(self) -> float | None:
        """Seconds for which a step waits for a full buffer; None waits without a limit.

        A drawn cohort may be smaller than a buffer: once most of it has had time to train, no more updates will arrive.
        """
        deadline, seconds = self._strategy.deadline, self._state.fleet.seconds()
        if deadline is None or self._strategy.pace.cohort is None or not seconds:
            return deadline
        return min(deadline, _TRAININGS * seconds)

    @property
    def comparable_from(self) -> float:
        """When the first step may be made although too few norms are known to tell which update is large."""
        state = self._state
        # Only for the first step: later ones have the norms of the devices in it.
        summed = sum(max(item.devices - 1, 0) for item in state.buffer)
        known = len(state.fleet) + summed >= min(FEWEST, self._steering.live)
        if known or state.step > 0 or self._strategy.norm_bound == math.inf or self.first_heard_at is None:
            return -math.inf
        return self.first_heard_at + _FIRST_WAIT

    @property
    def due(self) -> float | None:
        """When a step of the buffer is due; None if that takes another update."""
        if self.since is None or self.measuring or not self._state.buffer or self._sums_elsewhere:
            return None
        deadline, opens = self._patience, self.comparable_from
        if self._state.step == 0 and self.filled:
            return max(self.since, opens)  # full, and only waiting for norms
        if deadline is not None:
            return max(self.since + deadline, opens)
        given = self._strategy.privacy is None and self._completes_turn  # a device has left, or has stopped training
        return max(self.since, opens, self._turn.over_at) if given else None

    @property
    def lacking(self) -> int:
        """Number of updates that a step takes beyond those that wait for it, if there is no limit to that wait."""
        if not self._state.buffer or not self._waits_for_ever or self.due is not None:
            return 0
        waiting = sum(item.count for item in self._state.buffer)
        return max(self._strategy.size(self._steering.live) - waiting, 1)

    # ------------------------------------------------------------------------- rates

    @property
    def safe_rate(self) -> float | None:
        """The largest rate that the fleet's delays allow."""
        return self._state.margin.rate()

    @property
    def mean_rate(self) -> float:
        """The mean rate of a step of K updates."""
        live = self._steering.live
        return self._strategy.mean_rate(live, self.safe_rate, self._state.margin.early_rate())

    @property
    def turn_gain(self) -> float | None:
        """The share of what all devices learn in one training by which the model moves; None if unknown.

        An adaptive optimizer divides by the size of its input, and moves each value by the rate at most: there it is
        the largest share.
        """
        live = self._steering.live
        steps = live / self._strategy.size(live)
        if self._strategy.adaptive:
            # Norms are the devices' data, of which a private strategy must not tell.
            reference = 0.0 if self._strategy.norm_bound == math.inf else self._state.fleet.newest_norm
            return self.mean_rate * self._bounds.unit * steps / reference if reference and self._bounds.unit else None
        return None if self.safe_rate is None else self.mean_rate * self._state.margin.mean_weight * steps

    # ------------------------------------------------------------------------ a step

    def bounded(self, item: Buffered, now: float) -> float:
        """The factor of a delta in a step now: its own scale, times what brings it within the fleet's norms."""
        times, length = self._strategy.norm_bound, item.norm * item.scale
        if times == math.inf:  # only what the model's grid can follow
            return item.scale * min(1.0, self._bounds.step / length) if length else item.scale
        state = self._state
        bound = times * state.fleet.norm(now)
        if len(state.fleet) < FEWEST:
            # The norm of the other device is no measure: it may have learned all, as where each trains its own tensors.
            bound = max(bound, self._bounds.first)
        # An absolute bound as well: while the norms of most devices are unknown, an attacker's may be the reference.
        unknown = not state.fleet.norms_known or 2 * len(state.fleet) <= self._steering.live
        bound = min(bound, self._bounds.first if unknown else self._bounds.step)
        scale = item.scale * bound / length if length > bound else item.scale
        if not self._strategy.robust:
            return scale
        excess = state.fleet.excess(item.device, now)
        outsized = max((_OUTSIZED / excess) ** 2, _LEAST) if excess > _OUTSIZED else 1.0
        return scale * outsized * state.standings.share(item.device)

    def centred(self, distances: Mapping[int, float]) -> tuple[list[float], list[Buffered]]:
        """The scales and the updates of a step that clips at the median distance from the last combined delta."""
        # Updates that arrived while the distances were measured have none, and wait for the next step.
        waiting = [item for item in self._state.buffer if item.lsn in distances]
        radius = statistics.median(distances[item.lsn] for item in waiting)
        # The median needs no bound from the operator, and leaves half of the buffer unclipped.
        scales = [min(1.0, radius / distances[item.lsn]) if distances[item.lsn] else 1.0 for item in waiting]
        return scales, waiting

    def record(self, scales: Sequence[float], updates: Sequence[Buffered], form: Form | None = None) -> rec.StepRecord:
        """The record of a step of these updates. It holds everything from the configuration: a replay reads none."""
        strategy, live = self._strategy, self._steering.live
        optimizer, privacy = strategy.optimizer, strategy.privacy
        weights = strategy.weights(updates)
        if privacy is not None:
            # Charged by the noise of this step: the strategy may have had more noise when they were accepted.
            ledger = self._state.ledger
            affords = [ledger.affords(privacy, item.device, item.outbox) for item in updates]
            weights = [weight if known else 0.0 for weight, known in zip(weights, affords, strict=True)]
        sums = [item for item in updates if item.accepted]
        if sums and not strategy.sums:  # a site counts as one device
            scales = [scale / item.mass for scale, item in zip(scales, updates, strict=True)]
            sums = []
        # Until delays are known, a step that a deadline made of few updates moves the model by their part of a full.
        size = sum(item.count for item in updates) if sums else min(len(updates), strategy.size(live))
        # The stalest update decides: an adaptive rate falls with the longest delay in a buffer.
        stalest = max(item.staleness for item in updates)
        margin, step = self._state.margin, (counted(updates, sums=bool(sums)), len(self._state.heard))
        safe = margin.rate(*step)
        early = margin.early_rate(*step) if safe is None else math.inf  # not used once delays are known
        rate = strategy.step_rate(stalest, live, safe, early, size)
        rate *= self.growth.damping
        if strategy.equal_influence:
            scales = self._evened(scales, weights, updates, rate)
        return rec.StepRecord(
            lsn=self._state.next,
            step=self._state.step + 1,
            updates=tuple((item.lsn, weight) for item, weight in zip(updates, weights, strict=True)),
            rate=rate,
            form=form or strategy.form,
            normalise="none" if strategy.single else strategy.normalise,
            scales=() if all(scale == 1 for scale in scales) else tuple(scales),
            divisor=strategy.divisor(strategy.size(live)),
            combine=strategy.combine,
            rows=strategy.count_rows,
            trim=strategy.trim,
            calibration=strategy.calibration,
            cached_since=self._cached_since if strategy.calibration else 0,
            optimizer=(optimizer.kind, optimizer.beta1, optimizer.beta2, optimizer.epsilon),
            noise=0.0 if privacy is None else privacy.deviation,
            clip=0.0 if privacy is None else privacy.clip,
            grid=0 if privacy is None else privacy.grid,
            masses=tuple((item.count, item.mass) for item in updates) if sums else (),
        )

    def _evened(
        self, scales: Sequence[float], weights: Sequence[float], updates: Sequence[Buffered], rate: float
    ) -> list[float]:
        """The scales, with the bound on each device's influence."""
        total = sum(weights) or 1.0
        pushes = [
            Push(item.device, rate * weight / total * scale * item.norm, max(item.devices, 1), item.tensors)
            for item, weight, scale in zip(updates, weights, scales, strict=True)
        ]
        # Devices that are online but have sent nothing yet must not hold back those that learn.
        factors = self._influence.bound(pushes, min(self._steering.live, len(self._state.heard)))
        return [factor * scale for factor, scale in zip(factors, scales, strict=True)]

    @property
    def _cached_since(self) -> int:
        """The first step whose cached deltas still count: since then each device has sent twenty updates on average.

        Otherwise a device that has left would push the model in the direction of its last delta for ever.
        """
        size, devices = self._strategy.size(self._steering.live), len(self._state.heard)
        return max(self._state.step + 1 - HALF_LIFE * math.ceil(devices / size), 0)

    def made(self, now: float) -> None:
        """Record that a step was applied to the state."""
        # A private rate is published, and the norms are the devices' data. An unbounded one is the user's, as given.
        if self._strategy.privacy is None and self._strategy.bounded:
            self.growth.record(self._state.fleet.norm(now), self._state.fleet.turn)
        self.since = now if self._state.buffer else None
