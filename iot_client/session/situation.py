"""What a device knows of its federation and its link, shared by the parts of its session."""

from dataclasses import dataclass

from midge.iot_client.session.states import LINKS, Link
from midge.wire import sharing
from midge.wire.messages import AggregatorState, AggregatorStatus, Announcement

CHUNK = 256 * 1024
"""Bytes of body that are sent at once before an announcement says how many."""


@dataclass(slots=True)
class Situation:
    """The newest that was heard."""

    link: Link = Link.DOWN
    announcement: Announcement | None = None
    aggregator: AggregatorStatus | None = None
    """Its status over this connection; None before it was read."""
    packet: int | None = None
    """Bytes of body that fit into one packet of this connection; None if there is no limit."""
    link_chunk: int | None = None
    """Bytes of a chunk that the link bears, as far as is known; `iot_client.connection.chunk_sizer`."""
    muted: str | None = None
    """What of the device's own keeps updates and models off its link."""

    def follow(self, event: str) -> None:
        """Follow the table of the link. An event that a state does not know is a bug: KeyError."""
        self.link = LINKS[self.link, event]

    @property
    def asked_chunk(self) -> int:
        """Bytes of a chunk that the aggregator asks for."""
        return CHUNK if self.announcement is None else self.announcement.chunk

    @property
    def chunk(self) -> int:
        """Bytes of body that are sent at once: what the aggregator asks for, or less if broker or link take less."""
        return min(bound for bound in (self.asked_chunk, self.packet, self.link_chunk) if bound is not None)

    @property
    def aggregator_ready(self) -> bool:
        """Whether nothing says that the aggregator is away or paused."""
        return self.aggregator is None or self.aggregator.state is AggregatorState.READY

    @property
    def paused(self) -> bool:
        """Whether the operator has paused the federation."""
        return self.aggregator is not None and self.aggregator.state is AggregatorState.PAUSED

    def spread(self, size: int, messages: int, share: float = 1.0) -> float:
        """Seconds over which devices begin what all of them do, each with the given bytes and messages.

        Args:
            size: bytes of each.
            messages: of each.
            share: of all devices that do it.
        """
        told = self.announcement
        return 0.0 if told is None else sharing.spread(told.byte_rate, told.devices * share, size, messages)
