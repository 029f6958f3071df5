"""The registry: versions of the model that were registered for use, and the names that stand for them.

What is in here follows from the journal alone. A registered version is kept whole in the store, as a frame beside the
published ones; here is what is known about it. What an order becomes is decided in `registry_decisions`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from midge.aggregator.core import records as rec
from midge.aggregator.core.canary import CanaryTrial

_ORDERS = 64
"""Orders that are remembered, so that one that is found again after a crash is not followed twice."""


class OrderRefused(Exception):
    """An order that cannot be followed; the message says why."""


@dataclass(frozen=True, slots=True)
class Registered:
    """A registered version: where it comes from, and what it was measured to do."""

    record: rec.RegisterRecord
    server: Mapping[str, float] = field(default_factory=dict)
    """The aggregator's own evaluation."""
    federated: Mapping[str, Any] = field(default_factory=dict)
    """The devices' results on their own data, combined."""
    devices: int = 0
    """Devices with such results."""

    @property
    def version(self) -> int:
        return self.record.version


class Registry:
    """The registered versions of one lineage. `take` changes it, as live and replayed records say."""

    def __init__(self) -> None:
        self.versions: dict[int, Registered] = {}
        """In the order of registration."""
        self.champion = self.candidate = 0
        """Versions; 0 is none."""
        self.share = 1.0
        """Of the devices that use the candidate, or of those that `where` names."""
        self.where: Mapping[str, str] = {}
        """Capabilities of the devices that use the candidate; empty means all devices."""
        self.number = 0
        """The record of the newest decision on the names."""
        self.why = ""
        """Why the names are what they are."""
        self.since = 0.0
        """Seconds since 1970 of that decision."""
        self.trial = CanaryTrial()
        """Of the candidate."""
        self.parent = 0
        """The version registered last on the way to the model."""
        self.former = 0
        """The champion before this one."""
        self.orders: list[str] = []
        """The orders that were followed last."""

    def take(self, record: rec.Record) -> None:
        """Remember a decision."""
        match record:
            case rec.RegisterRecord():
                self.versions[record.version] = Registered(record)
                self.parent = record.version
                for version in record.pruned:
                    self.versions.pop(version, None)
                self._follow(record.order)
            case rec.MeasureRecord() if (known := self.versions.get(record.version)) is not None:
                if record.source == "server":
                    known = replace(known, server=dict(record.metrics))
                else:
                    known = replace(known, federated=dict(record.metrics), devices=record.devices)
                self.versions[record.version] = known
            case rec.PairRecord() if (record.candidate, record.champion) == (self.candidate, self.champion):
                self.trial.add(record.device, record.gain)
            case rec.AliasRecord():
                self._name(record, record.champion, record.candidate)
                self.share, self.where = record.share, dict(record.where)
            case rec.RollbackRecord():
                self._name(record, record.to, 0)
                self.parent = record.to
            case _:
                pass

    def _name(self, record: rec.AliasRecord | rec.RollbackRecord, champion: int, candidate: int) -> None:
        if (champion, candidate) != (self.champion, self.candidate):
            self.trial = CanaryTrial()
        if champion != self.champion:
            self.former = self.champion
        self.champion, self.candidate = champion, candidate
        self.number, self.why, self.since = record.lsn, record.why, record.at
        self._follow(record.order)

    def _follow(self, order: str) -> None:
        if order and order not in self.orders:
            self.orders = [*self.orders, order][-_ORDERS:]

    def forget(self, device: str, alias: str) -> None:
        """Put another name in the place of a device's: its pair stays counted."""
        self.trial.forget(device, alias)

    # ------------------------------------------------------------------- questions

    @property
    def named(self) -> dict[str, int]:
        """The names that stand for a version."""
        names = {"champion": self.champion, "candidate": self.candidate}
        return {name: version for name, version in names.items() if version}

    def known(self, version: int) -> Registered:
        """A registered version.

        Raises:
            OrderRefused: it is not registered.
        """
        found = self.versions.get(version)
        if found is None:
            listed = ", ".join(map(str, self.versions)) or "none"
            raise OrderRefused(f"version {version} is not registered; registered are: {listed}")
        return found

    def surplus(self, keep: int, version: int) -> tuple[int, ...]:
        """The versions to prune when another one is registered: the oldest that no name stands for.

        The champion before this one stays, too: it is what an operator goes back to.

        Args:
            keep: how many there may be.
            version: of the one to be registered.
        """
        held = {*self.named.values(), self.former, version}
        free = [each for each in self.versions if each not in held]
        return tuple(free[: max(0, len({*self.versions, version}) - keep)])

    # ------------------------------------------------------------------ checkpoints

    def dump(self) -> list[Any]:
        """Return what `load` takes."""
        entries = [
            [rec.pack(each.record), dict(each.server), dict(each.federated), each.devices]
            for each in self.versions.values()
        ]
        names = [self.champion, self.candidate, self.share, self.number, self.why, self.since, self.former]
        return [entries, names, self.trial.dump(), self.parent, list(self.orders), dict(self.where)]

    def load(self, state: Iterable[Any]) -> None:
        """Take up what `dump` returned."""
        entries, names, trial, self.parent, orders, *more = state  # one of an earlier Midge ends here
        self.where = dict(*more)
        self.versions = {}
        for packed, server, federated, devices in entries:
            record = rec.unpack("register", packed)
            assert isinstance(record, rec.RegisterRecord)
            self.versions[record.version] = Registered(record, server, federated, devices)
        self.champion, self.candidate, self.share, self.number, self.why, self.since, self.former = names
        self.trial.load(trial)
        self.orders = list(orders)
