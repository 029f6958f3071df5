"""`Connection` on aiomqtt 2.

aiomqtt connects, drives the socket and says goodbye. What it lacks is done with the paho client that it wraps: manual
acknowledgement, refusals in PUBACK, the broker's limits, publishing without a deadline of ten seconds. These are
private names of aiomqtt 2; a test names each of them and fails when one goes.
"""
# ruff: noqa: SLF001

import asyncio
import logging
import socket
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Any

import aiomqtt
from paho.mqtt.enums import MQTTProtocolVersion

from broker.connection import BrokerError, Connection, Options
from broker.endpoint import Endpoint
from broker.paho_errors import ProtocolRefused, clean_start, connect_properties, hung_up, silent, unreachable
from broker.paho_session import CLOSED_HERE, PahoSession
from broker.tls import tls_context

logger = logging.getLogger(__name__)

_libraries = logging.getLogger(f"{__name__}.libraries")
_libraries.setLevel(logging.CRITICAL)  # aiomqtt and paho log as errors what they also report, and what we then raise


def connect(endpoint: Endpoint, options: Options) -> AbstractAsyncContextManager[Connection]:
    """Connect to `endpoint`; the connection ends with the block, with a proper goodbye.

    Raises (on entering):
        BrokerUnreachable: nothing serves MQTT there, or it does not answer within `options.timeout`.
        BrokerRefused: the broker, or our check of its certificate, said no.
    """
    return _connect(endpoint, options)


@asynccontextmanager
async def _connect(endpoint: Endpoint, options: Options) -> AsyncGenerator[Connection, None]:
    try:
        link = await _Link.open(endpoint, options, aiomqtt.ProtocolVersion.V5)
    except ProtocolRefused:
        try:
            link = await _Link.open(endpoint, options, aiomqtt.ProtocolVersion.V311)
        except ProtocolRefused as error:
            raise hung_up(endpoint) from error
    try:
        yield link.session
    finally:
        await link.close()


class _Link:
    """An aiomqtt client whose callbacks go to our session first."""

    def __init__(self, endpoint: Endpoint, options: Options, protocol: aiomqtt.ProtocolVersion) -> None:
        will = options.will
        self.aiomqtt = aiomqtt.Client(
            endpoint.host,
            endpoint.port,
            username=endpoint.user,
            password=endpoint.password,
            logger=_libraries,
            identifier=options.client_id,
            protocol=protocol,
            will=None if will is None else aiomqtt.Will(will.topic, will.payload, will.qos, will.retain),
            clean_session=None if protocol == aiomqtt.ProtocolVersion.V5 else True,
            clean_start=clean_start(MQTTProtocolVersion(protocol.value)),
            transport="websockets" if endpoint.websockets else "tcp",
            websocket_path=endpoint.path if endpoint.websockets else None,
            timeout=options.timeout,
            keepalive=options.keepalive,
            max_inflight_messages=0,
            properties=connect_properties(options, MQTTProtocolVersion(protocol.value)),
            tls_context=None if endpoint.tls is None else tls_context(endpoint.tls),
            socket_options=[(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)],
        )
        self.paho = self.aiomqtt._client
        self.paho.connect_timeout = options.timeout
        self.paho.manual_ack_set(True)
        self.session = PahoSession(self.paho, endpoint, options)
        self.paho.on_connect = self._on_connect
        self.paho.on_disconnect = self._on_disconnect

    @classmethod
    async def open(cls, endpoint: Endpoint, options: Options, protocol: aiomqtt.ProtocolVersion) -> "_Link":
        link = cls(endpoint, options, protocol)
        try:
            await link.aiomqtt.__aenter__()
            await link.session.connected
        except aiomqtt.MqttError as error:
            translated = link.translate(endpoint, options, error)
            link.drop()
            raise translated from error
        except BaseException:
            link.drop()
            raise
        link.aiomqtt._disconnected.add_done_callback(link._ended)
        return link

    def translate(self, endpoint: Endpoint, options: Options, error: aiomqtt.MqttError) -> BrokerError:
        """What an error on entering stands for; aiomqtt keeps the operating system's as context only."""
        connected = self.session.connected
        if connected.done() and isinstance(refused := connected.exception(), BrokerError):
            return refused
        if isinstance(error.__context__, OSError) and not isinstance(error.__context__, TimeoutError):
            return unreachable(endpoint, options, error.__context__)
        return silent(endpoint, options)

    async def close(self) -> None:
        self.session.closing = True
        try:
            await self.aiomqtt.__aexit__(None, None, None)
        except aiomqtt.MqttError:
            logger.info("The broker did not take our goodbye in time; closing without it")
        finally:
            self.drop()

    def drop(self) -> None:
        """Close what aiomqtt leaves open: it does so after a time-out and after an exception of paho's."""
        self.paho._sock_close()
        self.session.lose(CLOSED_HERE)
        if self.session.connected.done() and not self.session.connected.cancelled():
            self.session.connected.exception()  # seen

    def _on_connect(self, *report: Any) -> None:
        self.session.on_connect(*report)
        self.aiomqtt._on_connect(*report)

    def _on_disconnect(self, *report: Any) -> None:
        self.session.on_disconnect(*report)
        if not self.aiomqtt._connected.done():  # aiomqtt would wait for its whole time-out
            self.aiomqtt._connected.set_exception(aiomqtt.MqttError("The broker hung up"))
        self.aiomqtt._on_disconnect(*report)

    def _ended(self, disconnected: asyncio.Future[None]) -> None:
        """Hear of exceptions inside paho, which aiomqtt reports here alone."""
        with suppress(asyncio.CancelledError):
            error = disconnected.exception()
            self.session.lose(CLOSED_HERE if error is None else f"The connection is gone ({error}).")
