"""Publication of versions in a simulation, with the bytes of announcements that devices receive."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from midge.aggregator.core import events as ev
from midge.aggregator.core.core import AggregatorCore
from midge.aggregator.model.model import Frame, Model
from midge.aggregator.model.step_merging import listed
from midge.aggregator.publish.part_sizes import PART, count
from midge.iot_client.session.session import reread
from midge.sensor_fleet.simulation import headers
from midge.sensor_fleet.simulation.clock import Clock
from midge.sensor_fleet.simulation.server_setup import ServerSetup
from midge.sensor_fleet.simulation.shards import Start
from midge.wire import messages
from midge.wire.lineage import State
from midge.wire.messages import Announcement, FrameInfo

_STAMPED: dict[str, Any] = {
    "parent": b"\1" * 16,
    "issued": 1.8e9,
    "expires": 1.8e9 + 86_400,
    "epoch": 1_800_000_000_000,
}
"""Fields that every announcement carries, for its encoded size: no simulated device reads them."""
KEPT = 256
"""Number of versions that devices on slow or lossy links can still read."""
SNAPSHOTS = 2


@dataclass(frozen=True, eq=False)
class PublishedVersion:
    """A published version as devices receive it."""

    announcement: Announcement
    state: State
    at: float
    """Virtual time of its release."""
    number: int
    """Consecutive number of the announcement, from 1."""

    @cached_property
    def start(self) -> Start:
        """What a training from this version starts with; read-only."""
        announcement = self.announcement
        return Start(self.number, self.state.values(), announcement.plan, announcement.lineage)


class VersionPublisher:
    """Publishes versions to all devices.

    Args:
        clock: virtual time.
        setup: the aggregator's configuration.
        released: called with each published version.
    """

    def __init__(self, clock: Clock, setup: ServerSetup, released: Callable[[PublishedVersion], None]) -> None:
        self._clock, self._setup, self._released = clock, setup, released
        self._frames: dict[tuple[int, int], int] | None = {} if setup.framed else None
        """Bytes of each offered frame, by version and span; None if frames are not encoded."""
        self.published: deque[PublishedVersion] = deque(maxlen=KEPT)
        """The newest versions, oldest first."""
        self.announcement_bytes = 0
        """Bytes of the newest announcement; 0 if the run does not count bytes."""
        self.announced_bytes = 0.0
        """Total bytes of announcements so far, rereads included; 0 if the run does not count bytes."""
        self.received_bytes = 0.0
        """Announcement bytes that all devices together have received, rereads included."""
        self.ignoring = 0
        """Number of connected devices that are unsubscribed from announcements."""
        self._announced = 0
        self._read = 0.0

    def publish(self, core: AggregatorCore, model: Model, now: float, frames: Sequence[Frame] = ()) -> None:
        """Announce the model's version; `now` is on the process's clock, `frames` are the new ones."""
        self._announced += 1
        if not self.published or model.version > self.published[-1].announcement.version:
            core.handle(ev.MovementFollowed(model.follow_movement(core.versions_a_turn)), now)
        version = model.version  # within a batch the core may be ahead of the actions carried out
        announcement = Announcement.model_construct(
            federation="simulation",
            lineage=core.lineage,
            generation=core.generation,
            version=version,
            step=core.step_at(version),
            phase="training" if core.frozen else "statistics",
            schema_hash=core.schema_hash,
            digest=bytes(16),
            frames=self._offered(model, frames),
            moments=() if core.frozen else core.moments,
            chunk=self._setup.chunk,
            plan=core.plan,
            participation=core.steering.participation(),
            byte_rate=0.0 if self._frames is None else core.strategy.byte_rate,
            devices=core.thrift.devices,
            **_STAMPED,
        )
        if self._frames is not None:
            self._count(core, announcement)
            step = min((len(frame.data) for frame in frames), default=0)
            core.handle(ev.ReleasePublished(self.announcement_bytes, step), now)
        new = PublishedVersion(announcement, model.state, self._clock.now, self._announced)
        self.published.append(new)
        model.forget_steps(core.oldest_base if model.keeps_past else version)
        self._released(new)

    def _count(self, core: AggregatorCore, announcement: Announcement) -> None:
        """Count the bytes of an announcement, and of the rereads of the one before it."""
        size, now = len(messages.encode_announcement(announcement)), self._clock.now
        again = (now - self._read) / reread(announcement) * (self.announcement_bytes + headers.status())
        self._read, self.announcement_bytes = now, size
        self.announced_bytes += size + again
        self.received_bytes += (size + again) * max(core.steering.live - self.ignoring, 0)

    def _offered(self, model: Model, frames: Sequence[Frame]) -> tuple[FrameInfo, ...]:
        """The frames that lead to a version, as `aggregator.publish.model_publisher` selects them, or a dummy one."""
        version = model.version
        if self._frames is None:
            return (FrameInfo(version, 0, 4 * model.schema.size, 1),)
        part = min(self._setup.chunk, PART)
        self._frames.update({(frame.version, frame.span): len(frame.data) for frame in frames})
        snapshots = sorted((known for known, span in self._frames if span == 0), reverse=True)[:SNAPSHOTS]
        for known, span in list(self._frames):
            if not (known in snapshots if span == 0 else listed(known, span, version, small=model.small)):
                del self._frames[known, span]
        cut = partial(count, most=part, limit=self._setup.largest)
        return tuple(FrameInfo(known, span, size, cut(size)) for (known, span), size in self._frames.items())
