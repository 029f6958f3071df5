"""A site's load has a day, a week, a summer and a winter; and what a device is told is what it could know."""

import numpy as np
import pytest

from midge.sensor_fleet.sensors import Drift, Flaws, energy
from midge.sensor_fleet.sensors.sites import FEATURES, KINDS, LAGS, WEEK, Sites

SITES = Sites(0, 0.0, Flaws.none(), None)
HOURS = np.arange(24 * 7 * 8)


def load(number: int, *, changed: float = 0.0) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    return SITES.load(number, HOURS, np.full(len(HOURS), changed))


def of_kind(kind: str) -> int:
    return next(number for number in range(1000) if SITES.kind(number) == kind)


@pytest.mark.parametrize("kind", KINDS)
def test_load_repeats_after_a_day_and_a_week(kind: str) -> None:
    series = load(of_kind(kind))
    centred = series - series.mean()
    spectrum = np.abs(np.fft.rfft(centred, 2 * len(centred))) ** 2
    correlation = np.fft.irfft(spectrum)[: len(centred)] / np.arange(len(centred), 0, -1)
    around = correlation[12 : 24 * 2]
    assert 12 + np.argmax(around) in {23, 24, 25}
    if kind != "homes":  # at home, Sunday is not so unlike Monday
        assert correlation[WEEK] > correlation[24 * 3] and correlation[WEEK] > correlation[24 * 2]


@pytest.mark.parametrize("kind", ["office", "works"])
def test_weekends_are_quiet(kind: str) -> None:
    days = load(of_kind(kind)).reshape(-1, 7, 24).mean(axis=(0, 2))
    assert days[6] < 0.75 * days[:5].mean()
    assert days[5] < days[:5].mean()


def test_cold_and_heat_cost_power(monkeypatch: pytest.MonkeyPatch) -> None:
    def mean(degrees: float) -> float:
        monkeypatch.setattr(Sites, "temperature", lambda _, hours: np.full(len(hours), degrees))
        return float(np.mean([load(number).mean() for number in range(10)]))

    mild = mean(18.0)
    assert mean(0.0) > 1.05 * mild and mean(32.0) > 1.05 * mild


def test_seasons_and_days_are_warm_and_cold_in_their_time() -> None:
    outside = SITES.temperature(np.arange(24 * 365)).reshape(365, 24)
    assert 5 < outside.mean() < 15
    hours = outside.mean(axis=0)
    assert np.argmax(hours) in range(13, 18) and np.argmin(hours) in range(1, 6)
    days = outside.mean(axis=1)
    assert days[91:120].mean() > days[275:305].mean() + 12, "July is above January, from April on"


def test_sites_differ_in_base_and_level() -> None:
    nights = [load(number).reshape(-1, 24)[:, 3].mean() for number in range(30)]
    spans = [np.ptp(load(number).reshape(-1, 24).mean(axis=0)) for number in range(30)]
    assert np.std(nights) > 0.03 and np.std(spans) > 0.03


def test_row_tells_the_hours_before_and_never_the_one_to_come() -> None:
    stream = energy(2, seed=0, history=0.0, window=500, flaws=Flaws.none())
    x, y = stream.rows(1, 300 * 3600.0)
    first = LAGS - 1
    assert FEATURES[first] == "load 1 h before" and FEATURES[LAGS + 1] == f"load {WEEK} h before"
    np.testing.assert_array_equal(x[1:, first], y[:-1])
    np.testing.assert_array_equal(x[LAGS:, 0], y[:-LAGS])
    np.testing.assert_array_equal(x[WEEK:, LAGS + 1], y[:-WEEK])
    np.testing.assert_array_equal(x[WEEK + 1 :, LAGS], y[: -WEEK - 1])
    weekend = FEATURES.index("weekend")
    np.testing.assert_array_equal(x[:, weekend], np.arange(301) // 24 % 7 >= 5)
    assert stream.flow.maker.features == FEATURES and x.shape[1] == len(FEATURES)


def test_what_stands_beside_a_load_is_of_its_hour() -> None:
    hours = 100
    x, _ = energy(2, seed=0, history=0.0, flaws=Flaws.none()).rows(0, hours * 3600.0)
    outside = SITES.temperature(np.arange(hours + 1))
    np.testing.assert_allclose(x[:, FEATURES.index("temperature")], outside, rtol=1e-6)
    mean = x[50, FEATURES.index("mean temperature of a day")]
    assert mean == pytest.approx(outside[26:50].mean(), rel=1e-5)


def test_new_tariff_moves_work_into_the_night() -> None:
    for kind in KINDS:
        number = of_kind(kind)
        before, after = (load(number, changed=changed).reshape(-1, 24).mean(axis=0) for changed in (0.0, 1.0))
        assert after[23] + after[2] > 1.2 * (before[23] + before[2]), kind


def test_bench_is_of_other_sites_and_moves_on_with_the_days() -> None:
    stream = energy(2, seed=0, drift=Drift(3 * 86400.0, over=0.0))
    week = stream.at(86400.0).test
    assert stream.at(1.5 * 86400.0).test is week
    assert not np.array_equal(stream.at(2 * 86400.0).test.y, week.y)
    assert stream.names == () and list(stream.tests(0.0)) == [""]
