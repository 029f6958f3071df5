"""The problems of `benchmarks.learning`: data dealt to devices, a model, and metrics that users would notice."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from midge.iot_client.training.fit import Parameters
from midge.iot_client.training.numpy_models import Array
from midge.sensor_fleet.data import FleetData, Rows, deal, load
from midge.sensor_fleet.models import Name, NumpyModel, model_for

DIGITS_DEVICES = 50
MOST = 50
"""Number of devices of a file with its own devices."""
CAP = np.float32(125)
"""Limit of a regression target: remaining cycles beyond it cannot be inferred from a sensor, as usual in the
literature."""
OWN_CLASSES = 0.95
"""If speed correlates with data: the share of a class that is held by its half of the fleet."""


@dataclass(frozen=True, slots=True, eq=False)
class Problem:
    """One data set as one fleet has it."""

    name: str
    data: FleetData
    model: NumpyModel
    slow: tuple[bool, ...]
    """Indices of the slow half in ascending order: random, or the devices that hold other data."""
    weights: Array
    """Weight of each test row for the slow half."""
    targets: tuple[float, ...]
    """Targets to be reached and held; empty if they are derived from pooled training."""

    @property
    def metric(self) -> str:
        return "accuracy" if self.data.task == "classification" else "rmse"

    @property
    def lower(self) -> bool:
        """Whether lower is better."""
        return self.data.task == "regression"

    def evaluate(self, parameters: Parameters) -> dict[str, float]:
        """The metric on the test rows, for the worst class, and weighted by the slow half's data."""
        model, test = self.model, self.data.test
        with np.errstate(over="ignore", invalid="ignore"):
            outputs = model.predict(parameters, _prepared(model, test))
            if self.data.task == "regression":
                squares = (outputs.astype(np.float64) - test.y) ** 2
                return {
                    "rmse": float(np.sqrt(squares.mean())),
                    "worst": float("nan"),
                    "slow": float(np.sqrt(np.average(squares, weights=self.weights))),
                }
            right = (outputs.argmax(axis=1) == test.y).astype(np.float64)
        counts = np.bincount(test.y, minlength=self.data.classes or 0)
        by_class = np.bincount(test.y, right, minlength=len(counts))[counts > 0] / counts[counts > 0]
        return {
            "accuracy": float(right.mean()),
            "worst": float(by_class.min()),
            "slow": float(np.average(right, weights=self.weights)),
        }


@lru_cache(maxsize=4)
def _prepared(model: NumpyModel, test: Rows) -> Array:
    return model.prepare(test.x)


def digits(seed: int, *, correlated: bool, devices: int = DIGITS_DEVICES, alpha: float = 0.3) -> Problem:
    """Scikit-learn's digits, 8 × 8: dealt by Dirichlet, or with the classes 5 to 9 on the slow half."""
    whole = load("digits", devices=1, seed=0)
    return _labelled("digits", whole, seed, correlated=correlated, devices=devices, alpha=alpha, targets=(0.93, 0.95))


def fashion(path: Path, seed: int, *, correlated: bool, alpha: float, model: Name = "linear") -> Problem:
    """Fashion-MNIST: a fixed set of 10,000 training rows and 2,000 test rows, 20 devices."""
    whole = load(path, devices=1)
    pooled = load(path).pooled()
    rng = np.random.default_rng(0)
    kept, tested = rng.permutation(len(pooled))[:10_000], rng.permutation(len(whole.test))[:2_000]
    some = replace(
        whole,
        devices={"all": Rows(pooled.x[kept], pooled.y[kept])},
        test=Rows(whole.test.x[tested], whole.test.y[tested]),
    )
    name = f"{path.stem} {model if model != 'linear' else f'dirichlet {alpha}'}"
    return _labelled(name, some, seed, correlated=correlated, devices=20, alpha=alpha, targets=(), model=model)


