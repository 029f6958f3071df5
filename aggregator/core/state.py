"""What the core remembers: everything that the journal can rebuild, and nothing else.

All of it changes in `take`, which a live decision and the replay of the journal share; so recovery is not a second
implementation of the decisions. Timers are not in here: they start over with the process.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from midge.aggregator.core import records as rec
from midge.aggregator.core.fleet_statistics import FleetStatistics
from midge.aggregator.core.gain_margin import Margin
from midge.aggregator.core.local_work import LocalWork
from midge.aggregator.core.participation_controller import Steering
from midge.aggregator.core.participation_counts import Participations
from midge.aggregator.core.registry import Registry
from midge.aggregator.core.release_log import ReleaseLog
from midge.aggregator.core.sequence_tracker import Outboxes
from midge.aggregator.core.standings import Standings
from midge.aggregator.core.strategy import Strategy, Waiting
from midge.aggregator.core.versions import Versions
from midge.wire.messages import Verdict


@dataclass(frozen=True, slots=True)
class Buffered(Waiting):
    """An accepted update that waits for its step, by its lsn."""

    lsn: int = 0


class CoreState:
    """Of one lineage. The parts of the core read it; only `take`, `forget` and `load` write it.

    Args:
        strategy: says how delays and standings are counted.
        steering: its share is in the journal.
        devices: how many may take part.
        frozen: whether the model trains without statistics.
    """

    def __init__(self, strategy: Strategy, steering: Steering, devices: int, *, frozen: bool) -> None:
        self._strategy, self._steering = strategy, steering
        self.lsn = 0
        self.generation = 0
        self.version = 0
        self.step = 0
        self.served = 0
        """The version that was last released for use."""
        self.frozen = frozen
        self.counts: Counter[str] = Counter()
        self.outboxes = Outboxes(devices)
        self.heard = Participations()
        self.margin = Margin(strategy.calibration, strategy.momentum, normalised=strategy.normalised)
        self.fleet = FleetStatistics()
        self.work = LocalWork()
        self.standings = Standings()
        self.versions = Versions()
        self.releases = ReleaseLog()
        self.registry = Registry()
        self.applied = 0
        """Updates that are in the model."""
        self.buffer: list[Buffered] = []
        self.contributors: set[str] = set()
        """Devices whose work is in the model and in no release yet."""
        self.statistics: dict[str, int] = {}
        """By device, the lsn of those that it sent last."""
        self.digests: dict[str, bytes] = {}
        """Of each device's statistics."""

    # --------------------------------------------------------------------- changes

    @property
    def next(self) -> int:
        """The lsn of the next record."""
        return self.lsn + 1

    def replay(self, record: rec.Record) -> None:
        """Take a record of the journal as decided.

        Raises:
            ValueError: it does not follow on the one before.
        """
        if record.lsn != self.lsn + 1:
            raise ValueError(f"journal record {record.lsn} follows {self.lsn}")
        self.take(record)

    def take(self, record: rec.Record) -> None:
        """Remember a decision."""
        self.lsn = record.lsn
        match record:
            case rec.UpdateRecord():
                self._take_update(record)
            case rec.StepRecord():
                self.step = record.step
                self.applied += len(record.updates)
                taken = {lsn for lsn, _ in record.updates}
                self.contributors |= {item.device for item in self.buffer if item.lsn in taken}
                self.buffer = [item for item in self.buffer if item.lsn not in taken]
            case rec.ReleaseRecord():
                self.version = record.version
                self.versions.add(record.version, record.step, record.at)
                # A release of a new generation says nothing of the devices: their work is still only in x.
                if record.devices:
                    self.contributors.clear()
                self.versions.forget_steps_before(self.step - self._strategy.max_staleness)
            case rec.StatisticsRecord():
                self.statistics[record.device] = record.lsn
                self.digests[record.device] = record.digest
            case rec.FreezeRecord():
                self.frozen = True
                self.statistics.clear()
                self.digests.clear()
            case rec.RenormaliseRecord():
                self.generation = record.generation
                self.frozen = False
                self.releases.clear()
                self.versions.clear()  # what was trained with the old statistics fits no more
                self.fleet, self.standings = FleetStatistics(), Standings()  # and neither do its norms
                self.statistics.clear()
                self.digests.clear()
            case rec.GenerationRecord():
                self.generation = record.generation
                self.version = record.version
                self.versions.clear()
                self.releases.clear()
            case rec.ServeRecord():
                self.served = record.version
            case rec.PaceRecord():
                self._steering.share = record.share
                self.work.steps, self.work.recipe = record.steps or None, record.recipe
            case rec.DropRecord():
                self._drop(set(record.dropped))
            case rec.RegisterRecord() | rec.MeasureRecord() | rec.PairRecord() | rec.AliasRecord():
                self.registry.take(record)
            case rec.RollbackRecord():
                self.registry.take(record)
                self._roll_back(record)
            case _:
                pass

    def _take_update(self, record: rec.UpdateRecord) -> None:
        verdict = Verdict(record.verdict)
        self.outboxes.settle(record.device, record.outbox, record.seq, verdict, record.base, body=record.body)
        self.counts[record.verdict] += 1
        # A refused update teaches nothing: otherwise what is turned away would still move the fleet's medians.
        if record.verdict == Verdict.ACCEPTED:
            self.heard.take(record.device)
            # What hardly moves the model must not hide the delays of what does.
            weight = record.weight * self.standings.share(record.device)
            self.margin.saw(record.device, record.staleness, weight, record.base, len(self.heard))
            self.fleet.take(record)
            self.standings.take(record.device, record.agreement, record.norm, record.reference)
            self.buffer.append(
                Buffered(
                    record.device,
                    record.staleness,
                    record.weight,
                    record.scale,
                    record.norm,
                    record.agreement,
                    lsn=record.lsn,
                )
            )

    def _roll_back(self, record: rec.RollbackRecord) -> None:
        self.generation, self.version = record.generation, record.version
        self.versions.clear()  # what was trained in the generation before is refused
        self.releases.clear()
        self.counts["rolled_back"] += len(record.dropped)
        dropped = set(record.dropped)
        self.buffer = [item for item in self.buffer if item.lsn not in dropped]
        self.contributors.clear()
        known = self.registry.versions.get(record.to)
        self.applied = 0 if known is None else known.record.updates

    def _drop(self, dropped: set[int]) -> None:
        self.counts["revoked"] += len(dropped)
        self.buffer = [item for item in self.buffer if item.lsn not in dropped]
        for device in [name for name, lsn in self.statistics.items() if lsn in dropped]:
            del self.statistics[device]
            self.digests.pop(device, None)

    def weigh_work(self) -> bool:
        """Weigh the local steps again, if the strategy does. Whether they have changed: `pace` is to be journaled."""
        return self._strategy.steers_steps and not self._steering.quiet and self.work.weigh(self.fleet)

    def pace(self) -> rec.PaceRecord:
        """Who takes part from here on, with how many local steps."""
        return rec.PaceRecord(self.next, self._steering.share, self.work.steps or 0, self.work.recipe)

    def carried(self, version: int, digest: bytes) -> None:
        """Note what a release has become on the model: replay finds the same."""
        self.releases.add(self.generation, version, digest)
        self.releases.forget_before(self.oldest_base)

    def forget(self, device: str, alias: str) -> rec.ForgetRecord:
        """Remove what is known of a device; where a count needs it, it stands there under another name."""
        assert not self.waiting(device)
        record = rec.ForgetRecord(self.next, alias)
        self.take(record)
        for part in (self.outboxes, self.heard, self.fleet, self.standings):
            part.forget(device)
        self.margin.forget(device, alias)
        self.registry.forget(device, alias)
        self.statistics.pop(device, None)
        self.digests.pop(device, None)
        if device in self.contributors:
            # Still one device of those that a release must carry the work of: only its name goes.
            self.contributors.discard(device)
            self.contributors.add(alias)
        return record

    def revoke(self, device: str) -> list[rec.DropRecord]:
        """Drop what waits of a device. Its receipts stand: what it sends again is a repeat, and counts no more."""
        waiting = self.waiting_of(device)
        if not waiting:
            return []
        record = rec.DropRecord(self.next, waiting)
        self.take(record)
        return [record]

    # ------------------------------------------------------------------- questions

    def waiting(self, device: str) -> int:
        """How many updates of this device wait for their step."""
        return sum(item.device == device for item in self.buffer)

    def waiting_of(self, device: str) -> tuple[int, ...]:
        """The records of a device that wait for their step, or to be pooled."""
        gathered = [self.statistics[device]] if device in self.statistics else []
        return (*(item.lsn for item in self.buffer if item.device == device), *gathered)

    def staleness(self, base: int) -> int:
        """How many steps were made since a version was released."""
        known = self.versions.step(base)
        return 0 if known is None else self.step - known

    @property
    def needed(self) -> list[int]:
        """The lsns whose bodies a restart still needs."""
        return [item.lsn for item in self.buffer] + list(self.statistics.values())

    @property
    def oldest_base(self) -> int:
        """The oldest version that an update may be based on."""
        oldest = self.versions.oldest
        return self.version if oldest is None else oldest

    # ------------------------------------------------------------------ checkpoints

    def dump(self) -> dict[str, Any]:
        """Everything that the journal up to `lsn` had said, for a checkpoint."""
        return {
            "lsn": self.lsn,
            "generation": self.generation,
            "version": self.version,
            "step": self.step,
            "frozen": self.frozen,
            "counts": dict(self.counts),
            "outboxes": self.outboxes.dump(),
            "bases": self.outboxes.bases(),
            "bodies": self.outboxes.bodies(),
            "heard": self.heard.dump(),
            "margin": self.margin.dump(),
            "fleet": self.fleet.dump(),
            "standings": self.standings.dump(),
            "versions": self.versions.dump(),
            "log": self.releases.dump(),
            "registry": self.registry.dump(),
            "applied": self.applied,
            "served": self.served,
            "share": self._steering.share,
            "work": [self.work.steps, self.work.recipe],
            "buffer": [
                [item.lsn, item.device, item.staleness, item.weight, item.scale, item.norm, item.agreement]
                for item in self.buffer
            ],
            "contributors": sorted(self.contributors),
            "statistics": dict(self.statistics),
            "digests": dict(self.digests),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Take up what `dump` returned."""
        self.lsn = state["lsn"]
        self.generation = state["generation"]
        self.version = state["version"]
        self.step = state["step"]
        self.frozen = state["frozen"]
        self.counts = Counter(state["counts"])
        # Earlier checkpoints do not say of which version the last update was: then it is of the newest.
        bases = state.get("bases", [self.version] * len(state["outboxes"]))
        self.outboxes.load(state["outboxes"], bases, state.get("bodies", ()))
        self.heard.load(state["heard"])
        self.margin.load(state["margin"])
        self.served = state["served"]
        self._steering.share = state["share"]
        self.work.steps, self.work.recipe = state.get("work", (None, 0))
        self.fleet.load(state.get("fleet", ()))  # older checkpoints have none: the fleet's next updates rebuild it
        self.standings.load(state.get("standings", ()))
        if "versions" in state:
            self.versions.load(state["versions"])
        else:
            times = dict(state["times"])
            self.versions.load([number, step, times.get(number, 0.0)] for number, step in state["steps_at"])
        self.buffer = [
            Buffered(device, staleness, weight, scale, *later, lsn=lsn)  # type: ignore[misc]  # by position
            for lsn, device, staleness, weight, scale, *later in state["buffer"]
        ]
        self.applied = state.get("applied", self.counts["accepted"] - len(self.buffer))
        if "registry" in state:
            self.registry.load(state["registry"])
        if "log" in state:
            self.releases.load(state["log"])
        self.contributors = set(state["contributors"])
        self.statistics = dict(state["statistics"])
        self.digests = dict(state.get("digests", {}))
