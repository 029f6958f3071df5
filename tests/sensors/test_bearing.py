"""The physics of a bearing: what breaks strikes at the frequency that its geometry says, and is seen there."""

from dataclasses import replace

import numpy as np
import pytest

from midge.sensor_fleet.sensors import bearing, spectra
from midge.sensor_fleet.sensors.bearing import BEARINGS, FAULTS, Bearing, Fault, Machine

MACHINE = Machine(BEARINGS[0], speed=29.5, resonance=3200.0, damping=0.03, gain=1.0, shaft=1.0)


def windows(machine: Machine, fault: Fault | None, severity: float, count: int = 40, seed: int = 0) -> bearing.Signals:
    ones = np.ones(count)
    rng = np.random.default_rng(seed)
    return bearing.acceleration(
        machine, rng, speeds=machine.speed * ones, loads=ones, severity=severity * ones, fault=fault
    )


def spectrum(signals: bearing.Signals) -> tuple[spectra.Floats, spectra.Floats]:
    """Frequencies, and the envelope's spectrum in the mean of the windows."""
    frequencies, lines = spectra.envelope_spectrum(signals)
    return frequencies, lines.mean(axis=0)


@pytest.mark.parametrize(
    ("place", "outer", "inner", "cage", "spin"),
    [
        (0, 3.5848, 5.4152, 0.39828, 4.7135 / 2),
        (1, 3.0530, 4.9469, 0.3817, 3.9874 / 2),
        (2, 7.092, 8.908, 0.4433, None),
    ],
)
def test_orders_are_the_published_ones(place: int, outer: float, inner: float, cage: float, spin: float | None) -> None:
    """Those of the 6205 and 6203 in Case Western's tables; of the ZA-2115, 236.4 and 296.9 Hz at 2000 a minute."""
    one = BEARINGS[place]
    assert one.outer == pytest.approx(outer, rel=1e-3)
    assert one.inner == pytest.approx(inner, rel=1e-3)
    assert one.cage == pytest.approx(cage, rel=1e-3)
    assert one.outer + one.inner == pytest.approx(one.elements)
    if spin is not None:
        assert one.spin == pytest.approx(spin, rel=1e-3)
        assert one.order("ball") == pytest.approx(2 * spin, rel=1e-3), "it strikes both races"


@pytest.mark.parametrize("one", BEARINGS, ids=lambda one: one.name)
def test_outer_race_shows_at_its_ball_pass_frequency(one: Bearing) -> None:
    machine = replace(MACHINE, bearing=one)
    frequencies, lines = spectrum(windows(machine, "outer race", 0.8))
    seen = frequencies > 0.6 * machine.speed
    peak = frequencies[seen][np.argmax(lines[seen])]
    # Two percent for slip, and half a line of 3.1 Hz.
    assert peak == pytest.approx(one.outer * machine.speed, abs=0.02 * one.outer * machine.speed + 1.6)


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_stands_out_at_its_own_frequency(fault: Fault) -> None:
    frequencies, faulty = spectrum(windows(MACHINE, fault, 0.8))
    _, healthy = spectrum(windows(MACHINE, None, 0.8))

    def at(of: Fault, lines: spectra.Floats) -> float:
        return float(lines[np.abs(frequencies - MACHINE.bearing.order(of) * MACHINE.speed) < 4].max())

    assert at(fault, faulty) > 3 * at(fault, healthy)
    assert max(FAULTS, key=lambda of: at(of, faulty)) == fault


def test_inner_race_is_modulated_by_the_shaft_and_outer_is_not() -> None:
    def sideband(fault: Fault) -> float:
        frequencies, lines = spectrum(windows(MACHINE, fault, 0.8))
        carrier, beside = (
            lines[np.abs(frequencies - order * MACHINE.speed) < 4].max()
            for order in (MACHINE.bearing.order(fault), MACHINE.bearing.order(fault) - 1)
        )
        return float(beside / carrier)

    assert sideband("inner race") > 0.4
    assert sideband("outer race") < 0.2


def test_slip_smears_higher_harmonics_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Impacts that slip at random are only nearly periodic: their phase is lost the sooner the higher the harmonic."""

    def sixth_over_first() -> float:
        frequencies, lines = spectrum(windows(MACHINE, "outer race", 1.0))
        first, sixth = (
            lines[np.abs(frequencies - order * MACHINE.bearing.outer * MACHINE.speed) < 4].max() for order in (1, 6)
        )
        return float(sixth / first)

    slipping = sixth_over_first()
    monkeypatch.setattr(bearing, "SLIP", 0.0)
    assert slipping < 0.8 * sixth_over_first()


def test_impacts_ring_at_the_resonance() -> None:
    power = np.mean(np.abs(np.fft.rfft(windows(MACHINE, "outer race", 1.0), axis=1)) ** 2, axis=0)
    quiet = np.mean(np.abs(np.fft.rfft(windows(MACHINE, None, 1.0), axis=1)) ** 2, axis=0)
    frequencies = np.arange(len(power)) * bearing.RATE / bearing.SAMPLES
    smoothed = np.convolve(power / quiet, np.full(41, 1 / 41), mode="same")
    assert frequencies[np.argmax(smoothed)] == pytest.approx(MACHINE.resonance, rel=0.05)


def test_worse_faults_are_louder_and_sharper() -> None:
    rows = [
        spectra.features(windows(MACHINE, "outer race", severity), MACHINE.speed).mean(axis=0)
        for severity in (0, 0.3, 1)
    ]
    for name in ("rms", "kurtosis", "crest factor"):
        place = spectra.FEATURES.index(name)
        assert rows[0][place] < rows[1][place] < rows[2][place], name


def test_gain_moves_only_what_is_not_relative() -> None:
    quiet, loud = (
        spectra.features(windows(replace(MACHINE, gain=gain), "ball", 0.5, count=4), MACHINE.speed)
        for gain in (1.0, 10.0)
    )
    envelope = len(spectra.ORDERS) - 1
    np.testing.assert_allclose(loud[:, :envelope], quiet[:, :envelope], atol=1e-4)
    np.testing.assert_allclose(loud[:, envelope:-3], quiet[:, envelope:-3] + 2, atol=1e-3)  # decades of power
    np.testing.assert_allclose(loud[:, -3], quiet[:, -3] + 1, atol=1e-4)


def test_features_are_finite_and_named() -> None:
    found = spectra.features(windows(MACHINE, "ball", 1.0, count=3), MACHINE.speed)
    assert found.shape == (3, len(spectra.FEATURES)) and found.dtype == np.float32
    assert np.isfinite(found).all() and len(set(spectra.FEATURES)) == len(spectra.FEATURES)
