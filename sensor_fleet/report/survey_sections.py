"""The page of a survey: findings, inputs, classes, and devices that look broken."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

from midge.sensor_fleet.report import scales
from midge.sensor_fleet.report.html import Section, Size, drawn, page
from midge.sensor_fleet.report.quantities import percent, whole
from midge.sensor_fleet.report.svg import BarChart
from midge.wire.plurals import counted

if TYPE_CHECKING:
    from midge.sensor_fleet.survey.survey import Survey

_MADE: Final = "Made by midge survey from statistics of the devices."
UNLIKE: Final = 0.15
"""Label shift beyond chance from which devices are called unlike."""
APART: Final = 0.3
"""The same of an input's shift."""
DRIFTS: Final = 0.5
"""Drift in deviations from which an input is called drifting."""
LABELS_DRIFT: Final = 0.1
MISSES: Final = 0.05
_NAMED: Final = 4


def survey_page(found: "Survey", source: str, notes: Sequence[str] = ()) -> str:
    """Render the page, as self-contained HTML; `notes` say what it is a survey of."""
    return page(f"Survey of {source}", _sections(found, source, notes), _MADE)


def findings(found: "Survey") -> list[str]:
    """What the survey shows, in sentences; what needs repair comes first."""
    said = []
    faulty = len({fault.device for fault in found.faults})
    if faulty:
        said.append(f"{counted(faulty, 'device')} of {found.devices:,} look broken or measure in another unit.")
    for kind, count in found.unnamed.items():
        said.append(f"{count} devices have a fault of the kind {kind}.")
    if found.uncounted:
        said.append(
            f"There are {'other' if found.unnamed else 'some'} faults, each kind on fewer than {found.k_min} devices."
        )
    if empty := [one.name for one in found.channels if one.empty]:
        said.append(f"No device has a value of {_listed(empty)}.")
    if constant := [one.name for one in found.channels if one.constant]:
        said.append(f"One value in all rows of all devices: {_listed(constant)}. No model learns from that.")
    if uniform := [one.name for one in found.channels if one.uniform]:
        have = "it has" if len(uniform) == 1 else "they have"
        said.append(
            f"All but a few devices have one value of {_listed(uniform)}, so {have} no numbers. They would be those of "
            "the few."
        )
    if scarce := [one.name for one in found.channels if one.mean is None and not one.empty and not one.uniform]:
        said.append(f"Too few devices for a number have values of {_listed(scarce)}.")
    if found.rare:
        hidden = (
            f"; {_listed(found.hidden)} has no number either, because theirs would follow from it"
            if found.hidden
            else ""
        )
        said.append(f"Few devices hold {_listed(found.rare)}: the model will depend on them{hidden}.")
    if holes := [one.name for one in found.channels if (one.missing or 0) > MISSES and not one.empty]:
        said.append(f"More than {percent(MISSES, 0)} of the values are missing in {_listed(holes)}.")
    if found.label_shift is not None and found.label_chance is not None:
        beyond = found.label_shift - found.label_chance
        how = "unlike in their classes" if beyond > UNLIKE else "alike in their classes"
        said.append(
            f"Devices are {how}: {percent(found.label_shift, 0)} of a device's rows are of other classes than the "
            f"fleet's mixture has; at random it would be {percent(found.label_chance, 0)}."
        )
    if apart := [one.name for one in found.channels if (one.shift or 0) > APART]:
        said.append(
            f"Devices differ in {_listed(apart)}: more than {percent(APART, 0)} of the variance lies between them."
        )
    if drifting := [one.name for one in found.channels if (one.drift or 0) > DRIFTS]:
        said.append(
            f"Over time {_listed(drifting)} moved by more than {DRIFTS:g} deviations on average: a fixed test set will "
            "not tell how good the model stays."
        )
    if (found.label_drift or 0) > LABELS_DRIFT:
        said.append(f"The classes' mixture moved over time, by {percent(found.label_drift, 0)} of a device's rows.")
    if found.many is not None and found.few is not None and found.many > 10 * found.few:
        said.append(
            f"Rows are unequal: the devices with the most have about {found.many:,.0f}, those with the fewest "
            f"{found.few:,.0f}."
        )
    return said or ["Nothing stands out."]


def _listed(names: object) -> str:
    given = [str(name) for name in names]  # type: ignore[attr-defined]  # any sequence of names
    more = f" and {len(given) - _NAMED} more" if len(given) > _NAMED else ""
    return ", ".join(given[:_NAMED]) + more


def _sections(found: "Survey", source: str, notes: Sequence[str]) -> Iterator[Section | None]:
    yield Section("survey_head", {"found": found, "source": source, "findings": findings(found), "notes": notes})
    if found.faults:
        yield Section("survey_faults", {"found": found})
    if found.classes or found.rare:
        yield Section("survey_classes", {"found": found, "bars": drawn(partial(_classes, found))})
    yield Section("survey_inputs", {"found": found})


def _classes(found: "Survey", room: Size) -> BarChart | None:
    if not found.classes:
        return None
    on = {name: "most" if held is None else f"{held:,}" for name, held in found.holders.items()}
    rows = [(name, f"{whole(count)} on {on[name]}") for name, count in found.classes.items()]
    x = scales.of_counts(1.05 * max(found.classes.values()), count=3, tight=True)
    drawing = BarChart(room[0], "Rows: " + ", ".join(map(": ".join, rows)), rows, x, x_name="rows")
    for place, count in enumerate(found.classes.values()):
        drawing.bar(place, 0.0, count, "fleet", ": ".join(rows[place]))
    return drawing
