"""The link of one simulated device: latency, bandwidth, losses, and received announcements."""

from collections.abc import Sequence

from midge.sensor_fleet.simulation import headers
from midge.sensor_fleet.simulation.clock import Work
from midge.sensor_fleet.simulation.environment import Environment
from midge.wire.messages import FrameInfo


class VirtualLink:
    """Delivers messages in virtual time, and counts their bytes.

    Args:
        environment: state shared by all devices.
        device: its name.
    """

    __slots__ = (
        "_announced_bytes",
        "_device",
        "_environment",
        "bytes_down",
        "bytes_up",
        "connected",
        "connection",
        "down",
        "latency",
        "messages",
        "unsubscribed",
        "up",
    )

    def __init__(self, environment: Environment, device: str) -> None:
        link = environment.world.link(device)
        self._environment, self._device = environment, device
        self.latency, self.up, self.down = link.latency, link.bandwidth, link.down
        self.bytes_up = self.bytes_down = 0.0
        self.messages = 0
        self.connected = False
        """Whether the connection is established."""
        self.connection = 0
        """Number of the current connection or attempt; messages of earlier ones are lost."""
        self._announced_bytes = 0.0
        self.unsubscribed = False
        """Whether it is unsubscribed from announcements."""

    @property
    def hears_versions(self) -> bool:
        """Whether announcements arrive."""
        return self.connected and not self.unsubscribed

    def connect(self) -> None:
        """Establish the connection: from now on announcements are received."""
        self.connected = True
        self._announced_bytes = self._environment.server.publisher.announced_bytes

    def disconnect(self) -> None:
        """End the connection."""
        self.count_announcements()
        self._environment.server.publisher.ignoring -= self.unsubscribed
        self.connected = self.unsubscribed = False

    # ------------------------------------------------------------------------ bytes

    def sent(self, size: float) -> None:
        """Count bytes sent."""
        self.bytes_up += size
        self._environment.up += size

    def received(self, size: float) -> None:
        """Count bytes received, apart from announcements."""
        self.bytes_down += size
        self._environment.down += size

    def count_announcements(self) -> None:
        """Count the announcements received over this connection."""
        if self.hears_versions:
            heard = self._environment.server.publisher.announced_bytes
            self.bytes_down += heard - self._announced_bytes
            self._announced_bytes = heard

    def ignore_versions(self) -> None:
        """Unsubscribe from announcements."""
        if self.hears_versions:
            self.count_announcements()
            self.unsubscribed = True
            self._environment.server.publisher.ignoring += 1

    def follow_versions(self) -> None:
        """Subscribe again and receive the retained announcement."""
        if self.unsubscribed:
            publisher = self._environment.server.publisher
            self.unsubscribed = False
            publisher.ignoring -= 1
            self._announced_bytes = publisher.announced_bytes
            self.received(publisher.announcement_bytes)

    # --------------------------------------------------------------------- messages

    def deliver(self, work: Work, seconds: float = 0.0) -> None:
        """Run `work` when a message arrives, if this connection still exists then."""
        connection = self.connection

        def heard() -> None:
            if self.connected and self.connection == connection:
                work()

        self._environment.clock.after(self.latency + seconds, heard)

    def fetch(self, frames: Sequence[FrameInfo], work: Work) -> None:
        """Receive frames of the model, and run `work` after the last part."""
        parts = sum(frame.parts for frame in frames)
        size = sum(frame.size for frame in frames) + parts * headers.part()
        self.received(size)
        # Two parts are requested at a time; their topics are unsubscribed before the next request.
        self.deliver(work, (4 * -(-parts // 2) - 1) * self.latency + size / self.down)

    def send(self, purpose: str, size: int, work: Work, *, ahead: float = 0.0) -> None:
        """Run `work` when a message reaches the aggregator, `ahead` seconds behind other bytes on the uplink."""
        if not self.connected:
            return
        self.messages += 1
        self.sent(size)
        environment = self._environment
        if environment.lost(self._device, purpose, self.messages):
            return
        seconds = self.latency + ahead + size / self.up
        environment.clock.after(seconds + environment.delay(self._device, purpose, self.messages), work)
        if environment.world.twice and environment.world.twice_sent(self._device, self.messages):
            environment.clock.after(
                2 * seconds + environment.delay(self._device, f"{purpose} again", self.messages), work
            )

    def receive_answer(self, size: int, work: Work) -> None:
        """Run `work` when an answer of the aggregator arrives, unless it is lost."""
        self.messages += 1
        if self.connected and not self._environment.lost(self._device, "receipt", self.messages):
            self.received(size)
            self.deliver(work, self._environment.delay(self._device, "receipt", self.messages))
