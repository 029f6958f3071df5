"""Selection and pooling of the devices' statistics: pure functions of their moments.

A single device's lie, unit error or sentinel must not determine the normalisation of the whole fleet, and the pool of
two devices must not reveal one of them. Honest devices may differ: each has its own operating point, some are idle. So
a device is left out only if its numbers are of another order of magnitude than those of most others. The remaining ones
are pooled exactly, including the variance between devices, except for the part of one device that is beyond all others
and beyond `NEAR`: it counts with a limit, and the device is named.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from midge.wire.moments import CONSTANT, SENTINEL, Moments, Values, pool

LEAST: Final = 16
"""Least number of values of a channel, over all devices: with fewer, its mean and spread are noise."""
FEW: Final = 256
"""Number of values of a constant channel below which more are awaited, for a limited time: it may yet change."""
CAP: Final = 1.0
"""Most weight of one device, in multiples of the median count."""
NEAR: Final = 5.0
"""Distance of a device's mean, and its spread, in multiples of the usual spread, that count without a second device."""
FACTOR: Final = 50.0
"""Largest distance of a device's mean from most others, in multiples of the usual spread; beyond a spread this many
times as wide, another such device is awaited for a limited time."""
MAGNITUDE: Final = 10.0
"""An outlier by distance must also have values this many times larger or smaller than the others'."""
RANGE: Final = 10_000.0
"""An outlier among values around zero: the others may be idle, and a sensor has about four decades."""
_ALIKE: Final = 2.0
"""Largest ratio of two devices' distances or spreads of which one confirms the other."""
_SECOND: Final = 20
"""One device in this many, and at least one, has no device that confirms what it shows."""
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
    limited: tuple[tuple[str, str], ...] = ()
    """Devices that are beyond all others in a channel, each with the first one: there they count with a limit."""
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
        factor: see `FACTOR`; None includes devices however far apart they are, without a limit, except for sentinels.
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
    if len(kept) == 2 < len(sent) and factor is not None and (alone := examine([sent[place] for place in kept])).off:
        return replace(alone, off=(*off, *alone.off))  # of these two, nothing says which is right
    if len(sent) < 2 or len(kept) < 2 or len(why) > len(sent) // 3:
        return ChannelFinding(off=off, wait=_disagreement(len(sent), off))
    found = _enough([sent[place].moments for place in kept], ChannelFinding(kept, off), called)
    return found if factor is None or found.wait else _lonely([sent[place] for place in kept], found, called)


def pooled(parts: Sequence[Moments], cap: float, near: float = 0.0) -> Moments:
    """Pool moments so that no device decides.

    Args:
        parts: one for each device.
        cap: no device weighs more than this many times the median count; 0 sets no limit. The median is the lower one
            of two, so that with two devices neither can dominate by the count that it claims.
        near: multiple of the usual spread up to which mean and spread count as they are; 0 sets no limit (`NEAR`).
    """
    if near > 0:
        parts = _limited(parts, near).parts
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


