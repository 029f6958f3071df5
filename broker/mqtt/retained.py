"""Reading and clearing what is retained on topics, and what is retained of a federation.

MQTT has no word for "nothing is retained here". So a message of our own follows the subscription: once it has come
back, the broker has sent what it had. Where it does not come back (an ACL may forbid it), a short silence must do.
"""

import asyncio
import secrets
from contextlib import suppress
from typing import Any

from midge.broker.mqtt.connection import Connection, Connector, Delivery, Options
from midge.wire import messages
from midge.wire.errors import WireError
from midge.wire.messages import AggregatorState, AggregatorStatus, Hello
from midge.wire.topics import Topics


async def read_retained(connection: Connection, *filters: str, marker: str, patience: float = 3.0) -> list[Delivery]:
    """The retained messages on these filters; `marker` is a topic that we may both publish and read.

    Takes the connection's messages for itself while it reads: call it before any other reader.

    Raises:
        ConnectionLost: the connection ended.
    """
    await connection.subscribe(*filters, marker)
    await connection.publish(marker, b"", qos=1)
    found: list[Delivery] = []
    with suppress(TimeoutError):
        async with asyncio.timeout(patience):
            async for delivery in connection.messages():
                connection.ack(delivery)
                if delivery.topic == marker:
                    break
                if delivery.retain and delivery.payload:
                    found.append(delivery)
    await connection.unsubscribe(*filters, marker)
    return found


async def clear_retained(connection: Connection, *filters: str, marker: str) -> int:
    """Remove every retained message on these filters; how many there were.

    Raises:
        PublishRefused: we may not publish on one of them.
        ConnectionLost: the connection ended.
    """
    found = await read_retained(connection, *filters, marker=marker)
    for delivery in found:
        await connection.publish(delivery.topic, b"", qos=1, retain=True)
    return len(found)


# -------------------------------------------------------------------- of a federation


def _options() -> Options:
    return Options(client_id=f"midge-look-{secrets.token_hex(6)}")


def _marker(topics: Topics) -> str:
    return f"{topics.aggregator}/look-{secrets.token_hex(6)}"


async def describe_federation(connect: Connector, topics: Topics) -> dict[str, Any]:
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
                found["devices"][name] = hello.model_dump(mode="json", exclude={"lineage", "kind", "number", "to"})
    return found


def _model(announcement: messages.Announcement) -> dict[str, Any]:
    plain = announcement.model_dump(
        mode="json", include={"generation", "version", "step", "phase", "chunk", "plan", "issued"}
    )
    return {**plain, "lineage": announcement.lineage.hex(), "digest": announcement.digest.hex()}


async def is_served(connect: Connector, topics: Topics) -> bool:
    """Whether the federation's aggregator says that it serves."""
    found = await describe_federation(connect, topics)
    aggregator = found["aggregator"]
    return aggregator is not None and aggregator["state"] in (AggregatorState.READY, AggregatorState.PAUSED)


async def clear_federation(connect: Connector, topics: Topics) -> int:
    """Remove every retained message of a federation from a broker; how many there were."""
    async with connect(_options()) as connection:
        return await clear_retained(connection, topics.everything, marker=_marker(topics))
