"""Shards of one federation: ingest processes on its broker, each of which takes the updates of some topic slots.

A shard decides on its devices' updates, as a gateway does, and the aggregator (the root) applies their sums. Of the
messages of devices each kind has one process that answers:

    update, offer, chunk, fetch, prove     the shard of the device's slot
    hello (a status)                       that shard; the root only counts the device
    statistics, report                     the root
"""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from midge.aggregator.ingress.authentication import DeviceKey, DeviceKeys
from midge.aggregator.store.shard_stores import SHARDS
from midge.broker.mqtt.connection import Connection, Delivery
from midge.storage.files import PUBLIC, atomic_write, make_folder
from midge.wire import messages, signing
from midge.wire.errors import WireError
from midge.wire.topics import SLOTS, Topics, slot

_LOOK = 0.5
"""Seconds between two checks whether the model trains by now."""


@dataclass(frozen=True, slots=True)
class Shards:
    """The shards of one federation."""

    number: int
    """0 if the aggregator itself takes all updates."""
    names: tuple[str, ...] = field(init=False)
    """By which they are known, as devices of the federation: nothing else may have one of these names."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(f"shard-{index}" for index in range(self.number)))

    def slots(self, index: int) -> tuple[int, ...]:
        """The topic slots of one shard; each slot has one."""
        return tuple(range(index, SLOTS, self.number))

    def of(self, device: str) -> int:
        """The index of the shard that takes a device's updates."""
        return slot(device) % self.number

    def is_shard(self, device: str) -> bool:
        """Whether a name is that of a shard."""
        return device in self.names

    def updates(self, topics: Topics, *, frozen: bool) -> tuple[str, ...]:
        """The filters of the updates that the root reads; those of all devices while it asks for statistics."""
        if self.number and frozen:
            return tuple(topics.update(name) for name in self.names)
        return topics.from_devices[:1]

    def sift(self, deliveries: Sequence[Delivery], topics: Topics) -> Sequence[Delivery]:
        """What the root processes: of a device's update topic only statistics, as its shard takes the rest."""
        return [each for each in deliveries if self._for_root(each, topics)]

    def _for_root(self, delivery: Delivery, topics: Topics) -> bool:
        sender = topics.sender_of_update(delivery.topic)
        return sender is None or sender in self.names or is_statistics(delivery)

    async def narrow(self, connection: Connection, topics: Topics, frozen: Callable[[], bool]) -> None:
        """Leave the devices' update topics to the shards, once the model trains."""
        while not frozen():  # noqa: ASYNC110 - no event says so, and nothing waits for it
            await asyncio.sleep(_LOOK)
        await connection.subscribe(*self.updates(topics, frozen=True))
        await connection.unsubscribe(*self.updates(topics, frozen=False))

    def ended(self, index: int, code: int, tell: Callable[..., None]) -> None:
        """Report that the process of a shard has ended, with this exit code."""
        tell("shard_ended", site=self.names[index], code=code)

    @staticmethod
    def directory(store: Path, name: str) -> Path:
        """The store of a shard."""
        return store / SHARDS / name


def is_statistics(delivery: Delivery) -> bool:
    """Whether a device sends statistics of its data."""
    with suppress(WireError):
        return messages.is_kind("statistics", delivery.payload)
    return False


def own_key(directory: Path) -> Path:
    """The file with a shard's private key, by which the root knows its sums; made if it is missing.

    Raises:
        OSError: it cannot be written.
    """
    path = directory / "shard.key"
    make_folder(directory)
    if not path.exists():
        key = signing.new_key()
        atomic_write(directory / "shard.pub", key.public_pem(), mode=PUBLIC)
        atomic_write(path, key.pem())
    return path


class ShardKeys(DeviceKeys):
    """The devices' keys and those of the shards, which must sign: what a shard sends stands for thousands of updates.

    Args:
        keys: of the devices.
        shards: of the federation.
        store: the root's.
    """

    def __init__(self, keys: DeviceKeys | None, shards: Shards, store: Path) -> None:
        super().__init__({})
        self._devices, self._shards, self._store = keys, shards, store

    def of(self, device: str) -> DeviceKey | None:
        if self._shards.is_shard(device):
            path = self._shards.directory(self._store, device) / "shard.pub"
            return signing.read_public(path.read_bytes(), str(path)) if path.exists() else None
        return None if self._devices is None else self._devices.of(device)

    def required(self, device: str) -> bool:
        return self._shards.is_shard(device)
