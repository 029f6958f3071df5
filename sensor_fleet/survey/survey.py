"""A survey of a fleet's data: pooled from the devices' summaries, with no number that one device alone would show.

Every number is over at least `k_min` devices, and so is the difference of two. An end of a range is the mean over the
`k_min` most extreme devices. A class that fewer devices hold is counted with others, in every number. Devices on which
an input has one and the same value are not behind its numbers: the rest of the sum is the others'. Numbers are rounded
(`rounding`), so that no equation between them has a single solution. Of a single device only a fault is named, never a
value.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from midge.sensor_fleet.data import FleetData
from midge.sensor_fleet.survey.faults import Fault, faults
from midge.sensor_fleet.survey.rounding import error_of, rounded, rounded_mean, rounded_sum, two_digits
from midge.sensor_fleet.survey.summary import summarise
from midge.wire.moments import Moments, pool
from midge.wire.row_statistics import Counts, Floats, RowStatistics

K_MIN: Final = 5
SURE: Final = 2.5
"""Standard errors that a drift must exceed; below, it is 0."""
DRAWS: Final = 200
"""Draws of how unlike devices would be at random."""


@dataclass(frozen=True, slots=True)
class ChannelSurvey:
    """One input over the fleet; None for what too few devices have."""

    name: str
    missing: float | None
    """Share of its values; None if fewer than `k_min` devices lack values, have values, or have only some."""
    mean: float | None
    deviation: float | None
    low: float | None
    """Mean over the devices whose 1 % quantiles are lowest."""
    high: float | None
    """The same of the highest 99 %; None for an end if fewer than `k_min` of its devices are beyond a common value."""
    shift: float | None
    """Share of the variance that lies between devices, without what chance adds: 0 alike, 1 each its own."""
    drift: float | None
    """Mean over the devices of |later half − earlier half|, in deviations of a device, beyond chance."""
    constant: bool = False
    """Whether it has one value, the same in all rows of all devices."""
    uniform: bool = False
    """Whether that holds for all but fewer than `k_min` devices: numbers would be those of these, so it has none."""

    @property
    def empty(self) -> bool:
        """Whether no device has a value of it."""
        return self.missing == 1


@dataclass(frozen=True, slots=True)
class Survey:
    """The answer."""

    devices: int
    rows: int
    """At most two digits, as of all numbers of rows."""
    k_min: int
    few: float | None
    """Mean rows of the tenth of the devices with the fewest, at least `k_min` of them. None if fewer lie between these
    and the tenth with the most, or beyond either: their rows would be the difference to all."""
    many: float | None
    channels: tuple[ChannelSurvey, ...]
    classes: dict[str, int]
    """Rows of each class that at least `k_min` devices hold."""
    holders: dict[str, int | None]
    """Devices that hold each of these classes: how the population is covered. None: all but fewer than `k_min`."""
    rare: tuple[str, ...]
    """Classes that fewer than `k_min` devices hold: they have no number."""
    hidden: tuple[str, ...]
    """Classes that enough devices hold, without a number because one of a rare class would follow from it."""
    rare_rows: int | None
    """Rows of rare and hidden classes together; None if they are of fewer than `k_min` devices."""
    label_shift: float | None
    """Mean total variation distance of a device's classes from the fleet's: 0 alike, 1 disjoint. Rare and hidden
    classes count as one. None: regression, or no class is shown."""
    label_chance: float | None
    """What it would be if rows were dealt at random."""
    label_drift: float | None
    """Mean total variation distance of the later half's classes from the earlier half's, beyond chance."""
    faults: tuple[Fault, ...]
    unnamed: dict[str, int]
    """Devices with faults by kind, instead of names if these are not wanted; only of at least `k_min`."""
    uncounted: bool
    """Whether there are other kinds of faults, on fewer devices, if names are not wanted."""

    @property
    def flawed(self) -> bool:
        """Whether a device has a fault, or an input is empty or constant."""
        useless = any(one.empty or one.constant for one in self.channels)
        return bool(self.faults or self.unnamed or self.uncounted or useless)

    def packed(self) -> dict[str, Any]:
        """Everything as plain values."""
        return asdict(self)


def survey(
    data: FleetData, *, k_min: int = K_MIN, seed: int = 0, named: bool = True, channels: Sequence[str] = ()
) -> Survey:
    """Survey a fleet's data.

    Args:
        data: rows by device, in the order in which they were recorded.
        k_min: fewest devices behind a number.
        seed: of what chance is compared with.
        named: whether devices with faults are named; otherwise they are counted.
        channels: names of the inputs.

    Raises:
        ValueError: there are fewer than `k_min` devices, or `k_min` is below 2.
    """
    summaries = [summarise(name, rows, data) for name, rows in data.devices.items()]
    found = input_names(summaries, channels)
    return surveyed(summaries, found, data.names, k_min=k_min, seed=seed, named=named)


def check_k_min(k_min: int) -> None:
    """Refuse a floor that shows single devices.

    Raises:
        ValueError: it is below 2.
    """
    if k_min < 2:
        raise ValueError(f"k_min={k_min} would show single devices: give at least 2.")


def input_names(summaries: Sequence[RowStatistics], names: Sequence[str]) -> list[str]:
    """Names of the inputs; numbers where these do not fit."""
    number = len(summaries[0].low)
    return list(names) if len(names) == number else [f"input {place}" for place in range(number)]


def surveyed(
    summaries: Sequence[RowStatistics],
    channels: Sequence[str],
    classes: Sequence[str],
    *,
    k_min: int,
    seed: int = 0,
    named: bool = True,
) -> Survey:
    """The survey of these summaries, by which alone it knows the devices.

    Raises:
        ValueError: there are too few, or `k_min` is below 2.
    """
    check_k_min(k_min)
    if len(summaries) < k_min:
        raise ValueError(
            f"there are {len(summaries)} devices, and a number is given only over at least {k_min}: survey more "
            "devices, or lower --k-min."
        )
    rng = np.random.default_rng(seed)
    broken = faults(summaries, channels)
    counts: Counter[str] = Counter(kind for _, kind in {(fault.device, fault.kind) for fault in broken})
    # The fleet's numbers are over devices without a fault, if there are enough: a wrong unit is no shift.
    out = {fault.device for fault in broken}
    sound = [one for one in summaries if one.device not in out]
    sound = sound if len(sound) >= max(k_min, len(summaries) // 2) else list(summaries)
    rows = np.sort([one.rows for one in summaries])
    tenth = max(k_min, -(-len(rows) // 10))
    between = len(rows) - 2 * tenth
    shown = len(rows) == tenth or between == 0 or between >= k_min
    common = {} if named else {kind: count for kind, count in counts.items() if count >= k_min}
    found = Survey(
        devices=len(summaries),
        rows=rounded_sum(rows),
        k_min=k_min,
        few=rounded_mean(rows[:tenth]) if shown else None,
        many=rounded_mean(rows[-tenth:]) if shown else None,
        channels=tuple(_channel(summaries, sound, place, name, k_min) for place, name in enumerate(channels)),
        classes={},
        holders={},
        rare=(),
        hidden=(),
        rare_rows=None,
        label_shift=None,
        label_chance=None,
        label_drift=None,
        faults=tuple(broken) if named else (),
        unnamed=common,
        uncounted=not named and len(common) < len(counts),
    )
    return _with_labels(found, summaries, _distinct(classes), k_min, rng) if classes else found


# ------------------------------------------------------------------------------ inputs


def _channel(
    every: Sequence[RowStatistics], sound: Sequence[RowStatistics], place: int, name: str, k_min: int
) -> ChannelSurvey:
    values = np.array([one.values for one in every])
    lacking = np.array([one.missing[place] for one in every])
    having = np.array([one.moments.count[place] for one in every])
    # Who has none at all is known from the faults, so devices that have some must be enough as well.
    behind = (np.count_nonzero(each) for each in (lacking, having, lacking * having))
    hides = any(0 < devices < k_min for devices in behind)
    missing = None if hides else rounded_mean(lacking / np.maximum(values, 1), np.maximum(values, 1))
    having_some = [one for one in sound if one.moments.count[place]]
    parts = [_one(one.moments, place) for one in having_some]
    if len(parts) < k_min:
        return ChannelSurvey(name, missing, None, None, None, None, None, None)
    constants = Counter(float(part.mean[0]) for part in parts if part.m2[0] == 0)
    if 0 < len(parts) - max(constants.values(), default=0) < k_min:
        return ChannelSurvey(name, missing, None, None, None, None, None, None, uniform=True)
    whole = pool(parts)
    deviation = float(np.sqrt(whole.m2[0] / whole.count[0]))
    count, means = (np.array([getattr(part, name)[0] for part in parts]) for name in ("count", "mean"))
    error = max(error_of(means, count), deviation / math.sqrt(float(whole.count[0])))
    squares = np.array([part.m2[0] for part in parts]) / count + (means - whole.mean[0]) ** 2
    of_deviation = error_of(squares, count) / (2 * deviation) if deviation else 0.0
    halves = [tuple(_one(half, place) for half in one.row_halves) for one in sound]
    values_of = {(one.moments.mean[place], one.moments.m2[place]) for one in every if one.moments.count[place]}
    constant = len(values_of) == 1 and values_of.pop()[1] == 0
    shift, drift = None if constant else _between([pool(half) for half in halves], k_min), _drift(halves, k_min)
    return ChannelSurvey(
        name,
        missing,
        rounded(float(whole.mean[0]), error),
        two_digits(rounded(deviation, of_deviation)),
        _end(np.sort([one.low[place] for one in having_some]), k_min),
        _end(np.sort([one.high[place] for one in having_some])[::-1], k_min),
        None if shift is None else two_digits(shift),
        None if drift is None else two_digits(drift),
        constant,
    )


def _end(values: Floats, k_min: int) -> float | None:
    """The mean of the first `k_min` values; None if most devices there share one, and fewer than `k_min` have others.

    The sum of these others would follow: of an alarm that is 0 elsewhere, how many devices raise it.
    """
    chosen = values[:k_min]
    here, everywhere = (dict(zip(*np.unique(each, return_counts=True), strict=True)) for each in (chosen, values))
    shared = [value for value in here if everywhere[value] >= k_min or 2 * here[value] > k_min]
    if len(here) > 1 and shared:
        return None
    return rounded(float(chosen.mean()), error_of(chosen, np.ones(k_min)))


def _one(moments: Moments, place: int) -> Moments:
    """The moments of one channel."""
    chosen = slice(place, place + 1)
    return Moments(moments.count[chosen], moments.mean[chosen], moments.m2[chosen])


def _between(parts: Sequence[Moments], k_min: int) -> float | None:
    """The intraclass correlation of rows' means, by a one-way analysis of variance (Shrout and Fleiss, 1979).

    None if fewer than `k_min` devices have several rows with values.
    """
    parts = [part for part in parts if part.count[0] > 1]
    count = np.array([float(part.count[0]) for part in parts])
    total, groups = count.sum(), len(parts)
    if groups < k_min or total <= groups:
        return None
    means = np.array([float(part.mean[0]) for part in parts])
    middle = float((count * means).sum() / total)
    between = float((count * (means - middle) ** 2).sum()) / (groups - 1)
    within = float(sum(part.m2[0] for part in parts)) / (total - groups)
    size = (total - (count**2).sum() / total) / (groups - 1)
    below = between + (size - 1) * within
    return float(np.clip((between - within) / below, 0, 1)) if below > 0 else None


def _drift(halves: Sequence[tuple[Moments, ...]], k_min: int) -> float | None:
    """Mean shift between a device's halves in its own deviations, less what its number of rows adds at random."""
    found = []
    for early, late in halves:
        first, second = int(early.count[0]), int(late.count[0])
        if min(first, second) < 4:
            continue
        variance = float(early.m2[0] + late.m2[0]) / (first + second - 2)
        gap = float(late.mean[0] - early.mean[0]) ** 2
        if variance > 0:
            found.append(gap / variance - 1 / first - 1 / second)
    if len(found) < k_min:
        return None
    mean, error = float(np.mean(found)), float(np.std(found)) / math.sqrt(len(found))
    return math.sqrt(mean) if mean > SURE * error else 0.0


