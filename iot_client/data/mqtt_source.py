"""An MQTT topic of sensors as a source of samples: what zigbee2mqtt, Home Assistant or a program of one's own publish.

A payload is a map in JSON or msgpack, whose fields may be nested (`state.heat`), or one plain value on a topic of its
own, as Home Assistant's statestream has it (`homeassistant/sensor/pump_heat/state`): then the field is named by the
topic. A row is made whenever the label comes; features that came in other messages are those last heard.
"""

import asyncio
import json
import logging
import random
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from midge.broker.mqtt.connection import BrokerError, Connector, Delivery, Options
from midge.broker.mqtt.topic_filters import check_filter
from midge.iot_client.data.samples import Samples
from midge.iot_client.data.values import WORDS, Classes
from midge.wire import frames
from midge.wire.errors import WireError

log = logging.getLogger("iot_client")

HOLD = 600.0
"""Seconds that a value counts for rows to come, unless the same field is said again."""
SILENCE = 10.0
"""Seconds without any message, or without one that has the label, after which it is said."""
_LONGEST = 60.0
_DEEPEST = 4
_LARGEST = 65_536
"""Bytes of a payload that is read."""
_WORD = 200
"""Bytes of a payload that is plain text."""
_MOST_FIELDS = 256
_GENERIC = ("state", "value", "status", "data", "json")
"""Last levels of a topic that say nothing of what is measured: the level before does."""


def fields_of(topic: str, payload: bytes) -> dict[str, Any]:
    """What a message says, by name: numbers, text, and 1 and 0 for words such as ON and OFF; empty where nothing."""
    return {name: _plain(value) for name, value in said_by(topic, payload).items()}


def said_by(topic: str, payload: bytes) -> dict[str, Any]:
    """What a message says, by name, as it came."""
    if not payload or len(payload) > _LARGEST:
        return {}
    value = _read(payload)
    if isinstance(value, Mapping):
        found: dict[str, Any] = {}
        for name, each in _flat(value, ""):
            found[name] = each
            if len(found) >= _MOST_FIELDS:
                break
        return found
    return {} if value is None or isinstance(value, list | tuple) else {_named(topic): value}


def _read(payload: bytes) -> Any:
    """JSON, else msgpack where that is a map, else text."""
    with suppress(ValueError, RecursionError):
        return json.loads(payload)
    with suppress(WireError):
        value = frames.unpack(payload, items=_MOST_FIELDS)
        if isinstance(value, dict):
            return value
    if len(payload) <= _WORD:
        with suppress(UnicodeDecodeError):
            return payload.decode().strip()
    return None


def _flat(value: Mapping[Any, Any], before: str, depth: int = 1) -> Iterator[tuple[str, Any]]:
    """Names and values, nested names joined by points; an element of a list is named by its place, from 0."""
    for key, each in value.items():
        name = f"{before}{key.decode(errors='replace') if isinstance(key, bytes) else key}"
        inner = dict(enumerate(each)) if isinstance(each, list | tuple) else each
        if not isinstance(inner, Mapping):
            yield name, inner
        elif depth < _DEEPEST:
            yield from _flat(inner, f"{name}.", depth + 1)


def _plain(value: Any) -> Any:
    """A number where it is one; text stays for classes."""
    if isinstance(value, bool):
        return float(value)
    if isinstance(value, str):
        return WORDS.get(value.strip().casefold(), value.strip())
    return value


def _named(topic: str) -> str:
    levels = topic.split("/")
    return levels[-2] if len(levels) > 1 and levels[-1].lower() in _GENERIC else levels[-1]


class SensorTopic:
    """Follows a topic, or several by wildcards, over a connection of its own.

    Args:
        connector: how to reach the broker of the sensors, which need not be the federation's.
        topic: a topic filter.
        classes: names of the classes where the label is one, in the order of the federation's model.
        hold: seconds that a value counts for rows to come.
        clock: seconds of a clock that never goes back.

    Raises:
        ValueError: it is no topic filter.
    """

    def __init__(
        self,
        connector: Connector,
        topic: str,
        *,
        classes: Sequence[str] = (),
        hold: float = HOLD,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        check_filter(topic)
        self._connector, self._topic, self._hold, self._clock = connector, topic, hold, clock
        self._classes = Classes(classes)
        self._last: dict[str, dict[str, tuple[float, Any]]] = {}
        """By field and topic, when it was last said, and what."""
        self.heard = 0
        """Messages so far."""
        self._fields: set[str] = set()
        """Names of fields that came and are not wanted, for a sentence."""

    async def follow(self, samples: Samples) -> None:
        """Take rows in for ever. A broker that is away is tried again, less and less often."""
        client, pause = f"midge-samples-{secrets.token_hex(6)}", 1.0
        silence = asyncio.get_running_loop().call_later(SILENCE, self._say_silence, samples)
        try:
            while True:
                try:
                    async with self._connector(Options(client_id=client)) as connection:
                        await connection.subscribe(self._topic, qos=0)
                        pause = 1.0
                        async for delivery in connection.messages():
                            connection.ack(delivery)
                            self.take(delivery, samples)
                except BrokerError as error:
                    samples.reject("broker", f"the sensors on {self._topic} cannot be heard: {error}")
                await asyncio.sleep(pause * random.uniform(0.75, 1.25))  # noqa: S311 - spreads load
                pause = min(2 * pause, _LONGEST)
        finally:
            silence.cancel()

    def _say_silence(self, samples: Samples) -> None:
        """Say that no message is of use, or that there is none."""
        if not self.heard:
            samples.reject("silence", f"no message came on {self._topic} in {SILENCE:g} s")
        elif absent := [name for name in samples.wanted if name not in self._last]:
            there = ", ".join(sorted(self._fields)[:20]) or "nothing else"
            samples.reject("fields", f"no message on {self._topic} had {', '.join(absent)}; they have {there}")

    def take(self, delivery: Delivery, samples: Samples) -> None:
        """One message. A retained one is from before, and may have been taken then: it makes no row."""
        self.heard += 1
        topic, now = delivery.topic, self._clock()
        said = said_by(topic, delivery.payload)
        if not said and delivery.payload:
            samples.reject("payloads", f"a message on {topic} is neither a map in JSON or msgpack nor one value")
        wanted = {*samples.wanted}
        if len(self._fields) < _MOST_FIELDS:
            self._fields |= said.keys() - wanted
        for name in said.keys() & wanted:
            heard = self._last.setdefault(name, {})
            if topic in heard or len(heard) < _MOST_FIELDS:
                heard[topic] = now, said[name]
        if samples.label in said and not delivery.retain:
            row = {name: self._of(name, topic, now, samples) for name in samples.features}
            row[samples.label] = label = said[samples.label]
            if self._classes:
                row[samples.label] = self._classes.number(label)
                if row[samples.label] is None:
                    names = ", ".join(self._classes.names)
                    samples.reject("classes", f"{samples.label} is {str(label)[:60]!r}, none of {names}")
            samples.observe(row)

    def _of(self, name: str, topic: str, now: float, samples: Samples) -> Any:
        """A field's value for a row whose label came on a topic: of that topic, or of the only one that says it."""
        heard = self._last.get(name, {})
        if topic in heard:
            at, value = heard[topic]
        elif len(heard) == 1:
            ((at, value),) = heard.values()
        else:
            if heard:
                first, second = list(heard)[:2]
                words = f"{name} comes on {first} and on {second}, and not with the label"
                samples.reject(f"whose {name}", f"{words}: whose it is cannot be told")
            return None
        return value if now - at <= self._hold else None
