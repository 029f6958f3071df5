"""Numbers of a survey with the digits that stand: what one usual device adds is less than the last of them.

A number over n devices has their standard error, clustered by device: √Σ wᵢ²(xᵢ − x̄)² with the devices' shares wᵢ of
the rows (Liang and Zeger, "Longitudinal data analysis using generalized linear models", 1986, for a mean). A usual
device adds wᵢ|xᵢ − x̄|, about a √n-th of it. If a single one makes nearly the whole number, that is the error as well.
"""

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from midge.wire.row_statistics import Counts, Floats

_STEPS: Final = (5.0, 2.0, 1.0)


def rounded(value: float, error: float) -> float:
    """Round to a multiple of 1, 2 or 5 times a power of ten: the largest that is at most the standard error.

    Without an error all have this value: six digits.
    """
    if not error > 0:
        return float(f"{value:.6g}")
    decade = 10.0 ** math.floor(math.log10(error))
    step = next((factor * decade for factor in _STEPS if factor * decade <= error), decade)
    return float(f"{round(value / step) * step:.12g}") + 0.0


def two_digits(value: float) -> float:
    """Round to two significant digits; a share below 1 stays below it."""
    near = float(f"{value:.2g}")
    return 0.99 if value < 1 <= near else near


def error_of(values: Counts | Floats, weights: Any) -> float:
    """The standard error of a mean of values with these weights, each from a device."""
    shares = weights / np.sum(weights)
    return float(np.sqrt((shares**2 * (values - (shares * values).sum()) ** 2).sum()))


def rounded_mean(values: Sequence[float] | Counts | Floats, weights: Any = None) -> float:
    """The mean of values of devices, none below 0, with at most two digits."""
    each = np.asarray(values, np.float64)
    weights = np.ones(len(each)) if weights is None else weights
    return two_digits(rounded(float(np.average(each, weights=weights)), error_of(each, weights)))


def rounded_sum(counts: Counts) -> int:
    """The sum of counts of devices with at most two digits."""
    return int(two_digits(rounded(float(counts.sum()), len(counts) * error_of(counts, np.ones(len(counts))))))
