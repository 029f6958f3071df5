"""A small MQTT broker of our own, for demonstrations of about 100 devices and for tests.

MQTT 3.1.1 and 5 with QoS 0 and 1 over TCP, sessions and retained messages in memory; no TLS, no websockets, no access
control beyond a password. For production, run Mosquitto or another real broker.

With `--limits NAME` it has the limits of a hosted broker (`midge.broker.mqtt.services`) and disconnects whoever exceeds
one, with a line in its log.

`python -m midge.broker.embedded.server --port 0` prints `{"host": …, "port": …}` on one line once it serves, and ends
with its standard input or a SIGTERM, so that it does not outlive the program that started it.
"""

import argparse
import asyncio
import hmac
import json
import os
import secrets
import signal
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from midge.broker.embedded import packets
from midge.broker.embedded.client import EmbeddedClient
from midge.broker.embedded.mqtt_types import Property, PropertyValue, ProtocolError, Reason
from midge.broker.embedded.routing import DEFAULT_WINDOW, Action, Close, Deliver, RoutedMessage, Router
from midge.broker.embedded.service_rules import ACKNOWLEDGE_AFTER, ServiceRules
from midge.broker.mqtt.services import SERVICES, ServiceLimits

DEFAULT_MAXIMUM_PACKET_SIZE = 16 * 1024 * 1024
NO_EXPIRY = 0xFFFFFFFF
"""A session expiry of never; MQTT 5, section 3.1.2.11.2."""
NOT_ACCEPTED_311 = {
    Reason.UNSUPPORTED_PROTOCOL_VERSION: 1,
    Reason.CLIENT_ID_NOT_VALID: 2,
    Reason.BAD_USER_OR_PASSWORD: 4,
}
"""The return codes of 3.1.1 for reasons of 5; section 3.2.2.3."""


