"""Topic names and topic filters; MQTT 5, section 4.7. Pure.

`+` stands for one level, `#` for all that follow, its parent included. A filter that begins with a wildcard matches no
topic that begins with `$`.
"""

from collections.abc import Iterator

MAX_TOPIC_BYTES = 65_535


def check_topic(topic: str) -> str:
    """Return `topic` if a message may be published to it.

    Raises:
        ValueError: it is empty, too long, or holds a wildcard or a NUL.
    """
    if not topic or "+" in topic or "#" in topic or "\0" in topic or len(topic.encode()) > MAX_TOPIC_BYTES:
        raise ValueError(f"{topic[:80]!r} is no topic name: it must not be empty nor hold '+', '#' or NUL.")
    return topic


def check_filter(topic_filter: str) -> str:
    """Return `topic_filter` if it is valid.

    Raises:
        ValueError: it is empty, too long, or has a wildcard that is not a level of its own, or a '#' before the end.
    """
    levels = topic_filter.split("/")
    wildcards_alone = all(level in {"+", "#"} or not {"+", "#"} & set(level) for level in levels)
    if (
        not topic_filter
        or "\0" in topic_filter
        or not wildcards_alone
        or "#" in levels[:-1]
        or len(topic_filter.encode()) > MAX_TOPIC_BYTES
    ):
        raise ValueError(f"{topic_filter[:80]!r} is no topic filter: '+' and '#' are levels, and '#' is the last.")
    return topic_filter


def matches(topic_filter: str, topic: str) -> bool:
    """Whether a subscription to `topic_filter` receives messages on `topic`."""
    if topic_filter == topic:
        return True
    if topic.startswith("$") and topic_filter[0] in "+#":
        return False
    wanted = topic_filter.split("/")
    levels = topic.split("/")
    for position, level in enumerate(wanted):
        if level == "#":
            return True
        if position == len(levels) or level not in {"+", levels[position]}:
            return False
    return len(wanted) == len(levels)


class _Node:
    __slots__ = ("children", "subscribers")

    def __init__(self) -> None:
        self.children: dict[str, _Node] = {}
        self.subscribers: dict[str, int] = {}


class FilterTree:
    """Subscriptions as a tree of topic levels, so that a lookup visits the levels of a topic and not all filters."""

    def __init__(self) -> None:
        self._root = _Node()

    def add(self, topic_filter: str, client: str, qos: int) -> None:
        """Subscribe `client`, or change the QoS of its subscription."""
        node = self._root
        for level in topic_filter.split("/"):
            node = node.children.setdefault(level, _Node())
        node.subscribers[client] = qos

    def discard(self, topic_filter: str, client: str) -> None:
        """Unsubscribe `client`, and remove branches without clients."""
        path = [(self._root, "")]
        for level in topic_filter.split("/"):
            child = path[-1][0].children.get(level)
            if child is None:
                return
            path.append((child, level))
        path[-1][0].subscribers.pop(client, None)
        for (parent, _), (node, level) in zip(reversed(path[:-1]), reversed(path[1:]), strict=True):
            if node.children or node.subscribers:
                return
            del parent.children[level]

    def subscribers(self, topic: str) -> dict[str, int]:
        """Each subscriber of `topic` once, with the highest QoS of its matching filters."""
        found: dict[str, int] = {}
        for node in self._walk(topic):
            for client, qos in node.subscribers.items():
                if found.get(client, -1) < qos:
                    found[client] = qos
        return found

    def _walk(self, topic: str) -> Iterator[_Node]:
        levels = topic.split("/")
        reached = [self._root]
        for depth, level in enumerate(levels):
            wildcards = depth > 0 or not topic.startswith("$")
            following = []
            for node in reached:
                if wildcards and "#" in node.children:
                    yield node.children["#"]
                following += [
                    node.children[each]
                    for each in (level, "+")
                    if each in node.children and (wildcards or each == level)
                ]
            reached = following
        for node in reached:
            yield node
            if "#" in node.children:
                yield node.children["#"]
