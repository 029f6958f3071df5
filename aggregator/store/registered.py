"""The registered versions of a store, also of one that an aggregator has open."""

from contextlib import suppress
from pathlib import Path

from midge.aggregator.core import records as rec
from midge.aggregator.core.core import AggregatorCore
from midge.aggregator.core.presets import fedasync
from midge.aggregator.core.registry import Registered, Registry
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


def read_core(store: Store) -> AggregatorCore:
    """The numbers of an open store, from its newest checkpoint and the journal after it.

    Raises:
        StoreError: it is empty or damaged.
    """
    if store.schema is None or store.empty:
        raise StoreError(f"The store {store.directory} is empty: there is no model in it.")
    # Only numbers are read here, which do not depend on the strategy.
    core = AggregatorCore(fedasync(), lineage=store.lineage, schema_hash=store.schema.hash)
    core.load(store.newest_checkpoint().core)
    for entry in store.entries(after=core.lsn):
        core.replay(rec.clamped(entry.record, core.generation, core.version))
    return core


def registered_in(directory: Path) -> tuple[str, Registry, dict[int, bytes | None]]:
    """The federation of a store, its registry, and the snapshot of each registered version.

    Raises:
        StoreError: it cannot be read.
    """
    with ReadOnlyStore(directory) as store:
        registry = read_core(store).registry
        snapshots = {version: snapshot_of(store, each) for version, each in registry.versions.items()}
        rows = store.query("SELECT value FROM meta WHERE name = ?", (FEDERATION,))
        return str(rows[0][0]) if rows else "", registry, snapshots


def note_federation(store: Store, federation: str) -> None:
    """Keep the federation's name with the store, so that its versions can be listed without its program."""
    rows = store.query("SELECT value FROM meta WHERE name = ?", (FEDERATION,))
    if not rows or rows[0][0] != federation:
        store.set_constant(FEDERATION, federation)
