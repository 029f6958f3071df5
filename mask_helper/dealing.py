"""Dealing: which updates are summed together. Decided by the helper alone, from what devices have signed.

Whoever chose the sets or their weights could read one update out of two sums that differ by it. So sets are disjoint,
a set has one update of each device, and its weights follow from the updates' bases (`wire.masking.weights`).
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from midge.wire import masking
from midge.wire.messages.masking import MaskEntry

Version = tuple[int, int]
"""Generation and number of a version."""


@dataclass(frozen=True, slots=True)
class WaitingUpdate:
    """An update that waits for its set."""

    number: int
    """In the ledger; counts arrivals."""
    device: str
    version: Version
    """Its base."""
    digest: bytes
    """Of the model that its device says it trained from."""
    entry: MaskEntry

    @property
    def kind(self) -> tuple[object, ...]:
        """Updates of one set agree in this: their integers stand for the same values."""
        entry = self.entry
        return entry.ring, entry.levels, entry.scale, entry.slices, entry.part, entry.noise, entry.honest


@dataclass(frozen=True, slots=True)
class Hand:
    """A set of updates, each with its weight."""

    updates: tuple[WaitingUpdate, ...]
    weights: tuple[int, ...]


def deal(
    waiting: Iterable[WaitingUpdate],
    known: Mapping[Version, bytes],
    *,
    size: int,
    least: int,
    groups: int = 1,
    shuffle: Callable[[list[WaitingUpdate]], None] = lambda _: None,
) -> list[Hand]:
    """The next sets; none if too few devices wait.

    Args:
        waiting: updates of one lineage, in the order of their arrival.
        known: the digest of each version that a set was dealt from: an update of another model never counts.
        size: number of devices that the aggregator wants.
        least: fewest devices, of the helper's configuration.
        groups: number of sets that are dealt together. A device is in one of them.
        shuffle: puts a list in a random order; neither aggregator nor devices may predict it.
    """
    kinds: dict[tuple[object, ...], list[WaitingUpdate]] = defaultdict(list)
    for update in waiting:
        kinds[update.kind].append(update)
    for alike in kinds.values():
        models = dict(known) | _majority(update for update in alike if update.version not in known)
        by_device: dict[str, WaitingUpdate] = {}
        for update in alike:
            if models[update.version] == update.digest:
                by_device.setdefault(update.device, update)  # the oldest of each device
        if hands := _hands(list(by_device.values()), max(size, least), groups, shuffle):
            return hands
    return []


def _majority(updates: Iterable[WaitingUpdate]) -> dict[Version, bytes]:
    """The digest of each version that most devices report: one liar must not keep the others' updates out."""
    votes: dict[Version, dict[bytes, set[str]]] = defaultdict(lambda: defaultdict(set))
    for update in updates:
        votes[update.version][update.digest].add(update.device)
    return {version: max(each, key=lambda digest: len(each[digest])) for version, each in votes.items()}


def _hands(
    updates: list[WaitingUpdate], wanted: int, groups: int, shuffle: Callable[[list[WaitingUpdate]], None]
) -> list[Hand]:
    """Sets of the oldest updates."""
    # A device that asks for more company than there is leaves the others alone.
    while updates:
        demanded = max(update.entry.least for update in updates)
        need = max(wanted, demanded)
        if len(updates) >= need * groups:
            break
        if demanded <= wanted:
            return []
        updates = [update for update in updates if update.entry.least < demanded]
    if not updates:
        return []
    entry = updates[0].entry
    if entry.noise and not entry.honest:
        return []  # the shares of that noise are not defined
    if masking.reach(need, entry.levels, entry.noise, entry.honest) >= 2 ** (entry.ring - 1):
        return []  # the sum would not be exact
    chosen = updates[: need * groups]
    if groups > 1:
        shuffle(chosen)
    return [_hand(chosen[place : place + need]) for place in range(0, len(chosen), need)]


def _hand(chosen: list[WaitingUpdate]) -> Hand:
    """A set with its weights."""
    entry = chosen[0].entry
    least = max(update.entry.least for update in chosen)
    bases = [number for _, number in (update.version for update in chosen)]
    # Noise is accounted for at equal weights: with others, it would hide a heavy update less.
    equal = (1,) * len(chosen)
    return Hand(tuple(chosen), equal if entry.noise else masking.weights(bases, entry.ring, entry.levels, least))
