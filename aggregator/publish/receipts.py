"""What is to be said to devices after a batch, gathered into one receipt for each outbox."""

from collections.abc import Callable, Iterator, Sequence

from midge.aggregator.publish.publish_queue import Post
from midge.wire import frames
from midge.wire.messages import Grant, Receipt, Settled
from midge.wire.topics import Topics

Encode = Callable[[str, Receipt], bytes]
"""A receipt to a device as it is published, signed where there is a key."""


class Receipts:
    """Collects, in the order of the decisions."""

    def __init__(self) -> None:
        self._hi: dict[tuple[str, int], int] = {}
        self._settled: dict[tuple[str, int], list[Settled]] = {}
        self._grants: dict[tuple[str, int], list[Grant]] = {}

    def settle(self, device: str, outbox: int, hi: int, settled: Sequence[Settled] = ()) -> None:
        """All up to `hi` is settled, these among it or refused for now."""
        self._hi[device, outbox] = hi
        self._settled.setdefault((device, outbox), []).extend(settled)

    def grant(self, device: str, outbox: int, hi: int, grant: Grant) -> None:
        """These chunks may come."""
        self._hi[device, outbox] = hi
        self._grants.setdefault((device, outbox), []).append(grant)

    def posts(self, topics: Topics, since: float, encode: Encode | None = None) -> Iterator[Post]:
        """The receipts as messages."""
        for (device, outbox), hi in self._hi.items():
            receipt = Receipt(
                outbox=outbox,
                hi=hi,
                settled=tuple(self._settled.get((device, outbox), ()))[-64:],
                grants=tuple(self._grants.get((device, outbox), ()))[-16:],
            )
            payload = frames.encode(receipt) if encode is None else encode(device, receipt)
            yield Post(topics.receipt(device), payload, retain=False, since=since)
