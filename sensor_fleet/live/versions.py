"""Versions of the model shared by the devices of one process, so that each is held once; read-only."""

from functools import cached_property
from typing import Any
from weakref import WeakValueDictionary

from midge.wire.lineage import State
from midge.wire.schema import Vector


class Shared(State):
    """A version whose tensors are unpacked once, for all devices that train from it."""

    @cached_property
    def _values(self) -> Vector:
        values = super().values()
        values.flags.writeable = False
        return values

    def values(self) -> Vector:
        return self._values

    def parameters(self) -> dict[str, Any]:
        """All transmitted tensors by name, read-only."""
        return {**self.schema.views(self._values), **self.schema.thaw(self.frozen)}


class SharedVersions(WeakValueDictionary[bytes, State]):
    """Versions by digest, for as long as a device holds them. What is inserted is returned as `Shared`."""

    def setdefault(self, digest: bytes, default: State | None = None) -> State:
        found = self.get(digest)
        if found is None:
            assert default is not None
            found = self[digest] = Shared(default.schema, default.integers, default.exponent, default.frozen)
        return found
