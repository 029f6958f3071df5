"""Translation of paho's results: connection errors, the limits in CONNACK, the size of a packet."""

import errno
import socket
import ssl
from typing import Literal

from paho.mqtt.client import MQTT_CLEAN_START_FIRST_ONLY, Client, WebsocketConnectionError
from paho.mqtt.enums import MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from midge.broker.mqtt.connection import (
    BrokerError,
    BrokerRefused,
    BrokerUnreachable,
    Limits,
    Options,
    PacketTooLarge,
    QoS,
)
from midge.broker.mqtt.endpoint import Endpoint
from midge.broker.mqtt.paho_reason_codes import name_all_codes
from midge.broker.mqtt.services import NO_SERVICE, SERVICES, least
from midge.broker.mqtt.tls import error_for_alert, not_agreed

name_all_codes()

FAILURE = 0x80
"""Reason codes from here on are failures; MQTT 5, section 2.4."""
TAKEN_OVER = 0x8E

_UNSUPPORTED_PROTOCOL = 0x84
_OF_3_1_1 = {1: 0x84, 2: 0x85, 3: 0x88, 4: 0x86, 5: 0x87}
"""Reason codes for the return codes of 3.1.1. An older broker may answer MQTT 5 with a return code too."""
_TEMPORARY = frozenset({0x88, 0x89, 0x97, 0x9F})
"""Server unavailable, server busy, quota exceeded, connection rate exceeded."""
_BAD_CREDENTIALS = frozenset({0x86, 0x87})
_NO_RETAIN = 0x9A
_ADVICE = {
    0x87: "give this user the right to it",
    0x8D: "the link is too slow or too unsteady for the keepalive; take a longer one",
    0x93: "it takes fewer messages at once than it says",
    0x95: "a message is larger than it takes; raise message_size_limit or max_packet_size, or give smaller chunks",
    0x96: "it takes fewer messages a second; raise its limit",
    0x97: "a quota of it is used up; raise it",
    0x98: "its administrator did that",
    0x9A: "without retained messages no device finds the model; allow them (Mosquitto: retain_available true), or take "
    "another broker",
    0x9B: "Midge needs QoS 1; allow it",
    0x9C: "it asks for another server; use that address",
    0x9D: "it has moved; use the new address",
    0x9F: "it takes fewer connections a second; try again later",
}
"""What a reason code means for us and what to do about it; MQTT 5, section 2.4."""

_MAX_REMAINING_LENGTH = 268_435_455
"""The largest packet in MQTT, without its fixed header; MQTT 5, section 1.5.5."""


class ProtocolRefused(BrokerError):
    """The broker does not speak this version of MQTT, or disconnected on CONNECT: try the older one."""

    def __init__(self, message: str, alert: str = "") -> None:
        super().__init__(message)
        self.alert = alert
        """The broker's TLS alert, by OpenSSL's name."""


class Unanswered(ProtocolRefused, BrokerUnreachable):
    """The broker accepts connections and does not answer CONNECT: it may know only the older version."""


def clean_start(protocol: MQTTProtocolVersion) -> bool | Literal[3]:
    """Always clean. For 3.1.1 paho accepts only its default, 3, and `clean_session` has the same effect."""
    return True if protocol == MQTTProtocolVersion.MQTTv5 else MQTT_CLEAN_START_FIRST_ONLY


def connect_properties(options: Options, protocol: MQTTProtocolVersion) -> Properties | None:
    """The properties of CONNECT; MQTT 3.1.1 has none. Without a session expiry the session ends with the connection."""
    if protocol != MQTTProtocolVersion.MQTTv5:
        return None
    properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
    properties.ReceiveMaximum = options.receive_maximum
    return properties


def read_limits(client: Client, properties: Properties | None, options: Options, service: str | None = None) -> Limits:
    """The broker's limits from CONNACK, and from what is known of the service."""
    known = NO_SERVICE if service is None else SERVICES[service]
    window: int = getattr(properties, "ReceiveMaximum", 65535)
    return Limits(
        protocol=5 if client.protocol == MQTTProtocolVersion.MQTTv5 else 4,
        maximum_packet_size=least(getattr(properties, "MaximumPacketSize", None), known.message),
        receive_maximum=least(window, known.receive_maximum) or window,
        retain_available=bool(getattr(properties, "RetainAvailable", True)),
        client_id=getattr(properties, "AssignedClientIdentifier", options.client_id),
        service=known,
    )


