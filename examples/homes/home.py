"""A device: a home that learns from its own meter to forecast the next day's energy, hour by hour. NumPy only."""

import os

import numpy as np

import midge

DAY = 24
LEARNS_FROM = 28 * DAY  # hours
TOPIC = "homeassistant/sensor/+/state"
"""What Home Assistant's statestream publishes."""
READINGS, HOUR = ("load_energy", "load_temperature", "load_temperature_tomorrow"), "load_hour"
"""Energy of an hour in kWh, temperature in °C, its forecast for that hour tomorrow, and the hour's number: local hours
since 1970. It comes last and completes a row: Home Assistant publishes only what changes, and this always does."""
INPUTS = (
    *("energy a day before", "usual energy at that hour", "energy of a day", "energy at night", "logarithm of level"),
    *("temperature", "warmer than a day before", "warmer than usual", "weekend"),
    *(f"{wave} of {part}" for part in ("the day", "half the day", "a third of the day") for wave in ("sine", "cosine")),
)
MODEL = midge.MLP(len(INPUTS), hidden=(32, 16), outputs=1, task="regression")
HEAD, OWN = ("layers.4.weight", "layers.4.bias"), ("own.weight", "own.bias")
"""The last layer, and what each home adds to it: that never leaves the home."""
RECIPE = midge.Recipe(learning_rate=0.03, batch_size=64, local_steps=30)
SHRINK = 0.3
"""Weight of the penalty on a home's own head: with little data it stays near the common one."""


def initial() -> dict[str, np.ndarray]:
    parameters = MODEL.initial()
    return parameters | {own: np.zeros_like(parameters[head]) for head, own in zip(HEAD, OWN, strict=True)}


def inputs(readings: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of readings (n, 4): inputs (hours, INPUTS) that were known a day before, the home's level until then, and energy.

    Hours run from a day after the first reading to a day after the last. What is not known is NaN.
    """
    readings = readings[readings[:, -1] > np.nanmax(readings[:, -1]) - LEARNS_FROM]
    hour = readings[:, -1].astype(np.int64)
    first, end = hour.min(), hour.max() + 1 + DAY
    energy, outside, expected, before, warmth = np.full((5, DAY * -(-(end - first) // DAY)), np.nan)
    energy[hour - first], outside[hour - first], expected[hour - first + DAY] = readings[:, :-1].T
    before[DAY:], warmth[DAY:] = energy[:-DAY], outside[:-DAY]
    hour = first + np.arange(len(energy))
    day, weekday = 2 * np.pi * (hour % DAY) / DAY, (hour // DAY + 3) % 7  # 1970 began on a Thursday
    level, night = _mean(before), _mean(np.where((hour % DAY >= 1) & (hour % DAY < 5), before, np.nan))
    a_day = _mean(np.lib.stride_tricks.sliding_window_view(before, DAY).T)[-1]
    usual_load, usual = (_mean(each.reshape(-1, DAY)).ravel() for each in (before, warmth))
    of_load = [before, usual_load, np.append(np.full(DAY - 1, np.nan), a_day), night]
    columns = [
        *(each / level - 1 for each in of_load),
        *(np.log(level), (expected - 5) / 10, (expected - warmth) / 10, (expected - usual) / 10, weekday >= 5),
        *(wave(times * day) for times in (1, 2, 3) for wave in (np.sin, np.cos)),
    ]
    return tuple(each[DAY : end - first] for each in (np.stack(columns, axis=1, dtype=np.float32), level, energy))


def _mean(values: np.ndarray) -> np.ndarray:
    """The mean of the known values so far, along the first axis."""
    with np.errstate(invalid="ignore"):
        return np.nancumsum(values, axis=0) / np.cumsum(np.isfinite(values), axis=0)


def joined(parameters) -> dict[str, np.ndarray]:
    """The model of one home: its own head is added to the common one."""
    return {**parameters, **{head: parameters[head] + parameters[own] for head, own in zip(HEAD, OWN, strict=True)}}


def train(parameters, plan, readings: np.ndarray, recipe: midge.Recipe = RECIPE) -> midge.Fit:
    """Mini-batch SGD on what the home used, as a share of its level."""
    x, level, energy = inputs(readings)
    known = np.isfinite(energy + level)
    x, y, recipe = x[known], (energy / level - 1)[known].astype(np.float32), recipe.under(plan)
    values = {name: np.array(array) for name, array in parameters.items()}
    for batch in recipe.batches(len(x), np.random.default_rng(plan.seed)):
        _, slopes = MODEL.loss_and_gradients(joined(values), x[batch], y[batch])
        for head, own in zip(HEAD, OWN, strict=True):
            slopes[own] = slopes[head] + SHRINK * values[own]
        for name, slope in slopes.items():
            values[name] -= recipe.learning_rate * slope
    return midge.Fit(values, len(x), recipe.local_steps)


def forecast(parameters, readings: np.ndarray) -> np.ndarray:
    """Energy in each of the 24 hours after the last reading, in kWh."""
    x, level, _ = inputs(readings)
    return (level * np.maximum(0, 1 + MODEL.predict(joined(parameters), x)))[-DAY:]


def device(
    name: str, url: str, sensors: str = "mqtt://localhost", topic: str = TOPIC, outbox: str | None = None, **more
) -> midge.Device:
    """One home: its sensors' broker and topic, and the federation's broker."""
    samples = midge.Samples(outbox and f"{outbox}.samples", READINGS, HOUR, rows=LEARNS_FROM, clip=None)

    def readings(*, take: bool) -> np.ndarray:
        return np.column_stack(samples.arrays(take=take))

    return midge.Device(
        url,
        federation="homes",
        name=name,
        train=lambda parameters, plan: train(parameters, plan, readings(take=True)),
        predict=lambda parameters, _: forecast(parameters, readings(take=False)),
        local=lambda: {name: initial()[name] for name in OWN},
        features=INPUTS,
        samples=samples,
        sources=[midge.SensorTopic(sensors, topic, hold=7200.0)],
        conditions=[midge.conditions.enough_new(samples, 1), lambda: None if len(samples) > DAY else "a day is needed"],
        outbox=outbox,
        **more,
    )


def app() -> midge.Device:
    """For `midge device home:app`."""
    name, url, sensors = (os.environ[key] for key in ("HOME_NAME", "FEDERATION", "HOME_BROKER"))
    return device(name, url, sensors, outbox=f"{name}.outbox")
