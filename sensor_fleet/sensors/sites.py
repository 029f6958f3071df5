"""The hourly electric load of sites: daily and weekly patterns, weather, and a slow drift of each site."""

from typing import Final

import numpy as np

from midge.sensor_fleet.dataset import Rows
from midge.sensor_fleet.sensors.counter_rng import Floats, Places, draw, key, normal, smooth, uniform
from midge.sensor_fleet.sensors.data_faults import Drift, Flaws
from midge.sensor_fleet.sensors.flow import Inputs, Targets
from midge.sensor_fleet.sensors.stream import Stream, streamed
from midge.wire.clocks import DAY

HOUR: Final = 3600.0
WEEK: Final = 168
"""Hours."""
LAGS: Final = 24
"""Consecutive hours of its own load that a device looks back on."""
BENCH: Final = 20
"""Number of test sites, which are not in the fleet."""
KINDS: Final = ("office", "shop", "works", "homes")
HEATING, COOLING = 15.0, 22.0
"""Outdoor temperatures in °C below which a site heats, and above which it cools."""
FEATURES: Final = (
    *(f"load {lag} h before" for lag in range(LAGS, 0, -1)),
    *(f"load {lag} h before" for lag in (WEEK + 1, WEEK, WEEK - 1)),
    *(f"{wave} of {part} day" for part in ("the", "half the") for wave in ("sine", "cosine")),
    "sine of the week",
    "cosine of the week",
    "weekend",
    "temperature",
    "mean temperature of a day",
)
"""Inputs for predicting the next hour's load, all known an hour before except the forecast temperature."""


