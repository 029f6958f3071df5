"""What the federation is compared with: the same homes alone, and the same hour of yesterday and of last week."""

import numpy as np
from home import DAY, forecast, initial, train
from households import BEFORE, Household

import midge
from midge.sensor_fleet.report.scales import linear
from midge.sensor_fleet.report.svg import Label, Plot

ALONE = midge.Recipe(learning_rate=0.1, batch_size=32, local_steps=10)
"""The best for a home alone of those that the README lists."""

STYLE = "text{font:12px sans-serif;fill:#888}.strong{font-weight:bold}.hair,.base{stroke:#8884;fill:none}" + "".join(
    f".{name}{{fill:none;stroke:{colour};stroke-width:2}}text.{name}{{fill:{colour};stroke:none}}"
    for name, colour in (
        ("federated", "#2a78d6"),
        ("alone", "#eb6834"),
        ("same-hour-yesterday", "#888"),
        ("same-hour-last-week", "#aaa"),
    )
)


def alone(households: list[Household], recipe: midge.Recipe = ALONE) -> np.ndarray:
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
    """Root mean squared errors in kWh: `all`, those of each day in `days`, and of each home in `homes`."""
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
    """The errors of each day, as the text of an SVG file."""
    days = 3 + np.arange(len(found["alone"]["days"]))
    highest = max(each["days"].max() for each in found.values())
    plot = Plot(
        (720, 300),
        "Error of the forecasts of each day",
        linear(days[0], days[-1], tight=True, count=len(days)),
        linear(0, highest),
        x_name="day since the homes began",
        y_name="RMSE of hourly energy in kWh, all homes",
        right=170,
    )
    labels = []
    for name, each in found.items():
        line = name.replace(" ", "-")
        plot.line(zip(days, each["days"], strict=True), line)
        labels.append(Label(float(each["days"][-1]), name, f"{each['all']:.3f} over all days", line))
    plot.labels(labels)
    return plot.file(STYLE) + "\n"
