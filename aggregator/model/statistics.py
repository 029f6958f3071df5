"""Selection and pooling of the devices' statistics: pure functions of their moments.

A single device's lie, unit error or sentinel must not determine the normalisation of the whole fleet, and the pool of
two devices must not reveal one of them. Honest devices may differ: each has its own operating point, some are idle. So
a device is left out only if its numbers are of another order of magnitude than those of most others, and the pool of
the remaining ones is exact: it includes the variance between devices.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from midge.wire.moments import CONSTANT, SENTINEL, Moments, Values, pool

LEAST: Final = 16
"""Least number of values of a channel, over all devices: with fewer, its mean and spread are noise."""
FEW: Final = 256
"""Number of values of a constant channel below which more are awaited, for a limited time: it may yet change."""
CAP: Final = 4.0
"""Most weight of one device, in multiples of the median count."""
FACTOR: Final = 50.0
"""Largest distance of a device's mean from most others, and largest spread, in multiples of the usual spread."""
MAGNITUDE: Final = 10.0
"""An outlier by distance must also have values this many times larger or smaller than the others'."""
_NAMED = 3
"""Most devices or channels that a message names."""

Names = Mapping[str, Sequence[str]]
"""Names of channels, by the moment's name; a moment may be missing here."""
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Sent:
    """One device's statistics."""

    device: str
    moments: Mapping[str, Moments]


@dataclass(frozen=True, slots=True)
class ChannelFinding:
    """Result of an examination of statistics."""

    kept: tuple[int, ...] = ()
    """Indices of the devices to pool."""
    off: tuple[tuple[str, str], ...] = ()
    """Outliers: devices unlike the others, each with the first such channel."""
    wait: str = ""
    """Why nothing can be pooled yet; empty if it can."""
    soon: str = ""
    """Why more rows should be awaited, for a limited time; empty if there is no reason."""
    constant: tuple[str, ...] = ()
    """Channels that never changed."""


def examine(sent: Sequence[Sent], *, factor: float | None = FACTOR, names: Names | None = None) -> ChannelFinding:
    """Select the devices to pool, and describe the outliers.

    Args:
        sent: the devices' statistics, all of the same names and channels.
        factor: see `FACTOR`; None includes devices however far apart they are, except for sentinels.
        names: names of the channels.
    """
    called = _Called(names or {})
    why: dict[int, str] = {}
    for name in sent[0].moments if sent else ():
        parts = [each.moments[name] for each in sent]
        for place, channel, words in _off(parts, factor):
            why.setdefault(place, f"{called(name, channel)}: {words}")
    off = tuple((sent[place].device, words) for place, words in sorted(why.items()))
    kept = tuple(place for place in range(len(sent)) if place not in why)
    if len(sent) < 2 or len(kept) < 2 or len(why) > len(sent) // 3:
        return ChannelFinding(off=off, wait=_disagreement(len(sent), off))
    return _enough([sent[place].moments for place in kept], ChannelFinding(kept, off), called)


def pooled(parts: Sequence[Moments], cap: float) -> Moments:
    """Pool moments so that no device weighs more than `cap` times the median count; 0 sets no limit.

    The median is the lower one of two, so that with two devices neither can dominate by the count that it claims. A
    device that is capped keeps its mean and its spread.
    """
    if cap <= 0:
        return pool(parts)
    counts = np.stack([part.count for part in parts])
    limits = np.maximum(1, cap * _lower_median(counts)).astype(np.int64)
    return pool(
        [
            Moments(
                np.minimum(part.count, limits),
                part.mean,
                np.where(part.count > limits, part.m2 * (limits / np.maximum(part.count, 1)), part.m2),
            )
            for part in parts
        ]
    )


