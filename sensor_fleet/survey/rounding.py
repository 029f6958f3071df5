"""Numbers of a survey with the digits that stand: what one device or one row adds is less than the last of them."""

import math
from typing import Final

_STEPS: Final = (1.0, 2.0, 5.0, 10.0)


def rounded(value: float, error: float) -> float:
    """Round to a multiple of 1, 2 or 5 times a power of ten: the smallest that is at least the standard error.

    A device at a usual distance from the mean of n devices moves it by an n-th of their deviation, and the standard
    error is that deviation divided by √n. Without an error all have this value: six digits.
    """
    if not error > 0:
        return float(f"{value:.6g}")
    decade = 10.0 ** math.floor(math.log10(error))
    step = next((factor * decade for factor in _STEPS if factor * decade >= error), 10 * decade)
    return float(f"{round(value / step) * step:.12g}") + 0.0


def two_digits(value: float) -> float:
    """Round to two significant digits; a share below 1 stays below it."""
    near = float(f"{value:.2g}")
    return 0.99 if value < 1 <= near else near