def check_packet_size(limits: Limits, topic: str, payload: int, qos: QoS) -> None:
    """Check that a PUBLISH with `payload` bytes fits.

    Raises:
        PacketTooLarge: it does not.
    """
    remaining = 2 + len(topic.encode()) + (2 if qos else 0) + (1 if limits.protocol == 5 else 0) + payload
    length_bytes = 1 + (remaining > 127) + (remaining > 16_383) + (remaining > 2_097_151)
    size = 1 + length_bytes + remaining
    limit = limits.maximum_packet_size
    if remaining > _MAX_REMAINING_LENGTH or (limit is not None and size > limit):
        most = _MAX_REMAINING_LENGTH if limit is None else limit
        raise PacketTooLarge(
            f"A packet of {size} bytes is more than the broker takes ({most} bytes): send smaller chunks."
        )


def connect_refused(endpoint: Endpoint, options: Options, reason: ReasonCode) -> BrokerError:
    """The error for an unsuccessful CONNACK."""
    reason = ReasonCode(PacketTypes.CONNACK, identifier=_OF_3_1_1.get(reason.value, reason.value))
    if reason.value == _UNSUPPORTED_PROTOCOL:
        return ProtocolRefused(f"{endpoint} refuses this version of MQTT ({reason}).")
    if reason.value in _TEMPORARY:
        return BrokerUnreachable(f"{endpoint} takes no connections at present ({reason}): try again later.")
    if reason.value == _NO_RETAIN:
        return BrokerRefused(f"{endpoint} refused our last will: {with_advice(reason)}")
    if reason.value in _BAD_CREDENTIALS:
        who = "an anonymous client" if endpoint.user is None else f"user {endpoint.user!r}"
        return BrokerRefused(f"{endpoint} refused {who} ({reason}): check user and password.")
    return BrokerRefused(f"{endpoint} refused client {options.client_id!r} ({reason}).")


def with_advice(reason: ReasonCode) -> str:
    """A broker's reason, and what to do about it."""
    advice = _ADVICE.get(reason.value)
    return f"{reason}: {advice}." if advice else f"{reason}."


def ended_because(reason: ReasonCode, properties: Properties | None) -> str:
    """Why the broker ended a connection, with its own text and the address that it refers to, if any."""
    said = [str(getattr(properties, name, "")) for name in ("ReasonString", "ServerReference")]
    return " ".join([with_advice(reason), *(f"It says {text!r}." for text in said if text)])


def disconnected(endpoint: Endpoint, alert: str = "") -> BrokerError:
    """The error for a broker that disconnects on every version of CONNECT; `alert` is its TLS alert."""
    if alert:
        return error_for_alert(endpoint, alert)
    if endpoint.tls is not None and endpoint.tls.certfile is not None:
        return BrokerUnreachable(
            f"{endpoint} hung up before answering: is it an MQTT broker, and does it trust {endpoint.tls.certfile}?"
        )
    want = "a client certificate" if endpoint.tls else "TLS (mqtts://)"
    return BrokerUnreachable(f"{endpoint} hung up before answering: is it an MQTT broker, and does it want {want}?")


def silent(endpoint: Endpoint, options: Options) -> Unanswered:
    """The error for a server that accepts a connection and does not answer."""
    return Unanswered(
        f"{endpoint} took the connection and did not answer within {options.timeout:g} s: is it an MQTT broker?"
    )


def unreachable(endpoint: Endpoint, options: Options, error: BaseException) -> BrokerError:
    """The error for an exception while opening the socket."""
    match error:
        case ssl.SSLError():
            return not_agreed(endpoint, error)
        case ConnectionAbortedError() if endpoint.tls is not None:
            return disconnected(endpoint)
        case ConnectionResetError() if endpoint.tls is not None:
            return not_agreed(endpoint, error)
        case socket.gaierror() if "%" in endpoint.host:
            return BrokerUnreachable(
                f"{endpoint} cannot be resolved: is {endpoint.host.partition('%')[2]!r} an interface of this machine?"
            )
        case OSError(errno=errno.EINVAL) if endpoint.host.startswith("fe80:") and "%" not in endpoint.host:
            return BrokerUnreachable(
                f"{endpoint} is good on one network only: name the interface, as in [{endpoint.host}%25eth0]."
            )
        case socket.gaierror():
            return BrokerUnreachable(f"The host name {endpoint.host!r} cannot be resolved: check its spelling.")
        case ConnectionRefusedError():
            return BrokerUnreachable(f"Nothing listens at {endpoint}: start the broker or correct the address.")
        case TimeoutError():
            return BrokerUnreachable(
                f"{endpoint} does not answer within {options.timeout:g} s: check the address and the firewall."
            )
        case WebsocketConnectionError():
            return BrokerUnreachable(
                f"{endpoint} does not speak MQTT over websockets ({error}): check port and path"
                f"{'.' if endpoint.tls else ', and whether it wants TLS (wss://).'}"
            )
        case _:
            return BrokerUnreachable(f"{endpoint} cannot be reached: {error}.")
