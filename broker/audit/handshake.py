"""One CONNECT and its answer in full detail, which `Connection` does not expose.

For `broker.audit.check`: a chosen version of MQTT, a kept session, a client that vanishes, TLS.
"""

import asyncio
import ssl
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from paho.mqtt.client import MQTT_CLEAN_START_FIRST_ONLY, Client, ConnectFlags
from paho.mqtt.enums import MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from midge.broker.mqtt.connection import BrokerUnreachable, Limits, Options
from midge.broker.mqtt.endpoint import Endpoint
from midge.broker.mqtt.paho_connection import make_client
from midge.broker.mqtt.paho_errors import (
    ProtocolRefused,
    connect_properties,
    connect_refused,
    disconnected,
    read_limits,
    silent,
    unreachable,
)
from midge.broker.mqtt.tls import tls_context

_TURN = 0.05
"""Seconds that paho waits for its socket at a time."""
_DAY = 86_400


@dataclass(frozen=True, slots=True)
class Handshake:
    """A broker's answer to CONNECT."""

    limits: Limits
    session_present: bool
    session_expiry: int | None
    """Seconds that the broker keeps a session, if other than requested (MQTT 5)."""


@dataclass(frozen=True, slots=True)
class TlsLook:
    """Properties of a TLS connection to a broker."""

    version: str
    """Such as `TLSv1.3`."""
    days_left: float | None
    """Days until the certificate expires; None if it was not verified, and so cannot be read."""


async def shake_hands(
    endpoint: Endpoint,
    options: Options,
    *,
    version: Literal[4, 5] = 5,
    keep: int = 0,
    clean: bool = True,
    vanish: bool = False,
) -> Handshake:
    """Connect, read the answer and leave.

    Args:
        endpoint: the broker.
        options: the client id, the will and more.
        version: 4 is MQTT 3.1.1.
        keep: session expiry in seconds; 3.1.1 has no number and keeps the session if `clean` is false.
        clean: whether to discard an earlier session.
        vanish: leave without DISCONNECT, so that the broker publishes the will.

    Raises:
        ProtocolRefused: the broker does not speak this version.
        BrokerUnreachable: nothing serves MQTT there.
        BrokerRefused: the broker refused us, or its certificate failed our check.
    """
    return await asyncio.to_thread(
        _shake_hands, endpoint, options, version=version, keep=keep, clean=clean, vanish=vanish
    )


def _shake_hands(
    endpoint: Endpoint, options: Options, *, version: Literal[4, 5], keep: int, clean: bool, vanish: bool
) -> Handshake:
    protocol = MQTTProtocolVersion(version)
    client = make_client(endpoint, options, protocol, clean_session=clean)
    answers: list[tuple[ConnectFlags, ReasonCode, Properties | None]] = []

    def take(
        _client: Client, _userdata: Any, flags: ConnectFlags, reason: ReasonCode, properties: Properties | None
    ) -> None:
        answers.append((flags, reason, properties))

    client.on_connect = take
    try:
        _connect(client, endpoint, options, keep=keep, clean=clean)
        _drive(client, lambda: bool(answers), options.timeout)
        if not answers:
            if client.is_connected() or client.socket() is not None:
                raise silent(endpoint, options)
            raise ProtocolRefused(str(disconnected(endpoint)))
        flags, reason, properties = answers[0]
        if reason.value != 0:
            raise connect_refused(endpoint, options, reason)
        if not vanish:
            client.disconnect()
            _drive(client, lambda: client.socket() is None, options.timeout)
    finally:
        if (sock := client.socket()) is not None:
            sock.close()
    return Handshake(
        read_limits(client, properties, options),
        flags.session_present,
        getattr(properties, "SessionExpiryInterval", None),
    )


def _connect(client: Client, endpoint: Endpoint, options: Options, *, keep: int, clean: bool) -> None:
    properties = connect_properties(options, client.protocol)
    if properties is not None and keep:
        properties.SessionExpiryInterval = keep
    try:
        client.connect(
            endpoint.host,
            endpoint.port,
            options.keepalive,
            clean_start=clean if properties is not None else MQTT_CLEAN_START_FIRST_ONLY,
            properties=properties,
        )
    except OSError as error:
        raise unreachable(endpoint, options, error) from error


def _drive(client: Client, done: Any, seconds: float) -> None:
    """Exchange the client's bytes until it is done, the connection has ended, or the time is over."""
    deadline = time.monotonic() + seconds
    while not done() and time.monotonic() < deadline:
        if client.loop(_TURN) != MQTTErrorCode.MQTT_ERR_SUCCESS:
            return


async def look_at_tls(endpoint: Endpoint, patience: float) -> TlsLook | None:
    """Connect with TLS only, without MQTT, and inspect the connection; None for a broker without TLS.

    Raises:
        BrokerUnreachable: it cannot be connected to.
    """
    if endpoint.tls is None:
        return None
    options = Options("", timeout=patience)
    try:
        async with asyncio.timeout(patience):
            _, writer = await asyncio.open_connection(endpoint.host, endpoint.port, ssl=tls_context(endpoint.tls))
    except OSError as error:  # includes TimeoutError
        raise unreachable(endpoint, options, error) from error
    found = writer.get_extra_info("ssl_object")
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()
    if not isinstance(found, ssl.SSLObject):
        raise BrokerUnreachable(f"{endpoint} does not speak TLS.")
    certificate = found.getpeercert() or {}
    ends = certificate.get("notAfter")
    left = (ssl.cert_time_to_seconds(ends) - time.time()) / _DAY if isinstance(ends, str) else None
    return TlsLook(found.version() or "TLS", left)
