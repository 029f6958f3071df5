"""Events into a device's session, and the actions that it returns.

Plain values without arrays: bodies are named by a key, and the shell holds them.
"""

from dataclasses import dataclass

from midge.wire.messages import AggregatorStatus, Announcement, FrameInfo, Moment, Plan, Receipt, Settled, Update


@dataclass(frozen=True, slots=True)
class Base:
    """Identifies the model that a device holds or trains from."""

    lineage: bytes
    generation: int
    version: int

    @classmethod
    def of(cls, announcement: Announcement) -> "Base":
        """The model of an announcement."""
        return cls(announcement.lineage, announcement.generation, announcement.version)


# ------------------------------------------------------------------------- events


@dataclass(frozen=True, slots=True)
class Connected:
    """A connection is established, with our subscriptions."""

    chunk: int | None = None
    """Maximum bytes of body in one packet; None if the broker set no limit."""


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The connection ended."""


@dataclass(frozen=True, slots=True)
class Announced:
    """An announcement was read."""

    announcement: Announcement


@dataclass(frozen=True, slots=True)
class AggregatorSeen:
    """The aggregator's status was read."""

    status: AggregatorStatus


@dataclass(frozen=True, slots=True)
class Receipted:
    """A receipt arrived."""

    receipt: Receipt


@dataclass(frozen=True, slots=True)
class Fetched:
    """A requested model was fetched and its digest verified: the device holds it from now on."""

    base: Base


@dataclass(frozen=True, slots=True)
class FetchFailed:
    """A fetch failed; with `start_over`, the held model is useless too."""

    why: str
    start_over: bool = False


@dataclass(frozen=True, slots=True)
class Trained:
    """A training has ended: the update without its identity, with the body under `key`."""

    update: Update
    key: int


@dataclass(frozen=True, slots=True)
class Summed:
    """A gateway made a sum of its devices' updates, whether or not it trains; the body is under `key`."""

    update: Update
    key: int


@dataclass(frozen=True, slots=True)
class Withheld:
    """The owner has withdrawn consent: what waits is not sent."""


@dataclass(frozen=True, slots=True)
class NothingToSend:
    """A training has ended without an update worth sending."""

    why: str


@dataclass(frozen=True, slots=True)
class Discarded:
    """A training has ended of which nothing may be given: consent was withdrawn before or during it."""

    why: str


@dataclass(frozen=True, slots=True)
class Killed:
    """The training process was killed."""

    why: str


@dataclass(frozen=True, slots=True)
class Hindered:
    """The device's own constraints keep it from training: a condition, a spent budget; None if none does."""

    why: str | None
    muted: str | None = None
    """Constraint that keeps updates and models off the link."""
    unready: str | None = None
    """Why its statistics are not worth sending yet."""


@dataclass(frozen=True, slots=True)
class LinkMeasured:
    """The estimated uplink throughput has changed."""

    chunk: int | None
    """Maximum bytes of a chunk; None sets no limit."""


@dataclass(frozen=True, slots=True)
class SizeRefused:
    """The broker refused an update, or a chunk of one, because of its size."""

    chunk: int
    """Maximum bytes of body in a message from now on."""


@dataclass(frozen=True, slots=True)
class ChunkDelivered:
    """The broker has acknowledged a chunk."""


@dataclass(frozen=True, slots=True)
class NotStored:
    """There was no room to store the newest update: it is lost."""


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
    | Summed
    | NothingToSend
    | Discarded
    | Killed
    | Hindered
    | LinkMeasured
    | SizeRefused
    | ChunkDelivered
    | NotStored
    | Renewed
    | Withheld
)

# ------------------------------------------------------------------------ actions


@dataclass(frozen=True, slots=True)
class Unsuited:
    """Report that the device's inputs are not those of the model: it does not train."""

    why: str


@dataclass(frozen=True, slots=True)
class Greet:
    """Publish our status: READY, what we hold and the next sequence number."""


@dataclass(frozen=True, slots=True)
class ReadAnnouncement:
    """Read the retained announcement again, and with it the aggregator's status."""


@dataclass(frozen=True, slots=True)
class IgnoreVersions:
    """Unsubscribe from announcements: no version is of use."""


@dataclass(frozen=True, slots=True)
class FollowVersions:
    """Subscribe to announcements again; the newest is retained and follows."""


@dataclass(frozen=True, slots=True)
class SendStatistics:
    """Send the normalisation statistics of our data."""

    lineage: bytes
    moments: tuple[Moment, ...]


@dataclass(frozen=True, slots=True)
class FetchModel:
    """Fetch frames, in order, and apply them to the held model; the result must have the announcement's digest."""

    announcement: Announcement
    frames: tuple[FrameInfo, ...]


@dataclass(frozen=True, slots=True)
class Train:
    """Train from the held model."""

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
    """Request to send a stored update in chunks."""

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
    """Begin a new outbox identity: the aggregator knows more of this one than we do, so it was restored from a copy."""

    keep: tuple[int, ...]
    """The updates that were certainly never settled; they move over, in order, numbered from 1."""


@dataclass(frozen=True, slots=True)
class NoteSite:
    """Record whose receipts settle what is sent from here on, before anything is sent there."""

    site: str
    """The site of a gateway; empty is the federation's own aggregator."""


@dataclass(frozen=True, slots=True)
class Tell:
    """A verdict, for the device's log and for its owner."""

    settled: Settled


Action = (
    Greet
    | ReadAnnouncement
    | IgnoreVersions
    | FollowVersions
    | SendStatistics
    | FetchModel
    | Train
    | StoreUpdate
    | Send
    | Offer
    | SendChunks
    | Forget
    | Renew
    | NoteSite
    | Tell
    | Unsuited
)
