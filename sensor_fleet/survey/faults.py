"""Devices that look broken, or measure in another unit, by their summaries."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from midge.aggregator.model.statistics import Sent, examine
from midge.wire.row_statistics import Floats, RowStatistics

FACTORS: Final = {
    1000.0: "a thousand times larger, as milli- is to the unit",
    0.001: "a thousandth, as the unit is to milli-",
    100.0: "a hundred times larger, as percent is to a share",
    0.01: "a hundredth, as a share is to percent",
    60.0: "sixty times larger, as minutes or per minute",
    1 / 60.0: "a sixtieth, as minutes or per minute",
    9.80665: "9.81 times larger, as m/s² is to g",
    1 / 9.80665: "a 9.81th, as g is to m/s²",
    57.29578: "57.3 times larger, as degrees are to radians",
    1 / 57.29578: "a 57.3th, as radians are to degrees",
    3.6: "3.6 times larger, as km/h is to m/s",
    1 / 3.6: "a 3.6th, as m/s is to km/h",
    6.894757: "6.9 times larger, as kPa is to psi",
    1 / 6.894757: "a 6.9th, as psi is to kPa",
    25.4: "25.4 times larger, as mm is to inches",
    1 / 25.4: "a 25.4th, as inches are to mm",
}
NEAR: Final = 1.25
"""Largest ratio of a device's factor to one of a unit."""
APART: Final = 6.0
"""Least distance of such a device from the fleet, in multiples of how far apart devices usually are."""
MISSING: Final = 0.5
"""Share of missing values above which a channel is broken; the fleet has fewer."""
VARIED: Final = 0.9
"""Share of the other devices on which a channel changes, if one on which it does not is stuck."""
REPEATED: Final = 0.5
"""Share of repeated rows above which a device is."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with one device: no value of it, only the kind."""

    device: str
    kind: str
    """unit, scale, stuck, silent, missing, repeats or copy."""
    words: str


def faults(summaries: Sequence[RowStatistics], channels: Sequence[str]) -> list[Fault]:
    """All faults that stand out against the fleet, in the order of the devices; one of each kind and device."""
    found = [*_units(summaries, channels), *_values(summaries, channels), *_rows(summaries)]
    named = {(fault.device, fault.kind) for fault in found} | {
        (fault.device, "scale") for fault in found if fault.kind == "unit"
    }
    for device, words in _off(summaries):
        if (device, "scale") not in named:
            channel = channels[int(words.partition(":")[0].rpartition(" ")[2])]
            found.append(Fault(device, "scale", f"{channel} is of another order of magnitude than on other devices"))
    order = {one.device: place for place, one in enumerate(summaries)}
    kept: dict[tuple[str, str], Fault] = {}
    for fault in sorted(found, key=lambda fault: order[fault.device]):
        kept.setdefault((fault.device, fault.kind), fault)
    return list(kept.values())


def _off(summaries: Sequence[RowStatistics]) -> Sequence[tuple[str, str]]:
    return examine([Sent(one.device, {"x": one.moments}) for one in summaries]).off


def _units(summaries: Sequence[RowStatistics], channels: Sequence[str]) -> list[Fault]:
    """Devices whose values are those of the others by a known conversion."""
    counts = np.stack([one.moments.count for one in summaries])
    means = np.where(counts > 0, np.stack([one.moments.mean for one in summaries]), np.nan)
    spreads = np.stack([np.sqrt(one.moments.m2 / np.maximum(one.moments.count, 1)) for one in summaries])
    found = []
    for channel, name in enumerate(channels):
        mean, spread = means[:, channel], spreads[:, channel]
        here = ~np.isnan(mean)
        if here.sum() < 3 or not (spread[here] > 0).any():
            continue
        middle, width = float(np.median(mean[here])), float(np.median(spread[here]))
        between = 1.4826 * float(np.median(np.abs(mean[here] - middle)))
        sizes = np.hypot(mean, spread)
        usual = float(np.median(sizes[here]))
        scales = spread / max(width, 1e-300)
        logs = np.abs(np.log(np.maximum(sizes, 1e-300) / max(usual, 1e-300)))
        typical = 1.4826 * float(np.median(logs[here])) + 0.05
        for place in np.flatnonzero(here).tolist():
            device = summaries[place].device
            if words := _temperature(mean[place], spread[place], middle, width, between):
                found.append(Fault(device, "unit", f"{name} is {words}"))
            elif usual > 0 and logs[place] > APART * typical and sizes[place] > 0:
                ratio = sizes[place] / usual
                near = min(FACTORS, key=lambda factor: abs(np.log(ratio / factor)))
                # A conversion scales the spread as well; otherwise it is another operating point.
                if abs(np.log(ratio / near)) < np.log(NEAR) and near / 2 < scales[place] < 2 * near:
                    found.append(Fault(device, "unit", f"{name} is {FACTORS[near]}"))
    return found


def _temperature(mean: float, spread: float, middle: float, width: float, between: float) -> str:
    """A shifted scale: kelvin or Fahrenheit among degrees Celsius, or the reverse; empty if it is none."""
    slack = max(APART * between, 3 * width, 1e-9)
    if abs(mean - middle) <= slack or slack > 20 or not 0.2 < (spread + 1e-9) / (width + 1e-9) < 5:
        return ""
    for words, expected in (
        ("about 273 higher, as kelvin is to °C", middle + 273.15),
        ("about 273 lower, as °C is to kelvin", middle - 273.15),
        ("as °F is to °C", 1.8 * middle + 32),
        ("as °C is to °F", (middle - 32) / 1.8),
    ):
        if abs(mean - expected) < min(2 * slack, abs(mean - middle) / 4):  # it has a place of its own, too
            return words
    return ""


def _values(summaries: Sequence[RowStatistics], channels: Sequence[str]) -> list[Fault]:
    """Channels that are silent, mostly missing or stuck, where those of most devices are not."""
    missing = np.stack([one.missing / max(one.values, 1) for one in summaries])
    counts = np.stack([one.moments.count for one in summaries])
    spreads: Floats = np.stack([one.moments.m2 for one in summaries])
    found = []
    for channel, name in enumerate(channels):
        usual = float(np.median(missing[:, channel]))
        varied = (spreads[:, channel] > 0) | (counts[:, channel] < 2)
        others = (varied.sum() - varied) / max(len(summaries) - 1, 1)
        for place, (one, share, count, spread) in enumerate(
            zip(summaries, missing[:, channel], counts[:, channel], spreads[:, channel], strict=True)
        ):
            if share == 1 and usual < 1:
                found.append(Fault(one.device, "silent", f"{name} has no value"))
            elif share > MISSING and usual < MISSING / 2:
                found.append(Fault(one.device, "missing", f"{name} is missing in most rows"))
            elif others[place] > VARIED and count > 1 and spread == 0:
                found.append(Fault(one.device, "stuck", f"{name} never changes"))
    return found


def _rows(summaries: Sequence[RowStatistics]) -> list[Fault]:
    """Devices that repeat rows, or have those of another."""
    same = Counter(one.digest for one in summaries)
    usual = float(np.median([one.repeated / max(one.rows, 1) for one in summaries]))
    found = []
    for one in summaries:
        if same[one.digest] > 1:
            found.append(Fault(one.device, "copy", "its rows are those of another device, all of them"))
        if one.repeated > REPEATED * one.rows and usual < REPEATED / 2:
            found.append(Fault(one.device, "repeats", "most of its rows occur more than once"))
    return found
