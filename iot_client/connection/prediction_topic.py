"""Where a device's predictions go: what `midge device --publish` and `Device(publish=…)` say."""

from collections.abc import Sequence
from dataclasses import dataclass

from midge.broker.mqtt.connection import Connector
from midge.broker.mqtt.topic_filters import check_topic

EVERY = 1.0
"""Seconds between two messages at least: a file that is read for the first time has thousands of rows."""


@dataclass(frozen=True, slots=True)
class PredictionTopic:
    """An MQTT topic for predictions on the rows that a device's samples see, a JSON object each.

    On `TOPIC/alarm` comes that with which an alarm began or ended.

    Raises:
        ValueError: it is no topic, or what is asked for does not go together.
    """

    topic: str
    retain: bool = False
    """Whether the broker keeps the newest for those who come later."""
    alarm: float | str | None = None
    """The value above which it is an alarm, or the class that is one. Of anomaly scores, None is what is unusual beside
    the scores of the device's own rows."""
    classes: Sequence[str] = ()
    """Names of the classes, in the model's order."""
    every: float = EVERY
    """Seconds between two messages at least."""
    connector: Connector | None = None
    """How to reach the broker; None is the federation's."""

    def __post_init__(self) -> None:
        check_topic(self.topic)
        if isinstance(self.alarm, str) and self.alarm not in self.classes:
            named = f": it is one of {', '.join(self.classes)}" if self.classes else ", and none are named"
            raise ValueError(f"The alarm {self.alarm!r} is no number, and no class{named}.")
        if not self.every >= 0:
            raise ValueError(f"There cannot be {self.every} seconds between two predictions.")
