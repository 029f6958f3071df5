"""What a device knows of its federation and its link, shared by the parts of its session."""

from dataclasses import dataclass

from midge.iot_client.session.states import LINKS, Link
from midge.wire import sharing
from midge.wire.messages import AggregatorState, AggregatorStatus, Announcement

CHUNK = 256 * 1024
"""Bytes of body in a message before an announcement gives the number."""


@dataclass(slots=True)
class Situation:
    """The newest known state of federation and link."""

    link: Link = Link.DOWN
    announcement: Announcement | None = None
    aggregator: AggregatorStatus | None = None
    """Its status over this connection; None before it was read."""
    packet: int | None = None
    """Maximum bytes of body in one packet of this connection; None if there is no limit."""
    link_chunk: int | None = None
    """Maximum bytes of a chunk for this link; None if unknown; `iot_client.connection.chunk_sizer`."""
    muted: str | None = None
    """The device's own constraint that keeps updates and models off its link."""

    def follow(self, event: str) -> None:
        """Follow the link's transition table. An event that a state does not have is a bug: KeyError."""
        self.link = LINKS[self.link, event]

    @property
    def asked_chunk(self) -> int:
        """Bytes of a chunk that the aggregator requests."""
        return CHUNK if self.announcement is None else self.announcement.chunk

    @property
    def chunk(self) -> int:
        """Maximum bytes of body in a message: the aggregator's, or less if broker or link require it."""
        return min(bound for bound in (self.asked_chunk, self.packet, self.link_chunk) if bound is not None)

    @property
    def aggregator_ready(self) -> bool:
        """Whether the aggregator is not known to be away or paused."""
        return self.aggregator is None or self.aggregator.state is AggregatorState.READY

    @property
    def paused(self) -> bool:
        """Whether the operator has paused the federation."""
        return self.aggregator is not None and self.aggregator.state is AggregatorState.PAUSED

    def spread(self, size: int, messages: int, share: float = 1.0) -> float:
        """Jitter window in seconds for something that all devices do at once.

        Args:
            size: bytes of each.
            messages: of each.
            share: of all devices that do it.
        """
        newest = self.announcement
        return 0.0 if newest is None else sharing.spread(newest.byte_rate, newest.devices * share, size, messages)
