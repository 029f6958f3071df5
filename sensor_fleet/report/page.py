"""The page of one run, of the demo or of a profile's fleet."""

from typing import Final

from midge.sensor_fleet.report import fleet_sections, run_sections
from midge.sensor_fleet.report.html import page
from midge.sensor_fleet.report.run import Run

_OF_RUN: Final = "Made by midge report from the files of the run."
_VIRTUAL: Final = (
    "Made by midge fleet --virtual: aggregator and devices' sessions were the real ones; clock, links and hardware "
    "were the profile's."
)
_LIVE: Final = (
    "Made by midge fleet --live: devices, connections, broker and aggregator were real ones; links, outages and the "
    "speed of hardware were the profile's. Times are the profile's too."
)


def report(run: Run) -> str:
    """Render the page, as self-contained HTML."""
    if run.of_profile:
        title, made = f"{run.name}: a {fleet_sections.kind(run)} fleet", _LIVE if run.live else _VIRTUAL
        return page(title, fleet_sections.sections(run), made)
    return page(f"{run.name}: a Midge run", run_sections.sections(run), _OF_RUN)
