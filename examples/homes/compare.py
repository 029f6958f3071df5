"""What the federation is compared with: the same homes alone, and the same hour of yesterday and of last week."""

import numpy as np
from home import DAY, RECIPE, forecast, initial, train
from households import BEFORE, Household

import midge
from midge.sensor_fleet.report.scales import linear
from midge.sensor_fleet.report.svg import Label, Plot

STYLE = ""


def alone(households: list[Household], recipe: midge.Recipe = RECIPE) -> np.ndarray:
    """Forecasts (homes, hours) of the same model and trainer, once an hour, on each home's readings alone."""
    count = len(households[0].hours) - BEFORE
    found = np.full((len(households), count), np.nan)
    for number, household in enumerate(households):
        parameters, readings = initial(), household.readings(count - 1)
        for hour in range(DAY, count - 1):
            plan = midge.Plan(seed=count * number + hour)
            parameters = train(parameters, plan, readings[: hour + 1], recipe).parameters
            if hour % DAY == DAY - 1:
                found[number, hour + 1 : hour + 1 + DAY] = forecast(parameters, readings[: hour + 1])
    return found


def judged(households: list[Household], forecasts: dict[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """Root mean squared errors in kWh, of all homes together: `days`, one each, and `all`; and of each of the `homes`."""
    energy = np.array([each.energy for each in households])
    used = energy[:, BEFORE:]
    before = {"same hour yesterday": DAY, "same hour last week": 7 * DAY}
    forecasts = forecasts | {name: energy[:, BEFORE - lag : -lag] for name, lag in before.items()}
    there = slice(2 * DAY, None)  # before that, nothing has been learned
    errors = {name: ((each - used)[:, there] ** 2).reshape(len(used), -1, DAY) for name, each in forecasts.items()}
    return {
        name: {
            "all": np.sqrt(each.mean()),
            "homes": np.sqrt(each.mean(axis=(1, 2))),
            "days": np.sqrt(each.mean(axis=(0, 2))),
        }
        for name, each in errors.items()
    }


def picture(found: dict[str, dict[str, np.ndarray]]) -> str:
    return ""