# ------------------------------------------------------------------------------ labels


def _distinct(names: Sequence[str]) -> list[str]:
    """The names of the classes; of those that share one, with the number of the class."""
    count = Counter(names)
    return [name if count[name] == 1 else f"{name} ({place})" for place, name in enumerate(names)]


def _with_labels(
    found: Survey, summaries: Sequence[RowStatistics], classes: Sequence[str], k_min: int, rng: np.random.Generator
) -> Survey:
    table = np.stack([one.labels for one in summaries])
    holders = (table > 0).sum(axis=0)
    often = holders >= k_min
    # Their rows are the difference of all rows and the shown ones, so enough devices must be behind it as well.
    while (~often).any() and often.any() and _holders(table[:, ~often]) < k_min:
        often[np.flatnonzero(often)[np.argmin(holders[often])]] = False
    found = replace(
        found,
        classes={name: rounded_sum(table[:, place]) for place, name in enumerate(classes) if often[place]},
        holders={
            name: None if 0 < len(table) - holders[place] < k_min else int(holders[place])
            for place, name in enumerate(classes)
            if often[place]
        },
        rare=tuple(name for place, name in enumerate(classes) if holders[place] < k_min),
        hidden=tuple(name for place, name in enumerate(classes) if holders[place] >= k_min and not often[place]),
        rare_rows=rounded_sum(table[:, ~often].sum(axis=1)) if _holders(table[:, ~often]) >= k_min else None,
    )
    if not often.any() or _holders(table) < k_min:
        return found
    halves = [tuple(_together(half, often) for half in one.label_halves) for one in summaries]
    return _with_shifts(found, _together(table, often), halves, k_min, rng)


