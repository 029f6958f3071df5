"""What the core is told and what it asks for.

Plain values without arrays: bodies are named by a key, and the shell holds what is behind it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from midge.aggregator.core.records import Record
from midge.wire.messages import Fetch, Settled, Statistics, Update, Verdict

# ------------------------------------------------------------------------- events


@dataclass(frozen=True, slots=True)
class Greeted:
    """A device said hello and waits to hear what we have of its outbox."""

    device: str
    outbox: int
    first: int


@dataclass(frozen=True, slots=True)
class Offered:
    """A device asks to send a large update in chunks."""

    device: str
    update: Update


@dataclass(frozen=True, slots=True)
class Arrived:
    """An update is here with its whole body, which the shell holds under `key`."""

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
    """Its cosine with the direction of most devices (`aggregator.model.consensus`); 0 if that is not known."""


@dataclass(frozen=True, slots=True)
class Undecodable:
    """The body under `key` is not what its header says."""

    device: str
    update: Update
    key: int
    verdict: Verdict
    why: str


@dataclass(frozen=True, slots=True)
class StatisticsArrived:
    """A device's moments are here, checked, under `key`."""

    device: str
    statistics: Statistics
    key: int
    digest: bytes = b""
    """Of the moments."""


@dataclass(frozen=True, slots=True)
class FetchAsked:
    """A device did not find chunks of the model at the broker."""

    device: str
    fetch: Fetch


@dataclass(frozen=True, slots=True)
class Revoked:
    """A device is no part of the federation any more: what waits of it counts no longer."""

    device: str


@dataclass(frozen=True, slots=True)
class Measured:
    """How far the deltas of these updates are from the last combined one, L2."""

    distances: tuple[tuple[int, float], ...]
    """By lsn."""


@dataclass(frozen=True, slots=True)
class Examined:
    """What can be made of the statistics that are here."""

    kept: tuple[int, ...]
    """Those to pool, by lsn."""
    wait: str = ""
    """Why nothing can be pooled yet, in words; empty if it can."""
    soon: str = ""
    """Why more rows should be waited for, for a while only."""


@dataclass(frozen=True, slots=True)
class DevicesOnline:
    """How many devices are there has changed, as their statuses tell."""

    count: int


@dataclass(frozen=True, slots=True)
class ReleaseCarried:
    """A release was carried out on the model, whose published state has this digest."""

    version: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class ClockCompared:
    """By how many seconds what is journaled is dated ahead of `now`: that is since 1970, or since anything."""

    ahead: float


@dataclass(frozen=True, slots=True)
class StoreFilled:
    """The store has no room: nothing can be decided until `StoreWritable`."""

    why: str


@dataclass(frozen=True, slots=True)
class StoreWritable:
    """The store has room again."""


@dataclass(frozen=True, slots=True)
class OperatorPaused:
    """The operator holds updates off, or with None lets them in again."""

    why: str | None


@dataclass(frozen=True, slots=True)
class InputsCompared:
    """What devices call their inputs was compared with the model's."""

    names: tuple[str, ...]
    """Of the model's inputs, in order; empty if they are not known."""
    unlike: Mapping[str, str] = field(default_factory=dict)
    """Devices whose inputs are not the model's, each with why in words."""


@dataclass(frozen=True, slots=True)
class MovementFollowed:
    """A version was compared with those before it."""

    quiet: int
    """Versions in a row that have not moved the model beyond its noise."""


@dataclass(frozen=True, slots=True)
class ReleasePublished:
    """A release is on its way: what it costs."""

    announcement: int
    """Bytes of its announcement."""
    step: int
    """Bytes of the frame that leads over from the last version; 0 if there is none."""


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
    """Make the record durable, with the body under `key` where there is one."""

    record: Record
    key: int | None = None
    noise: float = 0.0
    """Where above 0: the body is fresh Gaussian noise of this standard deviation, a float32 for each parameter."""


@dataclass(frozen=True, slots=True)
class Measure:
    """Measure the deltas of these updates, by lsn, once they are durable; answer with Measured."""

    lsns: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Examine:
    """Find which of these statistics can be pooled, by lsn, once they are durable; answer with Examined."""

    lsns: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Announce:
    """Announce the newest version again: who takes part has changed."""


@dataclass(frozen=True, slots=True)
class Drop:
    """The body under `key` is not needed any more, once what comes before this is done."""

    key: int


@dataclass(frozen=True, slots=True)
class Reply:
    """Tell a device what is settled: a receipt."""

    device: str
    outbox: int
    hi: int
    settled: tuple[Settled, ...] = ()


@dataclass(frozen=True, slots=True)
class GrantChunks:
    """Let a device send the chunks of an update that it offered."""

    device: str
    update: Update
    hi: int


@dataclass(frozen=True, slots=True)
class Carry:
    """Carry a journaled decision out on the model: a step, a freeze or a release."""

    record: Record


@dataclass(frozen=True, slots=True)
class Republish:
    """Publish chunks of a frame again."""

    fetch: Fetch


Action = Decode | Journal | Measure | Examine | Announce | Drop | Reply | GrantChunks | Carry | Republish
