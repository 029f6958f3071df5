"""Dealing: which updates are summed together. Decided by the helper alone, from what devices have signed.

Whoever chose the sets or their weights could read one update out of two sums that differ by it. So sets are disjoint,
a set has one update of each device, and its weights follow from the updates' bases (`wire.masking.weights`).

Whoever gives devices a dead model, or a plan without learning, knows their updates: zeros. So only devices that trained
from the same model by the same plan hide each other: each base of a set has K_min devices, unless their noise hides
each of them.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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

    @property
    def cohort(self) -> tuple[object, ...] | None:
        """Updates that hide each other agree in this: model and plan, or None if their shares of the noise suffice."""
        entry = self.entry
        hides = entry.noise >= masking.HIDING * entry.levels and entry.honest <= entry.least
        return None if hides else (self.version, self.digest, entry.terms)


@dataclass(frozen=True, slots=True)
class Hand:
    """A set of updates, each with its weight."""

    updates: tuple[WaitingUpdate, ...]
    weights: tuple[int, ...]
    models: tuple[tuple[Version, bytes], ...]
    """Versions with the digest that K_min of these devices state."""


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
        known: the digest of each version that K_min devices of a set stated: an update of another model never counts.
        size: number of devices that the aggregator wants. A set has a few more if its last base has K_min of them.
        least: fewest devices, of the helper's configuration.
        groups: number of sets that are dealt together. A device is in one of them.
        shuffle: puts a list in a random order; neither aggregator nor devices may predict it.
    """
    kinds: dict[tuple[object, ...], list[WaitingUpdate]] = defaultdict(list)
    for update in waiting:
        if known.get(update.version, update.digest) == update.digest:
            kinds[update.kind].append(update)
    for alike in kinds.values():
        entry = alike[0].entry
        if entry.noise and not entry.honest:
            continue  # the shares of that noise are not defined
        room = masking.room(entry.ring, entry.levels, entry.noise, entry.honest)
        fitting = [update for update in alike if update.entry.least <= room]
        wanted = min(max(size, least), room)
        if groups > 1:
            sets = _groups(fitting, wanted, least, room, groups, shuffle)
        else:
            sets = _merged(fitting, wanted, least, room)
        if sets:
            return [_hand(chosen, least) for chosen in sets]
    return []


def _cohorts(updates: Iterable[WaitingUpdate], least: int) -> Iterator[tuple[list[WaitingUpdate], int]]:
    """Updates that hide each other, none of a device that was in an earlier cohort, and the fewest that may be summed.

    The oldest come first. A device that asks for more company than there is leaves the others alone.
    """
    cohorts: dict[object, list[WaitingUpdate]] = defaultdict(list)
    for update in updates:
        cohorts[update.cohort].append(update)
    taken: set[str] = set()
    for cohort in cohorts.values():
        by_device: dict[str, WaitingUpdate] = {}
        for update in cohort:
            if update.device not in taken:
                by_device.setdefault(update.device, update)
        found = list(by_device.values())
        while len(found) >= least and (need := max(least, *(each.entry.least for each in found))) > len(found):
            found = [each for each in found if each.entry.least < need]
        if len(found) >= least:
            taken |= {each.device for each in found}
            yield found, need


def _merged(updates: Iterable[WaitingUpdate], wanted: int, least: int, room: int) -> list[list[WaitingUpdate]]:
    """A set of the oldest cohorts that has as many devices as are wanted; empty if there are too few."""
    chosen: list[WaitingUpdate] = []
    for cohort, need in _cohorts(updates, least):
        count = min(max(need, wanted - len(chosen)), room - len(chosen))
        if count >= need:
            chosen += cohort[:count]
        if len(chosen) >= wanted:
            return [chosen]
    return []


def _groups(  # noqa: PLR0917 - one decision and its limits
    updates: Iterable[WaitingUpdate],
    wanted: int,
    least: int,
    room: int,
    groups: int,
    shuffle: Callable[[list[WaitingUpdate]], None],
) -> list[list[WaitingUpdate]]:
    """Sets at random, each of one cohort; empty if there are too few."""
    sets: list[list[WaitingUpdate]] = []
    for cohort, need in _cohorts(updates, least):
        size = max(need, wanted)
        count = min(len(cohort) // size, groups - len(sets))
        if size <= room:
            chosen = cohort[: count * size]
            shuffle(chosen)
            sets += [chosen[place : place + size] for place in range(0, len(chosen), size)]
    return sets if len(sets) == groups else []


def _hand(chosen: Sequence[WaitingUpdate], least: int) -> Hand:
    """A set with its weights."""
    entry = chosen[0].entry
    least = max(least, *(update.entry.least for update in chosen))
    bases = [number for _, number in (update.version for update in chosen)]
    # Noise is accounted for at equal weights: with others, it would hide a heavy update less.
    equal = (1,) * len(chosen)
    weights = equal if entry.noise else masking.weights(bases, entry.ring, entry.levels, least)
    votes = Counter((update.version, update.digest) for update in chosen)
    return Hand(tuple(chosen), weights, tuple(model for model, count in votes.most_common() if count >= least))
