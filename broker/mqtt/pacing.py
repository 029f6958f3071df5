"""Pacing of a client's messages below a broker's rates, so that it is not disconnected for them. Pure."""

from midge.broker.mqtt.services import ServiceLimits

_SHARE = 0.8
"""Of a rate that is used: messages bunch up on their way."""
_BURST = 0.2
"""Seconds of the rate that may be sent at once: with `_SHARE`, no second has more messages than the rate."""


class PublishPace:
    """Two token buckets, one of messages and one of bytes; each may go below zero, so that any message passes.

    Args:
        limits: of the service; without a rate nothing waits.
    """

    def __init__(self, limits: ServiceLimits) -> None:
        rates = (limits.publishes, limits.bytes_a_second)
        self._rates = [None if rate is None else rate * _SHARE for rate in rates]
        self._left = [0.0 if rate is None else rate * _BURST for rate in self._rates]
        self._at: float | None = None

    def wait(self, now: float) -> float:
        """Seconds until the next message may be sent; 0 if it may now."""
        passed, self._at = 0.0 if self._at is None else max(0.0, now - self._at), now
        waits = [0.0]
        for index, rate in enumerate(self._rates):
            if rate is not None:
                self._left[index] = min(rate * _BURST, self._left[index] + rate * passed)
                # A whole message, or as many bytes as are owed.
                short = (min(1.0, rate * _BURST) if index == 0 else 0.0) - self._left[index]
                waits.append(max(0.0, short) / rate)
        return max(waits)

    def sent(self, size: int) -> None:
        """Count a message of this many bytes."""
        self._left = [self._left[0] - 1, self._left[1] - size]
