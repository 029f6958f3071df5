"""Rebuilds a model from its store in several ways, for comparison."""

from collections.abc import Iterator
from dataclasses import dataclass

from midge.aggregator.core.core import AggregatorCore
from midge.aggregator.core.presets import fedasync
from midge.aggregator.engine import recover
from midge.aggregator.store.store import Store, StoreError


@dataclass(frozen=True, slots=True)
class Replayed:
    """The model of one checkpoint and the journal after it."""

    checkpoint: int
    """The checkpoint's lsn."""
    records: int
    """Number of replayed records."""
    version: int
    step: int
    digest: str
    """Of the released state, as devices compute it."""
    whole: str
    """Of all that goes on: also of what is not released yet, and of the moving average."""


def replay(store: Store) -> Iterator[Replayed]:
    """Rebuild the model from every checkpoint of an open store, newest first. All of `whole` must be equal.

    The aggregator's strategy is not needed, because the journal holds its decisions. Only mixing as published needs
    earlier versions, so they are kept for every strategy.

    Raises:
        StoreError: the store is damaged, or was never begun.
    """
    if store.schema is None:
        raise StoreError(f"The store {store.directory} is empty: nothing was ever written into it.")
    for checkpoint in store.checkpoints():
        core = AggregatorCore(fedasync(form="mixing"), lineage=store.lineage, schema_hash=store.schema.hash)
        engine = recover(core, store, store.schema, checkpoint)
        yield Replayed(
            checkpoint=checkpoint.lsn,
            records=core.lsn - checkpoint.lsn,
            version=core.version,
            step=core.step,
            digest=engine.model.state.digest().hex(),
            whole=engine.model.digest().hex(),
        )
