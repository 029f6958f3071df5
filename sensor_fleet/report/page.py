"""The page of one run, of the demo or of a profile's fleet."""

from typing import Final

from midge.sensor_fleet.report import fleet_sections, run_sections
from midge.sensor_fleet.report.html import page
from midge.sensor_fleet.report.run import Run

_OF_RUN: Final = "Made by midge report from the files of the run."
_VIRTUAL: Final = (
    "Made by midge fleet --virtual: the aggregator and the devices' sessions were real; clock, links and hardware "
    "were simulated."
)
_LIVE: Final = (
    "Made by midge fleet --live: devices, connections, broker and aggregator were real; links, outages and the "
    "speed of hardware were emulated. Times are the profile's."
)


def report(run: Run) -> str:
    """Render the page, as self-contained HTML."""
    if run.of_profile:
        title, made = f"{run.name}: a {fleet_sections.kind(run)} fleet", _LIVE if run.live else _VIRTUAL
        return page(title, fleet_sections.sections(run), made)
    return page(f"{run.name}: a Midge run", run_sections.sections(run), _OF_RUN)
