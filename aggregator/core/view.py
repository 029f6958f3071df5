"""Read-only queries of the core, for its shells, metrics and tests."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

from midge.aggregator.core.encoder_doubt import doubt
from midge.aggregator.core.growth_guard import GrowthGuard
from midge.aggregator.core.obstacle import Obstacle, obstacle, scheduled
from midge.aggregator.core.participation_controller import ParticipationController
from midge.aggregator.core.privacy import Privacy
from midge.aggregator.core.privacy_ledger import PrivacySpent
from midge.aggregator.core.registry import Registry
from midge.aggregator.core.release_pacer import ReleasePacer
from midge.aggregator.core.release_schedule import ReleaseSchedule
from midge.aggregator.core.site_sums import SiteSums
from midge.aggregator.core.state import CoreState
from midge.aggregator.core.statistics_phase import StatisticsPhase
from midge.aggregator.core.step_planner import StepPlanner
from midge.aggregator.core.strategy import Strategy
from midge.aggregator.core.turn import Turn
from midge.aggregator.core.update_admission import Conditions
from midge.wire.messages import Plan

REANNOUNCE = 1.0
"""Least seconds between two announcements for growth of the fleet: each one goes to all devices."""


class CoreView:
    """The queries of `AggregatorCore`, which creates these parts."""

    strategy: Strategy
    steering: ParticipationController
    _state: CoreState
    _conditions: Conditions
    _steps: StepPlanner
    _releases: ReleaseSchedule
    _gathering: StatisticsPhase
    _turn: Turn
    thrift: ReleasePacer
    _announced_at: float

    @cached_property
    def site(self) -> SiteSums:
        """Of a gateway: decides on sums for the federation above."""
        return SiteSums(self.strategy, self._state, self._steps)

    @property
    def deadline(self) -> float | None:
        """When `tick` is next due; None if only an event can make it so."""
        if self.full is not None:
            return None
        released = self._releases.at
        times = [self.steering.due, self._releases.serve_due, self._steps.due, self._gathering.due, released]
        if self.thrift.grown:
            times.append(self._announced_at + REANNOUNCE)
        return min((time for time in times if time is not None and time > -math.inf), default=None)

    @property
    def spent(self) -> PrivacySpent | None:
        """What the devices have spent of their privacy budget; None if the strategy is not private."""
        privacy = self.strategy.privacy
        return None if privacy is None else self.spent_under(privacy)

    def spent_under(self, privacy: Privacy) -> PrivacySpent:
        """What the devices have spent, under a budget that may be another strategy's."""
        return self._state.ledger.summary(privacy)

    def spent_of(self, device: str) -> float | None:
        """ε that a device has spent; None if the strategy is not private."""
        privacy = self.strategy.privacy
        return None if privacy is None else privacy.epsilon_of(self._state.ledger.spent(device))

    @property
    def epsilons(self) -> list[float]:
        """ε that each device has spent, of those that are gone too; empty if the strategy is not private."""
        privacy = self.strategy.privacy
        return [] if privacy is None else self._state.ledger.epsilons(privacy)

    @property
    def suspects(self) -> list[str]:
        """Devices whose updates are held back because groups with them lie far from the others."""
        return self._state.groups.suspects

    def charged(self, device: str) -> bool:
        """Whether a device has spent any privacy budget."""
        return self._state.ledger.spent(device) > 0

    @property
    def full(self) -> str | None:
        """The error of a full store; None if it has room."""
        return self._conditions.full

    @property
    def paused(self) -> str | None:
        """The operator's reason for a pause; None if updates are accepted."""
        return self._conditions.paused

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the model's inputs, in order; empty if unknown."""
        return self._conditions.features

    @property
    def unlike(self) -> Mapping[str, str]:
        """Devices whose inputs differ from the model's, each with the difference: their updates are refused."""
        return self._conditions.unlike

    @property
    def lsn(self) -> int:
        """Number of the last journal record."""
        return self._state.lsn

    @property
    def generation(self) -> int:
        return self._state.generation

    @property
    def version(self) -> int:
        return self._state.version

    @property
    def step(self) -> int:
        return self._state.step

    @property
    def released_at(self) -> float:
        """When the newest version was released, in seconds since 1970; 0 if none is remembered."""
        return self._state.versions.newest_at

    @property
    def release_log(self) -> bytes:
        """The hash over all releases; empty before the first."""
        return self._state.releases.head

    @property
    def plan(self) -> Plan:
        """The current plan of training for devices."""
        plan = self.strategy.plan
        return plan if (steps := self._state.work.steps) is None else plan.model_copy(update={"local_steps": steps})

    @property
    def served(self) -> int:
        """The newest version released on the channel `serve`."""
        return self._state.served

    @property
    def frozen(self) -> bool:
        """Whether the normalisation is frozen, so that the model trains."""
        return self._state.frozen

    @property
    def counts(self) -> Counter[str]:
        """Number of times that each verdict was given."""
        return self._state.counts

    @property
    def growth(self) -> GrowthGuard:
        return self._steps.growth

    @property
    def buffered(self) -> int:
        """Number of accepted updates that wait for their step."""
        return sum(item.count for item in self._state.buffer)

    @property
    def oldest_needed(self) -> int:
        """The lowest lsn whose body a restart may still need."""
        return min([*self._state.needed, *self._state.site.needed], default=self._state.next)

    @property
    def needed(self) -> list[int]:
        """Records (lsn) whose bodies a restart still needs."""
        return self._state.needed

    @property
    def oldest_base(self) -> int:
        """The oldest version that an update may be based on."""
        return self._state.oldest_base

    @property
    def heard(self) -> frozenset[str]:
        """The devices of which an update was ever accepted."""
        return frozenset(device for device, _ in self._state.heard.numbers())

    @property
    def applied(self) -> int:
        """How many updates are in the model."""
        return self._state.applied

    @property
    def evaluable(self) -> tuple[int, int]:
        """Changes if there is another version to evaluate: the newest one, and how many are registered."""
        return self._state.version, len(self._state.registry.versions)

    @property
    def registry(self) -> Registry:
        """The registered versions, and the names that stand for them."""
        return self._state.registry

    def interval(self, devices: Iterable[str]) -> float | None:
        """The median interval between updates of these devices, in seconds; None if unknown."""
        return self._state.fleet.interval(devices)

    @property
    def usual_training(self) -> float | None:
        """Seconds from a version to the update of a usual device; None if unknown."""
        usual = self._state.fleet.usual_training()
        return None if usual is None else max(usual, self.strategy.pace.interval)

    @property
    def settled(self) -> set[str]:
        """Devices whose update was accepted since the last release, or refused."""
        return self._turn.settled

    @property
    def scheduled(self) -> tuple[float, str] | None:
        """When a version or a step is due that takes no further update, and why not before, with a gap for the time."""
        return scheduled(self._steps, self._releases)

    @property
    def versions_a_turn(self) -> int:
        """Number of versions in which every device contributes about one update, the slowest included."""
        live = self.steering.live
        return max(-(-live // self.strategy.size(live)), self._state.fleet.longest_staleness())

    def step_at(self, version: int) -> int:
        """The step at which a version was released."""
        known = self._state.versions.step(version)
        return self._state.step if known is None else known

    def hi(self, device: str, outbox: int) -> int:
        """The seq up to which an outbox is settled."""
        known = self._state.outboxes.get(device, outbox)
        return 0 if known is None else known.hi

    def contributed(self, device: str) -> bool:
        """Whether an update of this device was ever accepted."""
        return self._state.heard.given(device) > 0

    def encoder_doubt(self, device: str, now: float) -> str:
        """The reason to suspect a device's encoder (`aggregator.core.encoder_doubt`); empty if there is none."""
        fleet = self._state.fleet
        return doubt(fleet.norms(device), fleet.excess(device, now), self.growth.damping)

    def waits(self, device: str) -> bool:
        """Whether an update of this device waits for its step."""
        return self._state.waiting(device) > 0

    def waiting_of(self, device: str) -> tuple[int, ...]:
        """Records (lsn) of a device's updates that wait for their step and of its statistics that wait for pooling."""
        return self._state.waiting_of(device)

    def dump(self) -> dict[str, Any]:
        """Plain values for `AggregatorCore.load`: the state after the record `lsn`, for a checkpoint."""
        return self._state.dump()

    @property
    def obstacle(self) -> Obstacle | None:
        """The reason why the model does not move; None if there is none."""
        if not self._state.frozen and (waits := self._gathering.obstacle) is not None:
            return waits
        return obstacle(self._state, self._steps, self._releases, strategy=self.strategy, live=self.steering.live)
