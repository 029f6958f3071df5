"""What may be read of the core: by its shells, by metrics and by tests. It decides nothing and changes nothing."""

from collections import Counter
from collections.abc import Iterable, Mapping

from midge.aggregator.core.encoder_doubt import doubt
from midge.aggregator.core.growth_guard import GrowthGuard
from midge.aggregator.core.obstacle import Obstacle, obstacle
from midge.aggregator.core.participation_controller import Steering
from midge.aggregator.core.release_schedule import ReleaseSchedule
from midge.aggregator.core.state import CoreState
from midge.aggregator.core.statistics_phase import StatisticsPhase
from midge.aggregator.core.step_planner import StepPlanner
from midge.aggregator.core.strategy import Strategy
from midge.aggregator.core.update_admission import Conditions
from midge.wire.messages import Plan


class CoreView:
    """The read side of `AggregatorCore`, which makes these parts."""

    strategy: Strategy
    steering: Steering
    _state: CoreState
    _conditions: Conditions
    _steps: StepPlanner
    _releases: ReleaseSchedule
    _gathering: StatisticsPhase

    @property
    def full(self) -> str | None:
        """Why nothing can be decided; None if the store has room."""
        return self._conditions.full

    @property
    def paused(self) -> str | None:
        """Why nothing is accepted; None if the operator lets updates in."""
        return self._conditions.paused

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the model's inputs, in order; empty if they are not known."""
        return self._conditions.features

    @property
    def unlike(self) -> Mapping[str, str]:
        """Devices whose inputs are not the model's, each with why in words: nothing of theirs is taken."""
        return self._conditions.unlike

    @property
    def lsn(self) -> int:
        """Of the last record."""
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
        """The hash over all releases; empty if it is not known."""
        return self._state.releases.head

    @property
    def plan(self) -> Plan:
        """What devices are asked to do now."""
        plan = self.strategy.plan
        return plan if (steps := self._state.work.steps) is None else plan.model_copy(update={"local_steps": steps})

    @property
    def served(self) -> int:
        """The version that was last released for use."""
        return self._state.served

    @property
    def frozen(self) -> bool:
        """Whether the model trains: no statistics are waited for."""
        return self._state.frozen

    @property
    def counts(self) -> Counter[str]:
        """Of verdicts."""
        return self._state.counts

    @property
    def growth(self) -> GrowthGuard:
        return self._steps.growth

    @property
    def buffered(self) -> int:
        """How many accepted updates wait for their step."""
        return len(self._state.buffer)

    @property
    def oldest_needed(self) -> int:
        """The lowest lsn whose body a restart may still need."""
        return min(self._state.needed, default=self._state.next)

    @property
    def needed(self) -> list[int]:
        """The lsns whose bodies a restart still needs."""
        return self._state.needed

    @property
    def oldest_base(self) -> int:
        """The oldest version that an update may be based on."""
        return self._state.oldest_base

    def interval(self, devices: Iterable[str]) -> float | None:
        """The usual seconds between two updates of these devices: the median over them; None if it is not known."""
        return self._state.fleet.interval(devices)

    @property
    def versions_a_turn(self) -> int:
        """Versions in which every device has about one update, the slowest too."""
        live = self.steering.live
        return max(-(-live // self.strategy.size(live)), self._state.fleet.longest_staleness())

    def step_at(self, version: int) -> int:
        """The step at which a version was released."""
        known = self._state.versions.step(version)
        return self._state.step if known is None else known

    def hi(self, device: str, outbox: int) -> int:
        """Up to which seq all is settled."""
        known = self._state.outboxes.get(device, outbox)
        return 0 if known is None else known.hi

    def contributed(self, device: str) -> bool:
        """Whether an update of this device was ever accepted."""
        return self._state.heard.given(device) > 0

    def encoder_doubt(self, device: str, now: float) -> str:
        """Why a device's encoder seems to lose what it leaves out; empty if it does not."""
        state = self._state
        typical, reference = state.fleet.typical(device), state.fleet.norm(now)
        excess = state.standings.excess(device, typical, reference)
        return doubt(state.fleet.norms(device), excess, self.growth.damping)

    def waits(self, device: str) -> bool:
        """Whether an update of this device waits for its step."""
        return self._state.waiting(device) > 0

    def waiting_of(self, device: str) -> tuple[int, ...]:
        """The records of a device that wait for their step, or to be pooled."""
        return self._state.waiting_of(device)

    @property
    def obstacle(self) -> Obstacle | None:
        """What keeps the model from moving; None if nothing does."""
        unfit = None if self._state.frozen else self._gathering.unfit
        strategy, live = self.strategy, self.steering.live
        return obstacle(self._state, self._steps, self._releases, strategy=strategy, live=live, unfit=unfit)
