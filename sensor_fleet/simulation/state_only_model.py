"""A model without encoded frames, for runs that count no downlink bytes."""

from midge.aggregator.core import records as rec
from midge.aggregator.model.model import KEYFRAME_BITS, Frame, Model
from midge.wire import lineage
from midge.wire.lineage import State
from midge.wire.schema import Schema, Vector


class StateOnlyModel(Model):
    """A model whose versions are states: no step is encoded or sized."""

    def __init__(self, schema: Schema, x: Vector, frozen: bytes) -> None:
        super().__init__(schema, x, frozen)
        self._past: dict[int, State] = {}

    def _release(self, record: rec.ReleaseRecord) -> list[Frame]:
        step = None if self.keyframe else self._quantiser.step(self.x, self.state)
        if step is not None:
            self.state = self.state.advance(step)
        else:
            if not self.keyframe or record.devices:
                self.state = lineage.on_grid(self.x, self.schema, self.state.frozen, bits=KEYFRAME_BITS)
            self._quantiser.begin(self.x, self.state)
            self.keyframe = False
        self.version = record.version
        if self.keeps_past:
            self._past[self.version] = self.state
        return []

    def published(self, version: int) -> Vector:
        return self._past[version].values()

    def forget_steps(self, oldest: int) -> None:
        for version in [version for version in self._past if version < oldest]:
            del self._past[version]
