"""Sensor streams as fleet data: rows arrive during training, and the test follows the current conditions."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from midge.iot_client.data.samples import Samples
from midge.sensor_fleet.dataset import FleetData, Rows
from midge.sensor_fleet.lazily import LazyRows, names_of
from midge.sensor_fleet.sensors.data_faults import Drift, Flaws
from midge.sensor_fleet.sensors.flow import Flow, Inputs, Maker, Targets


@dataclass(frozen=True, slots=True, eq=False)
class Stream(FleetData):
    """Sensors whose rows arrive over time. Times are seconds from the start of the fleet.

    As a `FleetData`, it is the state at the start: `devices` and `test` at time 0.
    """

    flow: Flow = field(repr=False, kw_only=True)
    fresh: int = field(kw_only=True)
    """Rows that must have arrived since a device's last training before it trains again."""
    drift: Drift | None = field(default=None, kw_only=True)

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the inputs."""
        return self.flow.maker.features

    @property
    def label(self) -> str:
        """Name of the target."""
        return self.flow.maker.label

    def number(self, device: int | str) -> int:
        """A device's number, from its number or name.

        Raises:
            ValueError: there is no such device.
        """
        if isinstance(device, int):
            if 0 <= device < len(self.devices):
                return device
        elif isinstance(self.devices, LazyRows) and (number := self.devices.number(device)) is not None:
            return number
        raise ValueError(f"there is no device {device!r} among {len(self.devices)}.")

    def rows(self, device: int | str, until: float) -> tuple[Inputs, Targets]:
        """What a device holds at a time: the newest rows, oldest first; x of shape (n, features) and y of shape (n,).

        Raises:
            ValueError: there is no such device.
        """
        rows = self.flow.rows(self.number(device), self.flow.slots(until))
        return rows.x, rows.y

    def at(self, now: float) -> FleetData:
        """The fleet's data at a time, fixed."""
        make = partial(_held, self.flow, self.flow.slots(now))
        return FleetData(
            LazyRows(tuple(self.devices), make),
            self.flow.maker.bench(now),
            self.task,
            self.classes,
            self.names,
            self.kind,
            self.shape,
            self.missing,
        )

    def tests(self, now: float) -> Mapping[str, Rows]:
        """Held-out rows under the conditions at a time: first all of them, under the name "", then class by class."""
        bench = self.flow.maker.bench(now)
        return {"": bench, **{name: _of_class(bench, place) for place, name in enumerate(self.names)}}

    def sensor(self, device: int | str, clock: Callable[[], float], *, pace: float = 1.0) -> "Sensor":
        """A device's sensor, on a clock of seconds from the start; `pace` is its speed relative to real time.

        Raises:
            ValueError: there is no such device.
        """
        return Sensor(self.flow, self.number(device), clock, pace)


class Sensor:
    """One sensor as its device sees it: rows arrive by the clock. An input for `midge.conditions.enough_new`."""

    __slots__ = ("_clock", "_flow", "_number", "_pace", "_taken")

    def __init__(self, flow: Flow, number: int, clock: Callable[[], float], pace: float = 1.0) -> None:
        self._flow, self._number, self._clock, self._pace = flow, number, clock, pace
        self._taken = 0

    @property
    def new(self) -> int:
        """Number of rows since they were last taken for a training."""
        return self._flow.new(self._number, self._taken, self._flow.slots(self._clock()))

    def take(self) -> int:
        """Take all rows for a training; return the number of slots so far."""
        self._taken = self._flow.slots(self._clock())
        return self._taken

    def arrays(self, *, take: bool = True) -> tuple[Inputs, Targets]:
        """All rows that the device holds, oldest first, in the form of `midge.Samples`."""
        slots = self._flow.slots(self._clock())
        if take:
            self._taken = slots
        rows = self._flow.rows(self._number, slots)
        return rows.x, rows.y

    def enough_at(self, rows: int) -> float:
        """When that number of rows will be new."""
        return self._flow.time(self._flow.enough(self._number, self._taken, rows))

    async def follow(self, samples: Samples) -> None:
        """Feed a device's samples until cancelled: a source for `midge.Device`. Rows so far are fed at once."""
        flow, number = self._flow, self._number
        before, slots = 0, flow.slots(self._clock())
        while True:
            count, rows = flow.new(number, before, slots), flow.rows(number, slots)
            for row, label in zip(rows.x[len(rows) - count :], rows.y[len(rows) - count :], strict=True):
                samples.observe(row, float(label))
            await asyncio.sleep(max(0.0, flow.time(slots) - self._clock()) / self._pace)
            before, slots = slots, flow.slots(self._clock())


def streamed(
    maker: Maker,
    *,
    devices: int,
    seed: int,
    interval: float,
    history: float,
    window: int,
    fresh: int,
    flaws: Flaws,
    drift: Drift | None,
) -> Stream:
    """A stream of a maker's measurements.

    Raises:
        ValueError: numbers out of range.
    """
    if devices < 1:
        raise ValueError(f"a fleet has at least 1 device, not {devices}")
    if not 1 <= fresh <= window:
        raise ValueError(f"fresh={fresh}: a device trains after 1 to {window} new rows, and holds {window}.")
    flow = Flow(maker, seed=seed, interval=interval, history=history, window=window, flaws=flaws)
    test = maker.bench(0.0)
    return Stream(
        LazyRows(names_of(devices), partial(_held, flow, flow.slots(0.0))),
        test,
        "classification" if maker.names else "regression",
        len(maker.names) or None,
        maker.names,
        "table",
        test.x.shape[1:],
        0,
        flow=flow,
        fresh=fresh,
        drift=drift,
    )


def _held(flow: Flow, slots: int, number: int) -> Rows:
    return flow.rows(number, slots)


def _of_class(rows: Rows, place: int) -> Rows:
    mine = np.flatnonzero(rows.y == place)
    return Rows(rows.x[mine], rows.y[mine])
