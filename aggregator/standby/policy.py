"""How an aggregator and its standby work together."""

from dataclasses import dataclass
from typing import Annotated

from midge.wire.field_checks import Positive, Range, check_fields
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
    alone_after: Positive | None = None
    takeover_after: Annotated[float, Range(ge=_SHORTEST)] = TAKEOVER

    def __post_init__(self) -> None:
        check_fields(self)
        if self.alone_after is not None and not self.sync:
            raise ValueError("alone_after has no meaning without sync: receipts wait for nothing.")
