"""The MQTT side: connections, an in-memory broker, the embedded broker, and Mosquitto as a child process.

Importing this package imports no MQTT library; `connector` does.
"""

from contextlib import AbstractAsyncContextManager

from midge.broker.mqtt.connection import (
    BrokerError,
    BrokerRefused,
    BrokerUnreachable,
    Connection,
    ConnectionLost,
    Connector,
    Delivery,
    Limits,
    Options,
    PacketTooLarge,
    PublishRefused,
    SubscribeRefused,
    Will,
)
from midge.broker.mqtt.endpoint import Endpoint, Tls

__all__ = [
    "BrokerError",
    "BrokerRefused",
    "BrokerUnreachable",
    "Connection",
    "ConnectionLost",
    "Connector",
    "Delivery",
    "Endpoint",
    "Limits",
    "Options",
    "PacketTooLarge",
    "PublishRefused",
    "SubscribeRefused",
    "Tls",
    "Will",
    "connector",
]


def connector(endpoint: Endpoint) -> Connector:
    """Return a connector for `endpoint`."""
    from midge.broker.mqtt.paho_connection import connect  # noqa: PLC0415

    def make(options: Options) -> AbstractAsyncContextManager[Connection]:
        return connect(endpoint, options)

    return make
