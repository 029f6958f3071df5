"""Formatting of numbers for readers."""

import math
import time
from typing import Final

MISSING: Final = "–"


def percent(share: float | None, digits: int = 1) -> str:
    """0.9387 as 93.9%."""
    return MISSING if share is None or not math.isfinite(share) else f"{100 * share:.{digits}f}%"


def score(value: float | None, metric: str) -> str:
    """An accuracy in percent; an error with three digits."""
    if value is None or not math.isfinite(value):
        return MISSING
    return percent(value) if metric == "accuracy" else significant(value)


def measured(value: float | None, metric: str) -> str:
    """A score with its name: 93.9% accuracy, an RMSE of 16.2."""
    return f"{score(value, metric)} accuracy" if metric == "accuracy" else f"an RMSE of {score(value, metric)}"


def significant(value: float) -> str:
    """Three significant digits, without powers of ten from 0.001 to a million: 1234, 16.2, 0.0123."""
    if not math.isfinite(value):
        return MISSING
    if value == 0:
        return "0"
    if abs(value) >= 1e6 or abs(value) < 1e-3:
        return f"{value:.2e}"
    return f"{value:,.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def plain(value: float) -> str:
    """The shortest form: 0.5, 20."""
    return f"{value:,g}"


def whole(value: float) -> str:
    """20.0 as 20, 12000 as 12,000."""
    return f"{value:,.0f}"


def size(number: float | None) -> str:
    """Bytes in decimal units: 6674 as 6.7 kB."""
    if number is None or not math.isfinite(number):
        return MISSING
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(number) < 999.5 or unit == "TB":
            digits = 0 if unit == "B" or abs(number) >= 99.95 else 1
            return f"{number:.{digits}f}\N{NO-BREAK SPACE}{unit}"
        number /= 1000
    raise AssertionError("the last unit takes all")


def energy(joules: float | None) -> str:
    """0.0021 J as 2.1 mJ, 5400 as 1.5 Wh."""
    if joules is None or not math.isfinite(joules):
        return MISSING
    if joules >= 3600:
        return f"{significant(joules / 3600)}\N{NO-BREAK SPACE}Wh"
    return (
        f"{significant(joules)}\N{NO-BREAK SPACE}J"
        if joules >= 1 or joules == 0
        else (f"{significant(1000 * joules)}\N{NO-BREAK SPACE}mJ")
    )


def duration(seconds: float | None) -> str:
    """8.18 as 8.2 s, 200 as 3 min 20 s, 7500 as 2 h 5 min."""
    if seconds is None or not math.isfinite(seconds):
        return MISSING
    if seconds < 59.95:
        digits = 0 if seconds == round(seconds) or seconds >= 20 else 1 if seconds >= 1 else 2
        return f"{seconds:.{digits}f}\N{NO-BREAK SPACE}s"
    for large, small, length, most in (("min", "s", 60, 60), ("h", "min", 3600, 24), ("d", "h", 86400, math.inf)):
        below = length // (24 if large == "d" else 60)
        first, rest = divmod(round(seconds / below), length // below)
        if first < most:
            parts = [f"{first}\N{NO-BREAK SPACE}{large}"] + ([f"{rest}\N{NO-BREAK SPACE}{small}"] if rest else [])
            return " ".join(parts)
    raise AssertionError("the last unit takes all")


def years(number: float | None) -> str:
    """22.8 as 22.8 years, 0.5 as 183 days; a dash if unlimited."""
    if number is None or not math.isfinite(number):
        return MISSING
    if number < 1:
        return f"{365.25 * number:.0f}\N{NO-BREAK SPACE}days"
    return f"{number:,.0f}\N{NO-BREAK SPACE}years" if number >= 99.5 else f"{number:.1f}\N{NO-BREAK SPACE}years"


def date(at: float) -> str:
    """Seconds since 1970 as 2026-11-29 18:30, in UTC."""
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(at))


def brief(seconds: float) -> str:
    """A duration, in milliseconds below one second."""
    return duration(seconds) if seconds >= 1 else f"{1000 * seconds:.3g}\N{NO-BREAK SPACE}ms"


def seconds_tick(seconds: float) -> str:
    """A round duration in its shortest form: 0.1 s, 5 min."""
    return f"{seconds:g}\N{NO-BREAK SPACE}s" if seconds < 60 else duration(seconds)


def times(ratio: float) -> str:
    """A ratio: 0.25, 3.4, 1,200, 3.1 million."""
    if ratio >= 1e6:
        return f"{times(ratio / 1e6)} million"
    return f"{ratio:,.0f}" if ratio >= 9.95 else significant(ratio) if ratio < 1 else f"{ratio:.1f}"
