"""What a gateway has passed on from the federation above, and the newest sum that it made for it."""

from typing import TYPE_CHECKING, Any

from midge.aggregator.core import records as rec

if TYPE_CHECKING:
    from midge.aggregator.core.state import CoreState


class SiteState:
    """Part of the durable state; empty unless the aggregator is a gateway."""

    def __init__(self) -> None:
        self.envelope = b""
        """The newest announcement that was passed on, byte for byte; empty before the first."""
        self.sum: rec.SumRecord | None = None
        """The newest sum; its updates are needed until the outbox has it."""

    @property
    def number(self) -> int:
        """The number of the newest sum; 0 before the first."""
        return 0 if self.sum is None else self.sum.number

    @property
    def needed(self) -> list[int]:
        """Records (lsn) from which the newest sum is made again, if it is not in the outbox after a kill.

        Once it is, their bodies may be gone: a device may have been erased.
        """
        return [] if self.sum is None else [lsn for lsn, _ in self.sum.updates]

    def take(self, record: rec.FollowRecord | rec.SumRecord, state: "CoreState") -> None:
        """Apply a decision."""
        if isinstance(record, rec.SumRecord):
            self.sum = record
            summed = set(self.needed)
            state.buffer = [item for item in state.buffer if item.lsn not in summed]
            return
        if record.generation != state.generation:
            state.versions.clear()
            state.releases.clear()
            # Deltas of a model that the federation has given up.
            state.counts["rolled_back"] += len(state.buffer)
            state.buffer = []
        elif record.version == state.version and self.envelope:
            self.envelope = record.envelope  # dated again, or for another share of the devices
            return
        self.envelope = record.envelope
        state.generation, state.version, state.step = record.generation, record.version, record.step
        state.versions.add(record.version, record.step, record.at)
        state.releases.add(record.generation, record.version, record.digest)

    def dump(self) -> list[Any]:
        """Plain values for `load`."""
        return [self.envelope, b"" if self.sum is None else rec.pack(self.sum)]

    def load(self, values: list[Any]) -> None:
        """Restore from the result of `dump`."""
        self.envelope, packed = values
        found = rec.unpack("sum", packed) if packed else None
        assert found is None or isinstance(found, rec.SumRecord)
        self.sum = found
