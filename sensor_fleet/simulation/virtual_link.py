"""The link of one simulated device: latency, bandwidth, losses, and which announcements it has heard."""

from collections.abc import Sequence

from midge.iot_client.connection.announcement_policy import AnnouncementPolicy
from midge.sensor_fleet.simulation import headers
from midge.sensor_fleet.simulation.air import Air
from midge.sensor_fleet.simulation.clock import Work
from midge.wire.messages import Announcement, FrameInfo


class VirtualLink:
    """Carries messages in virtual time, and counts their bytes.

    Args:
        air: what all devices share.
        device: the name of this one.
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
        """Whether a connection stands."""
        self.connection = 0
        """The number of the connection that stands, or is being made; what belongs to an earlier one is lost."""
        self._heard = 0.0
        self._policy = AnnouncementPolicy()
        self.deaf = False
        """Whether it hears of no new version, during a training."""

    def connect(self) -> None:
        """A connection stands from now on: what is announced from here on is heard."""
        self.stands, self.deaf = True, False
        self._heard = self._air.server.heard

    def disconnect(self) -> None:
        """The connection is gone."""
        self.count_heard()
        self.stands = False

    # ------------------------------------------------------------------------ bytes

    def sent(self, size: float) -> None:
        """Count bytes on the way up."""
        self.bytes_up += size
        self._air.up += size

    def received(self, size: float) -> None:
        """Count bytes on the way down, beside announcements."""
        self.bytes_down += size
        self._air.down += size

    def count_heard(self) -> None:
        """Count the announcements that this connection has brought."""
        if self.stands and not self.deaf:
            heard = self._air.server.heard
            self.bytes_down += heard - self._heard
            self._heard = heard

    def ignore_versions(self, announcement: Announcement) -> None:
        """Hear of no new version during a training, if many would come."""
        if self.stands and self._policy.unsubscribe_while_training(announcement):
            self.count_heard()
            self.deaf = True

    def follow_versions(self) -> None:
        """Hear of the newest version at once, for it is retained."""
        if self.deaf and self.stands:
            server = self._air.server
            self.deaf = False
            self._air.down -= server.heard - self._heard  # which was counted as heard by every device
            self._heard = server.heard
            self.received(server.weighs)

    # --------------------------------------------------------------------- messages

    def hear(self, work: Work, seconds: float = 0.0) -> None:
        """Do what a message brings, once it is here, if this connection still stands then."""
        connection = self.connection

        def heard() -> None:
            if self.stands and self.connection == connection:
                work()

        self._air.clock.after(self.latency + seconds, heard)

    def fetch(self, frames: Sequence[FrameInfo], work: Work) -> None:
        """Count frames of the model, and do what they bring once the last part is here."""
        parts = sum(frame.parts for frame in frames)
        size = sum(frame.size for frame in frames) + parts * headers.part()
        self.received(size)
        # Two parts are asked for at a time, and their topics are left before the next are asked for.
        self.hear(work, (4 * -(-parts // 2) - 1) * self.latency + size / self.down)

    def say(self, purpose: str, size: int, work: Work, *, ahead: float = 0.0) -> None:
        """Do what a message brings, once the aggregator has it, `ahead` seconds after other bytes on the uplink."""
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
        """Do what an answer of the aggregator brings, unless it is lost."""
        self.messages += 1
        if self.stands and not self._air.lost(self._device, "receipt", self.messages):
            self.received(size)
            self.hear(work, self._air.delay(self._device, "receipt", self.messages))
