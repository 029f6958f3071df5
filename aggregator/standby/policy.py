"""How an aggregator and its standby work together."""

from dataclasses import dataclass

from midge.wire.standby import TAKEOVER

_SHORTEST = 3.0


@dataclass(frozen=True, slots=True)
class StandbyPolicy:
    """The same on both hosts.

    Args:
        follow: follow the aggregator that serves, and take over if it is silent; serve if this store was the last that
            served.
        sync: send receipts, and publish, only what the standby has on its disk.
        alone_after: with `sync`, go on without a standby that is away for this many seconds; None waits for it, however
            long, and the federation is paused meanwhile.
        takeover_after: seconds without a message of the aggregator that serves, until its standby takes over.

    Raises:
        ValueError: a number is out of range, or without meaning.
    """

    follow: bool = False
    sync: bool = False
    alone_after: float | None = None
    takeover_after: float = TAKEOVER

    def __post_init__(self) -> None:
        if not _SHORTEST <= self.takeover_after < float("inf"):
            raise ValueError(f"takeover_after is {self.takeover_after}: it must be {_SHORTEST:g} seconds or more.")
        if self.alone_after is not None and not self.alone_after > 0:
            raise ValueError(f"alone_after is {self.alone_after}: it must be a number of seconds above 0.")
        if self.alone_after is not None and not self.sync:
            raise ValueError("alone_after has no meaning without sync: receipts wait for nothing.")
