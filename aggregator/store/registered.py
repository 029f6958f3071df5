"""The registered versions of a store, also of one that an aggregator has open."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from midge.aggregator.core import records as rec
from midge.aggregator.core.core import AggregatorCore
from midge.aggregator.core.presets import fedasync
from midge.aggregator.core.registry import Registered, Registry
from midge.aggregator.core.strategy import Strategy
from midge.aggregator.model.model import REGISTERED
from midge.aggregator.store.reading import ReadOnlyStore
from midge.aggregator.store.store import Store, StoreError

FEDERATION = "federation"
"""Name in the metadata."""


def snapshot_of(store: Store, registered: Registered) -> bytes | None:
    """The snapshot of a registered version; None if it is damaged or lost.

    After a power cut it may be only in the journal, until the next start.
    """
    data = store.frame(registered.version, REGISTERED)
    if data is None:
        with suppress(StoreError):
            data = store.body(registered.record.lsn)
    return data


def read_core(store: Store, strategy: Strategy | None = None) -> AggregatorCore:
    """The numbers of an open store, from its newest checkpoint and the journal after it.

    Raises:
        StoreError: it is empty or damaged.
    """
    if store.schema is None or store.empty:
        raise StoreError(f"The store {store.directory} is empty: there is no model in it.")
    # Only numbers are read here; but for what a private federation has spent, they do not depend on the strategy.
    core = AggregatorCore(strategy or fedasync(), lineage=store.lineage, schema_hash=store.schema.hash)
    core.load(store.newest_checkpoint().core)
    for entry in store.entries(after=core.lsn):
        core.replay(rec.clamped(entry.record, core.generation, core.version))
    return core


@dataclass(frozen=True, slots=True)
class RegistryReading:
    """What a store holds of registered versions."""

    federation: str
    """Empty if the store does not say."""
    lineage: bytes
    registry: Registry
    snapshots: Mapping[int, bytes | None]
    """By version; None if it is damaged."""


def registered_in(directory: Path, wanted: Callable[[bytes, int], bool] = lambda *_: True) -> RegistryReading:
    """The registered versions of a store.

    Args:
        directory: of the store.
        wanted: whether the values of a version of a lineage are to be read.

    Raises:
        StoreError: it cannot be read.
    """
    with ReadOnlyStore(directory) as store:
        registry, lineage = read_core(store).registry, store.lineage
        snapshots = {
            version: snapshot_of(store, each) for version, each in registry.versions.items() if wanted(lineage, version)
        }
        rows = store.query("SELECT value FROM meta WHERE name = ?", (FEDERATION,))
        return RegistryReading(str(rows[0][0]) if rows else "", lineage, registry, snapshots)


def facts(each: Registered, registry: Registry) -> dict[str, Any]:
    """What is known of a registered version, as plain values."""
    record = each.record
    return {
        "version": record.version,
        "generation": record.generation,
        "digest": record.digest.hex(),
        "metrics": {"server": dict(each.server), "federated": dict(each.federated), "devices": each.devices},
        "parent": record.parent or None,
        "aliases": [name for name, version in registry.named.items() if version == record.version],
        "step": record.step,
        "at": record.at,
        "devices": record.devices,
        "updates": record.updates,
        "strategy": record.strategy,
        "by": record.by,
    }


def note_federation(store: Store, federation: str) -> None:
    """Keep the federation's name with the store, so that its versions can be listed without its program."""
    rows = store.query("SELECT value FROM meta WHERE name = ?", (FEDERATION,))
    if not rows or rows[0][0] != federation:
        store.set_constant(FEDERATION, federation)
