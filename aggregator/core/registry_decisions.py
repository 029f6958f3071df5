"""What an order or a rule makes of the registry: the record of it, or why not.

Nothing is written here: the records are passed to the core, which has them journaled and carried out.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from midge.aggregator.core import records as rec
from midge.aggregator.core.registry import OrderRefused
from midge.aggregator.core.state import CoreState


@dataclass(frozen=True, slots=True)
class Cause:
    """Why something is decided, by whom and when."""

    why: str = ""
    by: str = "rule"
    at: float = 0.0
    """Seconds since 1970."""
    order: str = ""
    """The operator's order; empty if a rule decides."""

    def fields(self) -> dict[str, Any]:
        """As the fields of a record."""
        return {"why": self.why, "by": self.by, "at": self.at, "order": self.order}


@dataclass(frozen=True, slots=True)
class CanaryGroup:
    """The devices that try a candidate."""

    share: float
    """Of all devices, or of those that `where` names."""
    where: Mapping[str, str] = field(default_factory=dict)
    """Capabilities that such a device has, each with the text of its value; empty means all devices."""


class RegistryDecisions:
    """Decisions on one lineage's registry.

    Args:
        state: what is remembered; only read here.
    """

    def __init__(self, state: CoreState) -> None:
        self._state = state

    def check_released(self, version: int) -> None:
        """Check that a version can be registered.

        Raises:
            OrderRefused: it is registered already, or not a release of this generation.
        """
        if version in self._state.registry.versions:
            raise OrderRefused(f"version {version} is registered already")
        if not version or version > self._state.version:
            raise OrderRefused(f"version {version} is not released; the newest is {self._state.version}")
        if version not in self._state.versions:
            raise OrderRefused(f"version {version} is of another generation, or too old")

    def register(self, version: int, digest: bytes, cause: Cause, *, keep: int, strategy: str) -> rec.RegisterRecord:
        """Register a checked release, whose snapshot becomes the record's body."""
        state, registry = self._state, self._state.registry
        step = state.versions.step(version)
        return rec.RegisterRecord(
            state.next,
            version,
            state.generation,
            state.step if step is None else step,
            digest,
            cause.at,
            devices=len(state.heard),
            updates=state.applied,
            parent=registry.parent,
            strategy=strategy,
            by=cause.by,
            pruned=registry.surplus(keep, version),
            order=cause.order,
        )

    def promote(self, version: int, cause: Cause) -> rec.AliasRecord:
        """Make a registered version the champion; 0 stands for the candidate.

        Raises:
            OrderRefused: it is not registered, or is the champion.
        """
        registry = self._state.registry
        version = version or registry.candidate
        if not version:
            raise OrderRefused("there is no candidate: name a registered version")
        registry.known(version)
        if version == registry.champion:
            raise OrderRefused(f"version {version} is the champion already")
        candidate = 0 if version == registry.candidate else registry.candidate
        where = registry.where if candidate else {}
        return rec.AliasRecord(self._state.next, version, candidate, registry.share, **cause.fields(), where=where)

    def attempt(self, version: int, group: CanaryGroup, cause: Cause) -> rec.AliasRecord:
        """Make a registered version the candidate, which a group of devices uses.

        Raises:
            OrderRefused: it is not registered, or is the champion or the candidate.
        """
        registry = self._state.registry
        registry.known(version)
        if version == registry.champion:
            raise OrderRefused(f"version {version} is the champion already")
        if version == registry.candidate:
            raise OrderRefused(f"version {version} is the candidate already")
        return rec.AliasRecord(
            self._state.next, registry.champion, version, group.share, **cause.fields(), where=group.where
        )

    def withdraw(self, cause: Cause) -> rec.AliasRecord:
        """Take the candidate back: its devices use the champion again.

        Raises:
            OrderRefused: there is none.
        """
        registry = self._state.registry
        if not registry.candidate:
            raise OrderRefused("there is no candidate to take back")
        return rec.AliasRecord(self._state.next, registry.champion, 0, 1.0, **cause.fields())

    def roll_back(self, version: int, cause: Cause) -> rec.RollbackRecord:
        """Let the training go on from a registered version; 0 stands for the champion.

        Raises:
            OrderRefused: it is not registered, or the model waits for statistics.
        """
        state = self._state
        version = version or state.registry.champion
        if not version:
            raise OrderRefused("there is no champion: name a registered version")
        state.registry.known(version)
        if not state.frozen:
            raise OrderRefused("the model waits for statistics of the devices' data: roll back once it trains")
        waiting = tuple(item.lsn for item in state.buffer)
        return rec.RollbackRecord(
            state.next, state.generation + 1, state.version, version, dropped=waiting, **cause.fields()
        )

    def measure(
        self, version: int, source: str, metrics: Mapping[str, Any], devices: int = 0
    ) -> rec.MeasureRecord | None:
        """Note what a registered version was measured to do; None if that is known, or it is not registered."""
        known = self._state.registry.versions.get(version)
        if known is None or dict(metrics) == dict(known.server if source == "server" else known.federated):
            return None
        return rec.MeasureRecord(self._state.next, version, source, dict(metrics), devices)

    def pair(self, device: str, gain: float) -> rec.PairRecord | None:
        """Count what a device measured of candidate and champion; None if it was counted."""
        registry = self._state.registry
        if device in registry.trial or not registry.candidate or not registry.champion:
            return None
        return rec.PairRecord(self._state.next, device, registry.candidate, registry.champion, gain)
