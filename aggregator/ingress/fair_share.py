"""Max-min fair sharing of the fleet's capacity: a device that asks for ten times its share harms only itself.

Each device has an equal share, and may use more only while others leave it: while half of the burst is left, no device
is held to its share; below that, none gets more than it.
"""

from midge.aggregator.token_bucket import TokenBucket


class FairShare:
    """One capacity of the fleet, such as messages a second.

    Args:
        rate: capacity before it is scarce.
        burst: its burst.
        whole: sum of the shares, if that is more.
        least: burst of each device, if its share of the burst is less.
    """

    def __init__(self, rate: float, burst: float, *, whole: float | None = None, least: float = 1.0) -> None:
        self.all = TokenBucket.full(rate, burst, 0.0)
        self._whole, self._least = whole or rate, least

    def own(self, active: int, now: float) -> TokenBucket:
        """A full share."""
        return TokenBucket.full(self._whole / active, max(self._least, self.all.burst / active), now)

    def wait(self, own: TokenBucket, cost: float, active: int, now: float, *, reserved: bool = False) -> float:
        """Seconds that a device must wait before it may spend; 0 if it may now.

        Args:
            own: the device's share.
            cost: tokens to spend; 0 if only known afterwards.
            active: number of devices that share.
            now: the time.
            reserved: whether it must leave the lower half of the burst to others, whatever its share is.
        """
        everyone = self.all
        if everyone.fill(now) < cost:
            return (cost - everyone.tokens) / everyone.rate
        own.rate, own.burst = self._whole / active, max(self._least, everyone.burst / active)
        own.fill(now)
        least = everyone.burst / 2 if reserved else 0.0
        left = everyone.tokens - cost
        if left >= (least + everyone.burst) / 2:
            return 0.0
        if left < least:
            return (least - left) / everyone.rate
        return 0.0 if own.tokens >= cost else (cost - own.tokens) / own.rate

    def charge(self, own: TokenBucket, cost: float, now: float) -> None:
        """Spend. A debt is at most a burst: capacity that others left over need not be paid back."""
        self.all.fill(now)
        self.all.tokens = max(0.0, self.all.tokens - cost)
        own.fill(now)
        own.tokens = max(-own.burst, own.tokens - cost)