class Sites:
    """All sites, by number; test sites have negative numbers. Hour 0 is the first of a Monday.

    Loads are shares of a site's rated power, so that small shops and large works have the same scale.
    """

    features = FEATURES
    label = "load"
    names: tuple[str, ...] = ()
    at_once = 48

    def __init__(self, seed: int, history: float, flaws: Flaws, drift: Drift | None) -> None:
        self._seed, self._flaws, self._drift = seed, flaws, drift
        self._history = round(history / HOUR)
        self._bench: tuple[tuple[int, tuple[bool, ...]], Rows] | None = None

    def kind(self, number: int) -> str:
        """The kind of a site."""
        return KINDS[int(draw(self._seed, number, "kind") * len(KINDS))]

    def temperature(self, hours: Places) -> Floats:
        """Outdoor temperature of the region in °C: seasons, days, and varying weather."""
        day, year = hours / 24, hours / (24 * 365.25)
        seasons = 10 - 10 * np.cos(2 * np.pi * (year + 0.25))  # hour 0 is in April
        weather = 3.5 * smooth(key(self._seed, "weather"), hours, 60.0)
        found: Floats = seasons - 4 * np.cos(2 * np.pi * (day - 3 / 24)) + weather
        return found

    def load(self, number: int, hours: Places, changed: Floats) -> Floats:
        """Share of the rated power over each hour. `changed` is 1 where the new pattern holds, otherwise 0."""
        of = self._seed, number
        some = uniform(key(*of, "site"), np.arange(6))
        base, level = 0.1 + 0.2 * some[0], 0.3 + 0.25 * some[1]
        occupied = (1 - changed) * self._occupied(number, hours) + changed * self._occupied(number, hours, new=True)
        outside = self.temperature(hours)
        thermal = 0.012 * some[2] * np.maximum(0, HEATING - outside) + 0.02 * some[3] * np.maximum(0, outside - COOLING)
        drift = 0.06 * smooth(key(*of, "drift"), hours, 24.0 * 45) + 0.05 * (some[4] - 0.5) * hours / 8766
        restless = 0.08 * smooth(key(*of, "days"), hours, 30.0)
        noise = 0.02 * normal(key(*of, "noise"), hours)
        whole = base + level * occupied * (1 + restless) + thermal * (0.4 + 0.6 * occupied) + drift
        found: Floats = np.maximum(0.01, whole) * (1 + noise)
        return found

    def _occupied(self, number: int, hours: Places, *, new: bool = False) -> Floats:
        """Occupancy of a site from 0 to 1, by the hour of the day and the day of the week."""
        some = uniform(key(self._seed, number, "habits"), np.arange(3))
        hour, weekday = hours % 24, hours // 24 % 7
        early = 1.5 * (some[0] - 0.5)
        weekend, sunday = weekday >= 5, weekday == 6
        match self.kind(number):
            case "office":
                busy = _between(hour, 7.5 + early, 18 + early) * np.where(weekend, 0.08, 1)
            case "shop":
                busy = _between(hour, 9 + early, 20 + early) * np.where(sunday, 0.1, np.where(weekend, 0.9, 0.8))
            case "works":
                busy = _between(hour, 6 + early, 22 + early) * np.where(sunday, 0.1, np.where(weekend, 0.4, 1))
            case _:
                rise, evening = _between(hour, 6 + early, 9 + early), _between(hour, 17.5 + early, 22.5 + early)
                busy = np.maximum(np.where(weekend, 0.45 * _between(hour, 8, 22), 0.6 * rise), evening)
        if new:  # deferrable load moves to the night, when power is cheap, and the day begins later
            return 0.55 * self._occupied(number, hours - 2) + 0.75 * _between((hour + 12) % 24, 10.0, 17.0)
        return busy

    def block(self, device: int, slots: Places) -> tuple[Inputs, Targets]:
        hours = slots - self._history
        since = np.inf if self._drift is None else self._drift.of((self._seed, device)) / HOUR
        span = np.arange(hours[0] - WEEK - 1, hours[-1] + 1)
        loads = self.load(device, span, (span >= since).astype(np.float64))
        x, y = self._seen(span, loads)
        there = self._flaws.present((self._seed, device), span + self._history, span * HOUR)
        return self._gapped(x, there), y

    def bench(self, now: float) -> Rows:
        """The week before today, at sites outside the fleet, under the current pattern."""
        today = int(now // DAY)
        numbers = range(-1, -1 - BENCH, -1)
        drift = self._drift
        changed = tuple(drift is not None and now >= drift.of((self._seed, number)) for number in numbers)
        if self._bench is None or self._bench[0] != (today, changed):
            span = np.arange(24 * today - 2 * WEEK - 1, 24 * today)
            parts = []
            for number, after in zip(numbers, changed, strict=True):
                parts.append(self._seen(span, self.load(number, span, np.full(len(span), float(after)))))
            rows = Rows(np.concatenate([x for x, _ in parts]), np.concatenate([y for _, y in parts]))
            self._bench = (today, changed), rows
        return self._bench[1]

    def _seen(self, span: Places, loads: Floats) -> tuple[Inputs, Targets]:
        """Rows of the hours of a span that have a week and an hour of it before them."""
        hours = span[WEEK + 1 :]
        count = len(hours)
        windows = np.lib.stride_tricks.sliding_window_view(loads, WEEK + 2)
        lags = np.concatenate([windows[:, WEEK + 1 - LAGS : -1], windows[:, :3]], axis=1)
        angles = 2 * np.pi * hours[:, None] * np.array([1 / 24, 2 / 24, 1 / WEEK])
        waves = np.stack([np.sin(angles), np.cos(angles)], axis=2).reshape(count, 6)
        outside = self.temperature(span)
        mean = np.convolve(outside, np.full(24, 1 / 24), mode="valid")[-count - 1 : -1]
        rest = np.stack([(hours // 24 % 7 >= 5).astype(np.float64), outside[-count:], mean], axis=1)
        return np.concatenate([lags, waves, rest], axis=1).astype(np.float32), loads[-count:].astype(np.float32)

    @staticmethod
    def _gapped(x: Inputs, there: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]) -> Inputs:
        """Set the loads that the meter did not report to NaN."""
        if there.all():
            return x
        windows = np.lib.stride_tricks.sliding_window_view(there, WEEK + 2)
        known = np.concatenate([windows[:, WEEK + 1 - LAGS : -1], windows[:, :3]], axis=1)
        x[:, : known.shape[1]][~known] = np.nan
        return x


def _between(hour: Floats | Places, begin: float, end: float) -> Floats:
    """1 between two hours of the day, otherwise 0, with edges of about an hour."""
    found: Floats = 1 / ((1 + np.exp(-(hour + 0.5 - begin) / 0.4)) * (1 + np.exp((hour + 0.5 - end) / 0.4)))
    return found


def energy(
    devices: int = 100,
    *,
    seed: int = 0,
    history: float = 14 * DAY,
    window: int = 336,
    fresh: int = 4,
    flaws: Flaws | None = None,
    drift: Drift | None = None,
) -> Stream:
    """The next hour's load of offices, shops, works and homes, from previous hours, the calendar and the weather.

    Each site has its own base load, level, hours and drift. A row arrives each hour.

    Args:
        devices: sites, each with its meter.
        seed: of all randomness.
        history: seconds of measurements before the start, in whole hours.
        window: rows that a device holds, the newest.
        fresh: rows that must be new before it trains again.
        flaws: faults of the data; the usual ones by default.
        drift: a new tariff at that time: much of the load moves into the night, and the day begins later.

    Raises:
        ValueError: numbers out of range.
    """
    flaws = Flaws() if flaws is None else flaws
    if history % HOUR:
        raise ValueError(f"history={history:g} s is not a whole number of hours, and meters report each hour.")
    return streamed(
        Sites(seed, history, flaws, drift),
        devices=devices,
        seed=seed,
        interval=HOUR,
        history=history,
        window=window,
        fresh=fresh,
        flaws=flaws,
        drift=drift,
    )
