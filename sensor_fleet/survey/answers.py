"""A survey of the devices of a live federation, from their answers."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from midge.sensor_fleet.survey.survey import Survey, input_names, surveyed
from midge.wire.row_statistics import Columns, Counts, RowStatistics


@dataclass(frozen=True, slots=True)
class AlikeSummaries:
    """Summaries that pool."""

    summaries: tuple[RowStatistics, ...]
    """In the order of the devices' names."""
    columns: Columns
    others: tuple[str, ...]
    """Devices that have other columns than most."""


def most_alike(given: Mapping[str, tuple[Columns, RowStatistics]]) -> AlikeSummaries | None:
    """The summaries with the columns that most devices have; None without any."""
    if not given:
        return None
    counts = Counter(columns for columns, _ in given.values())
    most = min(counts, key=lambda columns: (-counts[columns], columns))
    alike = tuple(summary for _, (columns, summary) in sorted(given.items()) if columns == most)
    return AlikeSummaries(
        alike, most, tuple(sorted(device for device, (columns, _) in given.items() if columns != most))
    )


def survey_answers(pool: AlikeSummaries, *, k_min: int, named: bool = True, classes: Sequence[str] = ()) -> Survey:
    """The survey of a live federation: as of the same rows in a file.

    Args:
        pool: the devices' summaries.
        k_min: fewest devices behind a number.
        named: whether devices with faults are named; otherwise they are counted.
        classes: names of the classes; those without one have their number, if a device has rows of them.

    Raises:
        ValueError: there are fewer than `k_min` devices, or `k_min` is below 2.
    """
    most = max(len(one.labels) for one in pool.summaries)
    most = max(most, len(classes)) if pool.columns.task == "classification" else 0
    held = np.sum([_filled(one.labels, most) for one in pool.summaries], axis=0)
    kept = [place for place in range(most) if held[place] or place < len(classes)]
    summaries = [
        replace(
            one,
            labels=_filled(one.labels, most)[kept],
            label_halves=(_filled(one.label_halves[0], most)[kept], _filled(one.label_halves[1], most)[kept]),
        )
        for one in pool.summaries
    ]
    names = [classes[place] if place < len(classes) else str(place) for place in kept]
    return surveyed(summaries, input_names(summaries, pool.columns.features), names, k_min=k_min, named=named)


def _filled(counts: Counts, classes: int) -> Counts:
    """The counts with zeros for further classes."""
    return np.pad(counts[:classes], (0, max(0, classes - len(counts))))
