"""Simulated homes in several places: weather, calendar and appliances, as states of Home Assistant's sensors."""

import numpy as np

MONDAY = 24 * 20458
"""Hours from 1970 to Monday, 5 January 2026: the first hour of the simulation."""
BEFORE = 7 * 24
"""Hours that are simulated before it, for comparison with the same hour of the week before."""


class Household:
    """One home for a number of hours: energy in kWh and temperatures in °C, from a week before the start on."""

    def __init__(self, seed: int, number: int, count: int) -> None:
        self.hours = MONDAY + np.arange(-BEFORE, count)
        self.outside, self.forecast = weather(seed, number, self.hours)
        self.energy = energy(seed, number, self.hours, self.outside)
        self.lost = np.random.default_rng((seed, 5, number)).random(len(self.hours)) < 0.01

    def states(self, hour: int) -> dict[str, str]:
        """What its sensors say at the end of an hour."""
        at, tomorrow = BEFORE + hour, min(BEFORE + hour + 24, len(self.hours) - 1)
        return {
            "load_energy": "unavailable" if self.lost[at] else f"{self.energy[at]:.3f}",
            "load_temperature": f"{self.outside[at]:.1f}",
            "load_temperature_tomorrow": f"{self.forecast[tomorrow]:.1f}",
            "load_hour": f"{self.hours[at]}",
        }

    def readings(self, hour: int) -> np.ndarray:
        """The same of all hours up to this one, as a device keeps them: (hours, 4)."""
        states = [self.states(each) for each in range(hour + 1)]
        return np.array([[float(state.replace("unavailable", "nan")) for state in each.values()] for each in states])


def weather(seed: int, home: int, hours: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Temperature of a winter in °C, and its forecast of a day before; both of the hours' shape."""
    rng, place = np.random.default_rng((seed, 1)), np.random.default_rng((seed, 4, home))
    fronts, late = _smooth(rng.normal(size=len(hours) + 400), 72), place.integers(0, 120)
    outside = place.normal(4, 2) - 3 * np.cos(2 * np.pi * (hours % 24 - 3) / 24) + 4 * fronts[late : late + len(hours)]
    return outside, outside + _smooth(place.normal(size=len(hours) + 40), 12)[: len(hours)]


def energy(seed: int, home: int, hours: np.ndarray, outside: np.ndarray) -> np.ndarray:
    """What one home uses in each hour, in kWh: appliances by the habits of its people, a heat pump, a car."""
    habits, rng = np.random.default_rng((seed, 2, home)), np.random.default_rng((seed, 3, home))
    hour, weekend = hours % 24, hours // 24 % 7 >= 5
    people, away = habits.integers(1, 5), habits.random() < 0.7  # on weekdays
    rises, leaves, returns, sleeps = habits.normal([6.5, 8, 17, 22.5], [0.7, 0.7, 1.0, 0.8])
    rises, leaves = np.where(weekend, rises + 1.5, rises), np.where(weekend | (not away), 25, leaves)
    awake = _between(hour, rises, sleeps)
    there = awake * (1 - _between(hour, leaves, np.where(leaves > 24, 25, returns)))
    cooks = _between(hour, 11.5, 13.5) * there + 1.6 * _between(hour, 17.8, 19.8) * awake
    lit = there * (1 - _between(hour, 8.5, 16.5))
    load = habits.uniform(0.06, 0.2) + people**0.5 * (0.12 * there + 0.12 * lit + 0.25 * cooks)
    if habits.random() < 0.6:  # a heat pump: the colder, the more, and the less efficient; less at night
        lost, night = habits.uniform(0.06, 0.14), habits.uniform(0.5, 1.0)
        cold = np.maximum(0, 16 - outside)
        load = load + lost * cold * (1 + 0.02 * cold) * np.where((hour < 5) | (hour > 22), night, 1)
    washes = (rng.random(len(hours)) < 0.06 * people**0.5 * there) * rng.uniform(0.6, 1.2, len(hours))
    if habits.random() < 0.15:  # a car, charged on some evenings
        plugged = (rng.random(len(hours) // 24 + 1) < habits.uniform(0.2, 0.6)).repeat(24)[: len(hours)]
        washes = washes + 3.6 * plugged * ((hour == round(returns) + 1) | (hour == round(returns) + 2))
    return load * rng.lognormal(0, 0.15, len(hours)) + washes


def _between(hour: np.ndarray, begin, end) -> np.ndarray:
    """The share of each hour between two times of the day."""
    return np.clip(np.minimum(hour + 1, end) - np.maximum(hour, begin), 0, 1)


def _smooth(noise: np.ndarray, hours: int) -> np.ndarray:
    """Noise of deviation 1 with a correlation time in hours."""
    window = np.hanning(hours + 2)
    return np.convolve(noise, window / np.sqrt(np.sum(window**2)), "valid")
