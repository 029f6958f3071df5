"""A broker and the links to it: retained messages, and messages that are lost, delayed and doubled on their way."""

from collections.abc import Callable

from tests.federation.kernel import Kernel

Hear = Callable[[str, bytes, bool], None]
"""Told of a topic, a payload, and whether it had been retained."""


class Network:
    """Topics without wildcards: each listener says by a prefix what it hears."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.retained: dict[str, bytes] = {}
        self._listeners: dict[str, tuple[tuple[str, ...], Hear]] = {}
        self._ignored: set[tuple[str, str]] = set()

    def connect(self, name: str, topics: tuple[str, ...], hear: Hear, *, replay: bool = True) -> None:
        """Listen on topics that are, or begin with, one of these; what is retained there follows."""
        self._listeners[name] = topics, hear
        self._ignored = {(who, topic) for who, topic in self._ignored if who != name}
        if replay:
            for topic in list(self.retained):
                self.again(name, topic)

    def disconnect(self, name: str) -> None:
        """Hear no more; what is on its way is lost."""
        self._listeners.pop(name, None)

    def ignore(self, name: str, topic: str) -> None:
        """Listen on a topic no more, until `again`."""
        self._ignored.add((name, topic))

    def again(self, name: str, topic: str) -> None:
        """Listen on a topic again: what is retained there follows."""
        self._ignored.discard((name, topic))
        if topic in self.retained:
            self._carry(name, topic, self.retained[topic], retain=True)

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """Take a message to the broker, which passes it on. A retained one is sure to get that far: QoS 1 does that."""
        if retain and payload:
            self.retained[topic] = payload
        elif retain:
            self.retained.pop(topic, None)
        for name in list(self._listeners):
            self._carry(name, topic, payload, retain=False)

    def _carry(self, name: str, topic: str, payload: bytes, *, retain: bool) -> None:
        topics, hear = self._listeners[name]
        if not topic.startswith(topics) or (name, topic) in self._ignored:
            return
        faults = self.kernel.faults
        for copy in range(2):
            if not self.kernel.chance(faults.twice if copy else 1 - faults.loss):
                continue

            def arrive() -> None:
                if name in self._listeners and self._listeners[name][1] is hear:
                    hear(topic, payload, retain)

            self.kernel.after(self.kernel.random.random() * faults.delay * (1 + 9 * copy), arrive)
