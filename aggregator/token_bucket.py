"""The token bucket of every rate limit: what devices send, what is published for them, what is logged."""

from dataclasses import dataclass
from typing import Self


@dataclass(slots=True)
class TokenBucket:
    """A token bucket (RFC 2697): tokens arrive at a rate up to a burst. Charging afterwards may leave a debt."""

    rate: float
    burst: float
    tokens: float
    filled: float
    """When the tokens were last counted."""

    @classmethod
    def full(cls, rate: float, burst: float, now: float) -> Self:
        """A bucket with its whole burst."""
        return cls(rate, burst, burst, now)

    def fill(self, now: float) -> float:
        """Add the tokens that arrived since the last call; return their number."""
        self.tokens = min(self.burst, self.tokens + self.rate * max(0.0, now - self.filled))
        self.filled = now
        return self.tokens

    def spend(self, now: float) -> float:
        """Spend one token; 0 if there was one, otherwise the seconds until there is."""
        if self.fill(now) >= 1:
            self.tokens -= 1
            return 0.0
        return (1 - self.tokens) / self.rate

    def debt(self, now: float) -> float:
        """Seconds until the debt is paid."""
        return 0.0 if self.fill(now) >= 0 else -self.tokens / self.rate
