"""The link of one simulated device: latency, bandwidth, losses, and received announcements."""

from collections.abc import Sequence

from midge.iot_client.connection.announcement_policy import AnnouncementPolicy
from midge.sensor_fleet.simulation import headers
from midge.sensor_fleet.simulation.air import Air
from midge.sensor_fleet.simulation.clock import Work
from midge.wire.messages import Announcement, FrameInfo


class VirtualLink:
    """Delivers messages in virtual time, and counts their bytes.

    Args:
        air: state shared by all devices.
        device: its name.
    """

    __slots__ = (
        "_air",
        "_device",
        "_heard",
        "_policy",
        "bytes_down",
        "bytes_up",
        "connection",
        "deaf",
        "down",
        "latency",
        "messages",
        "stands",
        "up",
    )

    def __init__(self, air: Air, device: str) -> None:
        link = air.world.link(device)
        self._air, self._device = air, device
        self.latency, self.up, self.down = link.latency, link.bandwidth, link.down
        self.bytes_up = self.bytes_down = 0.0
        self.messages = 0
        self.stands = False
        """Whether the connection is established."""
        self.connection = 0
        """Number of the current connection or attempt; messages of earlier ones are lost."""
        self._heard = 0.0
        self._policy = AnnouncementPolicy()
        self.deaf = False
        """Whether it is unsubscribed from announcements during a training."""

    def connect(self) -> None:
        """Establish the connection: from now on announcements are received."""
        self.stands, self.deaf = True, False
        self._heard = self._air.server.publisher.announced_bytes

    def disconnect(self) -> None:
        """End the connection."""
        self.count_heard()
        self.stands = False

    # ------------------------------------------------------------------------ bytes

    def sent(self, size: float) -> None:
        """Count bytes sent."""
        self.bytes_up += size
        self._air.up += size

    def received(self, size: float) -> None:
        """Count bytes received, apart from announcements."""
        self.bytes_down += size
        self._air.down += size

    def count_heard(self) -> None:
        """Count the announcements received over this connection."""
        if self.stands and not self.deaf:
            heard = self._air.server.publisher.announced_bytes
            self.bytes_down += heard - self._heard
            self._heard = heard

    def ignore_versions(self, announcement: Announcement) -> None:
        """Unsubscribe from announcements during a training, if many are expected."""
        if self.stands and self._policy.unsubscribe_while_training(announcement):
            self.count_heard()
            self.deaf = True

    def follow_versions(self) -> None:
        """Subscribe again and receive the retained announcement."""
        if self.deaf and self.stands:
            publisher = self._air.server.publisher
            self.deaf = False
            # They were counted as received by every connected device.
            self._air.down -= publisher.announced_bytes - self._heard
            self._heard = publisher.announced_bytes
            self.received(publisher.announcement_bytes)

    # --------------------------------------------------------------------- messages

    def hear(self, work: Work, seconds: float = 0.0) -> None:
        """Run `work` when a message arrives, if this connection still exists then."""
        connection = self.connection

        def heard() -> None:
            if self.stands and self.connection == connection:
                work()

        self._air.clock.after(self.latency + seconds, heard)

    def fetch(self, frames: Sequence[FrameInfo], work: Work) -> None:
        """Receive frames of the model, and run `work` after the last part."""
        parts = sum(frame.parts for frame in frames)
        size = sum(frame.size for frame in frames) + parts * headers.part()
        self.received(size)
        # Two parts are requested at a time; their topics are unsubscribed before the next request.
        self.hear(work, (4 * -(-parts // 2) - 1) * self.latency + size / self.down)

    def say(self, purpose: str, size: int, work: Work, *, ahead: float = 0.0) -> None:
        """Run `work` when a message reaches the aggregator, `ahead` seconds behind other bytes on the uplink."""
        if not self.stands:
            return
        self.messages += 1
        self.sent(size)
        air = self._air
        if air.lost(self._device, purpose, self.messages):
            return
        seconds = self.latency + ahead + size / self.up
        air.clock.after(seconds + air.delay(self._device, purpose, self.messages), work)
        if air.world.twice and air.world.twice_sent(self._device, self.messages):
            air.clock.after(2 * seconds + air.delay(self._device, f"{purpose} again", self.messages), work)

    def answered(self, size: int, work: Work) -> None:
        """Run `work` when an answer of the aggregator arrives, unless it is lost."""
        self.messages += 1
        if self.stands and not self._air.lost(self._device, "receipt", self.messages):
            self.received(size)
            self.hear(work, self._air.delay(self._device, "receipt", self.messages))
