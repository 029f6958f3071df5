"""When a step is made of the updates that wait, and what each of them counts in it."""

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence

from midge.aggregator.core import records as rec
from midge.aggregator.core.fleet_statistics import FEWEST
from midge.aggregator.core.growth_guard import GrowthGuard
from midge.aggregator.core.participation_controller import Steering
from midge.aggregator.core.participation_counts import HALF_LIFE
from midge.aggregator.core.state import Buffered, CoreState
from midge.aggregator.core.strategy import Form, Strategy
from midge.aggregator.core.update_admission import Bounds

_FIRST_WAIT = 10.0
"""Seconds for which the first step waits for the norms of three devices: some devices may never train."""
_TRAININGS = 5.0
"""Median trainings for which a round waits at most."""


class StepPlanner:
    """Of one federation. What it holds itself are timers, which a restart starts over.

    Args:
        strategy: how large a buffer is, and how its updates are weighed.
        state: what is remembered.
        steering: how many devices are there.
        bounds: L2 norms of a delta in a step that do not depend on the fleet.
    """

    def __init__(self, strategy: Strategy, state: CoreState, steering: Steering, bounds: Bounds) -> None:
        self._strategy, self._state, self._steering, self._bounds = strategy, state, steering, bounds
        self.growth = GrowthGuard()
        self.since: float | None = None
        """Since when the buffer waits; None if it is empty."""
        self.first_heard_at: float | None = None
        self.measuring = False
        """Whether the distances of the buffer's deltas were asked for: until they come, no other step is made."""

    def arrived(self, now: float) -> None:
        """An accepted update joins the buffer."""
        if self.since is None or len(self._state.buffer) == 1:  # those before may have been dropped
            self.since = now

    def heard(self, now: float) -> None:
        """An update was decoded: its norm counts, whatever becomes of it."""
        if self.first_heard_at is None:
            self.first_heard_at = now

    @property
    def filled(self) -> bool:
        """Whether a step is due: K updates are there, or one of each device, so that no more will come.

        One device fills at most half of a robust strategy's buffer, however often it sends.
        """
        if self.measuring:
            return False
        strategy, live, buffer = self._strategy, self._steering.live, self._state.buffer
        shares = Counter(item.device for item in buffer)
        if (self._voices(shares) if strategy.by_device else len(buffer)) >= strategy.size(live):
            return True
        # A private step takes exactly K: how many devices are there must not show in its noise.
        return strategy.privacy is None and len(shares) >= max(live, strategy.release_floor) and live > 0

    def _voices(self, shares: Mapping[str, int]) -> float:
        """How many updates those of the buffer, counted by device, fill it like.

        A device that floods counts for less than one update: if it is in every buffer, it leaves room for the others.
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
        """Seconds for which a step waits for a full buffer.

        Of a cohort, the draw may ask fewer than make a buffer: once most have had the time to train, no more will come.
        """
        deadline, seconds = self._strategy.deadline, self._state.fleet.seconds()
        if deadline is None or self._strategy.pace.cohort is None or not seconds:
            return deadline
        return min(deadline, _TRAININGS * seconds)

    @property
    def comparable_from(self) -> float:
        """From when on a first step is made although the norms of too few devices tell which update is a large one."""
        state = self._state
        known = len(state.fleet) >= min(FEWEST, self._steering.live)
        if known or state.step > 0 or self._strategy.norm_bound == math.inf or self.first_heard_at is None:
            return -math.inf
        return self.first_heard_at + _FIRST_WAIT

    @property
    def due(self) -> float | None:
        """When a step is made of what is in the buffer; None if only another update can bring that."""
        if self.since is None or self.measuring or not self._state.buffer:
            return None
        deadline, opens = self._patience, self.comparable_from
        if self._state.step == 0 and self.filled:
            return max(self.since, opens)  # it would have been made, but for the norms
        return None if deadline is None else max(self.since + deadline, opens)

    # ------------------------------------------------------------------------- rates

    @property
    def safe_rate(self) -> float | None:
        """The largest rate that the fleet's delays allow."""
        return self._state.margin.rate(self._strategy.size(self._steering.live))

    @property
    def mean_rate(self) -> float:
        """What a step is multiplied by, on the mean."""
        return self._strategy.mean_rate(self._steering.live, self.safe_rate)

    @property
    def turn_gain(self) -> float | None:
        """How far one training of all devices moves the model, of what they learned; None if it is not known.

        An adaptive optimizer divides by what it sees: there, no rate says how far a step goes.
        """
        if self.safe_rate is None or self._strategy.optimizer.kind != "sgd":
            return None
        live = self._steering.live
        return self.mean_rate * self._state.margin.mean_weight * live / self._strategy.size(live)

    # ------------------------------------------------------------------------ a step

    def bounded(self, item: Buffered, now: float) -> float:
        """What a delta is multiplied by in a step now: its own scale, and what brings it within the fleet's norms."""
        times = self._strategy.norm_bound
        if times == math.inf:
            return item.scale
        state, robust = self._state, self._strategy.robust
        length, reference = item.norm * item.scale, state.fleet.norm(now)
        bound = times * reference
        if robust:
            bound = state.standings.longest(item.device, bound, reference)
        # Absolute bounds hold beside the relative one: until half of the devices are known, the norms may be of liars.
        unknown = 2 * len(state.fleet) < self._steering.live
        bound = min(bound, self._bounds.first if unknown else self._bounds.step)
        scale = item.scale * bound / length if length > bound else item.scale
        if not robust:
            return scale
        usual, typical = state.fleet.agreement(), state.fleet.typical(item.device)
        return scale * state.standings.factor(item.device, item.agreement, usual, typical, reference)

    def centred(self, distances: Mapping[int, float]) -> tuple[list[float], list[Buffered]]:
        """The scales of centred clipping: each delta is clipped at the median distance from the last combined one."""
        waiting = [item for item in self._state.buffer if item.lsn in distances]
        radius = statistics.median(distances[item.lsn] for item in waiting)
        # Clipping at the median needs no bound from the operator, and half of the buffer passes as it is.
        scales = [min(1.0, radius / distances[item.lsn]) if distances[item.lsn] else 1.0 for item in waiting]
        return scales, waiting

    def record(self, scales: Sequence[float], updates: Sequence[Buffered], form: Form | None = None) -> rec.StepRecord:
        """A step of these updates. All that depends on the configuration is in it, so that a replay reads none."""
        strategy, live = self._strategy, self._steering.live
        optimizer, privacy = strategy.optimizer, strategy.privacy
        rate = strategy.step_rate(max(item.staleness for item in updates), live, self.safe_rate)
        return rec.StepRecord(
            lsn=self._state.next,
            step=self._state.step + 1,
            updates=tuple((item.lsn, weight) for item, weight in zip(updates, strategy.weights(updates), strict=True)),
            rate=self.growth.damping * rate,
            form=form or strategy.form,
            normalise="none" if strategy.single else strategy.normalise,
            scales=() if all(scale == 1 for scale in scales) else tuple(scales),
            divisor=strategy.divisor(strategy.size(live)),
            combine=strategy.combine,
            trim=strategy.trim,
            calibration=strategy.calibration,
            cached_since=self._cached_since if strategy.calibration else 0,
            optimizer=(optimizer.kind, optimizer.beta1, optimizer.beta2, optimizer.epsilon),
            noise=0.0 if privacy is None else privacy.deviation,
        )

    @property
    def _cached_since(self) -> int:
        """The step from which on cached deltas count: in as many steps each device sends twenty updates on average.

        A device that is gone would push the model in the direction of its last delta for ever.
        """
        size, devices = self._strategy.size(self._steering.live), len(self._state.heard)
        return max(self._state.step + 1 - HALF_LIFE * math.ceil(devices / size), 0)

    def made(self, now: float) -> None:
        """The step was taken into the state."""
        self.growth.saw(self._state.fleet.norm(now), self._state.fleet.turn)
        self.since = now if self._state.buffer else None
