"""Retransmission timer with exponential back-off and jitter."""

from dataclasses import dataclass, field

PATIENCE = 10.0
"""Seconds before an unanswered message is sent again; doubled each time up to LONGEST."""
LONGEST = 300.0


@dataclass(slots=True)
class Timer:
    """A retransmission timer with exponential back-off."""

    first: float = PATIENCE
    due: float | None = None
    wait: float = field(init=False)

    def __post_init__(self) -> None:
        self.wait = self.first

    def start(self, now: float, jitter: float, after: float | None = None) -> None:
        self.due = now + (self.wait if after is None else after) * (0.75 + 0.5 * jitter)
        if after is None:
            self.wait = min(2 * self.wait, LONGEST)

    def is_due(self, now: float) -> bool:
        """Whether it has expired."""
        return self.due is not None and now >= self.due

    def stop(self) -> None:
        self.due, self.wait = None, self.first
