"""The lower side of a shard: an aggregator to the devices of its topic slots, beside the federation's own.

Status, announcement and frames are those of the root, on the same topics, so a shard publishes receipts and nothing
else. It reads announcements on the connection on which it reads updates: a broker delivers both in the order in which
they came, so a version is known here before an update that was trained from it.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from midge.aggregator.config import AggregatorConfig
from midge.aggregator.connecting import connection_options
from midge.aggregator.core import events as ev
from midge.aggregator.core.core import AggregatorCore
from midge.aggregator.engine import Engine
from midge.aggregator.ingress.authentication import Credentials
from midge.aggregator.ingress.sealing_keys import KEYS, FollowedSealingKeys
from midge.aggregator.model.model import REGISTERED, SERVED
from midge.aggregator.publish.announcement_signer import AnnouncementSigner, load_release_keys
from midge.aggregator.publish.outlet import Outlet
from midge.aggregator.publish.publish_queue import Post, PublishQueue
from midge.aggregator.shards import Shards, is_statistics
from midge.aggregator.standby.gate import PublicationGate
from midge.broker.mqtt.connection import Connection, Delivery, Options
from midge.gateway.relay_publisher import RelayPublisher
from midge.gateway.site_aggregator import SiteAggregator, SiteFederation, SiteLine
from midge.wire import chunks, frames, messages
from midge.wire.errors import WireError
from midge.wire.messages import AggregatorState, AggregatorStatus, Announcement, Fetch, FrameInfo
from midge.wire.topics import Frames, Topics

log = logging.getLogger("gateway")

_FRESH = 3.0
"""Seconds for which a chunk that was asked for is not asked for again, as at the root."""


@dataclass(frozen=True, slots=True)
class ShardPlace:
    """Which shard of which start of an aggregator this is."""

    index: int
    number: int
    """Of all shards."""
    lineage: bytes
    """Of the root's store."""
    boot: int = 0
    """Random bits of the root's start: nothing is decided while another one's status is at the broker. 0: any start."""
    root: Path = field(default=Path())
    """The root's store."""

    @property
    def shards(self) -> Shards:
        """All shards of the federation."""
        return Shards(self.number)

    @property
    def name(self) -> str:
        """Its name as a device of the federation."""
        return self.shards.names[self.index]

    def takes(self, device: str) -> bool:
        """Whether a device's updates are decided on here."""
        return not self.shards.is_shard(device) and self.shards.of(device) == self.index


class ShardPublisher(RelayPublisher):
    """Publishes nothing of a version; a device's request of chunks goes to the root."""

    place: ShardPlace

    def everything(self) -> Iterator[Post]:
        yield from ()

    def announcement(self) -> Post:
        """A post that the queue drops: the root announces."""
        return Post(self._topics.announcement(), b"")

    def lacks(self, lineage: bytes, version: int, span: int) -> str:
        """As the root says, for the lineage."""
        return "" if lineage == self.core.lineage else super().lacks(lineage, version, span)

    def missed(self, version: int, span: int, parts: Sequence[int], now: float) -> Iterator[tuple[int, int]]:
        """The chunks to ask the root for, each with its size, which is charged to the device."""
        announced = self.announced
        known = () if announced is None else announced.frames
        size = next(
            (
                chunks.part_size(frame.size, frame.parts)
                for frame in known
                if (frame.version, frame.span) == (version, span)
            ),
            self.chunk,
        )
        for index in sorted(set(parts)):
            if now >= self._published_at.get((version, span, index), -_FRESH) + _FRESH:
                yield index, size

    def again(self, version: int, span: int, parts: Sequence[int]) -> Iterator[Post]:
        """The request, in this shard's name."""
        channel: Frames = "serve" if span == SERVED else "registered" if span == REGISTERED else "train"
        fetch = Fetch(
            lineage=self.core.lineage, version=version, span=max(span, 0), parts=tuple(parts), channel=channel
        )
        yield Post(self._topics.update(self.place.name), frames.encode(fetch), retain=False)


class AnswerQueue(PublishQueue):
    """A queue that takes answers to devices, and requests to the root, and drops all else."""

    topics: Topics

    def put(self, post: Post) -> None:
        if not post.retain and post.topic.startswith(f"{self.topics.prefix}/"):
            super().put(post)


class ShardFederation(SiteFederation):
    """A federation as one shard sees it.

    Args:
        config: of the shard; its strategy relays.
        outlet: takes messages and events.
        now: seconds of a monotonic clock.
        line: to the root.
        issuer: signs receipts as the root does.
        credentials: authenticates messages.
        place: which shard this is.
    """

    def __init__(
        self,
        config: AggregatorConfig,
        outlet: Outlet,
        now: float,
        *,
        line: SiteLine,
        issuer: AnnouncementSigner,
        credentials: Credentials,
        place: ShardPlace,
    ) -> None:
        self._place = place
        super().__init__(config, outlet, now, line=line, issuer=issuer, credentials=credentials)
        if issuer.signs:
            keys = FollowedSealingKeys(place.root / KEYS, issuer.dating.now)
            issuer.daily = self._ingress.credentials.daily = keys
        self._ingress.answers_retained = True
        issuer.token = 0  # until the root's is known: nothing is decided before

    def _publisher(self, engine: Engine, core: AggregatorCore) -> ShardPublisher:
        shelf = ShardPublisher(engine, core, self.config.topics, chunk=self._chunk, stepping_back=False)
        shelf.place = self._place
        return shelf

    @property
    def filters(self) -> tuple[str, ...]:
        topics = self.config.topics
        updates = (topics.updates_in(number) for number in self._place.shards.slots(self._place.index))
        return (*updates, topics.from_devices[1])

    def process(self, deliveries: Sequence[Delivery], now: float) -> None:
        """Process what this shard's devices sent; statistics are for the root."""
        super().process([each for each in deliveries if self._ours(each)], now)

    def _ours(self, delivery: Delivery) -> bool:
        topics = self.config.topics
        sender = topics.sender_of_update(delivery.topic)
        if sender is None:
            return self._place.takes(delivery.topic.rpartition("/")[2])
        # Whoever writes to another device's slot is its shard's to answer: one that writes to a wrong one is ours.
        return not self._place.shards.is_shard(sender) and not is_statistics(delivery)

    def follow_version(self, announcement: Announcement, envelope: bytes, now: float) -> None:
        """Note a version of the root; when this returns, it is durable."""
        core = self.core
        if core.full is not None:
            return
        if (announcement.generation, announcement.version) > (core.generation, core.version):
            self.follow(announcement, envelope, {}, now)
        self.processor.reader.follow(self._roster.adopt(announcement.features), now)

    def _pass_on(self, announcement: Announcement, frames: Sequence[FrameInfo], now: float) -> None:
        """Nothing: the root has published it."""


