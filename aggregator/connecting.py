"""An aggregator's connection to the broker: its options and credentials, and the error that ended it."""

import logging
from pathlib import Path

from midge.aggregator.chunk_fitting import OVERHEAD
from midge.aggregator.config import AggregatorConfig
from midge.aggregator.ingress.authentication import Credentials, DeviceKeys
from midge.aggregator.publish.announcement_signer import AnnouncementSigner, load_release_keys
from midge.aggregator.shards import ShardKeys, Shards
from midge.broker.mqtt.connection import Connection, ConnectionLost, Options, SubscribeRefused, Will
from midge.wire import frames
from midge.wire.topics import Topics

log = logging.getLogger("aggregator")

_WINDOW = 64
"""Most messages in flight from an MQTT 5 broker to us: they make a batch, and bound its memory. A limit in bytes
(Maximum Packet Size) would be better, but a Mosquitto 2.0 that drops a packet for it stops sending: so oversized
messages are received and discarded (`Options.largest`)."""


def authorities(config: AggregatorConfig) -> tuple[AnnouncementSigner, Credentials]:
    """The signer and the authentication of a federation, from the keys in a config.

    Raises:
        KeyUnusable: a key cannot be read.
        ValueError: a requirement needs a key that is not configured.
    """
    keys = None if config.release_key is None else load_release_keys(Path(config.release_key))
    issuer = AnnouncementSigner(config.topics, keys, lifetime=config.announcement_lifetime)
    devices = None if config.device_keys is None else DeviceKeys(config.device_keys)
    if config.shards and (devices or config.release_key):
        devices = ShardKeys(devices, Shards(config.shards), config.directory)
    credentials = Credentials(
        config.topics,
        device_keys=devices,
        require_signed=config.require_signed,
        require_sealed=config.require_sealed,
        seal_keys=issuer.seal_keys,
    )
    return issuer, credentials


def connection_options(config: AggregatorConfig, boot: int, will: bytes) -> Options:
    """Options of a connection whose will is this last status."""
    return Options(
        client_id=f"midge-{config.topics.federation}-aggregator-{boot:016x}",
        will=Will(config.topics.aggregator, will),
        keepalive=config.keepalive,
        receive_maximum=_WINDOW,
        largest=config.chunk + frames.MAX_HEADER + OVERHEAD,
    )


async def listen_to_operators(connection: Connection, topics: Topics) -> None:
    """Subscribe to requests for an overview; without the right to, everything else still works."""
    try:
        await connection.subscribe(topics.ask, qos=0)
    except SubscribeRefused as error:
        log.warning("%s `midge status` shows only what is retained then.", error)


def sole(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The one error in the group of a TaskGroup; a lost connection counts once, in however many tasks."""
    leaves: list[BaseException] = []
    stack: list[BaseException] = [group]
    while stack:
        error = stack.pop()
        stack.extend(error.exceptions if isinstance(error, BaseExceptionGroup) else ())
        leaves += [] if isinstance(error, BaseExceptionGroup) else [error]
    others = [error for error in leaves if not isinstance(error, ConnectionLost)]
    if not others:
        return leaves[0]
    return others[0] if len(others) == 1 else group
