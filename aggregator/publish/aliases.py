"""The names of registered versions, as they are published."""

from midge.aggregator.core.core import AggregatorCore
from midge.wire import lineage
from midge.wire.messages import FrameInfo, ModelAlias
from midge.wire.topics import Alias


def alias_of(
    name: Alias, info: FrameInfo, snapshot: bytes, core: AggregatorCore, *, federation: str, chunk: int
) -> ModelAlias:
    """A name, not yet dated.

    Args:
        name: of the version.
        info: the version's snapshot, as it is cut; of version 0 the name stands for none.
        snapshot: its bytes.
        core: knows the names.
        federation: its name.
        chunk: most bytes of a chunk.
    """
    registry, state = core.registry, lineage.decode_snapshot(snapshot) if info.version else None
    share, where = (registry.share, registry.where) if name == "candidate" else (1.0, {})
    return ModelAlias(
        name=name,
        federation=federation,
        lineage=core.lineage,
        generation=core.generation,
        number=registry.number,
        version=info.version,
        schema_hash=b"" if state is None else state.schema.hash,
        digest=b"" if state is None else state.digest(),
        size=info.size,
        parts=info.parts,
        share=0.0 if where else share,  # a device that knows no `where` tries none that is not for all
        where=dict(where),
        where_share=share if where else 1.0,
        chunk=chunk,
        byte_rate=core.strategy.byte_rate,
        devices=core.thrift.devices,
        features=core.features,
    )
