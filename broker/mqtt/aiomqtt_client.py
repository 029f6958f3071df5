"""aiomqtt's client for an endpoint, for what only listens: `async for message in client.messages`.

It is used by its public interface, and with MQTT 3.1.1, which every broker speaks. Where it matters why a broker is not
to be reached, or whether it took a message, a `broker.Connection` is better: to aiomqtt 2 a broker that hangs up on
CONNECT is one that does not answer, after the whole time-out, and a negative PUBACK is success.
"""

import logging
import secrets

import aiomqtt

from midge.broker.mqtt.endpoint import Endpoint
from midge.broker.mqtt.paho_reason_codes import name_all_codes
from midge.broker.mqtt.tls import tls_context

name_all_codes()  # aiomqtt runs paho
_quiet = logging.getLogger(__name__)
_quiet.setLevel(logging.CRITICAL)  # what it logs as an error it also raises


def listener(endpoint: Endpoint, purpose: str) -> aiomqtt.Client:
    """A client with an id of its own that names its purpose; to be entered with `async with`.

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
