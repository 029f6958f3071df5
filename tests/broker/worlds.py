"""What the contract suite runs in: a broker, a library, and ways to break things."""

import asyncio
import itertools
import os
import signal
import socket
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from midge.broker import Connection, Delivery, Endpoint, Options, Will, connector
from midge.broker.embedded.in_memory import Twin
from midge.broker.local.local_broker import LocalBroker
from midge.broker.local.mosquitto import find_mosquitto, mosquitto_version
from midge.broker.mqtt.paho_session import PahoSession
from tests.waiting import LAST_RESORT

_numbers = itertools.count()


class World(Protocol):
    tells_takeover: bool
    exact_window: bool
    """Whether the window stays what it was after the first acknowledgements."""

    def connect(self, options: Options) -> AbstractAsyncContextManager[Connection]: ...

    def break_link(self, connection: Connection, client_id: str) -> None:
        """End a connection without a goodbye."""

    def freeze(self) -> None:
        """Have the broker answer nothing more until it is killed."""

    def kill(self) -> None: ...

    async def restart(self) -> None: ...


class TwinWorld:
    tells_takeover = True
    exact_window = True

    def __init__(self) -> None:
        self.twin = Twin()
        self.connect = self.twin.connect

    def break_link(self, connection: Connection, client_id: str) -> None:
        self.twin.drop(client_id)

    def freeze(self) -> None:
        """It answers in the turn of the loop after the one in which it is asked, and is killed before."""

    def kill(self) -> None:
        self.twin.kill()

    async def restart(self) -> None:
        self.twin.restart()


class RealWorld:
    def __init__(self, broker: LocalBroker) -> None:
        self.broker = broker
        self.connect = connector(broker.endpoint)
        old = broker.kind == "mosquitto" and _mosquitto_before(2, 0, 13)
        self.tells_takeover = not old
        self.exact_window = broker.kind in ("embedded", "mosquitto") and not old

    def break_link(self, connection: Connection, client_id: str) -> None:
        assert isinstance(connection, PahoSession)
        sock = connection.client.socket()
        assert isinstance(sock, socket.socket)
        sock.shutdown(socket.SHUT_RDWR)

    def freeze(self) -> None:
        assert self.broker._child is not None
        os.kill(self.broker._child._process.pid, signal.SIGSTOP)

    def kill(self) -> None:
        self.broker.kill()

    async def restart(self) -> None:
        await self.broker.restart()


def _mosquitto_before(*version: int) -> bool:
    binary = find_mosquitto()
    assert binary is not None
    return tuple(int(part) for part in mosquitto_version(binary).split(".")) < version


def unique(prefix: str = "t") -> str:
    """A name for a topic or a client that no other test uses: brokers are shared between tests."""
    return f"{prefix}{next(_numbers)}"


def options(
    client_id: str | None = None, *, will: Will | None = None, receive_maximum: int = 20, timeout: float = LAST_RESORT
) -> Options:
    return Options(client_id or unique("client"), will=will, receive_maximum=receive_maximum, timeout=timeout)


async def take(connection: Connection, count: int, *, ack: bool = True) -> list[Delivery]:
    """The next `count` deliveries."""
    taken: list[Delivery] = []
    async with asyncio.timeout(LAST_RESORT):
        async for delivery in connection.messages():
            taken.append(delivery)
            if ack:
                connection.ack(delivery)
            if len(taken) == count:
                break
    return taken


async def settle(connection: Connection) -> None:
    """Wait until all that the broker has sent has arrived: answers come behind it."""
    await connection.subscribe(unique("settled"))


def somewhere(port: int) -> Endpoint:
    return Endpoint.parse(f"mqtt://127.0.0.1:{port}")
