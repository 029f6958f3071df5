"""Records of the journal: one decision each, complete enough to replay it.

A replay needs no clock, network or configuration: a record holds the weight of an update, the updates of a step, the
step of a release. `pack` and `unpack` convert between records and bytes on disk.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from midge.wire import frames
from midge.wire.errors import WireError
from midge.wire.messages import Settled, Verdict, possible


@dataclass(frozen=True, slots=True)
class UpdateRecord:
    """The verdict on one update. An accepted one is stored with its body until a checkpoint includes it."""

    lsn: int
    device: str
    outbox: int
    seq: int
    verdict: str
    why: str = ""
    base: int = 0
    staleness: int = 0
    weight: float = 0.0
    """Its weight in its step: from its staleness, its rows, and how often its device contributes."""
    scale: float = 1.0
    """Factor of its delta: clipping, unequal local steps."""
    norm: float = 0.0
    codec: str = ""
    tensors: tuple[int, ...] | None = None
    examples: int = 0
    steps: int = 0
    size: int = 0
    agreement: float = 0.0
    """Cosine of its delta with the consensus direction; 0 if that was unknown."""
    reference: float = 0.0
    """The fleet's reference norm when it arrived; 0 if there was none."""
    body: bytes = b""
    """The first 8 bytes of the SHA-256 of its body as it travelled; empty in an older store."""
    trivial: bool = False
    """Whether it hides no other's work in a release: next to zero, or a repetition (`UpdateAdmission`)."""
    ticket: bytes = b""
    """Of a masked update: its ticket for the mask helper, without the device's name."""
    accepted: int = 0
    """Of a gateway's sum: the number of its devices' updates in it; 0 is a device's own update."""
    devices: int = 0
    """The number of distinct devices that they are of."""
    mass: float = 1.0
    """The sum of their weights in it: the body is the weighted sum, not the mean."""
    who: bytes = b""
    """Of a shard's sum: 4 bytes for each of these devices."""

    def settled(self, weight: float = 0.0) -> Settled:
        """The verdict as reported to its device, with the update's weight in its step."""
        return Settled(
            seq=self.seq,
            verdict=Verdict(self.verdict),
            why=self.why,
            weight=weight,
            staleness=self.staleness,
            body=self.body,
        )


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One step of the model: its updates, by lsn, each with its weight."""

    lsn: int
    step: int
    updates: tuple[tuple[int, float], ...]
    rate: float
    form: str
    normalise: str
    scales: tuple[float, ...] = ()
    """Factors of the deltas, in the order of `updates`; empty if all are 1."""
    divisor: float = 0.0
    """A fixed divisor of the sum; 0 leaves it to `normalise`."""
    combine: str = "mean"
    trim: float = 0.0
    calibration: float = 0.0
    cached_since: int = 0
    """The first step whose cached deltas count; 0 counts all."""
    optimizer: tuple[str, float, float, float] = ("sgd", 0.0, 0.0, 0.0)
    """Kind, β1, β2 and ε."""
    noise: float = 0.0
    """Standard deviation of the noise on the sum; the noise itself is the record's body: int32 in steps of the grid, or
    float32 in an older store."""
    clip: float = 0.0
    """With noise, the largest L2 norm of an update in the sum; 0 in an older store, where only tensors that an update
    covered had noise."""
    grid: int = 0
    """With a clip, the binary logarithm of the grid's step."""
    helper: bytes = b""
    """Of a sum of masked updates (`combine` is `masked`, and the record's body is the sum): the mask helper's store."""
    dealt: int = 0
    """The number of that sum."""
    groups: tuple[int, ...] = ()
    """Of a step of several sums (`combine` is `groups`): their records, by lsn, in the order of `scales`."""
    outliers: tuple[int, ...] = ()
    """Those of `groups` whose mean lay far from the others'."""
    rows: tuple[str, ...] = ()
    """Names of tensors, as patterns, of which each row is averaged over the updates that changed it."""
    masses: tuple[tuple[int, float], ...] = ()
    """For each update, how many it stands for and the sum of their weights; empty if all are a device's own."""


@dataclass(frozen=True, slots=True)
class OpenedSumRecord:
    """A sum of masked updates was opened, and waits for others for its step. The body is the sum."""

    lsn: int
    updates: tuple[tuple[int, float], ...]
    """By lsn, each with its weight in the sum."""
    helper: bytes
    """The mask helper's store."""
    dealt: int
    """The number of the sum there."""
    part: int = 0
    """The slice that it covers."""
    factor: float = 1.0
    """Below 1 if it is longer than honest devices can make it: what brings it within that."""
    noise: float = 0.0
    """As in `StepRecord`: its devices are charged now, because it was read. With 0, or by an earlier version, they are
    charged with its step."""
    clip: float = 0.0
    """With noise, the largest L2 norm of an update in the sum."""


