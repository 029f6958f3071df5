"""What the journal holds: decisions, each in the form in which it was taken.

A record is enough to take the decision again without a clock, a network or a configuration: the weight of an update,
which updates made a step, what a release was made of. `pack` and `unpack` are the form on disk.
"""

from dataclasses import asdict, dataclass
from typing import Any

from wire import frames
from wire.errors import WireError


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
    """s(τ), times the rate where every update is a step."""
    norm: float = 0.0
    codec: str = ""
    tensors: tuple[int, ...] | None = None
    examples: int = 0
    steps: int = 0
    size: int = 0


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One application to the model: which updates, by lsn, each with its weight."""

    lsn: int
    step: int
    updates: tuple[tuple[int, float], ...]
    rate: float
    form: str
    normalise: str


@dataclass(frozen=True, slots=True)
class ReleaseRecord:
    """One version, released at a step, with the work of so many distinct devices since the one before.

    With none, what was published stays as it is and only its number is new.
    """

    lsn: int
    version: int
    step: int
    devices: int


@dataclass(frozen=True, slots=True)
class StatisticsRecord:
    """A device's federated statistics have been taken in; the moments are kept as the record's body."""

    lsn: int
    device: str
    names: tuple[tuple[str, int], ...]
    missing: int


@dataclass(frozen=True, slots=True)
class FreezeRecord:
    """The statistics of these records were pooled and frozen into the model."""

    lsn: int
    statistics: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class GenerationRecord:
    """A new generation of the lineage began: the store had been put back behind what devices know."""

    lsn: int
    generation: int
    version: int
    """The version to go on from: above all that was ever announced."""


@dataclass(frozen=True, slots=True)
class StrategyRecord:
    """From here on, this strategy decided. For people who read the journal; replay does not need it."""

    lsn: int
    strategy: str


Record = UpdateRecord | StepRecord | ReleaseRecord | StatisticsRecord | FreezeRecord | GenerationRecord | StrategyRecord

_KINDS: dict[str, type[Record]] = {
    "update": UpdateRecord,
    "step": StepRecord,
    "release": ReleaseRecord,
    "statistics": StatisticsRecord,
    "freeze": FreezeRecord,
    "generation": GenerationRecord,
    "strategy": StrategyRecord,
}
_NAMES = {model: name for name, model in _KINDS.items()}


def kind(record: Record) -> str:
    """The record's name in the journal."""
    return _NAMES[type(record)]


def pack(record: Record) -> bytes:
    """The record's fields as msgpack."""
    return frames.pack(asdict(record))


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
