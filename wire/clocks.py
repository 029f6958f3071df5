"""Which clock is believed: bounds that aggregator and device share, and how a time is said to a person."""

from datetime import UTC, datetime, timedelta
from typing import Final

SANE: Final = 1_704_067_200.0
"""Seconds since 1970 at the start of 2024, before which no Midge was made: a clock that says less was never set since
the power came."""
DAY: Final = 86_400.0
"""Seconds that two clocks may be apart before one of them is wrong: time zones and drift stay below."""


def said(seconds: float) -> str:
    """A time in words, UTC."""
    try:
        return f"{datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds):%Y-%m-%d %H:%M}"
    except (OverflowError, ValueError):
        return f"{seconds:.3g} s after 1970"


def spell(seconds: float) -> str:
    """A length of time in words, roughly."""
    for unit, name in ((86_400.0, "d"), (3600.0, "h"), (60.0, "min")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.0f} {name}"
    return f"{max(0.0, seconds):.0f} s"
