"""The states of a device as two tables: its link to the aggregator, and its work. The docs draw them."""

from enum import Enum, auto


class Link(Enum):
    """Whether the aggregator can be talked to."""

    DOWN = auto()
    GREETING = auto()
    """Connected; the aggregator has not yet said what it has of our outbox."""
    UP = auto()


class Work(Enum):
    """What the device is doing."""

    RESTING = auto()
    FETCHING = auto()
    TRAINING = auto()


LINKS: dict[tuple[Link, str], Link] = {
    (Link.DOWN, "connected"): Link.GREETING,
    (Link.GREETING, "receipt"): Link.UP,
    (Link.GREETING, "disconnected"): Link.DOWN,
    (Link.UP, "aggregator restarted"): Link.GREETING,
    (Link.UP, "outbox renewed"): Link.GREETING,
    (Link.UP, "disconnected"): Link.DOWN,
}
WORKS: dict[tuple[Work, str], Work] = {
    (Work.RESTING, "newer version"): Work.FETCHING,
    (Work.FETCHING, "disconnected"): Work.RESTING,
    (Work.FETCHING, "fetch failed"): Work.RESTING,
    (Work.FETCHING, "fetched"): Work.TRAINING,
    (Work.TRAINING, "trained"): Work.RESTING,
    (Work.TRAINING, "nothing to send"): Work.RESTING,
    (Work.TRAINING, "killed"): Work.RESTING,
}
