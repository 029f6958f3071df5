"""Renormalisation: requesting new statistics from the devices, in a store that no aggregator has open.

Otherwise constants frozen from early or wrong statistics stay as long as the store. One record in the journal begins a
new generation that collects statistics again. The aggregator's next start does the rest: it asks the devices, pools,
and releases the last published model with the new constants. Updates trained with the old ones are refused.
"""

from midge.aggregator.core import records as rec
from midge.aggregator.core.core import AggregatorCore
from midge.aggregator.core.presets import fedasync
from midge.aggregator.store.store import Entry, Store, StoreError
from midge.wire.schema import Schema


def statistics_of(schema: Schema) -> tuple[str, ...]:
    """Names of the statistics that normalise a model: those of its frozen tensors that come in pairs."""
    frozen = {tensor.name for tensor in schema.frozen}
    means = (name.removesuffix("_mean") for name in frozen if name.endswith("_mean"))
    return tuple(sorted(name for name in means if f"{name}_scale" in frozen))


def renormalise(store: Store) -> tuple[int, int]:
    """Begin a generation that collects statistics; return its number and the version before. The store is open.

    Raises:
        StoreError: there is nothing to renormalise, or the store cannot be used.
    """
    if store.schema is None or store.empty:
        raise StoreError(f"The store {store.directory} is empty: there is no model in it.")
    if not statistics_of(store.schema):
        raise StoreError(
            f"The model in {store.directory} is not normalised with statistics of the devices' data: it has no frozen "
            "tensors named such as input_mean and input_scale."
        )
    checkpoint = store.newest_checkpoint()
    # Only numbers are read here, which do not depend on the strategy.
    core = AggregatorCore(fedasync(), lineage=store.lineage, schema_hash=store.schema.hash)
    core.load(checkpoint.core)
    for entry in store.entries(after=core.lsn):
        core.replay(rec.clamped(entry.record, core.generation, core.version))
    if not core.frozen:
        raise StoreError(
            f"The store {store.directory} waits for statistics already: start its aggregator, which asks the devices."
        )
    record: rec.RenormaliseRecord = core.renormalise()
    store.commit([Entry(record, None)])
    return core.generation, core.version
