"""The states of a device as two transition tables: its link to the aggregator, and its work. The docs draw them."""

from enum import Enum, auto


class Link(Enum):
    """State of the link to the aggregator."""

    DOWN = auto()
    GREETING = auto()
    """Connected; the aggregator has not yet sent the receipt for our outbox."""
    UP = auto()


class Work(Enum):
    """State of the work."""

    RESTING = auto()
    FETCHING = auto()
    TRAINING = auto()


LINKS: dict[tuple[Link, str], Link] = {
    (Link.DOWN, "connected"): Link.GREETING,
    (Link.GREETING, "receipt"): Link.UP,
    (Link.GREETING, "outbox renewed"): Link.GREETING,
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
