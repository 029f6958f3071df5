"""`Connection` on paho-mqtt, driven by the running asyncio loop.

paho's own threads wait in select(), which fails silently beyond 1,024 descriptors in a process. Here the loop watches
the socket, and one timer a connection handles the keepalive, so that thousands of connections need no threads. Only
resolving, connecting and the TLS handshake block, and they run in the loop's executor.
"""

import asyncio
import logging
import socket
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Literal

from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from midge.broker.mqtt.connection import Connection, Options
from midge.broker.mqtt.endpoint import Endpoint
from midge.broker.mqtt.paho_errors import (
    ProtocolRefused,
    Unanswered,
    clean_start,
    connect_properties,
    disconnected,
    silent,
    unreachable,
)
from midge.broker.mqtt.paho_session import CLOSED_HERE, PahoSession
from midge.broker.mqtt.tls import alert_on, tls_context
from midge.storage import forks

logger = logging.getLogger(__name__)

PACKETS_AT_ONCE = 32
"""Packets of one connection that are read before the loop serves others."""
MISC_PER_KEEPALIVE = 5
"""How often within a keepalive period paho checks whether a ping is due: it is then late by a fifth at most, and
brokers wait one and a half periods."""


def connect(endpoint: Endpoint, options: Options) -> AbstractAsyncContextManager[Connection]:
    """Connect to `endpoint` with MQTT 5, or else 3.1.1; the connection ends with the block, by DISCONNECT.

    MQTT 3.1.1 is tried if the broker refuses MQTT 5, disconnects, or does not answer within `options.timeout`. Each
    version has all of that time, because a busy broker answers late.

    Raises (on entering):
        BrokerUnreachable: nothing serves MQTT there, or it answers neither version within `options.timeout`.
        BrokerRefused: the broker refused us, or its certificate failed our check.
    """
    return _connect(endpoint, options)


@asynccontextmanager
async def connect_with(
    version: Literal[4, 5], endpoint: Endpoint, options: Options
) -> AsyncGenerator[PahoSession, None]:
    """Connect with one version of MQTT only; 4 is MQTT 3.1.1.

    Raises (on entering):
        ProtocolRefused: the broker does not speak it, or disconnected on CONNECT.
    """
    driver = await _open(endpoint, options, MQTTProtocolVersion(version))
    try:
        yield driver.session
    finally:
        await driver.close()


@asynccontextmanager
async def _connect(endpoint: Endpoint, options: Options) -> AsyncGenerator[Connection, None]:
    try:
        driver = await _open(endpoint, options, MQTTProtocolVersion.MQTTv5)
    except ProtocolRefused as refused:
        if refused.alert:  # in TLS, where another version of MQTT does not help
            raise disconnected(endpoint, refused.alert) from refused
        try:
            driver = await _open(endpoint, options, MQTTProtocolVersion.MQTTv311)
        except Unanswered:
            raise
        except ProtocolRefused as error:
            raise disconnected(endpoint, error.alert) from error
    try:
        yield driver.session
    finally:
        await driver.close()


async def _open(endpoint: Endpoint, options: Options, protocol: MQTTProtocolVersion) -> "_Driver":
    client = make_client(endpoint, options, protocol)
    opened: list[Any] = []
    client.on_socket_open = lambda _client, _userdata, sock: opened.append(sock)
    await _open_socket(client, endpoint, options)
    if client.socket() is None:  # with TLS 1.3 our certificate is refused after our side of the handshake has ended
        raise ProtocolRefused(str(disconnected(endpoint)), alert_on(opened[0]))
    driver = _Driver(client, PahoSession(client, endpoint, options))
    try:
        async with asyncio.timeout(options.timeout):
            await driver.session.connected
    except TimeoutError:
        driver.drop()
        raise silent(endpoint, options) from None
    except BaseException as error:
        driver.drop()
        if isinstance(error, ProtocolRefused):
            error.alert = alert_on(opened[0])
        raise
    return driver


async def _open_socket(client: Client, endpoint: Endpoint, options: Options) -> None:
    """Connect and send CONNECT in a thread. No callback is set yet, so only the socket is touched there."""
    properties = connect_properties(options, client.protocol)
    opening = asyncio.get_running_loop().run_in_executor(
        None,
        lambda: client.connect(
            endpoint.host,
            endpoint.port,
            options.keepalive,
            clean_start=clean_start(client.protocol),
            properties=properties,
        ),
    )
    try:
        await asyncio.shield(opening)
    except asyncio.CancelledError:
        # The thread cannot be stopped: the socket is closed as soon as it is open.
        opening.add_done_callback(lambda done: done.exception() or client.disconnect())
        raise
    except OSError as error:
        raise await asyncio.to_thread(unreachable, endpoint, options, error) from error


