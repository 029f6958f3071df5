"""What a device's session is told and what it asks for.

Plain values without arrays: bodies are named by a key, and the shell holds what is behind it.
"""

from dataclasses import dataclass

from midge.wire.messages import AggregatorStatus, Announcement, FrameInfo, Moment, Plan, Receipt, Settled, Update


@dataclass(frozen=True, slots=True)
class Base:
    """Which model it is that a device holds or trains from."""

    lineage: bytes
    generation: int
    version: int

    @classmethod
    def of(cls, announcement: Announcement) -> "Base":
        """What an announcement announces."""
        return cls(announcement.lineage, announcement.generation, announcement.version)


# ------------------------------------------------------------------------- events


@dataclass(frozen=True, slots=True)
class Connected:
    """A connection stands and our subscriptions with it."""

    chunk: int | None = None
    """Bytes of body that fit into one packet, where the broker set a limit."""


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The connection is gone."""


@dataclass(frozen=True, slots=True)
class Announced:
    """An announcement has been read."""

    announcement: Announcement


@dataclass(frozen=True, slots=True)
class AggregatorSeen:
    """The aggregator's status has been read."""

    status: AggregatorStatus


@dataclass(frozen=True, slots=True)
class Receipted:
    """A receipt has come."""

    receipt: Receipt


@dataclass(frozen=True, slots=True)
class Fetched:
    """A model that was asked for is here, its digest verified: the device holds it from now on."""

    base: Base


@dataclass(frozen=True, slots=True)
class FetchFailed:
    """It is not; `start_over` where what we held before is of no use either."""

    why: str
    start_over: bool = False


@dataclass(frozen=True, slots=True)
class Trained:
    """A training has ended: the update but for its identity, with the body under `key`."""

    update: Update
    key: int


@dataclass(frozen=True, slots=True)
class NothingToSend:
    """A training has ended without anything that is worth sending."""

    why: str


@dataclass(frozen=True, slots=True)
class Killed:
    """The process that trained is gone, and with it what it was at."""

    why: str


@dataclass(frozen=True, slots=True)
class Hindered:
    """Something of the device's own keeps it from training: a condition, a spent budget; None: nothing any more."""

    why: str | None
    muted: str | None = None
    """What keeps updates and models off its link."""
    unready: str | None = None
    """Why its statistics are not worth sending yet."""


@dataclass(frozen=True, slots=True)
class LinkMeasured:
    """How much the link up carries has become known, or is not known any more."""

    chunk: int | None
    """Bytes that a chunk should have at most; None sets no limit."""


@dataclass(frozen=True, slots=True)
class SizeRefused:
    """The broker refused an update, or a chunk of one, for its size."""

    chunk: int
    """Bytes of body that are sent at once from now on, at most."""


@dataclass(frozen=True, slots=True)
class ChunkDelivered:
    """The broker has acknowledged a chunk."""


@dataclass(frozen=True, slots=True)
class NotStored:
    """There was no room to store the last update that was trained: it is lost."""


@dataclass(frozen=True, slots=True)
class Renewed:
    """The outbox has a new identity and holds these updates; the next is numbered `next_seq`."""

    outbox: int
    held: tuple[Update, ...]
    next_seq: int


Event = (
    Connected
    | Disconnected
    | Announced
    | AggregatorSeen
    | Receipted
    | Fetched
    | FetchFailed
    | Trained
    | NothingToSend
    | Killed
    | Hindered
    | LinkMeasured
    | SizeRefused
    | ChunkDelivered
    | NotStored
    | Renewed
)

# ------------------------------------------------------------------------ actions


@dataclass(frozen=True, slots=True)
class Unsuited:
    """Tell that the device's inputs are not those of the model: it does not train."""

    why: str


@dataclass(frozen=True, slots=True)
class Greet:
    """Publish our status: READY, what we hold and what comes next."""


@dataclass(frozen=True, slots=True)
class ReadAnnouncement:
    """Read the retained announcement again, and the aggregator's status with it."""


@dataclass(frozen=True, slots=True)
class SendStatistics:
    """Send the moments of our data."""

    lineage: bytes
    moments: tuple[Moment, ...]


@dataclass(frozen=True, slots=True)
class FetchModel:
    """Get frames, in order, and apply them on what we hold; the result must have the announcement's digest."""

    announcement: Announcement
    frames: tuple[FrameInfo, ...]


@dataclass(frozen=True, slots=True)
class Train:
    """Train from the model that we hold."""

    announcement: Announcement
    plan: Plan


@dataclass(frozen=True, slots=True)
class StoreUpdate:
    """Make an update durable under its identity, with the body under `key`."""

    update: Update
    key: int


@dataclass(frozen=True, slots=True)
class Send:
    """Send a stored update with its body."""

    update: Update


@dataclass(frozen=True, slots=True)
class Offer:
    """Ask to send a stored update in chunks."""

    update: Update


@dataclass(frozen=True, slots=True)
class SendChunks:
    """Send chunks of an update that was offered."""

    update: Update
    parts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Forget:
    """Remove every update up to a seq from the outbox: they are settled."""

    through: int


@dataclass(frozen=True, slots=True)
class Renew:
    """Begin a new outbox identity: the aggregator knows more of this one than we do, so it was put back."""

    keep: tuple[int, ...]
    """The updates that were certainly never decided on; they move over, in order, numbered from 1."""


@dataclass(frozen=True, slots=True)
class Tell:
    """A verdict, for the device's log and for its owner."""

    settled: Settled


Action = (
    Greet
    | ReadAnnouncement
    | SendStatistics
    | FetchModel
    | Train
    | StoreUpdate
    | Send
    | Offer
    | SendChunks
    | Forget
    | Renew
    | Tell
    | Unsuited
)
