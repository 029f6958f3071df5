"""The core's durable state: everything that the journal can rebuild, and nothing else.

All of it changes in `take`, which live decisions and the replay of the journal share; so recovery is no second
implementation. Timers are not part of it: they restart with the process.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from midge.aggregator.core import records as rec
from midge.aggregator.core.buffered import Buffered, counted, names_of
from midge.aggregator.core.fleet_statistics import FleetStatistics
from midge.aggregator.core.gain_margin import GainMarginEstimator
from midge.aggregator.core.groups import OpenedGroups
from midge.aggregator.core.local_work import LocalWork
from midge.aggregator.core.participation_controller import ParticipationController
from midge.aggregator.core.participation_counts import ParticipationCounter
from midge.aggregator.core.privacy_ledger import PrivacyLedger
from midge.aggregator.core.registry import Registry
from midge.aggregator.core.release_log import ReleaseLog
from midge.aggregator.core.sequence_tracker import Outboxes
from midge.aggregator.core.site_state import SiteState
from midge.aggregator.core.standings import Standings
from midge.aggregator.core.strategy import Strategy
from midge.aggregator.core.versions import Versions
from midge.wire.messages import Verdict


class CoreState:
    """State of one lineage. The modules of the core read it; only `take`, `carried`, `forget` and `load` change it.

    Args:
        strategy: how delays and standings are counted.
        steering: its share is journaled.
        devices: most devices whose outboxes are tracked.
        frozen: whether the model trains without statistics.
    """

    def __init__(self, strategy: Strategy, steering: ParticipationController, devices: int, *, frozen: bool) -> None:
        self._strategy, self._steering = strategy, steering
        self.lsn = 0
        self.generation = 0
        self.version = 0
        self.step = 0
        self.served = 0
        """The newest version released on the channel `serve`."""
        self.frozen = frozen
        self.counts: Counter[str] = Counter()
        self.outboxes = Outboxes(devices)
        self.heard = ParticipationCounter()
        self.margin = GainMarginEstimator(strategy.calibration, strategy.momentum, normalised=strategy.normalised)
        self.fleet = FleetStatistics()
        self.work = LocalWork()
        self.site = SiteState()
        self.standings = Standings()
        self.versions = Versions()
        self.releases = ReleaseLog()
        self.registry = Registry()
        self.applied = 0
        """Updates that are in the model."""
        self.groups = OpenedGroups()
        self.buffer: list[Buffered] = []
        self.contributors: set[str] = set()
        """Devices whose updates are in the model but in no release yet, and hide each other's work."""
        self.trivial: set[str] = set()
        """Devices whose updates are in the model but in no release yet, and hide no other's work."""
        self.ledger = PrivacyLedger()
        self.statistics: dict[str, int] = {}
        """By device, the lsn of its newest statistics."""
        self.digests: dict[str, bytes] = {}
        """By device, the digest of these statistics."""

    # --------------------------------------------------------------------- changes

    @property
    def next(self) -> int:
        """The lsn of the next record."""
        return self.lsn + 1

    def replay(self, record: rec.Record) -> None:
        """Apply a record of the journal.

        Raises:
            ValueError: it does not follow the last one.
        """
        if record.lsn != self.lsn + 1:
            raise ValueError(f"journal record {record.lsn} follows {self.lsn}")
        self.take(record)

    def take(self, record: rec.Record) -> None:
        """Apply a decision to the state."""
        self.lsn = record.lsn
        match record:
            case rec.UpdateRecord():
                self._take_update(record)
            case rec.StepRecord():
                self._take_step(record)
            case rec.OpenedSumRecord():
                self.buffer = self.groups.take(record, self.buffer)
                opened = [item for item in self.buffer if record.noise and item.group == record.lsn]
                self.ledger.charge_sum(opened, record.noise, record.clip)
            case rec.ReleaseRecord():
                self.version = record.version
                self.versions.add(record.version, record.step, record.at)
                self.ledger.given.clear()
                # The first release of a generation publishes no device's work: it is still only in x.
                if record.devices:
                    self.contributors.clear()
                    self.trivial.clear()
                # Updates of these bases would be refused as stale in any case.
                self.versions.forget_steps_before(self.step - self._strategy.max_staleness)
            case rec.StatisticsRecord():
                # The newest of a device replaces its earlier ones: pooled twice, its rows would count twice.
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
                # The normalisation changes: updates trained under the old one do not fit, nor do their norms.
                self.versions.clear()
                self.fleet, self.standings = FleetStatistics(), Standings()
                self.statistics.clear()
                self.digests.clear()
            case rec.GenerationRecord():
                # What devices spent since is not known: an update in each missing version, and one in this, at most.
                behind = record.version > self.version or record.generation > self.generation + 1
                if self._strategy.privacy is not None and behind:
                    self.ledger.charge_all((record.version - self.version + 1) * self._strategy.privacy.rho)
                self.generation = record.generation
                self.version = record.version
                # Numbers of the earlier generation may name other models on the devices.
                self.versions.clear()
                self.releases.clear()
            case rec.ServeRecord():
                self.served = record.version
            case rec.PaceRecord():
                self._steering.share = record.share
                self.work.steps, self.work.recipe = record.steps or None, record.recipe
            case rec.DropRecord():
                self.groups.count(record)
                self._drop(set(record.dropped), record.why)
            case rec.ReadmitRecord():
                self.ledger.move(record.alias, record.device)
            case rec.RegisterRecord() | rec.MeasureRecord() | rec.PairRecord() | rec.AliasRecord():
                self.registry.take(record)
            case rec.RollbackRecord():
                self.registry.take(record)
                self._roll_back(record)
            case rec.ForgetRecord():
                self.versions.forget_before(record.before)  # the rest is in the checkpoint that follows
            case rec.FollowRecord() | rec.SumRecord():
                self.site.take(record, self)
            case rec.StrategyRecord():
                pass  # noted for people

    def _take_update(self, record: rec.UpdateRecord) -> None:
        verdict = Verdict(record.verdict)
        self.outboxes.settle(record.device, record.outbox, record.seq, verdict, record.base, body=record.body)
        self.counts[record.verdict] += 1
        # A refused update changes no statistics: otherwise it could still move the fleet's medians.
        if record.verdict == Verdict.ACCEPTED:
            self.heard.take(record.device)
            # Delays count by effect: updates that hardly move the model must not hide the delays of those that do.
            weight = record.weight * self.standings.share(record.device)
            names = names_of(record.device, record.devices, record.who)
            for name in names:  # a site's delays are those of as many devices
                self.margin.record(name, record.staleness, weight, record.base, len(self.heard) * len(names))
            self.fleet.take(record, self.step)
            self.standings.take(record.device, record.agreement)
            self.buffer.append(Buffered.of(record))

    def _take_step(self, record: rec.StepRecord) -> None:
        self.step = record.step
        if record.dealt:
            self.groups.count(record)
        weights = dict(record.updates)
        taken = [item for item in self.buffer if item.lsn in weights]
        self.applied += sum(item.count for item in taken)
        self.buffer = [item for item in self.buffer if item.lsn not in weights]
        self.margin.record_step(counted(taken, sums=bool(record.masses)), len(self.heard))
        if not record.noise:
            self.ledger.bare = record.step
        else:
            known = self._strategy.privacy
            owed = [item for item in taken if weights[item.lsn] and self.groups.owes(item.group)]
            self.ledger.charge_sum(owed, record.noise, record.clip or (0.0 if known is None else known.clip))
        if record.groups:
            self.groups.step(record, taken)
        self.contributors |= {name for item in taken if not item.trivial for name in item.names}
        self.trivial |= {name for item in taken if item.trivial for name in item.names}

    def _roll_back(self, record: rec.RollbackRecord) -> None:
        self.generation, self.version = record.generation, record.version
        self.versions.clear()  # what was trained in the generation before is refused
        self.releases.clear()
        self.counts["rolled_back"] += len(record.dropped)
        self._remove(set(record.dropped))
        self.contributors.clear()
        self.trivial.clear()
        known = self.registry.versions.get(record.to)
        self.applied = 0 if known is None else known.record.updates

    def _drop(self, dropped: set[int], why: str) -> None:
        self.counts[why] += len(dropped)
        self._remove(dropped)
        # The digest goes with the statistics: sent again after a readmission, they count as new.
        for device in [name for name, lsn in self.statistics.items() if lsn in dropped]:
            del self.statistics[device]
            self.digests.pop(device, None)

    def _remove(self, dropped: set[int]) -> None:
        """Remove updates that are in no step, and opened sums of which none is left."""
        self.buffer = [item for item in self.buffer if item.lsn not in dropped]
        self.groups.keep(self.buffer)

    def weigh_work(self) -> bool:
        """Recompute the number of local steps, if the strategy steers it; whether `pace` must be journaled."""
        # Not while the model rests: devices pause then, and their idle time is not that of a round trip.
        return self._strategy.steers_steps and not self._steering.quiet and self.work.weigh(self.fleet)

    def pace(self) -> rec.PaceRecord:
        """A record of the share of devices that train from now on, and of their local steps."""
        return rec.PaceRecord(self.next, self._steering.share, self.work.steps or 0, self.work.recipe)

    def carried(self, version: int, digest: bytes) -> None:
        """Record the digest of a released model. The replay computes the same."""
        self.releases.add(self.generation, version, digest)
        self.releases.forget_before(self.oldest_base)

    def forget(self, device: str, alias: str, before: int) -> rec.ForgetRecord:
        """Remove everything about a device; counts that need it keep it under an alias."""
        assert not self.waiting(device)
        record = rec.ForgetRecord(self.next, alias, before)
        self.take(record)
        for part in (self.outboxes, self.heard, self.fleet, self.standings, self.groups):
            part.forget(device)
        self.margin.forget(device, alias)
        self.ledger.move(device, alias)
        self.registry.forget(device, alias)
        self.statistics.pop(device, None)
        self.digests.pop(device, None)
        for names in (self.contributors, self.trivial):
            # It still counts as one of the distinct devices that a release needs; only its name is erased.
            if device in names:
                names.discard(device)
                names.add(alias)
        return record

    def drop(self, waiting: tuple[int, ...], why: str) -> list[rec.DropRecord]:
        """Drop updates and statistics that wait. Their outbox stays, so a retransmission is a duplicate."""
        if not waiting:
            return []
        record = rec.DropRecord(self.next, waiting, why)
        self.take(record)
        return [record]

    # --------------------------------------------------------------------- queries

    @property
    def hiding(self) -> int:
        """Number of devices whose unreleased work hides each other's; of all, if there is only trivial work."""
        return len(self.contributors or self.trivial)

    def waiting(self, device: str) -> int:
        """Number of this device's updates that wait for their step."""
        return sum(item.device == device for item in self.buffer)

    def withdrawn_with(self, device: str) -> tuple[int, ...]:
        """Numbers of what waits of a device, and of all in the opened sums that it is in: no sum is without it."""
        return *self.waiting_of(device), *self.groups.company(device, self.buffer)

    def waiting_of(self, device: str) -> tuple[int, ...]:
        """Records (lsn) of a device's updates that wait for their step and of its statistics that wait for pooling."""
        gathered = [self.statistics[device]] if device in self.statistics else []
        return (*(item.lsn for item in self.buffer if item.device == device), *gathered)

    def staleness(self, base: int) -> int:
        """Number of steps since a version was released; 0 if the version is not known."""
        known = self.versions.step(base)
        return 0 if known is None else self.step - known

    @property
    def needed(self) -> list[int]:
        """Records (lsn) whose bodies a restart still needs."""
        return [item.lsn for item in self.buffer] + list(self.groups.open) + list(self.statistics.values())

    @property
    def oldest_base(self) -> int:
        """The oldest version that an update may be based on."""
        oldest = self.versions.oldest
        return self.version if oldest is None else oldest

    # ------------------------------------------------------------------ checkpoints

    def dump(self) -> dict[str, Any]:
        """Plain values for `load`: the state after the record `lsn`, for a checkpoint."""
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
            "turn": self.fleet.dump_turn(),
            "standings": self.standings.dump(),
            "versions": self.versions.dump(),
            "log": self.releases.dump(),
            "registry": self.registry.dump(),
            "site": self.site.dump(),
            "applied": self.applied,
            "served": self.served,
            "share": self._steering.share,
            "work": [self.work.steps, self.work.recipe],
            "sum": [self.groups.helper, self.groups.dealt],
            "buffer": [item.dump() for item in self.buffer],
            "groups": self.groups.dump(),
            "contributors": sorted(self.contributors),
            "trivial": sorted(self.trivial),
            "ledger": self.ledger.dump(),
            "statistics": dict(self.statistics),
            "digests": dict(self.digests),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore from the result of `dump`, also from a checkpoint of an earlier Midge."""
        self.lsn = state["lsn"]
        self.generation = state["generation"]
        self.version = state["version"]
        self.step = state["step"]
        self.frozen = state["frozen"]
        self.counts = Counter(state["counts"])
        # Without the base of an outbox's last update, the newest version is the safe choice: it is kept longest.
        bases = state.get("bases", [self.version] * len(state["outboxes"]))
        self.outboxes.load(state["outboxes"], bases, state.get("bodies", ()))
        self.heard.load(state["heard"])
        self.margin.load(state["margin"], self._strategy.size(len(self.heard)))
        self.served = state["served"]
        self._steering.share = state["share"]
        self.work.steps, self.work.recipe = state.get("work", (None, 0))
        self.fleet.load(state.get("fleet", ()), state.get("turn", ((), ())))  # otherwise the next updates rebuild it
        self.standings.load(state.get("standings", ()))
        if "versions" in state:
            self.versions.load(state["versions"])
        else:
            times = dict(state["times"])
            self.versions.load([number, step, times.get(number, 0.0)] for number, step in state["steps_at"])
        self.groups.helper, self.groups.dealt = state.get("sum", (b"", 0))
        self.buffer = [Buffered.load(values) for values in state["buffer"]]
        self.groups.load(state.get("groups", ((), ())))
        self.applied = state.get("applied", self.counts["accepted"] - len(self.buffer))
        if "registry" in state:
            self.registry.load(state["registry"])
        if "site" in state:
            self.site.load(state["site"])
        if "log" in state:
            self.releases.load(state["log"])
        self.contributors = set(state["contributors"])
        self.trivial = set(state.get("trivial", ()))
        if "ledger" in state:
            self.ledger.load(state["ledger"])
        elif self._strategy.privacy is not None:
            self.ledger.load_counts(self.heard.numbers(), self._strategy.privacy)
        self.statistics = dict(state["statistics"])
        self.digests = dict(state.get("digests", {}))
