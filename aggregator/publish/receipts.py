"""Collects the verdicts of a batch into one receipt for each outbox."""

from collections.abc import Callable, Iterator, Sequence

from midge.aggregator.publish.publish_queue import Post
from midge.wire import frames
from midge.wire.messages import Grant, Receipt, Settled
from midge.wire.topics import Topics

Encode = Callable[[str, Receipt], bytes]
"""Encodes a receipt to a device, signed if there is a key."""


class Receipts:
    """Receipts of a batch, in the order of the decisions."""

    def __init__(self) -> None:
        self._hi: dict[tuple[str, int], int] = {}
        self._settled: dict[tuple[str, int], list[Settled]] = {}
        self._grants: dict[tuple[str, int], list[Grant]] = {}

    def settle(self, device: str, outbox: int, hi: int, settled: Sequence[Settled] = ()) -> None:
        """Add verdicts: everything up to `hi` is settled; these are among it or temporary refusals."""
        self._hi[device, outbox] = hi
        self._settled.setdefault((device, outbox), []).extend(settled)

    def grant(self, device: str, outbox: int, hi: int, grant: Grant) -> None:
        """Add a grant of chunks."""
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