def _lower_median(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Lower median of each channel's non-zero values, none of which is negative; zero if all are."""
    present = np.count_nonzero(values, axis=0)
    return _ranked(values, len(values) - present + np.maximum(present - 1, 0) // 2)


def _ranked(values: npt.NDArray[Any], place: npt.NDArray[np.intp]) -> npt.NDArray[Any]:
    """The value at a place of each channel's ascending order; the last one if there are fewer."""
    found: npt.NDArray[Any] = np.take_along_axis(
        np.sort(values, axis=0), np.minimum(place, len(values) - 1)[None], axis=0
    )[0]
    return found


# ------------------------------------------------------------------------------- limits


@dataclass(frozen=True, slots=True)
class _Limited:
    """Moments as they count; the other arrays are of shape (devices, channels) or (channels,)."""

    parts: Sequence[Moments]
    means: Values
    spreads: Values
    middle: Values
    usual: Values
    far: Flags
    wide: Flags
    lone: Flags
    """Spreads so wide that another such device is to be awaited."""


def _limited(parts: Sequence[Moments], near: float) -> _Limited:
    """Limit what only one device in twenty shows, channel by channel; with fewer than three devices, nothing.

    A mean counts at most at twice the distance of the next one from the median, or at `near` usual spreads.
    A spread counts in the same way, or by its geometric mean with the usual one if that is more. This lies between two
    errors: a false one must not silence the channel of all others, and the only device that changes must not get
    values of thousands of standard deviations.
    """
    present = np.stack([part.count > 0 for part in parts])
    means = np.where(present, np.stack([part.mean for part in parts]), 0.0)
    spreads = np.where(present, np.stack([_spread(part) for part in parts]), 0.0)
    here = np.count_nonzero(present, axis=0)
    middle, usual = np.zeros(here.shape), np.zeros(here.shape)
    if (many := here > 2).any():
        middle[many], usual[many] = _usual(np.where(present, means, np.nan)[:, many], spreads[:, many])
    distances = np.where(present, np.abs(means - middle), 0.0)
    second = np.maximum(0, len(parts) - 1 - np.maximum(1, here // _SECOND))
    confirmed = _ranked(spreads, second)
    furthest = np.maximum(np.maximum(near * usual, confirmed), _ALIKE * _ranked(distances, second))
    widest = np.maximum(near * usual, _ALIKE * confirmed)
    far, wide = many & (distances > furthest), many & (spreads > widest)
    lone = wide & (spreads > FACTOR * np.maximum(usual, confirmed))
    counted = np.where(far, middle + np.copysign(furthest, means - middle), means)
    narrower = np.where(wide, np.maximum(widest, np.sqrt(usual * np.minimum(spreads, RANGE * usual))), spreads)
    limited = [
        Moments(part.count, counted[place], np.where(wide[place], part.count * narrower[place] ** 2, part.m2))
        for place, part in enumerate(parts)
    ]
    return _Limited(limited, means, spreads, middle, usual, far, wide, lone)


def _lonely(kept: Sequence[Sent], found: ChannelFinding, called: "_Called") -> ChannelFinding:
    """Complete a finding: which devices count with a limit, and whether another one should be awaited for that."""
    why: dict[str, str] = {}
    soon = found.soon
    for name in kept[0].moments:
        at = _limited([each.moments[name] for each in kept], NEAR)
        for place in np.flatnonzero((at.far | at.wide).any(axis=1)).tolist():
            channel = int(np.argmax((at.far | at.wide)[place]))
            mean, spread, middle = at.means[place, channel], at.spreads[place, channel], at.middle[channel]
            words = (
                f"{called(name, channel)}: mean {mean:.4g}, spread {spread:.3g}; the others' mean is about "
                f"{middle:.4g}, and their spread about {at.usual[channel]:.3g}: "
                f"{_question(mean - middle, spread)}"
            )
            why.setdefault(kept[place].device, words)
        for place, channel in np.argwhere(at.lone)[:1].tolist():
            soon = soon or (
                f"{kept[place].device} alone changes much in {called(name, channel)} (spread "
                f"{at.spreads[place, channel]:.3g}, the others' is about {at.usual[channel]:.3g}), and a second such "
                "device would confirm it"
            )
    return replace(found, limited=tuple(why.items()), soon=soon)


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
            middle = np.nanmedian(others)
            asked = _question(means[place, channel] - middle, spreads[place, channel])
            words += f"; the others' mean is about {middle:.4g}: {asked}"
        found.append((int(place), channel, words))
    return found


def _question(distance: float, spread: float) -> str:
    """What may be the cause of a device's difference."""
    return "is it in another unit?" if abs(distance) > spread else "does it alone change, or is it broken?"


def _spread(part: Moments) -> Values:
    """Standard deviations; 0 for a channel that is constant in float32."""
    deviation = np.sqrt(part.m2 / np.maximum(part.count, 1))
    return np.where(deviation > CONSTANT * np.abs(part.mean), deviation, 0.0)


def _apart(means: Values, spreads: Values, factor: float) -> Flags:
    """Flags (devices, channels) of means far from the others', or of far wider spreads; NaN is missing."""
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
    middle, usual = _usual(means, np.nan_to_num(spreads))
    sizes, distances = np.hypot(means, spreads), np.abs(means - middle)
    # Of values around zero, the size says nothing: the device may be the only one that is not idle.
    known = (np.abs(middle) > usual) | (distances > spreads)
    apart = np.maximum(distances, spreads) > factor * usual
    off: Flags = apart & (_ratio(sizes, np.nanmedian(sizes, axis=0)) > np.where(known, MAGNITUDE, RANGE))
    return off


def _usual(means: Values, spreads: Values) -> tuple[Values, Values]:
    """Median of the means (NaN is missing) and the usual spread; 0 is the spread of what is constant or missing.

    One device alone that changes defines nothing: then the distances between devices do, or else the values' size.
    """
    middle = np.nanmedian(means, axis=0)
    between = 1.4826 * np.nanmedian(np.abs(means - middle), axis=0)
    within = np.where(np.count_nonzero(spreads, axis=0) > 1, _lower_median(spreads), 0.0)
    usual = np.maximum(within, between)
    return middle, np.where(usual > CONSTANT * np.abs(middle), usual, np.maximum(np.abs(middle), 1.0))


def _unlike_each_other(means: Values, spreads: Values, factor: float) -> Flags:
    """With two devices, whether they are so far apart that a third must decide which is right."""
    wide, narrow = spreads.max(axis=0), spreads.min(axis=0)
    sizes = np.hypot(means, spreads)
    nearer = np.maximum(np.abs(means).min(axis=0), 1.0)
    far = np.abs(means[0] - means[1]) > factor * np.where(wide > 0, wide, nearer)
    apart = far | (wide > factor * np.where(narrow > 0, narrow, nearer))
    off: Flags = apart & (_ratio(sizes[0], sizes[1]) > MAGNITUDE)
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
    return replace(found, wait=wait, soon=few, constant=tuple(constant))


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
