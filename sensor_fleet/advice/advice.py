"""`midge.advise`: the trial of all ways and the advice that follows from it."""

import math
import multiprocessing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np

from midge.sensor_fleet.advice.decision import Decision, RowsHeld, decide
from midge.sensor_fleet.advice.trial import WaysTrial, model_bytes
from midge.sensor_fleet.advice.user_model import model_of
from midge.sensor_fleet.advice.ways import Reach, WayRow
from midge.sensor_fleet.data import FleetData, load
from midge.sensor_fleet.lazily import shared
from midge.sensor_fleet.models import model_for
from midge.sensor_fleet.profiles import profile as profiles
from midge.sensor_fleet.report.advice_sections import advice_page


@dataclass(frozen=True, slots=True)
class AdviceSetting:
    """What the trial was about."""

    data: str
    profile: str
    devices: int
    rows: int
    parameters: int
    days: float
    seeds: int
    steps: int
    """Of the budget, mean over the seeds."""
    batch: int
    sites: int | None
    processes: int
    data_days: float
    rows_may_go: Reach | None
    price_per_gb: float
    price_per_kwh: float
    guess: float
    """Score on new rows of the most frequent class, or of the mean target."""

    def monthly_price(self, row: WayRow) -> float:
        """What a device's traffic and energy cost in 30 days; machines of the operator are not in it."""
        return row.monthly_bytes / 1e9 * self.price_per_gb + row.monthly_joules / 3.6e6 * self.price_per_kwh


@dataclass(frozen=True, slots=True)
class Advice:
    """The answer of `advise`; a notebook shows its page."""

    metric: str
    rows: tuple[WayRow, ...]
    missing: dict[str, str]
    """Why a way was not measured, by its name."""
    decision: Decision
    setting: AdviceSetting

    def packed(self) -> dict[str, Any]:
        """Everything as plain values."""
        names = AdviceSetting.__dataclass_fields__
        return {
            "metric": self.metric,
            "rows": [
                {**row.packed(self.metric), "monthly_price": self.setting.monthly_price(row)} for row in self.rows
            ],
            "missing": self.missing,
            "advice": self.decision.packed(),
            "setting": {name: getattr(self.setting, name) for name in names},
        }

    def page(self) -> str:
        """The page, as self-contained HTML."""
        return advice_page(self)

    def write(self, path: str | Path) -> Path:
        """Write the page."""
        path = Path(path)
        path.write_text(self.page(), encoding="utf-8")
        return path

    def __str__(self) -> str:
        missing = (f"{way} was not measured: {why}." for way, why in self.missing.items())
        return "\n".join((*self.decision.sentences, *self.decision.changes, *missing))

    def _repr_html_(self) -> str:
        from html import escape  # noqa: PLC0415

        return f'<iframe srcdoc="{escape(self.page())}" style="width: 100%; height: 60em; border: 0"></iframe>'