def make_client(
    endpoint: Endpoint, options: Options, protocol: MQTTProtocolVersion, *, clean_session: bool = True
) -> Client:
    """A paho client for one connection, not yet connected. `clean_session` is for MQTT 3.1.1 only."""
    client = Client(
        CallbackAPIVersion.VERSION2,
        client_id=options.client_id,
        clean_session=None if protocol == MQTTProtocolVersion.MQTTv5 else clean_session,
        protocol=protocol,
        transport="websockets" if endpoint.websockets else "tcp",
        reconnect_on_failure=False,
        manual_ack=True,
    )
    client.max_inflight_messages = 0
    client.connect_timeout = options.timeout
    if endpoint.websockets:
        client.ws_set_options(path=endpoint.path)
    if endpoint.user is not None:
        client.username_pw_set(endpoint.user, endpoint.password)
    if endpoint.tls is not None:
        client.tls_set_context(tls_context(endpoint.tls))
    if options.will is not None:
        client.will_set(options.will.topic, options.will.payload, options.will.qos, options.will.retain)
    return client


class _Driver:
    """Reader, writer and timer of one client in the running loop."""

    def __init__(self, client: Client, session: PahoSession) -> None:
        sock = client.socket()
        assert sock is not None
        self.client = client
        self.session = session
        self._socket = sock
        self._descriptor = sock.fileno()
        forks.own(self._descriptor)
        self._loop = asyncio.get_running_loop()
        self._open = True
        if isinstance(sock, socket.socket):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        session.dropped = self.drop
        client.on_socket_register_write = self._write_soon
        client.on_socket_close = self._forget_socket
        self._loop.add_reader(self._descriptor, self._read)
        self._writing = False
        """Whether the loop watches for room in the socket's buffer."""
        if client.want_write():  # a CONNECT with a large will exceeds the socket's buffer
            self._watch_for_room()
        self._timer = self._loop.call_later(self._interval, self._misc)

    @property
    def _interval(self) -> float:
        return max(self.client.keepalive, 1) / MISC_PER_KEEPALIVE

    async def close(self) -> None:
        """Send DISCONNECT after everything that is queued, within the timeout, and close."""
        self.session.closing = True
        try:
            if self._open:
                self.client.disconnect()
                async with asyncio.timeout(self.session.options.timeout):
                    await self.session.ended.wait()
        except TimeoutError:
            logger.info("The broker did not read our DISCONNECT in time; closing without it")
        finally:
            self.drop()

    def drop(self) -> None:
        """Close at once. Without a DISCONNECT before, the broker publishes our will."""
        self._forget_socket()
        self._socket.close()
        self.session.lose(CLOSED_HERE)

    def _forget_socket(self, *_: object) -> None:
        """Stop watching, exactly once: the descriptor's number may soon be another connection's."""
        if self._open:
            self._open = False
            forks.disown(self._descriptor)
            self._timer.cancel()
            self._loop.remove_reader(self._descriptor)
            self._loop.remove_writer(self._descriptor)

    def _read(self) -> None:
        """Read several packets.

        paho reads one packet a call: a turn of the loop for each would cost more than reading it.
        """
        pending = getattr(self._socket, "pending", None)
        for _ in range(PACKETS_AT_ONCE):
            before = self.session.reports
            if not self._run(self.client.loop_read):
                return
            if self.session.reports == before:
                break
        else:
            return  # the loop calls again for what is left in the socket
        while pending is not None and pending() > 0:  # already decrypted by TLS: the loop would not call again
            if not self._run(self.client.loop_read):
                return

    def _write(self) -> None:
        """Send what paho has queued, and watch the socket only if that does not fit into its buffer."""
        if not self._open or not self._run(self.client.loop_write):
            return
        if self.client.want_write():
            self._watch_for_room()
        elif self._writing:
            self._writing = False
            self._loop.remove_writer(self._descriptor)

    def _misc(self) -> None:
        if self._run(self.client.loop_misc):
            self._timer = self._loop.call_later(self._interval, self._misc)

    def _run(self, step: Callable[[], object]) -> bool:
        """Run one of paho's steps and return whether the connection still stands."""
        try:
            step()
        except Exception:  # paho's parser raises many types of exceptions; here all of them are the broker's fault
            logger.exception("paho cannot go on with this connection")
            self.session.lose("The broker sent malformed data.")
        if self.client.socket() is None or self.session.ended.is_set():
            self.drop()
        return self._open

    def _write_soon(self, *_: object) -> None:
        """Send in this turn of the loop, with everything else that is queued until then."""
        if self._open:
            self._loop.call_soon(self._write)

    def _watch_for_room(self) -> None:
        if not self._writing:
            self._writing = True
            self._loop.add_writer(self._descriptor, self._write)