@dataclass(frozen=True, slots=True)
class FollowRecord:
    """Of a gateway: it passes on this version of the federation, as it was announced."""

    lsn: int
    generation: int
    version: int
    step: int
    at: float
    """Seconds since 1970."""
    digest: bytes
    envelope: bytes
    """The announcement, byte for byte."""


@dataclass(frozen=True, slots=True)
class SumRecord:
    """Of a gateway: the weighted sum of these waiting updates, all of one base, goes to the federation as an update."""

    lsn: int
    number: int
    """Counts from 1; the outbox records it with the update that it becomes."""
    generation: int
    base: int
    base_digest: bytes
    updates: tuple[tuple[int, float], ...]
    """By lsn, each with its weight."""
    scales: tuple[float, ...]
    devices: int
    """The number of distinct devices that they are of."""
    tensors: tuple[int, ...] | None = None
    examples: int = 0
    steps: int = 0
    """The median of theirs."""

    @property
    def mass(self) -> float:
        """The sum of the weights."""
        return math.fsum(weight for _, weight in self.updates)


@dataclass(frozen=True, slots=True)
class ReleaseRecord:
    """The release of a version at a step, with the work of `devices` distinct devices since the last one.

    With 0 devices, the published model stays the same under a new number.
    """

    lsn: int
    version: int
    step: int
    devices: int
    at: float = 0.0
    """Seconds since 1970; in an older store, seconds of a monotonic clock."""
    decay: float | None = None
    """Decay of the served moving average; None keeps no average."""


@dataclass(frozen=True, slots=True)
class ServeRecord:
    """The release of the served model under a version's number: the moving average, or the version itself."""

    lsn: int
    version: int
    step: int


@dataclass(frozen=True, slots=True)
class PaceRecord:
    """The share of devices that train from each version from now on, and their number of local steps."""

    lsn: int
    share: float
    steps: int = 0
    """0 leaves the number to the devices' recipes."""
    recipe: int = 0
    """Median number of steps in these recipes; 0 if unknown."""


@dataclass(frozen=True, slots=True)
class StatisticsRecord:
    """Federated statistics of a device; the moments are the record's body."""

    lsn: int
    device: str
    names: tuple[tuple[str, int], ...]
    missing: int
    digest: bytes = b""
    """Of the moments: the same ones, sent again, make no record."""


@dataclass(frozen=True, slots=True)
class FreezeRecord:
    """The statistics of these records, by lsn, were pooled and frozen into the model; outliers are not among them."""

    lsn: int
    statistics: tuple[int, ...]
    cap: float = 0.0
    """Most weight of one device, in multiples of the median count; 0 sets no limit."""
    near: float = 0.0
    """The limit of what one device shows (`aggregator.model.statistics.NEAR`); 0 sets none."""
    keep: bool = False
    """Whether the published tensors other than the frozen ones stay the same, because a model was released before."""


@dataclass(frozen=True, slots=True)
class GenerationRecord:
    """A new generation of the lineage began, because the restored store is behind what devices know."""

    lsn: int
    generation: int
    version: int
    """The highest version that was announced: the next release is above it."""


@dataclass(frozen=True, slots=True)
class RenormaliseRecord:
    """The operator requested new statistics: a new generation begins by gathering them."""

    lsn: int
    generation: int


@dataclass(frozen=True, slots=True)
class RegisterRecord:
    """A release was registered as a version of the model. The body is its snapshot."""

    lsn: int
    version: int
    generation: int
    step: int
    digest: bytes
    at: float
    """Seconds since 1970."""
    devices: int
    """Distinct devices of which updates were accepted up to then."""
    updates: int
    """Updates that are in it."""
    parent: int
    """The version that was registered before on the way to this one; 0 if there is none."""
    strategy: str = ""
    by: str = ""
    pruned: tuple[int, ...] = ()
    """Versions that are registered no longer, because there are too many."""
    order: str = ""
    """The operator's order that this follows; empty if a rule decided."""


@dataclass(frozen=True, slots=True)
class MeasureRecord:
    """What a registered version was measured to do. It takes the place of what the same source had measured before."""

    lsn: int
    version: int
    source: str
    """`server` or `federated`."""
    metrics: dict[str, Any]
    """Numbers by name; of the devices, each the fields of a `Spread`."""
    devices: int = 0
    """Devices that measured; 0 of the server's."""


@dataclass(frozen=True, slots=True)
class PairRecord:
    """A device has measured candidate and champion on its own rows. It counts once in a trial."""

    lsn: int
    device: str
    candidate: int
    champion: int
    gain: float
    """By how much the candidate is better; below 0 if it is worse."""


@dataclass(frozen=True, slots=True)
class AliasRecord:
    """From here on, the names stand for these registered versions."""

    lsn: int
    champion: int
    candidate: int
    """0: none."""
    share: float
    """Of the devices that use the candidate, or of those that `where` names."""
    why: str = ""
    by: str = ""
    at: float = 0.0
    order: str = ""
    where: Mapping[str, str] = field(default_factory=dict)
    """Capabilities of the devices that use the candidate, by name; empty means all devices."""