class ShardAggregator(SiteAggregator):
    """Serves the devices of one shard.

    Args:
        config: of the shard.
        line: to the root.
        place: which shard this is.
    """

    def __init__(self, config: AggregatorConfig, line: SiteLine, place: ShardPlace) -> None:
        super().__init__(config, line, "", b"")
        self._place = place
        if config.release_key is not None:  # it seals nothing and makes no keys: those of the day are the root's
            keys = load_release_keys(Path(config.release_key))
            self._issuer = AnnouncementSigner(config.topics, keys, sealed=False)
        queue = AnswerQueue(self._sent, self._fitting.refused, before=self._standstill.look)
        queue.topics = config.topics
        self._outgoing, self._gate = queue, PublicationGate(queue.put)
        self._root = False
        """Whether the status at the broker is that of our root."""
        self._announced = False
        self._waiting: list[Delivery] = []
        """What came while another aggregator's status stood there."""
        self.on_serving: Callable[[], None] = lambda: None
        """Called once it serves."""

    @property
    def site(self) -> ShardFederation:
        federation = self.federation
        assert isinstance(federation, ShardFederation)
        return federation

    @property
    def follows(self) -> bool:
        """Whether our root serves, as far as the broker shows."""
        return self._root

    def _runtime(self, outlet: Outlet, now: float) -> ShardFederation:
        return ShardFederation(
            self._config,
            outlet,
            now,
            line=self._line,
            issuer=self._issuer,
            credentials=self._credentials,
            place=self._place,
        )

    def _options(self) -> Options:
        options = connection_options(self._config, self._boot, b"")
        name = f"midge-{self._config.federation}-{self._place.name}-{self._boot:016x}"
        return replace(options, client_id=name, will=None)

    async def _look_around(self, connection: Connection, *, begun: bool) -> None:
        """Wait until the root's status and announcement are here; they go on to arrive on this connection."""
        topics = self._config.topics
        self._root = self._announced = False
        self._waiting.clear()
        await connection.subscribe(topics.aggregator, topics.announcement())
        async for delivery in connection.messages():
            connection.ack(delivery)
            self._hear(delivery)
            if self.follows and self._announced:
                break
        if not begun:
            self.on_serving()

    def _process(self, connection: Connection, batch: list[Delivery]) -> None:
        topics = self._config.topics
        others = []
        for delivery in batch:
            if delivery.topic in (topics.aggregator, topics.announcement()):
                connection.ack(delivery)
                self._hear(delivery)
            else:
                others.append(delivery)
        # Not acknowledged: the broker sends a few more, and waits.
        self._waiting += others
        if self._root:
            others, self._waiting = self._waiting, []
            super()._process(connection, others)

    def _asked(self, connection: Connection, batch: list[Delivery]) -> list[Delivery]:
        """Carry out an operator's revocations, as the root does, which answers."""
        for delivery in batch:
            if delivery.topic == self._config.topics.ask:
                self.federation.revocations.hear(delivery.payload)
                connection.ack(delivery)
        return [delivery for delivery in batch if delivery.topic != self._config.topics.ask]

    async def _send_last_status(self, connection: Connection) -> None:
        """Nothing: the status is the root's."""

    def _hear(self, delivery: Delivery) -> None:
        try:
            if delivery.topic == self._config.topics.aggregator:
                self._status_of_root(delivery.payload)
            else:
                self._version_of_root(delivery.payload)
        except WireError as error:
            log.warning("%s: a message of the aggregator is ignored: %s", self._place.name, error)

    def _status_of_root(self, payload: bytes) -> None:
        if not payload or not self._issuer.is_own_message(payload):
            return
        status, _ = messages.decode(AggregatorStatus, payload)
        # Another one's, from a copy of the store: what is decided now might count at both.
        self._root = status.boot == self._place.boot or not self._place.boot
        if not self._root:
            return
        self._issuer.token = status.token
        if status.state in (AggregatorState.READY, AggregatorState.PAUSED):
            why = (status.why or "the federation is paused") if status.state is AggregatorState.PAUSED else None
            if why != self.core.paused and not self._stop.is_set():
                self.core.handle(ev.OperatorPaused(why), time.monotonic())

    def _version_of_root(self, payload: bytes) -> None:
        if not payload or not self._issuer.is_ours(payload):
            return
        announcement = messages.decode_announcement(payload)
        if announcement.lineage == self._place.lineage:
            self._announced = True
            self.site.follow_version(announcement, payload, time.monotonic())
