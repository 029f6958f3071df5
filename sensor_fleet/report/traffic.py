"""The traffic of a run, compared with the raw data that stayed on the devices."""

import statistics
from dataclasses import dataclass

from midge.sensor_fleet.report.run import Run, finite_number
from midge.sensor_fleet.simulation.result import MONTH
from midge.wire.clocks import DAY

Moved = tuple[float | None, float | None, float | None]
"""Payload bytes sent, received, and in total; None if not known."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """Mean payload bytes of one device."""

    up: float
    down: float | None
    """None if the run was killed before it was recorded."""
    seconds: float
    updates: float
    """Number of its accepted updates."""
    raw: float | None
    """Bytes of its inputs, as stored."""

    as_float32: Moved | None
    """Traffic if whole models were sent as float32."""

    @property
    def total(self) -> float:
        return self.up + (self.down or 0.0)

    @property
    def moved(self) -> Moved:
        return self.up, self.down, self.total

    @property
    def per_update(self) -> float | None:
        """Total bytes for each accepted update."""
        return self.total / self.updates if self.updates else None

    @property
    def daily(self) -> float:
        """Total bytes per day at the pace of the run."""
        return self.total / self.seconds * DAY

    @property
    def monthly(self) -> Moved:
        """Bytes per month at the pace of the run."""
        return self._times(MONTH / self.seconds if self.seconds else None)

    def at(self, updates: float) -> Moved:
        """Bytes per month at a given number of updates."""
        return self._times(updates / self.updates if self.updates else None)

    def _times(self, factor: float | None) -> Moved:
        if factor is None:
            return None, None, None
        return self.up * factor, None if self.down is None else self.down * factor, self.total * factor


def traffic_of(run: Run) -> Traffic | None:
    """Compute the traffic of a run; None if it recorded too little."""
    up, down = run.traffic
    number = run.size
    if up is None or not number:
        return None
    result = run.result or {}
    plain_up, plain_down = finite_number(result.get("float32_up")), finite_number(result.get("float32_down"))
    raw = finite_number(result.get("raw_bytes"))
    if run.devices:
        raw = statistics.fmean(traits.bytes for traits in run.devices.values())
    as_float32 = None
    if plain_up is not None and plain_down is not None:
        as_float32 = (plain_up / number, plain_down / number, (plain_up + plain_down) / number)
    received = None if down is None else down / number
    return Traffic(up / number, received, run.seconds, run.accepted_count / number, raw, as_float32)
