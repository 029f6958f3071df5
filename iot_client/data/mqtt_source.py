"""An MQTT topic of sensors as a source of samples, such as those of zigbee2mqtt and Home Assistant.

A payload is a map in JSON or msgpack, whose fields may be nested (`state.heat`) or in lists (`Power[1]`), SenML, or one
plain value on a topic of its own, as in Home Assistant's statestream (`homeassistant/sensor/pump_heat/state`), where
the topic names the field. Each label makes a row; features from other messages have their last value from the same
place, or from the only place that has them. `kitchen/heat` is the field heat of a topic that ends in kitchen. Without a
label, a row is made once each feature has been updated.
"""

import asyncio
import logging
import math
import random
import secrets
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from midge.broker import BrokerError, Connector, Delivery, Endpoint, Options, connector
from midge.broker.mqtt.topic_filters import check_filter
from midge.iot_client.data.intake import Intake
from midge.iot_client.data.payloads import Record, fields_of, is_plain, place_of, records_of, spelled
from midge.iot_client.data.samples import Samples, lose_unclassed
from midge.iot_client.data.values import WORDS, Classes, NumberStyle, missing

__all__ = ["LATER", "SensorTopic", "fields_of"]
log = logging.getLogger("iot_client")

HOLD = 600.0
"""Seconds for which a value is used for later rows, unless it is updated."""
SILENCE = 8.0
"""Seconds without any message, or without one with the label, after which this is logged."""
_LONGEST = 60.0
LATER = "values for a later row"
"""Count name of messages with features and without the label."""
_MOST_FIELDS = 256
"""Maximum number of names and places that are remembered."""


