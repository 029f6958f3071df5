"""aiomqtt's client for an endpoint, for readers only: `async for message in client.messages`.

It is used by its public interface, with MQTT 3.1.1, which every broker speaks. If the reason for a failed connection or
a refused message matters, use `broker.Connection`: aiomqtt 2 reports a broker that disconnects on CONNECT as a
time-out, and a negative PUBACK as success.
"""

import logging
import secrets

import aiomqtt

from midge.broker.mqtt.endpoint import Endpoint
from midge.broker.mqtt.paho_reason_codes import name_all_codes
from midge.broker.mqtt.tls import tls_context

name_all_codes()  # aiomqtt is built on paho
_quiet = logging.getLogger(__name__)
_quiet.setLevel(logging.CRITICAL)  # it also raises what it logs as an error


def listener(endpoint: Endpoint, purpose: str) -> aiomqtt.Client:
    """Make a client with an id that names its purpose; to be entered with `async with`.

    Raises:
        BrokerRefused: a TLS file cannot be used.
    """
    return aiomqtt.Client(
        endpoint.host,
        endpoint.port,
        username=endpoint.user,
        password=endpoint.password,
        identifier=f"midge-{purpose}-{secrets.token_hex(6)}",
        transport="websockets" if endpoint.websockets else "tcp",
        websocket_path=endpoint.path if endpoint.websockets else None,
        tls_context=None if endpoint.tls is None else tls_context(endpoint.tls),
        logger=_quiet,
    )
