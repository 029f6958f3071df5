"""Duty cycle: a device wakes, settles what it holds, trains once, waits for the receipts, and sleeps.

Pure: time is passed in as `now`, seconds of a monotonic clock.
"""

import math
from dataclasses import dataclass

from midge.wire.field_checks import Positive, Unlimited, check_fields

SPREAD = 0.05
"""Relative random spread of a sleep, so that a fleet that lost its power together does not stay synchronised."""


@dataclass(frozen=True, slots=True)
class Duty:
    """The schedule of a device's waking periods.

    Args:
        every: seconds from one wake-up to the next; infinite if unknown, for a device that wakes once.
        awake: maximum seconds to wait for the broker, the aggregator and receipts; a training is not interrupted.
        once: wake once and end, for boards that an external timer powers up.

    Raises:
        ValueError: `awake` is longer than `every`.

    Examples:
        >>> midge.Duty(every=3600.0, awake=120.0).once
        False
        >>> midge.Duty(every=60.0, awake=120.0)
        Traceback (most recent call last):
        ValueError: A device that wakes every 60 s cannot be awake for 120 s of them.
    """

    every: Unlimited
    awake: Positive = 300.0
    once: bool = False

    def __post_init__(self) -> None:
        check_fields(self, "duty")
        if self.awake > self.every:
            raise ValueError(
                f"A device that wakes every {self.every:g} s cannot be awake for {self.awake:g} s of them."
            )


class DutyCycle:
    """The current state of a device's duty cycle. Without a duty it is always awake."""

    def __init__(self, duty: Duty | None) -> None:
        self.duty = duty
        self.asleep = False
        self.wakes = 0.0
        """Seconds since 1970 of the next wake-up; 0 while it is awake, or if unknown."""
        self._woke = self._from = 0.0
        self._trained = False

    def wake(self, now: float) -> None:
        """Begin a waking period."""
        self.asleep, self.wakes, self._trained = False, 0.0, False
        self._woke = self._from = now

    def trained(self, now: float) -> None:
        """Restart the patience after a training, so that its update can be settled."""
        self._trained, self._from = True, now

    def condition(self) -> str | None:
        """Why it should not train: a device on duty trains once per waking period."""
        return "it has trained since it woke" if self.duty is not None and self._trained else None

    def over(self, now: float, *, at_rest: bool, busy: bool) -> bool:
        """Whether it may sleep: nothing is left to do, or its patience is over and it is not busy."""
        if self.duty is None or busy:
            return False
        return at_rest or now >= self._from + self.duty.awake

    def sleep(self, now: float, wall: float, chance: float) -> float:
        """Begin to sleep; return for how many seconds, 0 if unknown.

        Args:
            now: seconds of a monotonic clock.
            wall: seconds since 1970.
            chance: random, from 0 to 1.
        """
        assert self.duty is not None
        self.asleep = True
        if self.duty.every == math.inf:
            return 0.0
        length = self.duty.every * (1 + SPREAD * (2 * chance - 1))
        seconds = max(1.0, self._woke + length - now)
        self.wakes = wall + seconds
        return seconds
