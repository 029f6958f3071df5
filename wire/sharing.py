"""The federation's byte budget: jitter that keeps devices from loading a shared broker all at once.

The announcement has a rate for the whole federation, both ways, and the approximate number of devices that share it.
When many devices act at once, such as fetching a release or greeting a restarted aggregator, each one starts at a
random time within the seconds that all transfers take at that rate. Small transfers are not delayed.

A broker with one thread takes about 1.4 ms of processor time for a megabyte and 0.01 ms for a small message (Mosquitto
2.0.11, measured), whatever the message holds. So each message counts as additional bytes. The default rate keeps such a
broker busy for about a hundredth of the time, so that the 99th percentile of others' delays does not rise.
"""

MESSAGE = 8192
"""Weight of a message in bytes, in addition to its size."""
UNKNOWN = 20
"""Number of devices assumed until the aggregator knows it."""
LEAST = 0.1
"""Least seconds of a jitter window; a shorter one is not waited for."""
AT_A_TIME = 4
"""Expected number of concurrent fetches: each has that part of the rate, so that pauses and slow links leave no gap."""


def cost(size: int, messages: int) -> int:
    """Weighted bytes of `messages` messages with `size` bytes in all."""
    return size + MESSAGE * messages


def spread(rate: float, devices: float, size: int, messages: int) -> float:
    """Jitter window in seconds, within which each device starts at a random time; 0 if the transfer is small.

    Args:
        rate: bytes a second of all devices together; 0 sets no limit.
        devices: number of devices; 0 if unknown.
        size: bytes of each device's transfer.
        messages: number of messages of each transfer.
    """
    if rate <= 0:
        return 0.0
    others = (devices or UNKNOWN) - 1
    seconds = others * cost(size, messages) / rate
    return seconds if seconds >= LEAST else 0.0


def pace(rate: float, devices: int) -> float:
    """Bytes a second of one device's large transfers; infinity if there is no limit."""
    return rate / min(devices or UNKNOWN, AT_A_TIME) if rate > 0 else float("inf")