def of_file(path: Path, seed: int, *, correlated: bool) -> Problem:
    """Any data set: its own devices, at most 50, or dealt to 20. Whole numbers of cycles are capped at 125.

    The slow half is random; if it is to hold other data, it is one kind of device if the file has an array `device` of
    0 and 1, otherwise the devices with the higher mean label or target.
    """
    data = load(path, seed=seed)
    with np.load(path, allow_pickle=False) as file:
        kinds = file["device"] if {"device", "unit", "split"} <= set(file.files) else None
        owned = "unit" in file.files
        if kinds is not None:
            units, split = file["unit"], file["split"]
            kind_of = [int(kinds[units == unit][0]) for unit in np.unique(units[split == 0])]
            tested = kinds[split == 1]
    if not owned:
        return _labelled(
            path.stem, replace(data, devices={"all": data.pooled()}), seed, correlated=correlated, devices=20,
            alpha=0.3, targets=(),
        )  # fmt: skip
    if len(data.devices) > MOST:
        kinds, data = None, replace(data, devices=dict(list(data.devices.items())[:MOST]))
    if data.task == "regression":
        data = replace(
            data,
            devices={name: Rows(part.x, capped(part.y)) for name, part in data.devices.items()},
            test=Rows(data.test.x, capped(data.test.y)),
        )
    count = len(data.devices)
    rng = np.random.default_rng((seed, 1))
    slow = [bool(each) for each in rng.permutation(np.arange(count) >= count // 2)]
    weights = np.ones(len(data.test), np.float32)
    if correlated and kinds is not None:
        slow = [kind == 1 for kind in kind_of]
        weights = (tested == 1).astype(np.float32)
    elif correlated:
        order = np.argsort([float(np.mean(part.y)) for part in data.devices.values()], kind="stable")
        slow = [bool(place >= count // 2) for place in np.argsort(order)]
    if kinds is None and data.task == "classification":
        weights = _label_weights(data, slow)
    model = model_for(data, "mlp", seed=seed)
    assert isinstance(model, NumpyModel)
    return Problem(path.stem, data, model, tuple(slow), weights, ())


def capped(y: npt.NDArray[np.generic]) -> Array:
    return np.minimum(np.asarray(y, np.float32), CAP)


def _labelled(
    name: str,
    whole: FleetData,
    seed: int,
    *,
    correlated: bool,
    devices: int,
    alpha: float,
    targets: tuple[float, ...],
    model: Name = "mlp",
) -> Problem:
    rows = whole.pooled()
    rng = np.random.default_rng((seed, 1))
    slow = [number >= devices // 2 for number in range(devices)]
    if correlated:
        hands = _two_halves(rows.y, slow, whole.classes or 0, rng)
    else:
        hands = deal(rows.y, devices, rng, alpha)
        slow = [bool(each) for each in rng.permutation(slow)]
    owned = {f"device-{place:03d}": Rows(rows.x[hand], rows.y[hand]) for place, hand in enumerate(hands)}
    data = replace(whole, devices=owned)
    made = model_for(data, model, seed=seed)
    assert isinstance(made, NumpyModel)
    return Problem(name, data, made, tuple(slow), _label_weights(data, slow), targets)


def _two_halves(
    y: npt.NDArray[np.generic], slow: Sequence[bool], classes: int, rng: np.random.Generator
) -> list[npt.NDArray[np.intp]]:
    """Deal rows evenly within each half; the lower classes mostly to the fast half."""
    to_slow = (y.astype(np.int64) >= classes // 2) == (rng.random(len(y)) < OWN_CLASSES)
    halves = []
    for half in (False, True):
        rows = rng.permutation(np.flatnonzero(to_slow == half))
        halves.append(iter(np.array_split(rows, sum(each == half for each in slow))))
    return [np.sort(next(halves[int(each)])) for each in slow]


def _label_weights(data: FleetData, slow: Sequence[bool]) -> Array:
    """A weight for each test row: its class's frequency in the slow half, relative to that in the test."""
    classes = data.classes or 0
    rows = [part.y for part, is_slow in zip(data.devices.values(), slow, strict=True) if is_slow]
    held = np.bincount(np.concatenate(rows), minlength=classes).astype(np.float64)
    tested = np.bincount(data.test.y, minlength=classes)
    weights = np.divide(held, tested, out=np.zeros(classes), where=tested > 0)
    return weights[data.test.y].astype(np.float32)
