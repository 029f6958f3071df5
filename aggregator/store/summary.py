"""A summary of a store for a report, read beside its aggregator, at rest, or from a backup."""

from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from midge.aggregator.core import records as rec
from midge.aggregator.core.presets import private
from midge.aggregator.core.privacy import Privacy
from midge.aggregator.core.privacy_ledger import PrivacySpent
from midge.aggregator.core.registry import Registry
from midge.aggregator.store import meta_table
from midge.aggregator.store.errors import StoreError
from midge.aggregator.store.history import Period
from midge.aggregator.store.migrations import MIDGE_NAME
from midge.aggregator.store.reading import ReadOnlyStore
from midge.aggregator.store.registered import FEDERATION, read_core
from midge.storage.read_only import kept_closed
from midge.wire.errors import WireError

_RETRIES = 2
"""Further reads beside a running aggregator, which may delete a checkpoint between two looks at it."""
_ERASED = "gone-"
"""Begins the names that replace those of erased devices."""


@dataclass(frozen=True, slots=True)
class DeviceSummary:
    """What the store knows of a device."""

    name: str
    heard: int = 0
    """Seconds since 1970 of its last accepted message, to within a checkpoint; 0 if unknown."""
    version: int = 0
    """The newest version that an update of it was trained from."""
    accepted: int = 0
    """Accepted updates in the kept journal."""
    refused: int = 0
    since: int = 0
    """Refusals since the last accepted one."""
    verdict: str = ""
    """The last refusal's verdict and reason; empty if it was accepted last."""
    why: str = ""
    sums: int = 0
    """Those of the accepted updates that are sums of a gateway, or of a shard."""
    summed: int = 0
    """Updates of its devices in them."""
    behind: int = 0
    """Distinct devices in the newest of them."""


@dataclass(frozen=True, slots=True)
class StoreSummary:
    """What a store says about its federation."""

    directory: Path
    federation: str
    running: bool
    midge: str
    """The version of Midge that made the store, or migrated it."""
    generation: int
    version: int
    step: int
    released: float
    """When the newest version was released, in seconds since 1970; 0 if unknown."""
    parameters: int
    verdicts: Counter[str]
    """Of all updates since the store began."""
    applied: int
    """Updates in the model."""
    periods: list[Period] = field(repr=False)
    devices: list[DeviceSummary] = field(repr=False)
    """By name."""
    decisions: int
    """Updates in the kept journal, from which counts of devices are."""
    registry: Registry = field(repr=False)
    strategy: str = ""
    """The newest one in the kept journal."""
    privacy: PrivacySpent | None = None
    """What its devices have spent, if that strategy is private."""


def summarise(directory: Path) -> StoreSummary:
    """Read a summary; changes nothing.

    Raises:
        StoreError: there is no store, it is empty, or it cannot be read.
    """
    with kept_closed(directory / "lock") as closed:
        running = not closed
    for _ in range(_RETRIES if running else 0):
        with suppress(StoreError):
            return _summary(directory, running=running)
    return _summary(directory, running=running)


def _summary(directory: Path, *, running: bool) -> StoreSummary:
    with ReadOnlyStore(directory) as store:
        strategy, privacy = _strategy(store)
        # Devices' noise costs the same as the aggregator's (ρ); the figures in ε below are of the strategy's own.
        core = read_core(store, None if privacy is None else private(replace(privacy, honest=0)))
        store.history.load()
        meta = meta_table.values(store.query)
        devices, decisions = _devices(store)
        assert store.schema is not None
        return StoreSummary(
            directory,
            str(meta.get(FEDERATION, "")) or directory.resolve().name,
            running,
            str(meta.get(MIDGE_NAME, "")),
            core.generation,
            core.version,
            core.step,
            core.released_at,
            store.schema.size,
            core.counts,
            core.applied,
            store.history.periods(),
            devices,
            decisions,
            core.registry,
            strategy,
            None if privacy is None else core.spent_under(privacy),
        )


def _devices(store: ReadOnlyStore) -> tuple[list[DeviceSummary], int]:
    """The devices by name, and the number of updates that they were counted from."""
    found: dict[str, DeviceSummary] = {}
    if store.query("SELECT 1 FROM sqlite_schema WHERE name = 'seen'"):
        for device, at, _ in store.query("SELECT device, at, version FROM seen"):
            found[device] = DeviceSummary(device, at)
    decisions = 0
    for (packed,) in store.query("SELECT record FROM journal WHERE kind = 'update' ORDER BY lsn"):
        with suppress(WireError):
            record: Any = rec.unpack("update", packed)
            decisions += 1
            if not record.device.startswith(_ERASED):
                found[record.device] = _with(found.get(record.device) or DeviceSummary(record.device), record)
    return [found[name] for name in sorted(found)], decisions


def _with(device: DeviceSummary, record: rec.UpdateRecord) -> DeviceSummary:
    if record.verdict == "accepted":
        version = max(device.version, record.base)
        device = replace(device, version=version, accepted=device.accepted + 1, since=0, verdict="", why="")
        if not record.accepted:
            return device
        return replace(device, sums=device.sums + 1, summed=device.summed + record.accepted, behind=record.devices)
    return replace(device, refused=device.refused + 1, since=device.since + 1, verdict=record.verdict, why=record.why)


def _strategy(store: ReadOnlyStore) -> tuple[str, Privacy | None]:
    """The newest strategy, in words, and its privacy; None if it has none, or was journaled by an earlier Midge."""
    for (packed,) in store.query("SELECT record FROM journal WHERE kind = 'strategy' ORDER BY lsn DESC LIMIT 1"):
        with suppress(WireError, TypeError, ValueError):
            record: Any = rec.unpack("strategy", packed)
            return str(record.strategy), None if record.privacy is None else Privacy(**record.privacy)
    return "", None
