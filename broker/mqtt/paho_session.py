"""A `Connection` on top of a paho client, independent of how its bytes are moved.

It adds what paho lacks: a negative PUBACK is raised, and the broker's Maximum Packet Size and Receive Maximum are
respected.
"""
# ruff: noqa: ARG002  # paho fixes the arguments of its callbacks

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags, MQTTMessage
from paho.mqtt.enums import MQTTErrorCode
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from midge.broker.mqtt.connection import (
    BrokerRefused,
    ConnectionLost,
    Delivery,
    Limits,
    Options,
    Payload,
    PublishRefused,
    QoS,
    SubscribeRefused,
)
from midge.broker.mqtt.endpoint import Endpoint
from midge.broker.mqtt.pacing import PublishPace
from midge.broker.mqtt.paho_errors import (
    FAILURE,
    TAKEN_OVER,
    ProtocolRefused,
    check_packet_size,
    connect_refused,
    ended_because,
    read_limits,
    with_advice,
)
from midge.broker.mqtt.receive_queue import Inbox
from midge.broker.mqtt.services import NO_SERVICE
from midge.broker.mqtt.topic_filters import check_filter, check_topic

CLOSED_HERE = "The connection was closed here."


@dataclass(eq=False, slots=True)
class _Outgoing:
    topic: str
    payload: bytes | bytearray
    qos: QoS
    retain: bool
    done: asyncio.Future[None]


