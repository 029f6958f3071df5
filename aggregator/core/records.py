"""What the journal holds: decisions, each in the form in which it was taken.

A record is enough to take the decision again without a clock, a network or a configuration: the weight of an update,
which updates made a step, what a release was made of. `pack` and `unpack` are the form on disk.
"""

from dataclasses import dataclass, fields, replace
from typing import Any

from midge.wire import frames
from midge.wire.errors import WireError
from midge.wire.messages import Settled, Verdict, possible


@dataclass(frozen=True, slots=True)
class UpdateRecord:
    """The verdict on one update. An accepted one is kept with its body until the checkpoint has it."""

    lsn: int
    device: str
    outbox: int
    seq: int
    verdict: str
    why: str = ""
    base: int = 0
    staleness: int = 0
    weight: float = 0.0
    """How much it counts in its step: its staleness, its rows, how often its device was heard."""
    scale: float = 1.0
    """What its delta is multiplied by: clipping, unequal local steps."""
    norm: float = 0.0
    codec: str = ""
    tensors: tuple[int, ...] | None = None
    examples: int = 0
    steps: int = 0
    size: int = 0
    agreement: float = 0.0
    """Cosine of its delta with the direction of most devices; 0 if that was not known."""
    reference: float = 0.0
    """The fleet's reference norm when it came; 0 if there was none."""
    body: bytes = b""
    """The first 8 bytes of the SHA-256 of its body as it travelled; none in an older store."""

    def settled(self, weight: float = 0.0) -> Settled:
        """The verdict for its device. `weight` is what the update counts in its step."""
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
    """One application to the model: which updates, by lsn, each with its weight."""

    lsn: int
    step: int
    updates: tuple[tuple[int, float], ...]
    rate: float
    form: str
    normalise: str
    scales: tuple[float, ...] = ()
    """What each delta is multiplied by; none: 1."""
    divisor: float = 0.0
    """A fixed divisor of the sum; 0: as `normalise` says."""
    combine: str = "mean"
    trim: float = 0.0
    calibration: float = 0.0
    cached_since: int = 0
    """Deltas that were cached in earlier steps count no more; 0: all count."""
    optimizer: tuple[str, float, float, float] = ("sgd", 0.0, 0.0, 0.0)
    """Its kind, β1, β2 and ε."""
    noise: float = 0.0
    """Standard deviation of the noise on the sum; the noise itself is the record's body, float32."""


@dataclass(frozen=True, slots=True)
class ReleaseRecord:
    """One version, released at a step, with the work of `devices` distinct devices since the one before.

    With none, what was published stays as it is and only its number is new.
    """

    lsn: int
    version: int
    step: int
    devices: int
    at: float = 0.0
    """Seconds since 1970. Of an older store: of a clock that begins with the machine."""
    decay: float | None = None
    """Of the moving average that is served; None keeps none."""


@dataclass(frozen=True, slots=True)
class ServeRecord:
    """The moving average, or the newest version where there is none, was released for use under a version's number."""

    lsn: int
    version: int
    step: int


@dataclass(frozen=True, slots=True)
class PaceRecord:
    """From here on, so large a share of the devices takes part in each version, with as many local steps."""

    lsn: int
    share: float
    steps: int = 0
    """0 leaves them to the devices' recipes."""
    recipe: int = 0
    """Steps that those have in the median; 0 is not known."""


@dataclass(frozen=True, slots=True)
class StatisticsRecord:
    """A device's federated statistics have been taken in; the moments are kept as the record's body."""

    lsn: int
    device: str
    names: tuple[tuple[str, int], ...]
    missing: int
    digest: bytes = b""
    """Of the moments, so that the same ones that come again make no record."""


@dataclass(frozen=True, slots=True)
class FreezeRecord:
    """The statistics of these records were pooled and frozen into the model. Those that are off are not among them."""

    lsn: int
    statistics: tuple[int, ...]
    cap: float = 0.0
    """Times the median count that one device weighs at most; 0 sets no limit."""
    keep: bool = False
    """Whether what was published stays as it is but for the frozen tensors: a model was released before."""


@dataclass(frozen=True, slots=True)
class GenerationRecord:
    """A new generation of the lineage began: the store had been put back behind what devices know."""

    lsn: int
    generation: int
    version: int
    """The version to go on from: above all that was ever announced."""


@dataclass(frozen=True, slots=True)
class RenormaliseRecord:
    """The operator asked for new statistics: a new generation begins by gathering them."""

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
    """Of the devices that use the candidate."""
    why: str = ""
    by: str = ""
    at: float = 0.0
    order: str = ""


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
    """What was known of a device is erased with the checkpoint that follows. Replay needs no more than its number."""

    lsn: int
    device: str
    """An alias."""


@dataclass(frozen=True, slots=True)
class DropRecord:
    """What waited of a device that was revoked is dropped. It names records and no device: names are to be erasable."""

    lsn: int
    dropped: tuple[int, ...]
    """Accepted updates that waited for their step, and statistics that waited to be pooled."""


@dataclass(frozen=True, slots=True)
class StrategyRecord:
    """From here on, this strategy decided. For people who read the journal; replay does not need it."""

    lsn: int
    strategy: str


Record = (
    UpdateRecord
    | StepRecord
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
    | DropRecord
    | StrategyRecord
)

_KINDS: dict[str, type[Record]] = {
    "update": UpdateRecord,
    "step": StepRecord,
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
    "drop": DropRecord,
    "strategy": StrategyRecord,
}
_NAMES = {model: name for name, model in _KINDS.items()}
_FIELDS = {model: tuple(field.name for field in fields(model)) for model in _NAMES}  # `asdict` copies all that it meets


def clamped(record: Record, generation: int, version: int) -> Record:
    """A record as it is replayed behind a generation and a version: one that says an impossible number gets the next.

    A store of an earlier Midge may hold such a record, of a forged announcement that was believed.
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
    return frames.pack({name: getattr(record, name) for name in _FIELDS[type(record)]})


def unpack(name: str, data: bytes) -> Record:
    """Read a record back.

    Raises:
        WireError: the journal holds what this version of Midge does not know.
    """
    fields: Any = frames.unpack(data)
    try:
        return _KINDS[name](**fields)
    except (KeyError, TypeError) as error:
        raise WireError(f"unknown journal record {name!r}") from error
