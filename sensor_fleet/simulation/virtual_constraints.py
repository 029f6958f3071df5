"""Reasons against training on a simulated device: its owner's pauses, and too few new rows of its sensor."""

import math
from collections.abc import Callable, Iterator
from functools import partial

from midge.iot_client.board.conditions import enough_new
from midge.sensor_fleet.simulation.environment import Environment


class VirtualConstraints:
    """Reports when a device may not train, and when it may again.

    Args:
        environment: state shared by all devices.
        number: of the device.
        name: of the device.
        report: called with the first reason against training, or None.
    """

    __slots__ = ("_ended", "_enough", "_environment", "_pauses", "_reasons", "_report", "_resumes", "_sensor")

    def __init__(self, environment: Environment, number: int, name: str, report: Callable[[str | None], None]) -> None:
        self._environment, self._report = environment, report
        self._reasons: dict[str, str] = {}
        self._pauses: Iterator[tuple[float, float]] = iter(environment.world.pauses(name))
        self._resumes = self._enough = 0.0
        """When the current pause ends, and when enough rows will be new."""
        self._ended = False
        stream, clock = environment.stream, environment.clock
        self._sensor = None if stream is None else stream.sensor(number, lambda: clock.now)
        self.expect_rows()

    @property
    def why(self) -> str | None:
        """The first reason against training; None if there is none."""
        return next(iter(self._reasons.values()), None)

    @property
    def until(self) -> float:
        """When no known reason against training will remain."""
        return max(self._resumes, self._enough)

    def end(self) -> None:
        """Stop reporting: the device has left."""
        self._ended = True

    def take(self) -> int:
        """Take the new rows for a training; return the number of stream slots that the device has seen."""
        return 0 if self._sensor is None else self._sensor.take()

    def expect_pause(self, now: float) -> None:
        """Schedule the next pause."""
        for start, end in self._pauses:
            if end > now:
                self._environment.clock.at(start, partial(self._pause, "not now", end))
                if end < math.inf:
                    self._environment.clock.at(end, partial(self._pause, None, end))
                return

    def _pause(self, why: str | None, until: float) -> None:
        if self._ended:
            return
        self._resumes = until
        self._set("pause", why)
        if why is None:
            self.expect_pause(self._environment.clock.now)

    def expect_rows(self) -> None:
        """Block training until enough rows are new."""
        sensor, stream = self._sensor, self._environment.stream
        if sensor is None or stream is None or (why := enough_new(sensor, stream.fresh)()) is None:
            return
        self._enough = sensor.enough_at(stream.fresh)
        self._set("data", why)
        self._environment.clock.at(self._enough, self._has_rows)

    def _has_rows(self) -> None:
        if not self._ended:
            self._set("data", None)

    def _set(self, cause: str, why: str | None) -> None:
        if why is None:
            self._reasons.pop(cause, None)
        else:
            self._reasons[cause] = why
        self._report(self.why)
