"""Events, which the core processes, and actions, which it returns.

Plain values without arrays: a body is named by a key, and the shell holds its bytes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from midge.aggregator.core.records import Record
from midge.wire.messages import Fetch, Settled, Statistics, Update, Verdict
from midge.wire.messages.proofs import Prove

# ------------------------------------------------------------------------- events


@dataclass(frozen=True, slots=True)
class Greeted:
    """A device greeted, and waits for a receipt on its outbox."""

    device: str
    outbox: int
    first: int
    """The lowest seq that the device still holds."""


@dataclass(frozen=True, slots=True)
class Offered:
    """A device offered a large update, to be sent in chunks."""

    device: str
    update: Update


@dataclass(frozen=True, slots=True)
class Arrived:
    """An update arrived with its whole body, which the shell holds under `key`."""

    device: str
    update: Update
    key: int


@dataclass(frozen=True, slots=True)
class Decoded:
    """The body under `key` has been decoded and is finite."""

    device: str
    update: Update
    key: int
    norm: float
    """L2, of the delta."""
    agreement: float = 0.0
    """Its cosine with the consensus direction (`aggregator.model.consensus`); 0 if unknown."""
    content: bytes = b""
    """A digest of the delta; empty if repetitions are not looked for."""


@dataclass(frozen=True, slots=True)
class Undecodable:
    """The body under `key` contradicts its header, or is not finite."""

    device: str
    update: Update
    key: int
    verdict: Verdict
    why: str


@dataclass(frozen=True, slots=True)
class StatisticsArrived:
    """A device's moments arrived and are valid; the shell holds them under `key`."""

    device: str
    statistics: Statistics
    key: int
    digest: bytes = b""
    """Of the moments."""


@dataclass(frozen=True, slots=True)
class FetchAsked:
    """A device requests chunks of the model that the broker does not have."""

    device: str
    fetch: Fetch


@dataclass(frozen=True, slots=True)
class ProofAsked:
    """A device requests the proof of an update. Not for the core: the host answers it from its store."""

    device: str
    asked: Prove


@dataclass(frozen=True, slots=True)
class Revoked:
    """The operator revoked a device: its updates and statistics that wait are dropped."""

    device: str


@dataclass(frozen=True, slots=True)
class Measured:
    """L2 distances of updates' deltas from the last combined delta; the answer to `Measure`."""

    distances: tuple[tuple[int, float], ...]
    """By lsn."""


@dataclass(frozen=True, slots=True)
class Examined:
    """The finding on the statistics gathered so far; the answer to `Examine`."""

    kept: tuple[int, ...]
    """Those to pool, by lsn."""
    wait: str = ""
    """Why nothing can be pooled yet; empty if it can."""
    soon: str = ""
    """Why more rows should be awaited, for a limited time; empty if there is no reason."""
    near: float = 0.0
    """The limit of what one device shows (`aggregator.model.statistics.NEAR`); 0 sets none."""


@dataclass(frozen=True, slots=True)
class DevicesOnline:
    """The number of online devices changed, according to their statuses."""

    count: int
    idle: int = 0
    """Number of those that do not train: they say why, or their updates are refused because of their inputs."""


@dataclass(frozen=True, slots=True)
class ReleaseCarried:
    """A release was executed on the model, and its published state has this digest."""

    version: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class ClockCompared:
    """The offset between the clock of the journal's dates (seconds since 1970) and that of `now`."""

    ahead: float
    """Seconds to add to `now`."""


@dataclass(frozen=True, slots=True)
class StoreFilled:
    """The disk of the store is full: nothing can be decided until `StoreWritable`."""

    why: str


@dataclass(frozen=True, slots=True)
class StoreWritable:
    """The store has room again."""


@dataclass(frozen=True, slots=True)
class OperatorPaused:
    """The operator paused the federation for a reason, or with None resumed it."""

    why: str | None


@dataclass(frozen=True, slots=True)
class InputsCompared:
    """The devices' names of their inputs were compared with the model's."""

    names: tuple[str, ...]
    """Of the model's inputs, in order; empty if unknown."""
    unlike: Mapping[str, str] = field(default_factory=dict)
    """Devices whose inputs differ from the model's, each with the difference."""
    contested: Mapping[str, str] = field(default_factory=dict)
    """Devices whose names differ from other devices' while the model's are unknown, each with why."""


@dataclass(frozen=True, slots=True)
class MovementFollowed:
    """A version was compared with the earlier ones (`aggregator.model.movement`)."""

    quiet: int
    """Number of versions in a row that did not move the model beyond its noise."""


@dataclass(frozen=True, slots=True)
class ReleasePublished:
    """A release was queued for publishing; its sizes determine the pacing."""

    announcement: int
    """Bytes of its announcement."""
    step: int
    """Bytes of its smallest frame; 0 if there is none."""


Event = (
    Greeted
    | Offered
    | Arrived
    | Decoded
    | Undecodable
    | StatisticsArrived
    | FetchAsked
    | Revoked
    | Measured
    | Examined
    | DevicesOnline
    | ClockCompared
    | ReleaseCarried
    | StoreFilled
    | StoreWritable
    | OperatorPaused
    | InputsCompared
    | MovementFollowed
    | ReleasePublished
)

# ------------------------------------------------------------------------ actions


@dataclass(frozen=True, slots=True)
class Decode:
    """Decode the body under `key`; answer with Decoded or Undecodable."""

    device: str
    update: Update
    key: int


@dataclass(frozen=True, slots=True)
class Journal:
    """Make the record durable, with the body under `key` if there is one."""

    record: Record
    key: int | None = None
    noise: float = 0.0
    """If above 0, the body is fresh Gaussian noise of this standard deviation, rounded to integers: one int32 for each
    parameter."""


@dataclass(frozen=True, slots=True)
class Measure:
    """Measure the deltas of these updates, by lsn, once they are durable; answer with Measured."""

    lsns: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Examine:
    """Examine which of these statistics can be pooled, by lsn, once they are durable; answer with Examined."""

    lsns: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Announce:
    """Announce the newest version again, because participation or the number of devices changed."""


@dataclass(frozen=True, slots=True)
class Drop:
    """Release the body under `key`, after the preceding actions."""

    key: int


@dataclass(frozen=True, slots=True)
class Reply:
    """Send a device a receipt: its outbox is settled up to `hi`, with these verdicts."""

    device: str
    outbox: int
    hi: int
    settled: tuple[Settled, ...] = ()


@dataclass(frozen=True, slots=True)
class GrantChunks:
    """Grant a device chunks of an update that it offered."""

    device: str
    update: Update
    hi: int


@dataclass(frozen=True, slots=True)
class Carry:
    """Execute a journaled decision on the model: a step, a freeze or a release."""

    record: Record


@dataclass(frozen=True, slots=True)
class Republish:
    """Publish chunks of a frame again."""

    fetch: Fetch


Action = Decode | Journal | Measure | Examine | Announce | Drop | Reply | GrantChunks | Carry | Republish
