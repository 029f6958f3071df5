"""The electric load of sites, hour by hour: a day's and a week's shape, weather, and drift that is each site's own."""

from typing import Final

import numpy as np

from midge.sensor_fleet.dataset import Rows
from midge.sensor_fleet.sensors.chance import Floats, Places, draw, key, normal, smooth, uniform
from midge.sensor_fleet.sensors.flaws import DAY, Drift, Flaws
from midge.sensor_fleet.sensors.flow import Inputs, Targets
from midge.sensor_fleet.sensors.stream import Stream, streamed

HOUR: Final = 3600.0
WEEK: Final = 168
"""Hours."""
LAGS: Final = 24
"""Hours of its own load that a device looks back on, one by one."""
BENCH: Final = 20
"""Sites of the test, none of them the fleet's."""
KINDS: Final = ("office", "shop", "works", "homes")
HEATING, COOLING = 15.0, 22.0
"""Degrees Celsius outside below which a site heats, and above which it cools."""
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
"""What a device tells the next hour's load from, all of it known an hour before but the forecast temperature."""


class Sites:
    """All sites, by number; those of the test have negative ones. Hour 0 is the first of a Monday.

    Loads are shares of a site's rated power, so that a small shop and large works are of one size to a model.
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
        """What a site is."""
        return KINDS[int(draw(self._seed, number, "kind") * len(KINDS))]

    def temperature(self, hours: Places) -> Floats:
        """°C outside, of the whole region: seasons from a January on, days, and weather that comes and goes."""
        day, year = hours / 24, hours / (24 * 365.25)
        seasons = 10 - 10 * np.cos(2 * np.pi * (year + 0.25))  # hour 0 is in April
        weather = 3.5 * smooth(key(self._seed, "weather"), hours, 60.0)
        found: Floats = seasons - 4 * np.cos(2 * np.pi * (day - 3 / 24)) + weather
        return found

    def load(self, number: int, hours: Places, changed: Floats) -> Floats:
        """Share of the rated power over each hour. `changed` is 1 where the new pattern holds, 0 before."""
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
        """How busy a site is, from 0 to 1, by the hour of the day and the day of the week."""
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
        if new:  # what can wait runs at night, when power has become cheap, and the day begins later
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
        """The week before today, at sites that are not the fleet's, as it would be under the pattern of now."""
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
        """The same without the loads that the meter did not tell."""
        if there.all():
            return x
        windows = np.lib.stride_tricks.sliding_window_view(there, WEEK + 2)
        known = np.concatenate([windows[:, WEEK + 1 - LAGS : -1], windows[:, :3]], axis=1)
        x[:, : known.shape[1]][~known] = np.nan
        return x


def _between(hour: Floats | Places, begin: float, end: float) -> Floats:
    """1 between two hours of the day, 0 else, with edges of about an hour."""
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
    """The next hour's load of offices, shops, works and homes, from the hours before, the calendar and the weather.

    Each site has a base, a level, hours and a drift of its own. A row comes each hour.

    Args:
        devices: sites, each with its meter.
        seed: of all chance.
        history: seconds that the meters have been there before the start, in whole hours.
        window: rows that a device holds, the newest.
        fresh: rows that must be new before it trains again.
        flaws: what is wrong with the data; the usual where it is None.
        drift: a new tariff at that time: much of the work moves into the night, and the day begins later.

    Raises:
        ValueError: numbers that cannot be.
    """
    flaws = Flaws() if flaws is None else flaws
    if history % HOUR:
        raise ValueError(f"history={history:g} s are no whole hours, and meters tell each hour.")
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
