"""`Connection` without a library: MQTT straight on asyncio's transport, for who has many messages to take.

paho looks at each packet in a dozen calls and sends each acknowledgement by itself. Here the loop reads into one
buffer, all packets in it are taken apart at once, and all that is answered in one turn of the loop leaves in one write.
TCP and TLS; what speaks websockets is paho.
"""

import asyncio
import socket
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Any

from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.reasoncodes import ReasonCode

from broker import client_packets as incoming
from broker.client_packets import Connack, Disconnect, Greeting, Message, Puback, Suback
from broker.connection import (
    BrokerError,
    BrokerRefused,
    Connection,
    ConnectionLost,
    Delivery,
    Done,
    Limits,
    Options,
    Payload,
    PublishRefused,
    QoS,
    SubscribeRefused,
)
from broker.endpoint import Endpoint
from broker.fields import Property, PropertyValue, ProtocolError, text, varint
from broker.filters import check_filter, check_topic
from broker.inbox import Inbox
from broker.packets import Version, puback
from broker.paho_errors import (
    FAILURE,
    TAKEN_OVER,
    ProtocolRefused,
    check_packet_size,
    connect_refused,
    hung_up,
    silent,
    unreachable,
)
from broker.tls import tls_context

CLOSED_HERE = "The connection was closed here."
BUFFER = 2**20
"""Bytes that are read at once, unless told otherwise; a packet that is larger gets a buffer of its own."""
PIECE = 128 * 1024
"""Bytes that are handed to the transport at once, which copies what the socket does not take."""
JOIN_BELOW = 16 * 1024
"""Pieces smaller than this are written together: one system call is worth the copy."""


Line = Callable[[asyncio.BufferedProtocol], asyncio.BaseProtocol]
"""Makes what stands between a connection and its transport: the link of a simulated device."""


def connect(
    endpoint: Endpoint, options: Options, *, buffer: int = BUFFER, line: Line | None = None
) -> AbstractAsyncContextManager[Connection]:
    """Connect to `endpoint`; the connection ends with the block, with a proper goodbye. MQTT 5 where it is spoken.

    Args:
        endpoint: where to.
        options: how.
        buffer: bytes that are read at once: few where thousands of connections hear little.
        line: makes what stands between the connection and its transport; nothing does by default.

    Raises (on entering):
        BrokerUnreachable: nothing serves MQTT there, or it does not answer within `options.timeout`.
        BrokerRefused: the broker, or our check of its certificate, said no.
        ValueError: the endpoint speaks websockets.
    """
    if endpoint.websockets:
        raise ValueError(f"{endpoint} speaks websockets: paho does, this does not.")
    return _connect(endpoint, options, buffer, line)


@asynccontextmanager
async def _connect(
    endpoint: Endpoint, options: Options, buffer: int, line: Line | None
) -> AsyncGenerator[Connection, None]:
    try:
        session = await _open(DirectConnection(endpoint, options, 5, buffer), line)
    except ProtocolRefused:
        try:
            session = await _open(DirectConnection(endpoint, options, 4, buffer), line)
        except ProtocolRefused as error:
            raise hung_up(endpoint) from error
    try:
        yield session
    finally:
        await session.close()


async def _open(session: "DirectConnection", line: Line | None) -> "DirectConnection":
    endpoint, options = session.endpoint, session.options
    context = None if endpoint.tls is None else tls_context(endpoint.tls)
    try:
        async with asyncio.timeout(options.timeout):
            await asyncio.get_running_loop().create_connection(
                lambda: session if line is None else line(session), endpoint.host, endpoint.port, ssl=context
            )
            await session.connected
    except TimeoutError:
        session.drop()
        if session.reached:
            raise silent(endpoint, options) from None
        raise unreachable(endpoint, options, TimeoutError()) from None
    except OSError as error:
        session.drop()
        raise unreachable(endpoint, options, error) from error
    except BaseException:
        session.drop()
        raise
    return session


class _Waiter:
    """Somebody who waits for a PUBACK."""

    __slots__ = ("future",)

    def __init__(self, future: "asyncio.Future[None]") -> None:
        self.future = future

    def __call__(self, error: BrokerError | None) -> None:
        if self.future.done():  # its caller was cancelled
            return
        if error is None:
            self.future.set_result(None)
        else:
            self.future.set_exception(error)


