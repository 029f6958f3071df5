"""Loading fleets' data: who owns which rows, and one clear sentence for each file that cannot be used."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from midge.sensor_fleet.data import FleetData, channel_names, deal, load
from tests import needs

N = 60


def arrays(**changes: Any) -> dict[str, Any]:
    """A small table: devices 3, 4, 12 own 20 rows each, every fifth row is for the test."""
    rng = np.random.default_rng(0)
    plain = {
        "x": rng.normal(size=(N, 3)).astype(np.float32),
        "y": np.arange(N) % 3,
        "unit": np.repeat([3, 4, 12], N // 3),
        "split": (np.arange(N) % 5 == 0).astype(np.uint8),
    }
    return {name: array for name, array in (plain | changes).items() if array is not None}


def save(folder: Path, **changes: Any) -> Path:
    path = folder / "set.npz"
    np.savez(path, **arrays(**changes))
    return path


def sizes(data: FleetData) -> dict[str, int]:
    return {name: len(rows) for name, rows in data.devices.items()}


def test_devices_are_the_units_of_the_training_rows(tmp_path: Path) -> None:
    plain = arrays()
    plain["unit"][plain["split"] == 1] = -1
    data = load(save(tmp_path, **plain))
    assert sizes(data) == {"sensor-03": 16, "sensor-04": 16, "sensor-12": 16}
    assert (len(data.test), data.task, data.classes, data.names) == (12, "classification", 3, ("0", "1", "2"))
    assert (data.kind, data.shape, data.missing) == ("table", (3,), 0)
    owned = (plain["unit"] == 4) & (plain["split"] == 0)
    np.testing.assert_array_equal(data.devices["sensor-04"].x, plain["x"][owned])
    np.testing.assert_array_equal(data.devices["sensor-04"].y, plain["y"][owned])
    assert len(data.pooled()) == 48


def test_the_first_devices_can_be_taken_alone(tmp_path: Path) -> None:
    assert list(load(save(tmp_path), devices=2).devices) == ["sensor-03", "sensor-04"]
    assert len(load(save(tmp_path), devices=99).devices) == 3
    with pytest.raises(ValueError, match="at least 1 device"):
        load(save(tmp_path), devices=0)


def test_names_are_as_wide_as_the_highest_number(tmp_path: Path) -> None:
    data = load(save(tmp_path, unit=np.repeat([0, 7, 1234], N // 3)))
    assert list(data.devices) == ["sensor-0000", "sensor-0007", "sensor-1234"]


@pytest.mark.parametrize("unit", [None, np.full(N, -1)])
def test_rows_without_an_owner_are_dealt(tmp_path: Path, unit: Any) -> None:
    data = load(save(tmp_path, unit=unit), devices=4)
    assert list(data.devices) == [f"sensor-0{i}" for i in range(4)]
    assert sum(sizes(data).values()) == 48
    assert min(sizes(data).values()) >= 8
    assert sizes(load(save(tmp_path, unit=unit))).keys() == {f"sensor-{i:02d}" for i in range(20)}


def test_a_fifth_is_for_the_test_where_the_file_does_not_say(tmp_path: Path) -> None:
    path = save(tmp_path, split=None)
    first, again, other = load(path), load(path), load(path, seed=1)
    assert len(first.test) == 12
    np.testing.assert_array_equal(first.test.x, again.test.x)
    assert not np.array_equal(first.test.x, other.test.x)


@pytest.mark.parametrize(
    ("x", "kind", "shape"),
    [
        (np.zeros((N, 5), np.uint8), "table", (5,)),
        (np.zeros((N, 8, 9), np.uint8), "image", (8, 9)),
        (np.zeros((N, 8, 9, 3), np.uint8), "image", (8, 9, 3)),
        (np.zeros((N, 8, 9, 3), np.float32), "image", (8, 9, 3)),
        (np.zeros((N, 50, 6), np.float16), "window", (50, 6)),
        (np.zeros((N, 50, 6), np.int16), "window", (50, 6)),
    ],
)
def test_the_kind_is_seen_from_the_shape(tmp_path: Path, x: Any, kind: str, shape: tuple[int, ...]) -> None:
    data = load(save(tmp_path, x=x))
    assert (data.kind, data.shape) == (kind, shape)


def test_float_targets_are_regression(tmp_path: Path) -> None:
    data = load(save(tmp_path, y=np.linspace(0, 9, N)))
    assert (data.task, data.classes, data.names) == ("regression", None, ())
    assert data.test.y.dtype == np.float32


def test_labels_count_from_zero_and_keep_their_names(tmp_path: Path) -> None:
    y = np.array([-5, 7, 100])[np.arange(N) % 3]
    data = load(save(tmp_path, y=y))
    assert data.names == ("-5", "7", "100")
    assert set(data.test.y) == {0, 1, 2}
    named = load(save(tmp_path, y=np.arange(N) % 2 * 2, class_names=np.array(["sit", "walk", "run"])))
    assert named.names == ("sit", "run")


def test_missing_values_are_counted(tmp_path: Path) -> None:
    x = arrays()["x"]
    x[0, 0], x[7, 2], x[8, 1] = np.nan, np.inf, -np.inf
    assert load(save(tmp_path, x=x)).missing == 3


def test_names_that_are_objects_are_told_with_the_file(tmp_path: Path) -> None:
    """Seen to fail: the file was not named, and numbers were asked for."""
    path = save(tmp_path, columns=np.array(["a", None], object))
    with pytest.raises(ValueError, match="columns holds Python objects; save it as text") as caught:
        channel_names(path)
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"x": None}, "the array x is missing"),
        ({"y": None}, "the array y is missing"),
        ({"x": np.zeros(N)}, r"x has shape \(60,\); it must be"),
        ({"x": np.zeros((N, 1, 1, 1, 1))}, "it must be"),
        ({"x": np.zeros((N, 0))}, "it is empty"),
        ({"x": np.array([["a"]] * N)}, "x is of type <U1"),
        ({"x": np.zeros((N, 2), complex)}, "x is of type complex"),
        ({"x": np.array([[None]] * N)}, "x holds Python objects"),
        ({"y": np.array([None] * N)}, "y holds Python objects"),
        ({"y": np.zeros(N - 1)}, "y has shape"),
        ({"y": np.zeros((N, 1))}, "y has shape"),
        ({"y": np.full(N, np.nan)}, "y holds NaN"),
        ({"y": np.array(["a"] * N)}, "y is of type <U1"),
        ({"y": np.zeros(N, int)}, "nothing to learn"),
        ({"unit": np.zeros(3, int)}, "unit has shape"),
        ({"unit": np.zeros(N)}, "unit is of type float64"),
        ({"unit": np.arange(N) - 5}, "unit is negative in some"),
        ({"split": np.zeros((N, 1))}, "split has shape"),
        ({"split": np.full(N, 2)}, "split holds something other"),
        ({"split": np.array(["train"] * N)}, "split holds something other"),
        ({"split": np.zeros(N, int)}, "no test rows"),
        ({"split": np.ones(N, int)}, "no training rows"),
    ],
)
def test_a_file_that_cannot_be_used_is_told(tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    path = save(tmp_path, **changes)
    with pytest.raises(ValueError, match=sentence) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_too_many_classes_are_taken_for_a_mistake(tmp_path: Path) -> None:
    path = tmp_path / "set.npz"
    np.savez(path, x=np.zeros((2000, 1)), y=np.arange(2000))
    with pytest.raises(ValueError, match="save regression targets as floats"):
        load(path)


def test_what_is_no_npz_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file"):
        load(tmp_path / "none.npz")
    with pytest.raises(ValueError, match="no such file"):
        load(tmp_path)
    path = save(tmp_path)
    whole = path.read_bytes()
    for junk in (b"", b"junk", whole[:300], b"PK\x03\x04" + b"\0" * 50):
        path.write_bytes(junk)
        with pytest.raises(ValueError, match=r"not a readable \.npz file"):
            load(path)
    damaged = bytearray(whole)
    damaged[200:230] = b"\xff" * 30
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match="damaged"):
        load(path)
    np.save(tmp_path / "x.npy", np.zeros(3))
    with pytest.raises(ValueError, match="a single array"):
        load(tmp_path / "x.npy")


@pytest.mark.parametrize("devices", [1, 20, 100, 500])
def test_the_digits_are_dealt_unevenly_with_a_handful_for_each(devices: int) -> None:
    needs.module("sklearn", "scikit-learn")
    data = load("digits", devices=devices)
    counts = list(sizes(data).values())
    assert len(counts) == devices
    assert sum(counts) + len(data.test) == 1797
    assert min(counts) >= min(8, 1438 // devices)
    assert (data.shape, data.classes, data.test.x.max()) == ((8, 8), 10, 255)
    assert data.test.x.dtype == np.uint8
    if devices == 20:
        assert max(counts) > 2 * np.median(counts)
        assert np.mean([len(np.unique(rows.y)) for rows in data.devices.values()]) < 8


def test_dealing_gives_each_row_to_one_device() -> None:
    rng = np.random.default_rng(1)
    for labels in (rng.integers(0, 4, 500), rng.normal(size=500), np.zeros(500, int), rng.integers(0, 4, 7)):
        hands = deal(labels, 30, rng)
        assert len(hands) == min(30, len(labels))
        np.testing.assert_array_equal(np.sort(np.concatenate(hands)), np.arange(len(labels)))
        assert min(len(hand) for hand in hands) >= min(8, len(labels) // len(hands))


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "devices", "kind"),
    [("spsw_har", 36, "window"), ("fashion_mnist", 100, "image"), ("cmapss_fd001", 100, "table")],
)
def test_the_real_sets_load(name: str, devices: int, kind: str) -> None:
    data = load(needs.data(f"{name}.npz"))
    assert (len(data.devices), data.kind, data.missing) == (devices, kind, 0)
