"""Which clock is believed: bounds that aggregator and device share, and how a time is said to a person."""

import time
from typing import Final

SANE: Final = 1_700_000_000.0
"""Seconds since 1970, November 2023: a clock that says less was never set since the power came."""
DAY: Final = 86_400.0
"""Seconds that two clocks may be apart before one of them is wrong: time zones and drift stay below."""


def said(seconds: float) -> str:
    """A time in words, UTC."""
    try:
        return time.strftime("%Y-%m-%d %H:%M", time.gmtime(seconds))
    except (OverflowError, ValueError, OSError):
        return f"{seconds:.3g} s after 1970"