@dataclass(frozen=True, slots=True)
class RollbackRecord:
    """A new generation goes on from a registered version, which is the champion from here on.

    The body is its snapshot, so that a replay does not depend on what is registered now.
    """

    lsn: int
    generation: int
    version: int
    """The newest version so far: the next one is above it."""
    to: int
    """The registered version."""
    dropped: tuple[int, ...] = ()
    """Accepted updates that waited for their step: they end with the generation that they were trained in."""
    why: str = ""
    by: str = ""
    at: float = 0.0
    order: str = ""


@dataclass(frozen=True, slots=True)
class ForgetRecord:
    """A device is erased with the checkpoint that follows."""

    lsn: int
    device: str
    """The alias that replaces its name."""
    before: int = 0
    """Updates of versions before this one are stale from now on: one of the device's might be counted twice."""


@dataclass(frozen=True, slots=True)
class ReadmitRecord:
    """A forgotten device was readmitted: what it has spent of its privacy budget is its own again."""

    lsn: int
    device: str
    alias: str
    """The name that its account had meanwhile."""


@dataclass(frozen=True, slots=True)
class DropRecord:
    """Waiting records were dropped, of a revoked device for example. It names no device: names must stay erasable."""

    lsn: int
    dropped: tuple[int, ...]
    """Accepted updates that waited for their step, and statistics that waited for pooling, by lsn."""
    why: str = "revoked"
    """`revoked`; or of masked updates `unsummed`, if the mask helper will never sum them; `strategy`; or
    `unlike`, statistics of other inputs than the model's."""
    helper: bytes = b""
    """The mask helper's store, if they are of a sum that cannot be used."""
    dealt: int = 0
    """The number of that sum."""


@dataclass(frozen=True, slots=True)
class StrategyRecord:
    """The strategy that decided from here on. For people who read the journal; replay does not need it."""

    lsn: int
    strategy: str
    privacy: dict[str, Any] | None = None
    """The arguments of its `Privacy`; None if it has none."""


Record = (
    UpdateRecord
    | StepRecord
    | OpenedSumRecord
    | ReleaseRecord
    | ServeRecord
    | PaceRecord
    | StatisticsRecord
    | FreezeRecord
    | GenerationRecord
    | RenormaliseRecord
    | RegisterRecord
    | MeasureRecord
    | PairRecord
    | AliasRecord
    | RollbackRecord
    | ForgetRecord
    | ReadmitRecord
    | DropRecord
    | StrategyRecord
    | FollowRecord
    | SumRecord
)

_KINDS: dict[str, type[Record]] = {
    "update": UpdateRecord,
    "step": StepRecord,
    "opened": OpenedSumRecord,
    "release": ReleaseRecord,
    "serve": ServeRecord,
    "pace": PaceRecord,
    "statistics": StatisticsRecord,
    "freeze": FreezeRecord,
    "generation": GenerationRecord,
    "renormalise": RenormaliseRecord,
    "register": RegisterRecord,
    "measure": MeasureRecord,
    "pair": PairRecord,
    "alias": AliasRecord,
    "rollback": RollbackRecord,
    "forget": ForgetRecord,
    "readmit": ReadmitRecord,
    "drop": DropRecord,
    "strategy": StrategyRecord,
    "follow": FollowRecord,
    "sum": SumRecord,
}
_NAMES = {model: name for name, model in _KINDS.items()}
_FIELDS = {model: tuple(field.name for field in fields(model)) for model in _NAMES}  # `asdict` would copy deeply


def clamped(record: Record, generation: int, version: int) -> Record:
    """A record for replay after this generation and version: an impossible number is replaced by the next one.

    A store of an earlier Midge may hold an impossible number, from a forged announcement that was believed.
    """
    match record:
        case GenerationRecord() if not possible(record.generation, record.version):
            return replace(record, generation=generation + 1, version=version)
        case ReleaseRecord() if not possible(0, record.version):
            return replace(record, version=version + 1)
        case ServeRecord() if not possible(0, record.version):
            return replace(record, version=version)
    return record


def kind(record: Record) -> str:
    """The record's name in the journal."""
    return _NAMES[type(record)]


def pack(record: Record) -> bytes:
    """The record's fields as msgpack."""
    fields = {name: getattr(record, name) for name in _FIELDS[type(record)]}
    if isinstance(record, StrategyRecord) and record.privacy is None:
        del fields["privacy"]  # so that an earlier version reads it
    return frames.pack(fields)


def unpack(name: str, data: bytes) -> Record:
    """Restore a record.

    Raises:
        WireError: this version of Midge does not know its kind, or one of its fields.
    """
    fields: Any = frames.unpack(data)
    try:
        return _KINDS[name](**fields)
    except (KeyError, TypeError) as error:
        raise WireError(f"unknown journal record {name!r}") from error
