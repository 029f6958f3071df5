"""Rebuilding a model from its store in more than one way, and comparing."""

from collections.abc import Iterator
from dataclasses import dataclass

from midge.aggregator.core.core import AggregatorCore
from midge.aggregator.core.presets import fedasync
from midge.aggregator.engine import recover
from midge.aggregator.store.store import Store, StoreError


@dataclass(frozen=True, slots=True)
class Replayed:
    """The model that one checkpoint and the journal behind it make."""

    checkpoint: int
    """The lsn that the checkpoint reaches to."""
    records: int
    """How many records of the journal were replayed on it."""
    version: int
    step: int
    digest: str


def replay(store: Store) -> Iterator[Replayed]:
    """Rebuild the model from every checkpoint of an open store, newest first. All digests must be the same.

    The strategy of the aggregator is not needed: the journal holds what it decided. Only the published mixing form
    needs to know that earlier versions are wanted, so they are kept for any.

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
            digest=engine.model.digest().hex(),
        )