class EmbeddedBroker:
    """The broker. Serves within its `async with` block."""

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        users: Mapping[str, str] | None = None,
        maximum_packet_size: int = DEFAULT_MAXIMUM_PACKET_SIZE,
        maximum_buffered: int = 64 * 1024 * 1024,
        versions: Sequence[int] = (4, 5),
        limits: ServiceLimits | None = None,
    ) -> None:
        """Prepare a broker.

        Args:
            host: the address to listen at.
            port: the port to listen at; 0 takes a free one.
            users: passwords by user name; None disables authentication.
            maximum_packet_size: in bytes; announced in CONNACK.
            maximum_buffered: bytes written to a client that its socket has not taken; a client that lags further
                behind loses messages of QoS 0, or is disconnected.
            versions: protocol versions to speak: 4 is MQTT 3.1.1, 5 is 5.
            limits: of a hosted broker, to be enforced; its largest packet replaces `maximum_packet_size`.
        """
        self.host = host
        self.port = port
        self.rules = None if limits is None else ServiceRules(limits)
        self.maximum_packet_size = (None if limits is None else limits.packet) or maximum_packet_size
        self.maximum_buffered = maximum_buffered
        self._users = users
        self._versions = versions
        self._router = Router()
        self._clients: dict[str, EmbeddedClient] = {}
        self._connections: set[EmbeddedClient] = set()
        self._expiry: dict[str, int] = {}
        self._expiring: dict[str, asyncio.TimerHandle] = {}
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        self._server = await asyncio.get_running_loop().create_server(self._accept, self.host, self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for connection in list(self._connections):
            connection.refuse(Reason.SERVER_SHUTTING_DOWN)
        for timer in self._expiring.values():
            timer.cancel()
        await self._server.wait_closed()

    def _accept(self) -> EmbeddedClient:
        client = EmbeddedClient(self)
        self._connections.add(client)
        return client

    def handle(self, client: EmbeddedClient, packet: packets.Packet) -> None:
        """Handle one packet of a client.

        Raises:
            ProtocolError: it uses a feature that is not offered.
        """
        match packet:
            case packets.Connect():
                self._connect(client, packet)
            case packets.Publish():
                if self.rules is not None:
                    self.rules.published(self._id(client), packet, asyncio.get_running_loop().time())
                message = RoutedMessage(packet.topic, packet.payload, packet.qos, packet.retain, packet.properties)
                self._perform(self._router.publish(message))
                if packet.qos and self.rules is None:
                    client.send(packets.puback(packet.packet_id))
                elif packet.qos:
                    loop = asyncio.get_running_loop()
                    loop.call_later(ACKNOWLEDGE_AFTER, self._acknowledge, client, packet.packet_id)
            case packets.Puback():
                self._perform(self._router.acknowledge(self._id(client), packet.packet_id))
            case packets.Subscribe():
                self._subscribe(client, packet)
            case packets.Unsubscribe():
                self._router.unsubscribe(self._id(client), packet.filters)
                if self.rules is not None:
                    self.rules.unsubscribed(self._id(client), packet.filters)
                client.send(packets.unsuback(client.version, packet.packet_id, bytes(len(packet.filters))))
            case packets.Pingreq():
                client.send(packets.PINGRESP)
            case packets.Disconnect():
                if packet.session_expiry is not None:
                    self._expiry[self._id(client)] = packet.session_expiry
                client.close(goodbye=packet.reason == 0)

    def gone(self, client: EmbeddedClient, *, goodbye: bool) -> None:
        """Handle the end of a connection."""
        self._connections.discard(client)
        client_id = client.client_id
        if client_id is None or self._clients.get(client_id) is not client:
            return
        del self._clients[client_id]
        if self.rules is not None:
            self.rules.gone(client_id)
        self._perform(self._router.disconnect(client_id, goodbye=goodbye))
        expiry = self._expiry.pop(client_id, 0)
        if expiry != NO_EXPIRY and self._router.present(client_id):
            loop = asyncio.get_running_loop()
            self._expiring[client_id] = loop.call_later(expiry, self._expire, client_id)

    def _acknowledge(self, client: EmbeddedClient, packet_id: int) -> None:
        """Acknowledge a message under the rules of a service, on the connection that it came over."""
        if self.rules is not None and client.client_id is not None and self._clients.get(client.client_id) is client:
            self.rules.acknowledged(client.client_id, packet_id)
            client.send(packets.puback(packet_id))

    def _expire(self, client_id: str) -> None:
        del self._expiring[client_id]
        self._router.expire(client_id)

    def _connect(self, client: EmbeddedClient, packet: packets.Connect) -> None:
        client.version = packet.version
        refusal = self._refusal(packet)
        if refusal is not None:
            code: int = refusal if packet.version == 5 else NOT_ACCEPTED_311[refusal]
            if refusal is Reason.UNSUPPORTED_PROTOCOL_VERSION:
                client.version = 4  # the answer is in the client's version
                code = 1
            client.send(packets.connack(client.version, code))
            client.close()
            return
        client_id = packet.client_id or f"auto-{secrets.token_hex(8)}"
        found = packet.properties
        expiry = _number(found, Property.SESSION_EXPIRY, 0) if packet.version == 5 else NO_EXPIRY * (not packet.clean)
        present = not packet.clean and self._router.present(client_id)
        will = packet.will
        if client_id in self._expiring:
            self._expiring.pop(client_id).cancel()
        actions = self._router.connect(
            client_id,
            clean=packet.clean,
            persistent=expiry > 0,
            window=_number(found, Property.RECEIVE_MAXIMUM, DEFAULT_WINDOW),
            will=None if will is None else RoutedMessage(will.topic, will.payload, will.qos, will.retain),
        )
        to_others, redelivered = _partition(actions, client_id)
        self._perform(to_others)
        self._clients[client_id] = client
        self._expiry[client_id] = expiry
        client.maximum_packet_size = _number(found, Property.MAXIMUM_PACKET_SIZE, packets.LARGEST)
        client.accepted(client_id, packet.keepalive)
        if self.rules is not None:
            self.rules.connected(client_id, will)
        answer: dict[Property, PropertyValue] = {
            Property.MAXIMUM_QOS: 1,
            Property.MAXIMUM_PACKET_SIZE: self.maximum_packet_size,
            Property.SUBSCRIPTION_IDENTIFIERS_AVAILABLE: 0,
            Property.SHARED_SUBSCRIPTIONS_AVAILABLE: 0,
        }
        if self.rules is not None and self.rules.limits.receive_maximum is not None:
            answer[Property.RECEIVE_MAXIMUM] = self.rules.limits.receive_maximum
        if client_id != packet.client_id:
            answer[Property.ASSIGNED_CLIENT_IDENTIFIER] = client_id
        client.send(packets.connack(packet.version, 0, session_present=present, found=answer))
        self._perform(redelivered)

    def _refusal(self, packet: packets.Connect) -> Reason | None:
        if packet.version not in self._versions:
            return Reason.UNSUPPORTED_PROTOCOL_VERSION
        if Property.AUTHENTICATION_METHOD in packet.properties:
            return Reason.BAD_AUTHENTICATION_METHOD
        if self.rules is not None and not self.rules.acceptable(packet.client_id):
            return Reason.CLIENT_ID_NOT_VALID
        if not packet.client_id and packet.version == 4 and not packet.clean:
            return Reason.CLIENT_ID_NOT_VALID
        if self._users is not None:
            expected = self._users.get(packet.user or "")
            given = packet.password or b""
            if expected is None or not hmac.compare_digest(expected.encode(), given):
                return Reason.BAD_USER_OR_PASSWORD
        return None

    def _subscribe(self, client: EmbeddedClient, packet: packets.Subscribe) -> None:
        if self.rules is not None:
            self.rules.subscribed(self._id(client), [topic_filter for topic_filter, _ in packet.filters])
        reasons = []
        accepted = []
        for topic_filter, options in packet.filters:
            if topic_filter.startswith("$share/"):
                reasons.append(Reason.SHARED_SUBSCRIPTIONS_NOT_SUPPORTED if client.version == 5 else 0x80)
            elif options & ~3:  # no local, retain as published, retain handling
                reasons.append(Reason.IMPLEMENTATION_SPECIFIC)
            else:
                qos = min(options & 3, 1)
                reasons.append(qos)
                accepted.append((topic_filter, qos))
        actions = self._router.subscribe(self._id(client), accepted)
        client.send(packets.suback(client.version, packet.packet_id, reasons))
        self._perform(actions)

    def _perform(self, actions: Sequence[Action]) -> None:
        following = deque(actions)
        while following:
            match following.popleft():
                case Close(client_id):
                    self._clients.pop(client_id).refuse(Reason.SESSION_TAKEN_OVER)
                case Deliver() as action:
                    receiver = self._clients.get(action.client)
                    if receiver is not None and not receiver.deliver(action) and action.qos:
                        # Larger than the client accepts: MQTT 5 discards it as if it had been acknowledged,
                        # [MQTT-3.1.2-25].
                        following.extend(self._router.acknowledge(action.client, action.packet_id))

    @staticmethod
    def _id(client: EmbeddedClient) -> str:
        if client.client_id is None:
            raise ProtocolError("A packet came before the answer to CONNECT.", Reason.PROTOCOL_ERROR)
        return client.client_id


def _partition(actions: Sequence[Action], client_id: str) -> tuple[list[Action], list[Action]]:
    """Split actions into those for others or an older connection, and those that must follow this client's CONNACK."""
    mine: list[Action] = [each for each in actions if isinstance(each, Deliver) and each.client == client_id]
    ids = {id(each) for each in mine}
    return [each for each in actions if id(each) not in ids], mine


def _number(found: Mapping[Property, PropertyValue], name: Property, default: int) -> int:
    value = found.get(name, default)
    assert isinstance(value, int)
    return value


async def _serve(broker: EmbeddedBroker) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)

    def read_standard_input() -> None:
        if not os.read(0, 4096):
            stop.set()

    async with broker:
        sys.stdout.write(json.dumps({"host": broker.host, "port": broker.port}) + "\n")
        sys.stdout.flush()
        with suppress(PermissionError):  # a file or /dev/null cannot be watched: then only signals end us
            loop.add_reader(0, read_standard_input)
        await stop.wait()


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until the standard input closes or a SIGTERM comes."""
    parser = argparse.ArgumentParser(prog="python -m midge.broker.embedded.server", description="A small MQTT broker.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=1883, help="0 takes a free one")
    parser.add_argument("--users", type=Path, help="a JSON file, passwords by user; default: no authentication")
    parser.add_argument("--maximum-packet-size", type=int, default=DEFAULT_MAXIMUM_PACKET_SIZE, help="in bytes")
    parser.add_argument("--limits", choices=list(SERVICES), help="have the limits of this hosted broker")
    parser.add_argument("--only-version", type=int, choices=(4, 5), help="speak MQTT 3.1.1 (4) or 5 only")
    given = parser.parse_args(arguments)
    users = None if given.users is None else json.loads(given.users.read_text())
    versions = (4, 5) if given.only_version is None else (given.only_version,)
    broker = EmbeddedBroker(
        given.host,
        given.port,
        users=users,
        maximum_packet_size=given.maximum_packet_size,
        versions=versions,
        limits=None if given.limits is None else SERVICES[given.limits],
    )
    try:
        asyncio.run(_serve(broker))
    except OSError as error:
        sys.exit(f"The broker cannot listen at {given.host}:{given.port}: {error.strerror or error}.")


if __name__ == "__main__":
    main()
