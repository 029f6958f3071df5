"""The embedded broker's side of one connection: bytes to packets, and actions to bytes."""

import asyncio
import logging
from collections import deque
from typing import Protocol

from midge.broker.embedded import packets
from midge.broker.embedded.mqtt_types import ProtocolError, Reason
from midge.broker.embedded.routing import Deliver
from midge.broker.embedded.service_rules import ServiceRules

logger = logging.getLogger(__name__)

CONNECT_TIMEOUT = 10.0
"""Seconds that a peer has for its CONNECT."""
CLOSE_TIMEOUT = 2.0
"""Seconds that a peer has to read pending bytes before a close."""
KEEPALIVE_PATIENCE = 1.5
"""Keepalive periods of silence after which a client is disconnected; MQTT 5, section 3.1.2.10."""
PIECE = 128 * 1024
"""Bytes passed to the transport at once, because it copies what the socket does not take."""
JOIN_BELOW = 16 * 1024
"""Payloads below this size are joined with their header: saving a system call is worth the copy."""


class Broker(Protocol):
    """What a connection needs from the broker."""

    maximum_packet_size: int
    maximum_buffered: int
    rules: ServiceRules | None

    def handle(self, client: "EmbeddedClient", packet: packets.Packet) -> None: ...

    def gone(self, client: "EmbeddedClient", *, goodbye: bool) -> None: ...


class EmbeddedClient(asyncio.Protocol):
    """One connection, from accepting it to its end."""

    def __init__(self, broker: Broker) -> None:
        self.client_id: str | None = None
        """None until CONNECT was accepted."""
        self.version: packets.Version = 4
        self.maximum_packet_size: int | None = None
        """The largest packet that the client accepts."""
        self._broker = broker
        self._parser = packets.Parser(broker.maximum_packet_size)
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._closed = False
        self._paused = False
        self._outgoing: deque[bytes | memoryview] = deque()
        self._outgoing_bytes = 0
        self._last_heard = 0.0
        self._silence: float | None = None
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=2 * PIECE)
        self._timer = self._loop.call_later(CONNECT_TIMEOUT, self.close)

    def data_received(self, data: bytes) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        self._last_heard = self._loop.time()
        try:
            for packet in self._parser.feed(data):
                if self._closed:
                    return
                self._broker.handle(self, packet)
        except ProtocolError as error:
            level = logging.INFO if self._broker.rules is None else logging.WARNING
            logger.log(level, "Client %s broke the protocol: %s", self.client_id, error)
            self.refuse(error.reason)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # asyncio's signature
        self._leave(goodbye=False)

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._flush()

    def accepted(self, client_id: str, keepalive: int) -> None:
        """Start the keepalive timer after CONNECT was accepted; `keepalive` is in seconds, 0 for none."""
        self.client_id = client_id
        if self._timer is not None:
            self._timer.cancel()
        if keepalive:
            self._silence = keepalive * KEEPALIVE_PATIENCE
            self._watch()

    def send(self, packet: bytes) -> None:
        """Send a small packet."""
        if not self._closed:
            self._outgoing.append(packet)
            self._outgoing_bytes += len(packet)
            self._flush()

    def deliver(self, action: Deliver) -> bool:
        """Send a message; False if it is larger than the client accepts, and was skipped."""
        message = action.message
        head = packets.publish_head(
            self.version,
            packets.Publish(
                message.topic,
                message.payload,
                action.qos,
                action.retain,
                action.duplicate,
                action.packet_id,
                message.properties,
            ),
        )
        size = len(head) + len(message.payload)
        if self.maximum_packet_size is not None and size > self.maximum_packet_size:
            return False
        if self._outgoing_bytes + size > self._broker.maximum_buffered and self._outgoing:
            if action.qos:
                logger.warning("Client %s takes too little of what is sent to it; disconnecting it", self.client_id)
                self.refuse(Reason.QUOTA_EXCEEDED)
            return True
        if len(message.payload) < JOIN_BELOW:
            self.send(head + message.payload)
        else:
            self.send(head)
            self.send(message.payload)
        return True

    def refuse(self, reason: Reason) -> None:
        """End the connection with a reason code, if the protocol has one for it."""
        if self.client_id is None and reason is Reason.UNSUPPORTED_PROTOCOL_VERSION:
            self.send(packets.connack(4, 1))  # every version of a client understands this answer
        elif self.client_id is not None and self.version == 5 and not self._outgoing:
            self.send(packets.disconnect(reason))
        self.close()

    def close(self, *, goodbye: bool = False) -> None:
        """End the connection. `goodbye`: the client asked for it, so its will is discarded."""
        self._leave(goodbye=goodbye)
        if self._transport is not None and not self._transport.is_closing():
            self._transport.close()
            self._timer = self._loop.call_later(CLOSE_TIMEOUT, self._transport.abort)

    def _leave(self, *, goodbye: bool) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._outgoing.clear()
        self._outgoing_bytes = 0
        if not self._closed:
            self._closed = True
            self._broker.gone(self, goodbye=goodbye)

    def _flush(self) -> None:
        transport = self._transport
        while self._outgoing and not self._paused and transport is not None and not self._closed:
            piece = self._outgoing.popleft()
            if len(piece) > PIECE:
                view = memoryview(piece)
                self._outgoing.appendleft(view[PIECE:])
                piece = view[:PIECE]
            self._outgoing_bytes -= len(piece)
            transport.write(piece)

    def _watch(self) -> None:
        assert self._silence is not None
        left = self._last_heard + self._silence - self._loop.time()
        if left <= 0:
            logger.info("Client %s is silent beyond its keepalive", self.client_id)
            self.refuse(Reason.KEEPALIVE_TIMEOUT)
        else:
            self._timer = self._loop.call_later(left, self._watch)
