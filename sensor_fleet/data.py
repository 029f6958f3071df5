"""Data sets of simulated fleets: the rows of each device, and the test rows.

A data set is an `.npz` file with `x` and `y`, optionally with `unit` (the device that owns the row) and `split` (0
train, 1 test); or scikit-learn's bundled handwritten digits. Rows without an owner are dealt unevenly: each device gets
its own mixture of classes (Hsu, Qi and Brown, arXiv:1909.06335).
"""

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from midge.iot_client.training.numpy_models import Task
from midge.sensor_fleet.dataset import ALPHA, Array, FleetData, Kind, Rows
from midge.sensor_fleet.sensors import KINDS, a_week

__all__ = ["FleetData", "Kind", "Rows", "channel_names", "deal", "load"]

DIGITS: Final = "digits"
DEVICES: Final = 20
"""Default number of devices that rows without an owner are dealt to."""
HANDFUL: Final = 8
"""Minimum number of rows of each such device."""
TEST_SHARE: Final = 0.2
MAX_CLASSES: Final = 1000
COLOURS: Final = (1, 3, 4)
"""Numbers of channels of an image. An axis of such a size before two others holds channels, in torch's layout."""
_ARRAYS: Final[Sequence[str]] = ("x", "y", "unit", "split", "class_names")
_UNREADABLE = (OSError, ValueError, EOFError, RuntimeError, MemoryError, zipfile.BadZipFile, zlib.error)

Indices = npt.NDArray[np.intp]


def load(source: str | Path, *, devices: int | None = None, seed: int = 0, every: bool = False) -> FleetData:
    """Load an `.npz` file, the bundled digits ("digits"), or a week of simulated sensors, by their name.

    `devices` selects the first devices of the file, by unit; rows without an owner are dealt to that many devices.
    `seed` is for the dealing, and for drawing the test rows if the file does not mark them. With `every` none
    are drawn: all rows that are not marked are the devices'.

    Raises:
        ValueError: the file is missing or malformed. The message says what to change.
    """
    if devices is not None and devices < 1:
        raise ValueError(f"a fleet has at least 1 device, not {devices}")
    if (sensors := _sensors(source, DEVICES if devices is None else devices, seed)) is not None:
        return sensors
    try:
        arrays = _digits() if str(source) == DIGITS else _read(Path(source))
        return _arrange(arrays, devices, seed, every=every)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error


def channel_names(source: str | Path) -> tuple[str, ...]:
    """Names of the inputs in a file: its array `columns` or `channels`; empty without one."""
    path = Path(source)
    if path.suffix != ".npz" or not path.is_file():
        return ()
    with np.load(path, allow_pickle=False) as archive:
        for name in ("columns", "channels"):
            if name in archive.files:
                try:
                    names = _member(archive, name, "text")
                except ValueError as error:
                    raise ValueError(f"{source}: {error}") from error
                if names.ndim == 1:
                    return tuple(str(each) for each in names)
    return ()


