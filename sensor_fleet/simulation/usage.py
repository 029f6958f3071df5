"""Time and flash wear of simulated devices, and the resulting costs of a class of microcontrollers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from midge.sensor_fleet.profiles.board import YEAR
from midge.sensor_fleet.profiles.population import Population
from midge.sensor_fleet.profiles.profile import Breaking, Hardware, Wakes
from midge.wire.clocks import DAY


class Usage:
    """Usage of one device, in virtual seconds; `began` is when it first connects."""

    __slots__ = (
        *("_began", "_ended", "_hardware", "_since", "awake", "erases", "present", "sleeps", "stored", "trained"),
        "wakes",
    )

    def __init__(self, hardware: Hardware, began: float) -> None:
        self._hardware, self._began = hardware, began
        self.sleeps = isinstance(hardware.availability, Wakes)
        """Whether it sleeps by itself once nothing is left to do."""
        self.present = self.awake = self.trained = self.erases = 0.0
        """Seconds of presence, of being connected or connecting, and of training; erased flash sectors."""
        self.wakes = self.stored = 0
        """Number of connections, and of stored updates."""
        self._since: float | None = None
        self._ended: float | None = None

    @property
    def micro(self) -> bool:
        """Whether the device is a microcontroller."""
        return self._hardware.board is not None

    @property
    def forgets_model(self) -> bool:
        """Whether the device loses its model when it sleeps."""
        board = self._hardware.board
        return self.sleeps and board is not None and not board.keeps_model

    def store(self, size: int) -> None:
        """Record a stored update with a body of `size` bytes."""
        self.stored += 1
        if (board := self._hardware.board) is not None:
            self.erases += board.update_erases(size)

    def keep(self, values: int, frozen: int) -> None:
        """Record a fetched model of `values` parameters and `frozen` bytes of frozen tensors."""
        if (board := self._hardware.board) is not None:
            self.erases += board.model_erases(values, frozen)

    def wake(self, now: float) -> None:
        """Record the start of a connection."""
        self.wakes += 1
        self._since = now

    def sleep(self, now: float) -> None:
        """Record the end of a connection or of an attempt."""
        if self._since is not None:
            self.awake += now - self._since
        self._since = None

    def leave(self, now: float) -> None:
        """Record its departure."""
        self.sleep(now)
        self._ended = now

    def until(self, now: float, factor: float = 1.0) -> "Usage":
        """The usage until `now`, with times multiplied by a factor."""
        found = Usage(self._hardware, self._began * factor)
        end = now if self._ended is None else self._ended
        running = 0.0 if self._since is None else now - self._since
        found.present = max(0.0, end - self._began) * factor
        found.awake, found.trained = (self.awake + running) * factor, self.trained * factor
        found.erases, found.wakes, found.stored = self.erases, self.wakes, self.stored
        return found


@dataclass(frozen=True, slots=True)
class BoardCosts:
    """Costs of taking part for a microcontroller: means over the devices of its class, at the pace of the run."""

    client: str
    ram_needed: int
    """Bytes of the model and the client."""
    ram: int
    """Bytes available."""
    flash_erases_per_year: float
    flash_years: float | None
    """Until the most worn sector has been erased as often as it endures; None if nothing is written."""
    joules_per_training: float | None
    """Lifetime of the most worn sector; None if nothing is written."""
    joules_per_day: float
    """Of the training and all messages; None if it never trained."""
    awake_per_day: float
    """In total: asleep, waking, connected, training and transmitting."""
    battery_days: float | None
    """Seconds connected or connecting."""


def board_costs(
    population: Population,
    usages: Sequence[Usage],
    joules: npt.NDArray[np.float64],
    trainings: npt.NDArray[np.int64],
) -> Mapping[str, BoardCosts]:
    """Costs of each class of microcontrollers, by class name.

    Args:
        population: the devices, in unscaled time.
        usages: of each device until the end, in the profile's seconds.
        joules: of each device's trainings and link, of shape (devices,).
        trainings: of each device, of shape (devices,).
    """
    found = {}
    for place, one in enumerate(population.profile.classes):
        mine = np.flatnonzero(population.class_of == place).tolist()
        if one.board is None or not mine:
            continue
        board, here = one.board, [usages[number] for number in mine]
        present = sum(each.present for each in here)
        if not present:
            continue
        awake, trained = sum(each.awake for each in here), sum(each.trained for each in here)
        erases, stored = sum(each.erases for each in here) / present, sum(each.stored for each in here) / present
        asleep = 0.0 if isinstance(one.availability, Breaking) else max(0.0, present - awake)
        resting = board.joules(
            asleep=asleep,
            connected=max(0.0, present - asleep - trained),
            training=0.0,  # it is in `joules`
            wakes=sum(each.wakes for each in here),
        )
        active, many = float(joules[mine].sum()), int(trainings[mine].sum())
        daily = (resting + active) / present * DAY
        found[one.name] = BoardCosts(
            board.client,
            population.memory_needed(one),
            round(one.memory),
            erases * YEAR,
            board.years(erases * YEAR, stored * YEAR),
            active / many if many else None,
            daily,
            awake / present * DAY,
            None if board.battery is None else board.battery * board.volts / daily,
        )
    return found