def advise(
    data: str | Path | FleetData,
    *,
    profile: str | Path = "factory",
    model: Any = None,
    devices: int | None = None,
    days: float = 4.0,
    seeds: int = 3,
    sites: int | None = None,
    processes: int = 2,
    data_days: float = 30.0,
    rows_may_go: Reach | None = None,
    price_per_gb: float = 2.5,
    price_per_kwh: float = 0.2872,
    tell: Callable[[str], None] = lambda _: None,
) -> Advice:
    """Train one model with one budget in several ways, and say which of them suits the data.

    Args:
        data: an `.npz` file, `digits`, simulated sensors (`vibration`, `energy`), or data in memory.
        profile: the fleet: the name of a shipped profile, or a TOML file.
        model: `linear`, `mlp` or `cnn`; or a torch module, its class, a function that makes one, or a function that
            takes the data and returns a `FleetModel`. A perceptron by default.
        devices: number of devices; by default those of the data.
        days: of the profile's time for which the federation trains; its steps are the budget of all ways.
        seeds: trials.
        sites: of the hybrid.
        processes: of the data-parallel training.
        data_days: days in which a device records the rows of the data, for costs a month.
        rows_may_go: where rows may go by your duties: `nowhere`, `site`, `anywhere`; None leaves it open.
        price_per_gb: of traffic over a device's link; by default an IoT tariff (Onomondo, June 2026).
        price_per_kwh: of a device's energy; by default that of EU households in the first half of 2025 (Eurostat).
        tell: called with progress.

    Raises:
        ValueError: an argument that cannot be used; the message says what to change.
        RuntimeError: a script calls it outside of `if __name__ == "__main__":`, in a process that it started.

    Examples:
        >>> advice = midge.advise("digits", model="linear", devices=5, days=0.5, seeds=1)  # doctest: +SKIP
        >>> advice.write("advice.html")  # doctest: +SKIP
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise RuntimeError(
            "this process was started to train, and runs the script again: put the call of advise below "
            "`if __name__ == '__main__':`."
        )
    for name, number, least in (("seeds", seeds, 1), ("processes", processes, 2), ("sites", sites, 2)):
        if number is not None and number < least:
            raise ValueError(f"{name} is {number}: give at least {least}.")
    if rows_may_go not in (None, *get_args(Reach)):
        raise ValueError(f"rows_may_go is {rows_may_go!r}: give {', '.join(get_args(Reach))}, or None.")
    for name, value in (("days", days), ("data_days", data_days)):
        if not 0 < value < math.inf:
            raise ValueError(f"{name} is {value:g}: give a number above 0.")
    for name, value in (("price_per_gb", price_per_gb), ("price_per_kwh", price_per_kwh)):
        if not 0 <= value < math.inf:
            raise ValueError(f"{name} is {value:g}: give a number of at least 0.")
    loaded = data if isinstance(data, FleetData) else load(data, devices=devices)
    if devices is not None and len(loaded.devices) < devices:
        loaded = shared(loaded, devices, 0)
    if len(loaded.devices) < 2:
        raise ValueError("there is a single device: nothing can be federated. Give data of at least 2 devices.")
    fleet = profiles.load(profile)

    def make(some: FleetData, seed: int) -> Any:
        if model is None or isinstance(model, str):
            return model_for(some, model, torch=True, seed=seed)  # type: ignore[arg-type]  # it says what it knows
        return model_of(model, some, seed)

    first = make(loaded, 0)
    if processes > first.recipe.batch_size:
        raise ValueError(
            f"processes is {processes}: a batch of {first.recipe.batch_size} rows is split over at most as many."
        )
    trial = WaysTrial(
        loaded, make, fleet, days=days, seeds=seeds, sites=sites, processes=processes, data_days=data_days, tell=tell
    )
    rows, missing, steps = trial.run()
    counts = [len(each) for each in loaded.devices.values()]
    metric = "accuracy" if loaded.task == "classification" else "rmse"
    example = next(iter(loaded.devices.values()))
    setting = AdviceSetting(
        str(data) if isinstance(data, str | Path) else "data",
        str(profile),
        len(counts),
        sum(counts),
        sum(int(array.size) for array in first.initial.values()),
        days,
        seeds,
        steps,
        first.recipe.batch_size,
        sites,
        processes,
        data_days,
        rows_may_go,
        price_per_gb,
        price_per_kwh,
        _guessed(loaded),
    )
    held = RowsHeld(
        example.x.nbytes / len(example), float(np.mean(counts)), model_bytes(setting.parameters) * len(counts)
    )
    decision = decide(rows, metric, rows_may_go, held, setting.guess)
    return Advice(metric, tuple(rows), missing, decision, setting)


def _guessed(data: FleetData) -> float:
    """The score on new rows without inputs: of the most frequent class, or of the mean target."""
    y = np.concatenate([rows.y for rows in data.devices.values()])
    if data.task == "classification":
        return float(np.mean(data.test.y == np.bincount(y).argmax()))
    return float(np.sqrt(np.mean((data.test.y.astype(np.float64) - y.mean(dtype=np.float64)) ** 2)))