class DirectConnection(asyncio.BufferedProtocol):
    """The contract of `broker.connection.Connection`."""

    def __init__(self, endpoint: Endpoint, options: Options, version: Version, buffer: int = BUFFER) -> None:
        self.endpoint, self.options, self._version = endpoint, options, version
        self._loop = asyncio.get_running_loop()
        self.connected: asyncio.Future[None] = self._loop.create_future()
        """Done when the broker has taken us in; holds the error where it has not."""
        self.reached = False
        """Whether somebody took the connection."""
        self._limits = Limits(client_id=options.client_id)
        self._inbox = Inbox()
        self._transport: asyncio.Transport | None = None
        self._closed = asyncio.Event()
        self._closing = False
        # --- reading: what has come lies in the buffer from start to end
        self._buffer, self._usual = bytearray(buffer), buffer
        self._start = self._end = 0
        # --- writing
        self._pieces: deque[bytes | bytearray | memoryview] = deque()
        self._flushing = False
        self._paused = False
        self._queued: deque[tuple[bytes, Payload, bool, Done]] = deque()
        self._in_flight: dict[int, Done] = {}
        self._answers: dict[int, asyncio.Future[tuple[int, ...]]] = {}
        self._packet_id = 0
        # --- signs of life
        self._keepalive = options.keepalive
        self._wrote = self._heard = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None

    # ------------------------------------------------------------ the transport's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.reached, self._transport = True, transport
        transport.set_write_buffer_limits(high=2 * PIECE)
        raw = transport.get_extra_info("socket")
        if raw is not None and raw.family in (socket.AF_INET, socket.AF_INET6):
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        will = self.options.will
        greeting = Greeting(
            self._keepalive,
            self.options.receive_maximum,
            None if will is None else (will.topic, will.payload, will.qos, will.retain),
            self.endpoint.user,
            self.endpoint.password,
        )
        self._send(incoming.connect(self._version, self.options.client_id, greeting))

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002  # asyncio's signature
        return memoryview(self._buffer)[self._end :]

    def buffer_updated(self, nbytes: int) -> None:
        self._end += nbytes
        self._heard = self._loop.time()
        try:
            self._take_apart()
        except (ProtocolError, IndexError, KeyError):  # KeyError: a reason that MQTT has not
            self._lose("The broker sent what cannot be understood.")
            self.drop()

    def connection_lost(self, exc: Exception | None) -> None:
        self._closed.set()
        why = "" if exc is None else f" ({exc})"
        self._lose(CLOSED_HERE if self._closing else f"The connection to {self.endpoint} is gone{why}.")
        if self._timer is not None:
            self._timer.cancel()

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._flush()

    # ------------------------------------------------------------------------ reading

    def _take_apart(self) -> None:
        """Read all packets that are whole, and make room for the rest."""
        buffer, start, end = self._buffer, self._start, self._end
        view = memoryview(buffer)
        wanted = 0
        try:
            while start < end and self._inbox.loss is None:
                found = incoming.measure(buffer, start, end)
                if found is None:
                    break
                head, stop = found
                if stop > end:
                    wanted = stop - start
                    break
                first = buffer[start]
                packet = incoming.decode(first, view[head:stop], self._version)
                start = stop
                if type(packet) is Message:
                    self._on_message(packet)
                elif type(packet) is Puback:
                    self._on_puback(packet)
                else:
                    self._on_other(packet)
        finally:
            view.release()
        self._start, self._end = start, end
        self._make_room(wanted)

    def _make_room(self, wanted: int) -> None:
        """Move what is left to the front where the packet that it begins would not fit behind it."""
        left = self._end - self._start
        if left == 0:
            self._start = self._end = 0
            if len(self._buffer) > 4 * self._usual:
                self._buffer = bytearray(self._usual)
        elif self._start + max(wanted, left + self._usual // 4) > len(self._buffer):
            kept = self._buffer[self._start : self._end]
            if wanted > len(self._buffer):
                self._buffer = bytearray(wanted)
            self._buffer[:left] = kept
            self._start, self._end = 0, left
            if left == len(self._buffer):
                self._buffer += bytes(self._usual)

    def _on_message(self, message: Message) -> None:
        topic, payload, qos, retain, duplicate, packet_id = message
        token = self._inbox.expect_ack(packet_id) if qos else None
        self._inbox.put(Delivery(topic, payload, qos, retain, duplicate, token))

    def _on_puback(self, packet: Puback) -> None:
        why = ReasonCode(PacketTypes.PUBACK, identifier=packet.reason) if packet.reason else ""
        done = self._in_flight.pop(packet.packet_id, None)
        if done is not None:
            refused = packet.reason >= FAILURE
            done(PublishRefused(f"The broker refused the message: {why}.", packet.reason) if refused else None)
        if self._queued:
            self._send_queued()

    def _on_other(self, packet: incoming.Packet) -> None:
        match packet:
            case Connack(reason, found):
                self._on_connack(reason, found)
            case Suback(packet_id, reasons):
                future = self._answers.pop(packet_id, None)
                if future is not None and not future.done():
                    future.set_result(reasons)
            case Disconnect(reason):
                taken_over = reason == TAKEN_OVER
                why = (
                    f"another client came with the same client id {self._limits.client_id!r}"
                    if taken_over
                    else str(ReasonCode(PacketTypes.DISCONNECT, identifier=reason))
                )
                self._lose(f"{self.endpoint} ended the connection: {why}.", taken_over=taken_over)
                self.drop()
            case _:
                pass  # a PINGRESP: that it came is all

    def _on_connack(self, reason: int, found: Any) -> None:
        if self.connected.done():
            raise ProtocolError("CONNACK comes once.")
        if 0 < reason < FAILURE:  # a return code of 3.1.1, which an older broker gives whatever it was asked in
            reason = {1: 0x84, 2: 0x85, 3: 0x88, 4: 0x86, 5: 0x87}.get(reason, 0x80)
        if reason >= FAILURE:
            code = ReasonCode(PacketTypes.CONNACK, identifier=reason)
            self.connected.set_exception(connect_refused(self.endpoint, self.options, code))
            return
        if found.get(Property.MAXIMUM_QOS, 1) == 0:
            self.connected.set_exception(BrokerRefused(f"{self.endpoint} offers QoS 0 only; QoS 1 is needed."))
            return
        self._limits = _limits(self._version, found, self.options)
        self._keepalive = _number(found, Property.SERVER_KEEPALIVE, self._keepalive)
        self.connected.set_result(None)
        self._watch()

    # ------------------------------------------------------------------- the contract

    @property
    def limits(self) -> Limits:
        return self._limits

    async def publish(self, topic: str, payload: Payload, *, qos: QoS = 1, retain: bool = False) -> None:
        if qos == 1:
            waiter = _Waiter(self._loop.create_future())
            self.post(topic, payload, retain=retain, done=waiter)
            await waiter.future
        else:
            self._write_publish(self._checked(topic, payload, qos), payload, 0, retain=retain)

    def post(self, topic: str, payload: Payload, *, retain: bool, done: Done) -> None:
        """As `broker.connection.Posting` has it."""
        name = self._checked(topic, payload, 1)
        if self._queued or len(self._in_flight) >= self._limits.receive_maximum:
            self._queued.append((name, payload, retain, done))
        else:
            self._write_publish(name, payload, self._under_way(done), retain=retain)

    def _checked(self, topic: str, payload: Payload, qos: QoS) -> bytes:
        """The topic as it is spelled."""
        self._inbox.raise_if_lost()
        check_topic(topic)
        check_packet_size(self._limits, topic, len(payload), qos)
        return text(topic)

    async def subscribe(self, *filters: str, qos: QoS = 1) -> None:
        for each in filters:
            check_filter(each)
        packet_id, answer = self._ask()
        self._send(incoming.subscribe(self._version, packet_id, filters, qos))
        for each, reason in zip(filters, await self._answered("SUBSCRIBE", packet_id, answer), strict=True):
            if reason >= FAILURE:
                code = ReasonCode(PacketTypes.SUBACK, identifier=reason)
                raise SubscribeRefused(
                    f"The broker refused the subscription to {each!r} ({code}): give {self._limits.client_id} the "
                    "right to read it."
                )

    async def unsubscribe(self, *filters: str) -> None:
        packet_id, answer = self._ask()
        self._send(incoming.unsubscribe(self._version, packet_id, filters))
        await self._answered("UNSUBSCRIBE", packet_id, answer)

    def messages(self) -> AsyncIterator[Delivery]:
        return self._inbox.messages()

    def waiting(self) -> Sequence[Delivery]:
        return self._inbox.waiting()

    def ack(self, delivery: Delivery) -> None:
        packet_id = self._inbox.settle(delivery)
        if packet_id is not None:
            self._send(puback(packet_id))

    async def close(self) -> None:
        """Say goodbye behind what is still being sent, for no longer than the timeout, and close."""
        self._closing = True
        transport = self._transport
        try:
            if transport is not None and not self._closed.is_set():
                self._send(incoming.GOODBYE)
                self._flush()
                async with asyncio.timeout(self.options.timeout):
                    await self._closed.wait()
        except TimeoutError:
            pass
        finally:
            self.drop()
            with suppress(TimeoutError):
                async with asyncio.timeout(1):
                    await self._closed.wait()

    def drop(self) -> None:
        """Close at once. Without a goodbye before, the broker publishes our will."""
        self._lose(CLOSED_HERE)
        if self._timer is not None:
            self._timer.cancel()
        if self._transport is None:
            self._closed.set()
        elif not self._closed.is_set():
            self._transport.abort()
        if self.connected.done() and not self.connected.cancelled():
            self.connected.exception()  # seen

    # ------------------------------------------------------------------------ writing

    def _next_id(self) -> int:
        while True:
            self._packet_id = self._packet_id % 0xFFFF + 1
            if self._packet_id not in self._in_flight and self._packet_id not in self._answers:
                return self._packet_id

    def _under_way(self, done: Done) -> int:
        packet_id = self._next_id()
        self._in_flight[packet_id] = done
        return packet_id

    def _send_queued(self) -> None:
        """Send what the broker's window lets through, in order."""
        while self._queued and len(self._in_flight) < self._limits.receive_maximum:
            name, payload, retain, done = self._queued.popleft()
            if not (isinstance(done, _Waiter) and done.future.done()):  # else its caller was cancelled
                self._write_publish(name, payload, self._under_way(done), retain=retain)

    def _write_publish(self, name: bytes, payload: Payload, packet_id: int, *, retain: bool) -> None:
        number = packet_id.to_bytes(2, "big") if packet_id else b""
        end = b"\0" if self._version == 5 else b""
        first = 0x30 | bool(packet_id) << 1 | retain
        length = len(name) + len(number) + len(end) + len(payload)
        head = b"".join((bytes((first,)), varint(length), name, number, end))
        if len(payload) < JOIN_BELOW:
            self._send(b"".join((head, payload)))
        else:
            self._send(head)
            self._send(payload)

    def _send(self, piece: Payload) -> None:
        """Hand over in this turn of the loop, together with all else that is."""
        self._pieces.append(piece)
        if not self._flushing and not self._paused:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        transport = self._transport
        if transport is None or self._closed.is_set():
            return
        self._wrote = self._loop.time()
        pieces = self._pieces
        while pieces and not self._paused:
            small: list[Payload] = []
            size = 0
            while pieces and len(pieces[0]) < JOIN_BELOW and size < PIECE:
                size += len(pieces[0])
                small.append(pieces.popleft())
            if small:
                transport.write(small[0] if len(small) == 1 else b"".join(small))
                continue
            view = memoryview(pieces.popleft())
            if len(view) > PIECE:
                pieces.appendleft(view[PIECE:])
            transport.write(view[:PIECE])
        if self._closing and not pieces:
            transport.close()

    # -------------------------------------------------------------------------- the rest

    def _watch(self) -> None:
        """See that something is sent in each keepalive period, and that something comes back."""
        if not self._keepalive or self._inbox.loss is not None:
            return
        now = self._loop.time()
        if now - self._heard > 1.5 * self._keepalive + 1:
            self._lose(f"The connection to {self.endpoint} is gone (nothing came for {now - self._heard:.0f} s).")
            self.drop()
            return
        if now - min(self._wrote, self._heard) >= 0.7 * self._keepalive:
            self._send(incoming.PINGREQ)
        self._timer = self._loop.call_later(self._keepalive / 5, self._watch)

    def _ask(self) -> "tuple[int, asyncio.Future[tuple[int, ...]]]":
        self._inbox.raise_if_lost()
        packet_id = self._next_id()
        answer = self._answers[packet_id] = self._loop.create_future()
        return packet_id, answer

    async def _answered(self, what: str, packet_id: int, answer: "asyncio.Future[tuple[int, ...]]") -> tuple[int, ...]:
        try:
            async with asyncio.timeout(self.options.timeout):
                return await answer
        except TimeoutError:
            self._lose(f"{self.endpoint} did not answer {what} within {self.options.timeout:g} s.")
            self.drop()
            raise self._inbox.lost() from None
        finally:
            self._answers.pop(packet_id, None)

    def _lose(self, message: str, *, taken_over: bool = False) -> None:
        """Declare the connection over and wake everybody who waits. The first reason stays."""
        if self._inbox.loss is not None:
            return
        self._inbox.end(ConnectionLost(message, taken_over=taken_over))
        if not self.connected.done():
            self.connected.set_exception(
                ProtocolRefused(f"{self.endpoint} closed the connection before it answered CONNECT.")
            )
        told = [*self._in_flight.values(), *(done for *_, done in self._queued)]
        self._queued.clear()
        self._in_flight.clear()
        for done in told:
            done(self._inbox.lost())
        for future in self._answers.values():
            if not future.done():
                future.set_exception(self._inbox.lost())


def _number(found: "dict[Property, PropertyValue]", name: Property, otherwise: int) -> int:
    value = found.get(name, otherwise)
    return value if isinstance(value, int) else otherwise


def _limits(version: Version, found: "dict[Property, PropertyValue]", options: Options) -> Limits:
    size = found.get(Property.MAXIMUM_PACKET_SIZE)
    assigned = found.get(Property.ASSIGNED_CLIENT_IDENTIFIER)
    return Limits(
        protocol=version,
        maximum_packet_size=size if isinstance(size, int) else None,
        receive_maximum=_number(found, Property.RECEIVE_MAXIMUM, 65535),
        retain_available=bool(found.get(Property.RETAIN_AVAILABLE, 1)),
        client_id=assigned if isinstance(assigned, str) else options.client_id,
    )