def deal(labels: Array, devices: int, rng: np.random.Generator, alpha: float = ALPHA) -> list[Indices]:
    """Deal rows to devices: each class by shares from Dirichlet(alpha), and a minimum number of rows to each device.

    Labels of shape (n,) are classes; floats are dealt by deciles. There are never more devices than rows.
    """
    devices = min(devices, len(labels))
    if labels.dtype.kind == "f":
        labels = np.searchsorted(np.quantile(labels, np.linspace(0.1, 0.9, 9)), labels)
    hands: list[list[Indices]] = [[] for _ in range(devices)]
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        shares = rng.dirichlet(np.full(devices, alpha))
        cuts = np.rint(np.cumsum(shares)[:-1] * len(rows)).astype(np.intp)
        for hand, part in zip(hands, np.split(rows, cuts), strict=True):
            hand.append(part)
    dealt = [rng.permutation(np.concatenate(hand)) for hand in hands]
    least = min(HANDFUL, len(labels) // devices)
    for device in range(devices):
        while (short := least - len(dealt[device])) > 0:
            richest = max(range(devices), key=lambda other: len(dealt[other]))
            given = min(short, len(dealt[richest]) - least)
            dealt[device] = np.concatenate([dealt[device], dealt[richest][:given]])
            dealt[richest] = dealt[richest][given:]
    return [np.sort(rows) for rows in dealt]


# --------------------------------------------------------------------------- reading


def _sensors(source: str | Path, devices: int, seed: int) -> FleetData | None:
    return a_week(str(source), devices, seed) if str(source) in KINDS else None


def _digits() -> dict[str, Array]:
    try:
        from sklearn.datasets import load_digits  # noqa: PLC0415 (only the demo needs scikit-learn)
    except ModuleNotFoundError as error:
        raise ValueError('the digits come with scikit-learn: pip install "midge[demo]"') from error
    bunch = load_digits()
    # Stored as 0 to 16; images are 0 to 255 everywhere else.
    return {"x": np.rint(bunch.images * (255 / 16)).astype(np.uint8), "y": bunch.target}


def _read(path: Path) -> dict[str, Array]:
    """Read the known arrays of a file."""
    if not path.is_file():
        raise ValueError(f"there is no such file; give the path of an .npz file, or one of {DIGITS}, vibration, energy")
    with path.open("rb") as file:
        try:
            archive = np.load(file, allow_pickle=False)
        except _UNREADABLE as error:
            raise ValueError("this is not a readable .npz file; make one with numpy.savez") from error
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise ValueError("this is a single array; save x and y together with numpy.savez")  # noqa: TRY004
        with archive:
            return {name: _member(archive, name) for name in _ARRAYS if name in archive.files}


def _member(archive: Any, name: str, wanted: str = "numbers") -> Array:
    try:
        array: Array = archive[name]
    except _UNREADABLE as error:
        if "allow_pickle" in str(error):
            raise ValueError(f"{name} holds Python objects; save it as {wanted}") from error
        raise ValueError(f"{name} cannot be read: the file is damaged; write it again") from error
    return array


# ------------------------------------------------------------------------- arranging


def _arrange(arrays: dict[str, Array], limit: int | None, seed: int, *, every: bool) -> FleetData:
    for name in ("x", "y"):
        if name not in arrays:
            raise ValueError(f"the array {name} is missing; save both x and y")
    x, kind = _inputs(arrays["x"])
    y = arrays["y"]
    for name in ("y", "unit", "split"):
        if name in arrays and arrays[name].shape != (len(x),):
            raise ValueError(f"{name} has shape {arrays[name].shape}, but x has {len(x)} rows: it must be ({len(x)},)")
    y, names = _targets(y, arrays.get("class_names"))
    task: Task = "classification" if names else "regression"

    rng = np.random.default_rng(seed)
    test = _test_rows(arrays.get("split"), len(x), 0.0 if every else TEST_SHARE, rng)
    training = np.flatnonzero(~test)
    if not len(training):
        raise ValueError("there are no training rows; mark some with 0 in split")
    if not test.any() and not every:
        raise ValueError("there are no test rows; mark some with 1 in split, or leave split out")
    units = arrays["unit"][training] if "unit" in arrays else np.full(len(training), -1)
    owners = _owners(units, y[training], limit, rng)
    return FleetData(
        devices={name: Rows(x[training[rows]], y[training[rows]]) for name, rows in owners.items()},
        test=Rows(x[test], y[test]),
        task=task,
        classes=len(names) or None,
        names=names,
        kind=kind,
        shape=x.shape[1:],
        missing=x.size - int(np.count_nonzero(np.isfinite(x))) if x.dtype.kind == "f" else 0,
    )


def _inputs(x: Array) -> tuple[Array, Kind]:
    if x.dtype.kind not in "fiub":
        raise ValueError(f"x is of type {x.dtype}; save it as numbers")
    if not 2 <= x.ndim <= 4:
        raise ValueError(
            f"x has shape {x.shape}; it must be (rows, features), (rows, height, width), "
            "(rows, height, width, colours), (rows, colours, height, width) or (rows, time, channels)"
        )
    if not x.size:
        raise ValueError(f"x has shape {x.shape}: it is empty")
    if x.ndim == 2:
        return x, "table"
    if x.ndim == 4 and x.shape[1] in COLOURS and x.shape[3] not in COLOURS:
        x = np.moveaxis(x, 1, 3)
    return x, "image" if x.ndim == 4 or x.dtype == np.uint8 else "window"


def _targets(y: Array, class_names: Array | None) -> tuple[Array, tuple[str, ...]]:
    """Labels from 0 and the names of the classes; or float32 targets and no names."""
    if y.dtype.kind == "f":
        if not np.all(np.abs(y) <= np.finfo(np.float32).max):
            raise ValueError("y holds NaN or infinity; remove the rows without a target")
        return y.astype(np.float32), ()
    if y.dtype.kind not in "iub":
        raise ValueError(f"y is of type {y.dtype}; save classes as integers, or regression targets as floats")
    labels, places = np.unique(y, return_inverse=True)
    if len(labels) > MAX_CLASSES:
        raise ValueError(f"y has {len(labels)} classes, over {MAX_CLASSES}; save regression targets as floats")
    if len(labels) < 2:
        raise ValueError("y is the same in all rows; there is nothing to learn")
    names = [str(int(label)) for label in labels]
    if class_names is not None and class_names.ndim == 1 and labels[0] >= 0 and labels[-1] < len(class_names):
        names = [str(class_names[label]) for label in labels.astype(np.intp)]
    return places.astype(np.int64), tuple(names)


def _test_rows(split: Array | None, rows: int, share: float, rng: np.random.Generator) -> npt.NDArray[np.bool_]:
    """Mask of the test rows, of shape (rows,): as the file marks them, or a random share."""
    if split is not None:
        if split.dtype.kind not in "iubf" or not np.isin(split, (0, 1)).all():
            raise ValueError("split holds something other than 0 (train) and 1 (test)")
        return np.asarray(split == 1, np.bool_)
    test = np.zeros(rows, np.bool_)
    test[rng.permutation(rows)[: round(share * rows)]] = True
    return test


def _owners(units: Array, y: Array, limit: int | None, rng: np.random.Generator) -> dict[str, Indices]:
    """The training rows of each device, by the device's name."""
    if units.dtype.kind not in "iu":
        raise ValueError(f"unit is of type {units.dtype}; number the devices with integers from 0")
    owned = units >= 0
    if not owned.any():
        dealt = deal(y, limit or DEVICES, rng)
        return dict(zip(_names(range(len(dealt))), dealt, strict=True))
    if not owned.all():
        raise ValueError("unit is negative in some training rows only; give all of them an owner, or none")
    numbers, places, counts = np.unique(units, return_inverse=True, return_counts=True)
    hands = np.split(np.argsort(places, kind="stable"), np.cumsum(counts)[:-1])
    return dict(list(zip(_names([int(number) for number in numbers]), hands, strict=True))[:limit])


def _names(numbers: Sequence[int]) -> list[str]:
    """Names such as sensor-07, with the digits of the highest number, and at least two."""
    width = max(2, len(str(numbers[-1])))
    return [f"sensor-{number:0{width}d}" for number in numbers]