def _together(counts: Counts, shown: npt.NDArray[np.bool_]) -> Counts:
    """Counts by class, in the last dimension, with the classes that are not shown as one."""
    rest: Counts = counts[..., ~shown].sum(axis=-1, keepdims=True)
    return np.concatenate([counts[..., shown], rest], axis=-1)


def _with_shifts(
    found: Survey, table: Counts, halves: Sequence[tuple[Counts, ...]], k_min: int, rng: np.random.Generator
) -> Survey:
    shares = table.sum(axis=0) / table.sum()
    chance = []
    rows = table.sum(axis=1)
    for _ in range(max(1, DRAWS // len(rows))):
        chance += [float(_apart(rng.multinomial(count, shares), shares)) for count in rows if count]
    drifts = [
        _apart(early, late / late.sum()) - _by_chance(early + late, int(early.sum()), rng)
        for early, late in halves
        if early.sum() and late.sum()
    ]
    return replace(
        found,
        label_shift=rounded_mean([_apart(each, shares) for each in table if each.sum()]),
        label_chance=rounded_mean(chance),
        label_drift=two_digits(max(0.0, float(np.mean(drifts)))) if len(drifts) >= k_min else None,
    )


def _holders(table: Counts) -> int:
    """Devices with a row in a table of shape (devices, classes)."""
    return int((table.sum(axis=1) > 0).sum())


def _apart(counts: Any, shares: Floats) -> float:
    """The total variation distance of counts from shares."""
    return float(np.abs(counts / counts.sum() - shares).sum() / 2)


def _by_chance(counts: Any, first: int, rng: np.random.Generator) -> float:
    """The distance of two parts of the same rows, dealt at random."""
    drawn = rng.multivariate_hypergeometric(counts, first)
    rest = counts - drawn
    return _apart(drawn, rest / rest.sum())
