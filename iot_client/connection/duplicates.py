"""Detection of a duplicate device name: two live devices would take each other's receipts.

Checked at each connect, on the status topic: our JOINING carries a random number, and a live device of our name answers
with it. So no retained, recorded or guessed message can end a device. With pinned keys an answer must be signed with
the key that we sign with; a device that does not sign cannot verify it, and waits.
"""

import asyncio
import logging
import secrets
from collections.abc import Callable
from contextlib import suppress

from midge.broker.mqtt.connection import Connection, Delivery
from midge.iot_client.connection.publisher import Publisher
from midge.iot_client.parts import DeviceParts
from midge.wire import messages
from midge.wire.errors import WireError
from midge.wire.messages import DeviceState, Hello

log = logging.getLogger("iot_client")


class DuplicateDeviceName(Exception):
    """Another live device has this name."""


class NameDisputed(Exception):
    """An unverifiable answer came under our name."""


class DuplicateCheck:
    """The check of one device, over all its connections.

    Args:
        parts: of the device.
        publisher: publishes.
        hello: makes our status from its state, the number of a question, and that of an answered question.
        count: called with each delivery.
    """

    def __init__(
        self,
        parts: DeviceParts,
        publisher: Publisher,
        hello: Callable[[DeviceState, int, int], bytes],
        count: Callable[[Delivery], None],
    ) -> None:
        self._parts, self._publisher, self._hello, self._count = parts, publisher, hello, count
        self.number = 0
        """Number of our last question."""
        self.evicted = False
        """Whether another client has taken our client id: perhaps with a copy of our outbox, perhaps harmless."""

    async def run(self, connection: Connection, patience: float) -> None:
        """Ask, and wait until our own question comes back; for `patience` seconds if another device may be alive.

        Raises:
            DuplicateDeviceName: another live device has our name.
            NameDisputed: it may, and that cannot be verified.
        """
        topic, outbox = self._parts.topics.status(self._parts.config.name), self._parts.outbox.identity
        self.number = secrets.randbits(62) + 1
        suspected, answered = self.evicted, False
        await connection.subscribe(topic)
        await self._ask(connection, topic)
        with suppress(TimeoutError):
            async with asyncio.timeout(patience):
                async for delivery in connection.messages():
                    self._count(delivery)
                    connection.ack(delivery)
                    hello = _hello_of(delivery)
                    if hello is None:
                        continue
                    if hello.state is DeviceState.JOINING:
                        if hello.number == self.number and not suspected:
                            break
                        if self.number < hello.number:  # both are starting: the other one ends
                            await self._answer(connection, topic, hello)
                    elif hello.state.live and hello.to == self.number:
                        self._judge(delivery, hello)
                    elif hello.state.live and hello.outbox != outbox:
                        suspected = True
                        if not delivery.retain and not self._parts.identity.pinned:
                            # An earlier version answers without a number: it must answer twice.
                            if answered:
                                raise DuplicateDeviceName(self._another)
                            answered = True
                            await self._ask(connection, topic)
        self.evicted = False

    async def _ask(self, connection: Connection, topic: str) -> None:
        await self._publisher.publish(connection, topic, self._hello(DeviceState.JOINING, self.number, 0))

    async def _answer(self, connection: Connection, topic: str, asked: Hello) -> None:
        await self._publisher.publish(connection, topic, self._hello(DeviceState.READY, 0, asked.number))

    def asks(self, hello: Hello) -> bool:
        """Whether another device of our name asks whether we are alive, which needs an answer."""
        foreign = hello.outbox != self._parts.outbox.identity or hello.number not in (0, self.number)
        return hello.state is DeviceState.JOINING and foreign

    def _judge(self, delivery: Delivery, hello: Hello) -> None:
        identity = self._parts.identity
        if identity.pinned and not identity.signs:
            raise NameDisputed(
                f"Something answers as {self._parts.config.name!r}, and this device has no key to tell whether it is "
                "another device of that name: give each its own name, or a signing_key."
            )
        if identity.pinned and not identity.signed_as_we_do(delivery.payload):
            log.warning("%s: an unsigned status in this device's name is ignored.", self._parts.config.name)
        elif hello.outbox == self._parts.outbox.identity:
            name = self._parts.config.name
            raise DuplicateDeviceName(
                f"Another live device uses the outbox of {name!r}: never copy one to a second device."
            )
        else:
            raise DuplicateDeviceName(self._another)

    @property
    def _another(self) -> str:
        federation, name = self._parts.topics.federation, self._parts.config.name
        return (
            f"Another live device of federation {federation!r} is named {name!r}: "
            "give each device its own name, and never copy an outbox."
        )


def _hello_of(delivery: Delivery) -> Hello | None:
    with suppress(WireError):
        return messages.decode(Hello, delivery.payload)[0]
    return None