class SensorTopic:
    """Follows a topic, or several by wildcards, over a connection of its own.

    Args:
        broker: the sensors' broker, which need not be the federation's: its URL, or what opens connections to it.
        topic: a topic filter.
        classes: names of the classes if the label is one, in the order of the federation's model.
        hold: seconds for which a value is used for later rows.
        clock: seconds of a monotonic clock.

    Raises:
        ValueError: it is not a topic filter, or not a broker's URL.

    Examples:
        >>> midge.SensorTopic("mqtt://localhost", "zigbee2mqtt/pump-17").heard
        0
    """

    def __init__(
        self,
        broker: str | Connector,
        topic: str,
        *,
        classes: Sequence[str] = (),
        hold: float = HOLD,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        check_filter(topic)
        self._connector = connector(Endpoint.parse(broker)) if isinstance(broker, str) else broker
        self._topic, self._hold, self._clock = topic, hold, clock
        self._classes = Classes(classes)
        self._last: dict[str, dict[str, tuple[float, Any]]] = {}
        """Time of arrival and value, by field and place."""
        self.heard = 0
        """Number of messages so far."""
        self.fields: set[str] = set()
        """Names of received fields that are not needed, for messages."""
        self._said: dict[str, set[str]] = {}
        """By place: the features that it has ever sent …"""
        self._since: dict[str, set[str]] = {}
        """… and those since the last row."""
        self._styles: defaultdict[str, NumberStyle] = defaultdict(NumberStyle)

    async def follow(self, samples: Samples) -> None:
        """Collect rows forever. A broker that is away is retried with back-off."""
        client, pause = f"midge-samples-{secrets.token_hex(6)}", 1.0
        silence = asyncio.get_running_loop().call_later(SILENCE, self._say_silence, samples)
        try:
            while True:
                try:
                    async with self._connector(Options(client_id=client)) as connection:
                        await connection.subscribe(self._topic, qos=0)
                        pause, self._intake(samples).problem = 1.0, ""
                        async for delivery in connection.messages():
                            connection.ack(delivery)
                            self.take(delivery, samples)
                except BrokerError as error:
                    self._intake(samples).problem = words = f"the sensors on {self._topic} cannot be heard: {error}"
                    samples.reject("broker", words)
                await asyncio.sleep(pause * random.uniform(0.75, 1.25))  # noqa: S311 - spreads load
                pause = min(2 * pause, _LONGEST)
        finally:
            silence.cancel()

    def _intake(self, samples: Samples) -> Intake:
        return samples.intake(self._topic)

    def _say_silence(self, samples: Samples) -> None:
        """Log that there is no message, or no useful one."""
        if (found := self.silence(samples)) is not None:
            kind, self._intake(samples).problem = found
            samples.reject(kind, found[1])

    def silence(self, samples: Samples) -> tuple[str, str] | None:
        """What never arrived, as a kind and as text; None if everything did."""
        if not self.heard:
            return "silence", f"no message came on {self._topic} in {SILENCE:g} s"
        if absent := [name for name in samples.wanted if name not in self._last]:
            there = ", ".join(sorted(self.fields)[:20]) or "nothing else"
            return "fields", f"no message on {self._topic} had {', '.join(absent)}; they have {there}"
        return None

    def take(self, delivery: Delivery, samples: Samples) -> None:
        """Process one message. A retained one may have been processed before: it makes no row."""
        self.heard += 1
        intake, topic = self._intake(samples), delivery.topic
        text = f"{topic} {delivery.payload[:200].decode(errors='replace')}"
        records = records_of(topic, delivery.payload)
        if not records and delivery.payload:
            why = f"a message on {topic} is neither a map in JSON or msgpack nor one value"
            intake.lose("neither a map nor one value", why, text)
            samples.reject("payloads", why)
        for record in records:
            self._process(record, topic, text, samples, retain=delivery.retain)

    def _process(self, record: Record, topic: str, text: str, samples: Samples, *, retain: bool) -> None:
        intake, now = self._intake(samples), self._clock()
        place = place_of(topic, plain=is_plain(record, topic))
        received = {name: record[key] for name in samples.wanted if (key := _key(name, record, place)) is not None}
        if len(self.fields) < _MOST_FIELDS:
            self.fields |= record.keys() - set(samples.wanted)
        for name, value in received.items():
            heard = self._last.setdefault(name, {})
            if place in heard or len(heard) < _MOST_FIELDS:
                heard[place] = now, value
        if not received:
            intake.lose("no field that is used", f"a message on {topic} has {', '.join(record)[:200]}", text)
        elif retain:
            intake.lose("retained", f"what is retained on {topic} is from before: it fills gaps and is no row", text)
        elif (samples.label is not None and samples.label in received) or (
            samples.label is None and self._is_whole(place, received.keys(), samples)
        ):
            self._observe(place, now, text, samples)
        else:
            intake.read += 1
            intake.skip(LATER)

    def _is_whole(self, place: str, received: Any, samples: Samples) -> bool:
        """Whether each feature came since the last row: from this place if it sends all, otherwise from anywhere."""
        everything = set(samples.features)
        if place not in self._said and len(self._said) >= _MOST_FIELDS:
            return everything <= set(received)
        here = self._said.setdefault(place, set())
        since = self._since.setdefault(place, set())
        again = bool(since & set(received)) and here >= everything  # a silent place does not delay rows
        here |= set(received)
        since |= set(received)
        whole = since >= everything if here >= everything else set().union(*self._since.values()) >= everything
        if whole or again:
            for each in [since] if here >= everything else self._since.values():
                each.clear()
            if again and not whole:
                since |= set(received)
        return whole or again

    def _observe(self, place: str, now: float, text: str, samples: Samples) -> None:
        """Make a row of the last values."""
        intake = self._intake(samples)
        row = {name: self._number(name, self._value_for(name, place, now, samples)) for name in samples.features}
        if samples.label is not None:
            label = self._last[samples.label][place][1]
            row[samples.label] = self._classes.number(label) if self._classes else self._number(samples.label, label)
            if self._classes and row[samples.label] is None and label is not None and not missing(str(label)):
                lose_unclassed(samples, intake, str(label), self._classes.names, text=text)
                return
        if samples.observe(row, intake=intake, line=text):
            intake.problem = ""

    def _number(self, name: str, value: Any) -> Any:
        """A value; text as its number if it is one in this field's format."""
        if not isinstance(value, str) or value.strip().casefold() in WORDS:
            return value
        style = self._styles[name]
        style.see(value)
        found = style.number(value, style, separates=True)
        return value if math.isnan(found) else found

    def _value_for(self, name: str, place: str, now: float, samples: Samples) -> Any:
        """A field's value for a row of a place: from that place, from the nearest, or from the only one that has it."""
        heard = self._last.get(name, {})
        if place in heard:
            at, value = heard[place]
        elif len(heard) == 1:
            ((at, value),) = heard.values()
        else:
            near = sorted(heard, key=lambda other: -_common(place, other))
            if not near:
                return None
            if _common(place, near[0]) == _common(place, near[1]):
                with_ = samples.label or "the others"
                own = f"{near[0].split('/')[-1]}/{name}"
                words = f"{name} comes on {near[0]} and on {near[1]}, and not with {with_}"
                samples.reject(f"whose {name}", f"{words}: its place is ambiguous, unless it is named {own}")
                return None
            at, value = heard[near[0]]
        return value if now - at <= self._hold else None


def _key(name: str, record: Record, place: str) -> str | None:
    """The name under which a record has a needed field: as it is, in brackets, or after the end of its topic."""
    for key in (name, spelled(name)):
        if key in record:
            return key
    where, slash, own = name.rpartition("/")
    if slash and (place == where or place.endswith(f"/{where}")):
        return next((key for key in (own, spelled(own)) if key in record), None)
    return None


def _common(one: str, other: str) -> int:
    """Number of leading levels that two places share."""
    count = 0
    for mine, theirs in zip(one.split("/"), other.split("/"), strict=False):
        if mine != theirs:
            break
        count += 1
    return count
