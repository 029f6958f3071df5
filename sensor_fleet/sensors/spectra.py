"""Features of a window of acceleration: the spectrum of its squared envelope, and moments.

The squared envelope of the resonance band shows periodic impacts even if no single one stands out (Randall and Antoni,
2011, section 4.3). FFT only, so that a device needs nothing but NumPy.
"""

from itertools import pairwise
from typing import Final

import numpy as np
import numpy.typing as npt

from midge.sensor_fleet.sensors.bearing import RATE, SAMPLES, Signals

Floats = npt.NDArray[np.float64]
LOW, HIGH = 1500.0, 5500.0
"""The demodulated band in Hz: structures resonate in it, and the shaft's harmonics lie below."""
ORDERS: Final = np.arange(0.5, 12.01, 0.25)
"""Edges of the bins of the envelope spectrum, in orders of the nameplate speed."""
BANDS: Final = np.geomspace(50, RATE / 2, 9)
"""Edges of the bands of the signal's own spectrum, Hz."""
_ENVELOPE: Final = 2048
"""Points of the analytic signal of the band, which is shifted to 0 Hz and so needs no more."""

FEATURES: Final = (
    *(f"envelope {low:g}-{high:g}" for low, high in pairwise(ORDERS)),
    *(f"band {low:.0f}-{high:.0f} Hz" for low, high in pairwise(BANDS)),
    "rms",
    "kurtosis",
    "crest factor",
)
"""Names of the features, all of them common logarithms."""


def envelope_spectrum(signals: Signals) -> tuple[Floats, Floats]:
    """Frequencies in Hz of shape (k,), and the squared envelope's amplitudes relative to its mean, of shape (n, k)."""
    return _of_band(np.fft.rfft(signals, axis=1))


def features(signals: Signals, plate: float) -> npt.NDArray[np.float32]:
    """Windows of shape (n, SAMPLES) as features of shape (n, len(FEATURES)). `plate` is the nameplate speed, Hz."""
    spectrum = np.fft.rfft(signals, axis=1)
    frequencies, lines = _of_band(spectrum)
    edges = np.searchsorted(frequencies, ORDERS * plate)
    envelope = np.maximum.reduceat(lines, edges, axis=1)[:, :-1]
    power = np.abs(spectrum[:, 1:]) ** 2 / SAMPLES**2
    bands = np.add.reduceat(power, np.minimum(np.round(BANDS * SAMPLES / RATE).astype(int), power.shape[1] - 1), axis=1)
    squares = signals * signals
    square: Floats = np.mean(squares, axis=1, dtype=np.float64, keepdims=True)
    kurtosis = np.mean(squares * squares, axis=1, dtype=np.float64, keepdims=True) / square**2
    crest = np.abs(signals).max(axis=1, keepdims=True) / np.sqrt(square)
    columns = [envelope, bands[:, :-1], np.sqrt(square), kurtosis, crest]
    return np.log10(np.concatenate(columns, axis=1) + 1e-12).astype(np.float32)


def _of_band(spectrum: npt.NDArray[np.complexfloating]) -> tuple[Floats, Floats]:
    low, high = round(LOW * SAMPLES / RATE), round(HIGH * SAMPLES / RATE)
    analytic = np.fft.ifft(spectrum[:, low:high], _ENVELOPE, axis=1)
    envelope = analytic.real**2 + analytic.imag**2
    lines = np.abs(np.fft.rfft(envelope, axis=1)[:, : _ENVELOPE // 4])
    mean = lines[:, :1]
    return np.arange(lines.shape[1]) * RATE / SAMPLES, 2 * lines / np.maximum(mean, 1e-30)
