"""A device that sleeps most of the time: it wakes, settles what it holds, trains once, waits for the receipts, sleeps.

Pure: time comes in as `now`, seconds of a clock that never goes back.
"""

import math
from dataclasses import dataclass

SPREAD = 0.05
"""How far a sleep is off its length: a fleet that lost its power together must not wake together for ever."""


@dataclass(frozen=True, slots=True)
class Duty:
    """When a device is awake.

    Args:
        every: seconds from one waking to the next; infinite if that is not known, of one that wakes once.
        awake: seconds that it waits for the broker, the aggregator and receipts at most; a training is not cut short.
        once: wake once and end, for boards that a timer of their own powers up.

    Raises:
        ValueError: it cannot be awake so long, so often.
    """

    every: float
    awake: float = 300.0
    once: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.awake <= self.every:
            raise ValueError(
                f"A device that wakes every {self.every:g} s cannot be awake for {self.awake:g} s of them."
            )


class Cycle:
    """Where a device is in its cycle. Without a duty it is always awake."""

    def __init__(self, duty: Duty | None) -> None:
        self.duty = duty
        self.asleep = False
        self.wakes = 0.0
        """Seconds since 1970 at which it wakes next; 0 while it is awake, or if that is not known."""
        self._woke = self._from = 0.0
        self._trained = False

    def wake(self, now: float) -> None:
        """It is awake from now on."""
        self.asleep, self.wakes, self._trained = False, 0.0, False
        self._woke = self._from = now

    def trained(self, now: float) -> None:
        """A training has ended: what came of it has all the patience again to be settled."""
        self._trained, self._from = True, now

    def condition(self) -> str | None:
        """Why it should not train: a device on duty trains once in each waking."""
        return "it has trained since it woke" if self.duty is not None and self._trained else None

    def over(self, now: float, *, at_rest: bool, busy: bool) -> bool:
        """Whether it may sleep: nothing is left to do, or it has waited long enough and is not at work."""
        if self.duty is None or busy:
            return False
        return at_rest or now >= self._from + self.duty.awake

    def sleep(self, now: float, wall: float, chance: float) -> float:
        """For how many seconds it sleeps from now on; 0 if that is not known.

        Args:
            now: seconds of the clock that never goes back.
            wall: seconds since 1970.
            chance: from 0 to 1.
        """
        assert self.duty is not None
        self.asleep = True
        if self.duty.every == math.inf:
            return 0.0
        length = self.duty.every * (1 + SPREAD * (2 * chance - 1))
        seconds = max(1.0, self._woke + length - now)
        self.wakes = wall + seconds
        return seconds
