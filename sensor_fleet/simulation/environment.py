"""State shared by all devices of a simulation: clock, randomness, and the published versions."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

from midge.sensor_fleet.profiles.population import Population
from midge.sensor_fleet.profiles.presence import uniform
from midge.sensor_fleet.sensors.stream import Stream
from midge.sensor_fleet.simulation.clock import Clock
from midge.sensor_fleet.simulation.incidents import Incidents
from midge.sensor_fleet.simulation.learners import Learner
from midge.sensor_fleet.simulation.publisher import PublishedVersion
from midge.sensor_fleet.simulation.server import Server
from midge.sensor_fleet.simulation.shards import Pool, Start, Task
from midge.wire.messages import AggregatorStatus, Announcement
from midge.wire.participation import takes_part

if TYPE_CHECKING:
    from midge.sensor_fleet.simulation.participant import Participant


@dataclass(frozen=True, slots=True)
class Noise:
    """Variation of trainings and messages beyond the world's."""

    loss: float
    """Share of messages that are lost."""
    jitter: float
    """σ of the logarithm of training durations."""
    seconds: Callable[[str], float]
    """Seconds of a usual training on the device of that name."""
    overhead: float = 0.0
    """Seconds added to each training."""


class Environment:
    """What the devices share: clock, randomness, links to the aggregator, and trainings under way."""

    def __init__(
        self,
        clock: Clock,
        server: Callable[[], Server],
        pool: Pool,
        learner: Learner,
        world: Population,
        *,
        noise: Noise,
        stream: Stream | None = None,
        incidents: Incidents | None = None,
    ) -> None:
        self.clock, self._server, self.pool, self.learner, self.world = clock, server, pool, learner, world
        self.noise, self.stream = noise, stream
        self.incidents = incidents or Incidents()
        self.up = self.down = 0.0
        """Bytes that all devices have sent, and received apart from announcements."""
        self.resting: dict[str, Participant] = {}
        """Devices that wait for a newer version, in the order in which they came to rest."""
        self.connected: dict[str, Participant] = {}
        """Devices with an established connection."""

    @property
    def server(self) -> Server:
        return self._server()

    def predicted(self, shard: Sequence["Participant"]) -> Iterator[tuple[Task, Start]]:
        """Predict the trainings that these devices will start from the newest version, soonest first."""
        published, pause = self.server.publisher.published, self.server.core.strategy.release_interval
        if not pause or not published:
            return
        newest = published[-1]
        now = self.clock.now
        horizon = max(newest.at + pause, now + pause / 8)
        found = [(when, one.number, one) for one in shard if (when := one.next_training_at(newest)) < horizon]
        for when, _, one in sorted(found, key=lambda each: each[:2]):
            if self._takes_part(one.name, newest.announcement):
                yield one.task(newest, max(now, when)), newest.start

    def duration_factor(self, device: str, number: int) -> float:
        """The factor by which a training of a device takes longer than usual."""
        if not self.noise.jitter:
            return 1.0
        return math.exp(self.noise.jitter * NormalDist().inv_cdf(uniform(self.world.seed, device, "jitter", number)))

    def lost(self, device: str, purpose: str, number: int) -> bool:
        """Whether a message is lost."""
        return self.noise.loss > 0 and uniform(self.world.seed, device, f"lost/{purpose}", number) < self.noise.loss

    def delay(self, device: str, purpose: str, number: int) -> float:
        """Seconds by which a message is late, beyond its link's latency."""
        share, mean, seed = self.incidents.late, self.incidents.delay, self.world.seed
        if not share or uniform(seed, device, f"late/{purpose}", number) >= share:
            return 0.0
        return -mean * math.log(uniform(seed, device, f"delay/{purpose}", number))

    def deliver_status(self, status: AggregatorStatus) -> None:
        """Deliver the aggregator's status to all connected devices."""
        for participant in list(self.connected.values()):
            participant.receive_status(status)

    def released(self, published: PublishedVersion) -> None:
        """Wake the devices that wait for a version and take part; all others read it when they next act."""
        for name, participant in list(self.resting.items()):
            if self._takes_part(name, published.announcement):
                self.clock.at(published.at + participant.link.latency, participant.look)

    @staticmethod
    def _takes_part(device: str, announcement: Announcement) -> bool:
        share = announcement.participation.share
        return takes_part(device, announcement.lineage, announcement.generation, announcement.version, share)
