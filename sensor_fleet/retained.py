"""A federation as its retained messages tell it, and how to leave none behind."""

import secrets
from contextlib import suppress
from typing import Any

from broker import Connector, Options
from broker.retained import clear_retained, read_retained
from wire import messages
from wire.errors import WireError
from wire.messages import AggregatorState, AggregatorStatus, Hello
from wire.topics import Topics


def _options() -> Options:
    return Options(client_id=f"midge-look-{secrets.token_hex(6)}")


def _marker(topics: Topics) -> str:
    return f"{topics.aggregator}/look-{secrets.token_hex(6)}"


async def look(connect: Connector, topics: Topics) -> dict[str, Any]:
    """The aggregator's status, the announced model and the devices' statuses, as plain values."""
    filters = (topics.aggregator, topics.announcement(), f"{topics.prefix}/status/+")
    async with connect(_options()) as connection:
        deliveries = await read_retained(connection, *filters, marker=_marker(topics))
    found: dict[str, Any] = {
        "federation": topics.federation,
        "root": topics.root,
        "aggregator": None,
        "model": None,
        "devices": {},
    }
    for delivery in deliveries:
        with suppress(WireError):
            if delivery.topic == topics.aggregator:
                status, _ = messages.decode(AggregatorStatus, delivery.payload)
                found["aggregator"] = {
                    **status.model_dump(mode="json", exclude={"lineage"}),
                    "lineage": status.lineage.hex(),
                }
            elif delivery.topic == topics.announcement():
                found["model"] = _model(messages.decode_announcement(delivery.payload))
            else:
                hello, _ = messages.decode(Hello, delivery.payload)
                name = delivery.topic.rsplit("/", 1)[1]
                found["devices"][name] = hello.model_dump(mode="json", exclude={"lineage", "kind"})
    return found


def _model(announcement: messages.Announcement) -> dict[str, Any]:
    plain = announcement.model_dump(
        mode="json", include={"generation", "version", "step", "phase", "chunk", "plan", "issued"}
    )
    return {**plain, "lineage": announcement.lineage.hex(), "digest": announcement.digest.hex()}


async def running(connect: Connector, topics: Topics) -> bool:
    """Whether the federation's aggregator says that it serves."""
    found = await look(connect, topics)
    aggregator = found["aggregator"]
    return aggregator is not None and aggregator["state"] in (AggregatorState.READY, AggregatorState.PAUSED)


async def clean(connect: Connector, topics: Topics) -> int:
    """Remove every retained message of a federation from a broker; how many there were."""
    async with connect(_options()) as connection:
        return await clear_retained(connection, topics.everything, marker=_marker(topics))
