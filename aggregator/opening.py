"""Opening of a store for a configured model: a new lineage in an empty store, or the check that the models agree."""

from dataclasses import replace

from midge.aggregator.config import AggregatorConfig
from midge.aggregator.core.core import AggregatorCore, Bounds
from midge.aggregator.engine import Engine
from midge.aggregator.model.model import Model
from midge.aggregator.shards import Shards
from midge.aggregator.store.store import Store, StoreError, StoreFull
from midge.storage.failpoints import failpoint
from midge.wire.schema import Schema, Tensor


def begin_or_resume(store: Store, config: AggregatorConfig) -> AggregatorConfig:
    """Begin a lineage in an empty store, or check that the store holds the configured model.

    Returns:
        The config; without ties if the store was made before ties were known.

    Raises:
        StoreError: the store holds another model.
        StoreFull: there is no room on its disk.
    """
    if store.schema is not None and store.schema == config.schema.untied != config.schema:
        config = config.untied
    schema, fresh = config.schema, store.empty
    if store.schema is None:
        store.create(schema)
        failpoint("store.created")
    elif store.schema != schema:
        raise StoreError(
            f"The store {store.directory} holds another model: {_difference(store.schema, schema)}. Name another "
            "store, or give the model that it was made with."
        )
    _check_shards(store, config, fresh=fresh)
    if fresh:
        Engine(Model.of(config.initial, schema), store).checkpoint(new_core(store, config))
    if not store.reserve():
        raise StoreFull(f"The disk of the store {store.directory} is full: make room and start again.")
    return config


def _check_shards(store: Store, config: AggregatorConfig, *, fresh: bool) -> None:
    """Refuse another number of shards: what a device sent may be settled in the store of its earlier shard alone.

    Raises:
        StoreError: the store has been served with another number.
    """
    known = int(store.constant("shards", lambda: config.shards if fresh else 0))
    if known != config.shards:
        before = f"--shards {known}" if known else "no --shards"
        raise StoreError(
            f"The store {store.directory} was begun with {before}, and a device that changes its shard could count "
            "twice: start it so, or begin another store from its model (model.safetensors in it)."
        )


def new_core(store: Store, config: AggregatorConfig) -> AggregatorCore:
    """A core in its initial state, for the lineage of a store."""
    return AggregatorCore(
        config.strategy,
        lineage=store.lineage,
        schema_hash=config.schema.hash,
        moments=config.asked,
        statistics_devices=config.statistics_devices,
        statistics_deadline=config.statistics_deadline,
        statistics_factor=config.statistics_factor,
        bounds=replace(
            Bounds.of(config.schema),
            sites=tuple(config.sites),
            shards=Shards(config.shards).names,
            site_size=config.schema.site_size if config.strategy.relays else 0,
        ),
    )


def _difference(stored: Schema, given: Schema) -> str:
    """The first tensor in which two schemas differ, in words."""

    def described(tensor: Tensor | None) -> str:
        return "absent" if tensor is None else f"{tensor.role} {tensor.shape} {tensor.dtype}"

    there = {tensor.name: tensor for tensor in stored.tensors}
    here = {tensor.name: tensor for tensor in given.tensors}
    for name in [*there, *here]:
        if there.get(name) != here.get(name):
            return f"{name} is {described(there.get(name))} there and {described(here.get(name))} here"
    return "its tensors come in another order"
