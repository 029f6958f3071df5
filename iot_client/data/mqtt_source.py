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
from midge.wire import frames
from midge.wire.errors import WireError

log = logging.getLogger("iot_client")

HOLD = 600.0
"""Seconds that a value counts for rows to come, unless the same field is said again."""
_LONGEST = 60.0
_DEEPEST = 4
_LARGEST = 65_536
"""Bytes of a payload that is read."""
_WORD = 200
"""Bytes of a payload that is plain text."""
_MOST_FIELDS = 256
_GENERIC = ("state", "value", "status", "data", "json")
"""Last levels of a topic that say nothing of what is measured: the level before does."""
_WORDS = {"on": 1.0, "off": 0.0, "true": 1.0, "false": 0.0, "open": 1.0, "closed": 0.0, "yes": 1.0, "no": 0.0}


def fields_of(topic: str, payload: bytes) -> dict[str, Any]:
    """What a message says, by name: numbers, text, and 1 and 0 for words such as ON and OFF; empty where nothing."""
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
    return {} if value is None or isinstance(value, list | tuple) else {_named(topic): _plain(value)}


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
    for key, each in value.items():
        name = f"{before}{key.decode(errors='replace') if isinstance(key, bytes) else key}"
        if isinstance(each, Mapping):
            if depth < _DEEPEST:
                yield from _flat(each, f"{name}.", depth + 1)
        elif not isinstance(each, list | tuple):
            yield name, _plain(each)


def _plain(value: Any) -> Any:
    """A number where it is one; text stays for classes."""
    if isinstance(value, bool):
        return float(value)
    if isinstance(value, str):
        return _WORDS.get(value.strip().lower(), value.strip())
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
        self._classes: Mapping[str, int] = {name: number for number, name in enumerate(classes)}
        self._last: dict[str, tuple[float, Any]] = {}
        self.heard = 0
        """Messages so far."""

    async def follow(self, samples: Samples) -> None:
        """Take rows in for ever. A broker that is away is tried again, less and less often."""
        client, pause = f"midge-samples-{secrets.token_hex(6)}", 1.0
        while True:
            try:
                async with self._connector(Options(client_id=client)) as connection:
                    await connection.subscribe(self._topic, qos=0)
                    pause = 1.0
                    async for delivery in connection.messages():
                        connection.ack(delivery)
                        self.take(delivery, samples)
            except BrokerError as error:
                log.info("The sensors on %s cannot be heard: %s", self._topic, error)
            await asyncio.sleep(pause * random.uniform(0.75, 1.25))  # noqa: S311 - spreads load
            pause = min(2 * pause, _LONGEST)

    def take(self, delivery: Delivery, samples: Samples) -> None:
        """One message. A retained one is from before, and may have been taken then: it makes no row."""
        self.heard += 1
        now, said = self._clock(), fields_of(delivery.topic, delivery.payload)
        wanted = {*samples.features, samples.label}
        said = {name: value for name, value in said.items() if name in wanted}
        self._last.update({name: (now, value) for name, value in said.items()})
        if samples.label in said and not delivery.retain:
            row = {name: value for name, (at, value) in self._last.items() if now - at <= self._hold}
            if self._classes:
                row[samples.label] = self._classes.get(str(row[samples.label]))
            samples.observe(row)
