"""The federation's byte budget: jitter that keeps devices from loading a shared broker all at once.

The announcement gives a rate for the whole federation, both ways, and about how many devices share it. For what many
devices do at once, such as fetching a release or greeting an aggregator that is back, each begins at a random time
within the seconds that all of it takes at that rate. Small transfers are not delayed.

A broker with one thread takes about 1.4 ms of processor time for a megabyte and 0.01 ms for a small message (Mosquitto
2.0.11, measured), whatever the message holds. So each message counts as additional bytes. The default rate keeps such a
broker busy for about a hundredth of the time, so that the 99th percentile of others' delays does not rise.
"""

MESSAGE = 8192
"""Bytes that a message counts in addition to its size."""
UNKNOWN = 20
"""Devices assumed until the aggregator knows how many there are."""
LEAST = 0.1
"""Windows below this many seconds are not waited for."""
AT_A_TIME = 4
"""Devices that fetch at a time, about: each takes that part of the rate, so that pauses and slow links leave no gap."""


def cost(size: int, messages: int) -> int:
    """Weighted bytes of `messages` messages with `size` bytes in all."""
    return size + MESSAGE * messages


def spread(rate: float, devices: float, size: int, messages: int) -> float:
    """Jitter window in seconds, within which each device starts at a random time; 0 if the transfer is small.

    Args:
        rate: bytes a second for all of them; 0 sets no limit.
        devices: how many do it; 0 if unknown.
        size: bytes that each of them moves.
        messages: number of messages that this takes.
    """
    if rate <= 0:
        return 0.0
    others = (devices or UNKNOWN) - 1
    seconds = others * cost(size, messages) / rate
    return seconds if seconds >= LEAST else 0.0


def pace(rate: float, devices: int) -> float:
    """Bytes a second at which one device makes large transfers; infinity if there is no limit."""
    return rate / min(devices or UNKNOWN, AT_A_TIME) if rate > 0 else float("inf")
