"""A federation for Home Assistant: retained MQTT discovery messages and plain JSON states, as pure functions.

Home Assistant's MQTT integration describes a device with its entities in one discovery message (`dev`, `o`, `cmps`;
its documentation, "Device discovery payload"), and reads states by Jinja templates, which cannot read Midge's frames.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from midge.wire import frames
from midge.wire.inert import inert, inert_all
from midge.wire.messages import AggregatorState, DeviceState, Health, HealthState
from midge.wire.overview import DeviceRow
from midge.wire.topics import HomeTopics

ENCODING = "latin-1"
"""Of all payloads: one character a byte, so that a template can look into the frame of the aggregator's status."""
_LONGEST = 255
"""Characters of a state in Home Assistant."""
_STATES = sorted({*DeviceState, "silent", "withdrawn", "unknown"} - {DeviceState.JOINING})


@dataclass(frozen=True, slots=True)
class HomeView:
    """What Home Assistant shows of a federation."""

    federation: str
    version: int
    step: int
    health: Health
    there: int
    """Number of online devices."""
    paused: str | None = None
    score: tuple[str, float] | None = None
    """First metric of the evaluation."""
    rows: Sequence[DeviceRow] = ()


def messages(topics: HomeTopics, view: HomeView) -> dict[str, bytes]:
    """All retained messages, by topic: discovery and states of the aggregator and of each device."""
    found = {
        topics.found: topics.discovery.encode(),
        topics.config(): _json(_aggregator(topics, view)),
        topics.state: _json(_state(view)),
    }
    for row in view.rows:
        found[topics.config(row.name)] = _json(_device(topics, row))
        found[topics.device(row.name)] = _json(_device_state(row))
    return found


def wanted_pause(payload: bytes) -> bool | None:
    """Whether a command asks for a pause; None if it is no command."""
    return {b"ON": True, b"OFF": False}.get(payload)


# ------------------------------------------------------------------------- aggregator


def _aggregator(topics: HomeTopics, view: HomeView) -> dict[str, Any]:
    parts: dict[str, dict[str, Any]] = {
        "version": {"p": "sensor", "name": "Version", "ic": "mdi:counter", "stat_cla": "measurement"},
        "devices": {"p": "sensor", "name": "Devices online", "ic": "mdi:lan-connect", "stat_cla": "measurement"},
        "updated": {"p": "sensor", "name": "Last update", "dev_cla": "timestamp"},
        "health": {
            "p": "sensor",
            "name": "Health",
            "ic": "mdi:heart-pulse",
            "dev_cla": "enum",
            "ops": [state.value for state in HealthState],
            "json_attr_t": topics.state,
            "json_attr_tpl": "{{ {'why': value_json.why, 'alarms': value_json.alarms} | to_json }}",
        },
        "problem": {
            "p": "binary_sensor",
            "name": "Problem",
            "dev_cla": "problem",
            "val_tpl": "{{ 'ON' if value_json.problem else 'OFF' }}",
        },
        "paused": {
            "p": "switch",
            "name": "Paused",
            "ic": "mdi:pause-circle-outline",
            "cmd_t": topics.pause,
            "val_tpl": "{{ 'ON' if value_json.paused else 'OFF' }}",
        },
    }
    if view.score is not None:
        parts["score"] = _score(view.score[0])
    return _config(topics, None, f"Midge {view.federation}", parts)


def _state(view: HomeView) -> dict[str, Any]:
    health = view.health
    return {
        "version": view.version,
        "step": view.step,
        "devices": view.there,
        "updated": _time(health.accepted),
        "health": health.state.value,
        "why": inert(health.why)[:_LONGEST],
        "alarms": [inert(alarm)[:_LONGEST] for alarm in health.alarms],
        "problem": health.alarming,
        "paused": view.paused is not None,
        "score": None if view.score is None else _number(view.score[1]),
    }


# ----------------------------------------------------------------------------- device


def _device(topics: HomeTopics, row: DeviceRow) -> dict[str, Any]:
    parts: dict[str, dict[str, Any]] = {
        "state": {
            "p": "sensor",
            "name": "State",
            "ic": "mdi:access-point-network",
            "dev_cla": "enum",
            "ops": _STATES,
            "json_attr_t": topics.device(row.name),
            "json_attr_tpl": "{{ {'why': value_json.why, 'refused': value_json.refused} | to_json }}",
        },
        "version": {"p": "sensor", "name": "Version", "ic": "mdi:counter", "stat_cla": "measurement"},
        "next": {"p": "sensor", "name": "Next training", "dev_cla": "timestamp"},
    }
    if row.metrics:
        parts["score"] = _score(next(iter(row.metrics)))
    config = _config(topics, row.name, row.name, parts)
    config["dev"]["via_device"] = _identifier(topics, None)
    return config


def _device_state(row: DeviceRow) -> dict[str, Any]:
    return {
        "state": row.state if row.state in _STATES else "unknown",
        "version": row.version,
        "next": _time(row.wakes) if row.state == DeviceState.SLEEPING else None,
        "score": _number(next(iter(row.metrics.values()), None)),
        "refused": row.refused,
        "why": inert(row.why)[:_LONGEST],
    }


# ----------------------------------------------------------------------------- shared


def _config(topics: HomeTopics, name: str | None, shown: str, parts: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """A discovery message. An entity's value is the field of its own name in the state, unless it has a template."""
    identifier = _identifier(topics, name)
    entities = {
        key: {"uniq_id": f"{identifier}-{key}", "e": ENCODING, "val_tpl": f"{{{{ value_json.{key} }}}}", **part}
        for key, part in parts.items()
    }
    return {
        "dev": {"ids": [identifier], "name": shown, "mf": "Midge", "mdl": "Aggregator" if name is None else "Device"},
        "o": {"name": "Midge"},
        "avty_t": topics.aggregator,
        "avty_tpl": _AVAILABLE,
        "stat_t": topics.state if name is None else topics.device(name),
        "cmps": inert_all(entities),
    }


def within(state: AggregatorState) -> str:
    """How a state stands in an aggregator's status, read by `ENCODING`: its field's number, its length, the word."""
    return frames.encode({"state": state.value})[3:].decode(ENCODING)  # without the frame's length and the map's


_GONE = " or ".join(f"{within(state)!r} in value" for state in AggregatorState if not state.serves)
_AVAILABLE = f"{{{{ 'offline' if not value or {_GONE} else 'online' }}}}"
"""Unavailable if the aggregator has said goodbye, its Last Will has come, or its status was cleared."""


def _identifier(topics: HomeTopics, name: str | None) -> str:
    return f"midge-{topics.node}-{topics.object_id(name)}"


def _score(metric: str) -> dict[str, Any]:
    return {"p": "sensor", "name": metric[:64].capitalize(), "ic": "mdi:target", "stat_cla": "measurement"}


def _number(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _time(seconds: float) -> str | None:
    """ISO 8601, as a timestamp sensor reads it; None if it is not known."""
    if not 0 < seconds < 2**36:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