def _lower_median(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Lower median of each channel's non-zero counts; zero if all are."""
    present = np.count_nonzero(counts, axis=0)
    place = len(counts) - present + np.maximum(present - 1, 0) // 2
    found: npt.NDArray[np.int64] = np.take_along_axis(
        np.sort(counts, axis=0), np.minimum(place, len(counts) - 1)[None], axis=0
    )[0]
    return found


# ------------------------------------------------------------------------------ outliers


def _off(parts: Sequence[Moments], factor: float | None) -> list[tuple[int, int, str]]:
    """Index, first deviating channel and description of each outlier."""
    present = np.stack([part.count > 0 for part in parts])
    means = np.stack([part.mean for part in parts])
    spreads = np.stack([_spread(part) for part in parts])
    beyond = present & ((np.abs(means) > SENTINEL) | (spreads > SENTINEL))
    apart = np.zeros_like(beyond)
    if factor is not None:
        apart = _apart(np.where(present & ~beyond, means, np.nan), np.where(present & ~beyond, spreads, np.nan), factor)
    found = []
    for place in np.flatnonzero((beyond | apart).any(axis=1)):
        sentinel = bool(beyond[place].any())
        channel = int(np.argmax(beyond[place] if sentinel else apart[place]))
        words = f"mean {means[place, channel]:.4g}, spread {spreads[place, channel]:.3g}"
        others = np.delete(np.where(present, means, np.nan)[:, channel], place)
        if sentinel:
            words += ", which no sensor measures: does it stand for a missing value?"
        elif not np.isnan(others).all():
            words += f"; the others' mean is about {np.nanmedian(others):.4g}: is it in another unit?"
        found.append((int(place), channel, words))
    return found


def _spread(part: Moments) -> Values:
    """Standard deviations; 0 for a channel that is constant in float32."""
    deviation = np.sqrt(part.m2 / np.maximum(part.count, 1))
    return np.where(deviation > CONSTANT * np.abs(part.mean), deviation, 0.0)


def _apart(means: Values, spreads: Values, factor: float) -> Flags:
    """Flags (devices, channels) of means far from the others', or of much wider spreads; NaN is missing."""
    found = np.zeros(means.shape, np.bool_)
    here = np.count_nonzero(~np.isnan(means), axis=0)
    many, two = here > 2, here == 2
    if many.any():
        found[:, many] = _unlike_most(means[:, many], spreads[:, many], factor)
    if two.any():
        pairs = np.argsort(np.isnan(means[:, two]), axis=0, kind="stable")[:2]
        at = np.take_along_axis(means[:, two], pairs, 0), np.take_along_axis(spreads[:, two], pairs, 0)
        found[:, two] = _unlike_each_other(*at, factor) & ~np.isnan(means[:, two])
    return found


def _unlike_most(means: Values, spreads: Values, factor: float) -> Flags:
    """With three devices or more, medians define the usual values, and fewer than half of the devices may be wrong.

    Distances are measured in the usual spread within devices, or between them if that is larger: devices with different
    operating points are no outliers.
    """
    middle = np.nanmedian(means, axis=0)
    between = 1.4826 * np.nanmedian(np.abs(means - middle), axis=0)
    changing = np.where(spreads > 0, spreads, np.nan)
    varied = ~np.isnan(changing).all(axis=0)
    within = np.zeros_like(middle)
    within[varied] = np.nanmedian(changing[:, varied], axis=0)
    usual = np.maximum(within, between)
    usual = np.where(usual > 0, usual, np.maximum(np.abs(middle), 1.0))
    sizes = np.hypot(means, spreads)
    far = np.abs(means - middle) > factor * usual
    off: Flags = (far & (_ratio(sizes, np.nanmedian(sizes, axis=0)) > MAGNITUDE)) | (spreads > factor * usual)
    return off


def _unlike_each_other(means: Values, spreads: Values, factor: float) -> Flags:
    """With two devices, whether they are so far apart that a third must decide which is right."""
    wide, narrow = spreads.max(axis=0), spreads.min(axis=0)
    sizes = np.hypot(means, spreads)
    nearer = np.maximum(np.abs(means).min(axis=0), 1.0)
    far = np.abs(means[0] - means[1]) > factor * np.where(wide > 0, wide, nearer)
    off: Flags = (far & (_ratio(sizes[0], sizes[1]) > MAGNITUDE)) | (
        wide > factor * np.where(narrow > 0, narrow, nearer)
    )
    return off


def _ratio(one: Values, other: Values) -> Values:
    larger, smaller = np.maximum(one, other), np.minimum(one, other)
    ratio: Values = larger / np.maximum(smaller, np.finfo(np.float32).tiny)
    return ratio


# ------------------------------------------------------------------------------- channels


def _enough(kept: Sequence[Mapping[str, Moments]], found: ChannelFinding, called: "_Called") -> ChannelFinding:
    """Complete a finding: whether the kept devices have enough values of each channel."""
    lonely, scarce, constant, soon = [], [], [], []
    for name in kept[0]:
        parts = [each[name] for each in kept]
        whole = pooled(parts, CAP)
        devices = np.count_nonzero([part.count > 0 for part in parts], axis=0)
        lonely += [called(name, channel) for channel in np.flatnonzero(devices < 2)]
        scarce += [called(name, channel) for channel in np.flatnonzero((devices > 1) & (whole.count < LEAST))]
        still = _spread(whole) <= 0
        constant += [called(name, channel) for channel in np.flatnonzero(still)]
        soon += [called(name, channel) for channel in np.flatnonzero(still & (whole.count < FEW))]
    wait = ""
    if lonely:
        wait = f"fewer than two devices have values of {_listed(lonely)}, and one's alone are never published"
    elif scarce:
        wait = f"there are fewer than {LEAST} values of {_listed(scarce)}"
    few = f"{_listed(soon)} never changed, and there are fewer than {FEW} values of it" if soon else ""
    return ChannelFinding(found.kept, found.off, wait, few, tuple(constant))


def _disagreement(devices: int, off: Sequence[tuple[str, str]]) -> str:
    if devices < 2:
        return "only one device has sent its statistics"
    who = "; ".join(f"{device} has {words}" for device, words in off[:_NAMED])
    more = f"; and {len(off) - _NAMED} more" if len(off) > _NAMED else ""
    return (
        f"{len(off)} of {devices} devices are not like the others ({who}{more}). Fix their units, wait for more "
        "devices, or give statistics_factor=None if it is right"
    )


def _listed(words: Sequence[str]) -> str:
    more = f" and {len(words) - _NAMED} more" if len(words) > _NAMED else ""
    return ", ".join(words[:_NAMED]) + more


class _Called:
    """The name of a channel, or its number from 0."""

    def __init__(self, names: Names) -> None:
        self._names = names

    def __call__(self, name: str, channel: int | np.integer[Any]) -> str:
        known = self._names.get(name, ())
        return f"{name} {known[int(channel)]!r}" if channel < len(known) else f"{name} {channel}"
