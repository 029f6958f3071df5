"""How a federation's bytes are shared out in time, so that others on the same broker do not notice it.

The announcement tells a rate for the whole federation, both ways, and about how many devices share it. What many
devices would do at once, such as fetch a release or greet an aggregator that is back, each of them begins at a time
at a random time within as many seconds as all of it takes at that rate. What is small waits for nothing.

A broker with one thread takes about 1.4 ms of processor time for a megabyte and 0.01 ms for a small message
(Mosquitto 2.0.11, measured), whatever the message holds. So a message counts as some more bytes. The default rate
keeps such a broker busy for about a hundredth of the time: then the 99th percentile of others' delays stays.
"""

MESSAGE = 8192
"""Bytes that a message counts beside its own."""
UNKNOWN = 20
"""Devices where the aggregator cannot say yet how many there are."""
LEAST = 0.1
"""Seconds below which no device waits."""
AT_A_TIME = 4
"""Devices that fetch at a time, about: each takes that part of the rate, so that breaks and slow links leave no gap."""


def cost(size: int, messages: int) -> int:
    """Bytes that `messages` with `size` bytes in all count as."""
    return size + MESSAGE * messages


def spread(rate: float, devices: float, size: int, messages: int) -> float:
    """Seconds over which devices begin what each of them does, at random times; 0 if it is small.

    Args:
        rate: bytes a second for all of them; 0 sets no limit.
        devices: how many do it; 0 where that is not known.
        size: bytes that each of them moves.
        messages: number of messages that this takes.
    """
    if rate <= 0:
        return 0.0
    others = (devices or UNKNOWN) - 1
    seconds = others * cost(size, messages) / rate
    return seconds if seconds >= LEAST else 0.0


def pace(rate: float, devices: int) -> float:
    """Bytes a second at which one device moves what is large; infinity where there is no limit."""
    return rate / min(devices or UNKNOWN, AT_A_TIME) if rate > 0 else float("inf")
