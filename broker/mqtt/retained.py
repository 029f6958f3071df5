"""Reading retained messages.

MQTT has no end marker for retained messages. So a message of our own follows the subscription: once it has come back,
the broker has sent everything retained. If it does not come back (an ACL may forbid it), a short silence ends the list.
"""

import asyncio
from contextlib import suppress

from midge.broker.mqtt.connection import Connection, Delivery, QoS


async def read_retained(
    connection: Connection, *filters: str, marker: str, patience: float = 3.0, qos: QoS = 1
) -> list[Delivery]:
    """The retained messages on these filters; `marker` is a topic that we may both publish and read.

    At QoS 0 some may be missing: a broker may drop them, or send the marker first.

    Takes the connection's messages for itself while it reads: call it before any other reader.

    Raises:
        ConnectionLost: the connection ended.
    """
    await connection.subscribe(*filters, marker, qos=qos)
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
