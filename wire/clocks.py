"""Plausibility of clocks: bounds that aggregator and device share, and times as text."""

from datetime import UTC, datetime, timedelta
from typing import Final

SANE: Final = 1_704_067_200.0
"""Seconds since 1970 at the start of 2024, before the first Midge: an earlier clock was never set since power-on."""
DAY: Final = 86_400.0
"""Seconds that two clocks may differ before one of them must be wrong; time zones and drift stay below."""


def said(seconds: float) -> str:
    """A time, in seconds since 1970, as a date in UTC."""
    try:
        return f"{datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds):%Y-%m-%d %H:%M}"
    except (OverflowError, ValueError):
        return f"{seconds:.3g} s after 1970"


def spell(seconds: float) -> str:
    """A duration as text, rounded."""
    for unit, name in ((86_400.0, "d"), (3600.0, "h"), (60.0, "min")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.0f} {name}"
    return f"{max(0.0, seconds):.0f} s"
