"""The topic of a device's predictions, for `midge device --publish` and `Device(publish=…)`."""

from collections.abc import Sequence
from dataclasses import dataclass

from midge.broker.mqtt.connection import Connector
from midge.broker.mqtt.topic_filters import check_topic
from midge.wire.field_checks import NotNegative, check_fields

EVERY = 1.0
"""Minimum seconds between two messages: a file that is read for the first time has thousands of rows."""


@dataclass(frozen=True, slots=True)
class PredictionTopic:
    """An MQTT topic for predictions on the rows that a device's samples see, a JSON object each.

    `TOPIC/alarm` gets the predictions with which an alarm began or ended.

    Raises:
        ValueError: it is not a topic, or the options contradict each other.

    Examples:
        >>> midge.PredictionTopic("plant/pump-17/power", alarm=95.0).every
        1.0
    """

    topic: str
    retain: bool = False
    """Whether the broker retains the newest one."""
    alarm: float | str | None = None
    """The value above which it is an alarm, or the class that is one. For anomaly scores, None uses a threshold from
    the scores of the device's own rows."""
    classes: Sequence[str] = ()
    """Names of the classes, in the model's order."""
    every: NotNegative = EVERY
    """Minimum seconds between two messages."""
    connector: Connector | None = None
    """Opens connections to the broker; None uses the federation's."""

    def __post_init__(self) -> None:
        check_fields(self, "publish")
        check_topic(self.topic)
        if isinstance(self.alarm, str) and self.alarm not in self.classes:
            named = f": it is one of {', '.join(self.classes)}" if self.classes else ", and none are named"
            raise ValueError(f"The alarm {self.alarm!r} is no number, and no class{named}.")