class PahoSession:
    """The contract of `broker.mqtt.connection.Connection`, for one paho client and one connection.

    The client must acknowledge manually (`manual_ack`) and have no window of its own (`max_inflight_messages` 0): the
    window here is the broker's, paho's would be a guess.
    """

    def __init__(self, client: Client, endpoint: Endpoint, options: Options) -> None:
        self.client = client
        self.connected: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when the broker has accepted the connection; holds the error if it has not."""
        self.ended = asyncio.Event()
        """Set when the connection is over, for whatever reason."""
        self.closing = False
        """True once we are disconnecting."""
        self.dropped: Callable[[], None] = lambda: None
        """Closes the socket at once."""
        self.reports = 0
        """Number of messages and acknowledgements that paho has reported: if it grew, a packet was read, and more may
        follow."""
        self._endpoint = endpoint
        self.options = options
        self._limits = Limits(client_id=options.client_id)
        self._inbox = Inbox()
        self._queued: deque[_Outgoing] = deque()
        self._in_flight: dict[int, asyncio.Future[None]] = {}
        self._sizes: dict[int, int] = {}
        """Bytes of each message in flight."""
        self._pace = PublishPace(NO_SERVICE)
        self._later: asyncio.TimerHandle | None = None
        """Goes on with queued messages once the pace allows it."""
        self._filters: set[str] = set()
        self._subscribing: dict[int, asyncio.Future[list[ReasonCode]]] = {}
        client.on_connect = self.on_connect
        client.on_disconnect = self.on_disconnect
        client.on_message = self._on_message
        client.on_publish = self._on_publish
        client.on_subscribe = self._on_subscribe
        client.on_unsubscribe = self._on_unsubscribe

    @property
    def limits(self) -> Limits:
        return self._limits

    async def publish(self, topic: str, payload: Payload, *, qos: QoS = 1, retain: bool = False) -> None:
        self._inbox.raise_if_lost()
        if isinstance(payload, memoryview):
            payload = bytes(payload)  # paho takes no views
        check_topic(topic)
        check_packet_size(self._limits, topic, len(payload), qos)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queued.append(_Outgoing(topic, payload, qos, retain, done))
        self._send_queued()
        await done

    async def subscribe(self, *filters: str, qos: QoS = 1) -> None:
        self._inbox.raise_if_lost()
        for each in filters:
            check_filter(each)
        most = self._limits.service.subscriptions
        if most is not None and len(self._filters.union(filters)) > most:
            raise SubscribeRefused(
                f"The broker takes {most} subscriptions of a client, and {filters[0]!r} is too many."
            )
        self._filters.update(filters)
        _, mid = self.client.subscribe([(each, int(qos)) for each in filters])
        codes = await self._answer("SUBSCRIBE", mid)
        for each, code in zip(filters, codes, strict=True):
            if code.value >= FAILURE:
                self._filters.difference_update(filters)
                raise SubscribeRefused(
                    f"The broker refused the subscription to {each!r} ({code}): give {self._who} the right to read it."
                )

    def lift_limit(self) -> None:
        """Ignore the broker's announced packet limit, to test whether it is enforced."""
        self._limits = replace(self._limits, maximum_packet_size=None)

    async def subscribe_to_new(self, topic_filter: str) -> None:
        """Subscribe at QoS 0, without retained messages if the protocol can say so (MQTT 5, section 3.8.3.1).

        Raises:
            SubscribeRefused: the broker refused it.
            ConnectionLost: the connection ended.
        """
        self._inbox.raise_if_lost()
        options = SubscribeOptions(qos=0, retainHandling=SubscribeOptions.RETAIN_DO_NOT_SEND)
        if self._limits.protocol == 5:
            _, mid = self.client.subscribe(topic_filter, options=options)
        else:
            _, mid = self.client.subscribe(topic_filter, 0)
        codes = await self._answer("SUBSCRIBE", mid)
        if codes[0].value >= FAILURE:
            raise SubscribeRefused(f"The broker refused the subscription to {topic_filter!r} ({codes[0]}).")

    async def unsubscribe(self, *filters: str) -> None:
        self._inbox.raise_if_lost()
        _, mid = self.client.unsubscribe(list(filters))
        await self._answer("UNSUBSCRIBE", mid)
        self._filters.difference_update(filters)

    def messages(self) -> AsyncIterator[Delivery]:
        return self._inbox.messages()

    def waiting(self) -> Sequence[Delivery]:
        return self._inbox.waiting()

    def ack(self, delivery: Delivery) -> None:
        for mid in self._inbox.settle(delivery):
            self.client.ack(mid, 1)

    def abort(self, why: str) -> None:
        self.lose(why)
        self.dropped()

    def lose(self, message: str, *, reason: int = 0) -> None:
        """Mark the connection as ended and wake all waiters. The first reason is kept."""
        if self._inbox.loss is not None:
            return
        self._inbox.end(ConnectionLost(message, taken_over=reason == TAKEN_OVER, reason=reason))
        if not self.connected.done():
            self.connected.set_exception(
                ProtocolRefused(f"{self._endpoint} closed the connection before it answered CONNECT.")
            )
        waiting: list[asyncio.Future[Any]] = [outgoing.done for outgoing in self._queued]
        waiting += [*self._in_flight.values(), *self._subscribing.values()]
        for future in waiting:
            if not future.done():
                future.set_exception(self._inbox.lost())
        self._queued.clear()
        self._in_flight.clear()
        if self._later is not None:
            self._later.cancel()
        self.ended.set()

    # paho's callbacks

    def on_connect(
        self, client: Client, userdata: Any, flags: ConnectFlags, reason: ReasonCode, properties: Properties | None
    ) -> None:
        """Handle the broker's answer to CONNECT."""
        if self.connected.done():
            return
        if reason.value != 0:
            self.connected.set_exception(connect_refused(self._endpoint, self.options, reason))
            return
        self._limits = read_limits(client, properties, self.options, self._endpoint.service)
        self._pace = PublishPace(self._limits.service)
        if getattr(properties, "MaximumQoS", 1) == 0:
            self.connected.set_exception(BrokerRefused(f"{self._endpoint} offers QoS 0 only; QoS 1 is needed."))
            return
        self.connected.set_result(None)

    def on_disconnect(
        self, client: Client, userdata: Any, flags: DisconnectFlags, reason: ReasonCode, properties: Properties | None
    ) -> None:
        """Handle the end of the connection, announced or not."""
        if flags.is_disconnect_packet_from_server:
            why = f"another client came with the same client id {self._who!r}."
            if reason.value != TAKEN_OVER:
                why = ended_because(reason, properties)
            self.lose(f"{self._endpoint} ended the connection: {why}", reason=reason.value)
        elif self.closing:
            self.lose(CLOSED_HERE)
        else:
            self.lose(f"The connection to {self._endpoint} is gone ({reason}).")

    def _on_message(self, client: Client, userdata: Any, message: MQTTMessage) -> None:
        self.reports += 1
        token = self._inbox.expect_ack(message.mid) if message.qos == 1 else None
        payload = message.payload if isinstance(message.payload, bytes) else bytes(message.payload)
        if self.options.largest is not None and len(payload) > self.options.largest:
            payload = payload[:1]
        self._inbox.put(Delivery(message.topic, payload, message.qos, message.retain, message.dup, token))

    def _on_publish(self, client: Client, userdata: Any, mid: int, reason: ReasonCode, properties: Properties) -> None:
        self.reports += 1
        future = self._in_flight.pop(mid, None)
        self._sizes.pop(mid, None)
        if future is None:
            return
        if not future.done():
            if reason.value >= FAILURE:
                why = f"The broker refused the message: {with_advice(reason)}"
                future.set_exception(PublishRefused(why, reason.value))
            else:
                future.set_result(None)
        if self._queued:
            # Not here: paho holds its lock on outgoing messages and has yet to remove this one.
            asyncio.get_running_loop().call_soon(self._send_queued)

    def _on_subscribe(
        self, client: Client, userdata: Any, mid: int, codes: list[ReasonCode], properties: Properties | None
    ) -> None:
        future = self._subscribing.pop(mid, None)
        if future is not None and not future.done():
            future.set_result(codes)

    def _on_unsubscribe(
        self,
        client: Client,
        userdata: Any,
        mid: int,
        codes: ReasonCode | list[ReasonCode],
        properties: Properties | None,
    ) -> None:
        self._on_subscribe(client, userdata, mid, codes if isinstance(codes, list) else [codes], properties)

    # private helpers

    @property
    def _who(self) -> str:
        return self._limits.client_id

    def _send_queued(self) -> None:
        """Pass queued messages to paho, in order, as far as the broker's window allows."""
        while self._queued and self._inbox.loss is None:
            outgoing = self._queued[0]
            if outgoing.done.done():  # its caller was cancelled
                self._queued.popleft()
                continue
            if outgoing.qos == 1 and not self._fits(len(outgoing.payload)):
                return
            now = asyncio.get_running_loop().time()
            if wait := self._pace.wait(now):
                if self._later is not None:
                    self._later.cancel()
                self._later = asyncio.get_running_loop().call_at(now + wait, self._send_queued)
                return
            info = self.client.publish(outgoing.topic, outgoing.payload, outgoing.qos, outgoing.retain)
            if info.rc == MQTTErrorCode.MQTT_ERR_QUEUE_SIZE:
                continue  # the packet id is still in flight: paho takes the next one
            self._queued.popleft()
            self._pace.sent(len(outgoing.payload))
            if info.rc != MQTTErrorCode.MQTT_ERR_SUCCESS:
                self.lose(f"The connection to {self._endpoint} is gone.")
                outgoing.done.set_exception(self._inbox.lost())
            elif outgoing.qos == 1:
                self._in_flight[info.mid] = outgoing.done
                self._sizes[info.mid] = len(outgoing.payload)
            else:
                outgoing.done.set_result(None)

    def _fits(self, size: int) -> bool:
        """Whether another message of this size may be in flight."""
        most = self._limits.service.in_flight_bytes
        if most is not None and self._sizes and sum(self._sizes.values()) + size > most:
            return False
        return len(self._in_flight) < self._limits.receive_maximum

    async def _answer(self, what: str, mid: int | None) -> list[ReasonCode]:
        if mid is None:
            self.lose(f"The connection to {self._endpoint} is gone.")
            raise self._inbox.lost()
        future: asyncio.Future[list[ReasonCode]] = asyncio.get_running_loop().create_future()
        self._subscribing[mid] = future
        try:
            async with asyncio.timeout(self.options.timeout):
                return await future
        except TimeoutError:
            self.lose(f"{self._endpoint} did not answer {what} within {self.options.timeout:g} s.")
            raise self._inbox.lost() from None
        finally:
            self._subscribing.pop(mid, None)
