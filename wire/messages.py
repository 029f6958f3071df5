"""Every message of the protocol, as a pydantic model of its header.

Rules of evolution: add fields with defaults; never reorder, rename or reuse one, and never change a default, because a
field that equals it does not travel; what cannot be said so needs a new root version. Unknown fields are ignored,
unknown kinds are refused, every length has a limit.
"""

from enum import StrEnum
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, field_serializer, field_validator

from midge.wire import frames, inputs, offers
from midge.wire.errors import WireError

Id = Annotated[bytes, Field(min_length=16, max_length=16)]
NO_LINEAGE = bytes(16)
"""A lineage that no store ever has: probes of the broker name it, and are passed over without a word."""
Digest = Annotated[bytes, Field(min_length=16, max_length=16)]
"""The first 16 bytes of a SHA-256."""
Sha = Annotated[bytes, Field(min_length=16, max_length=32)]
"""The first bytes of the SHA-256 of a body: 16 are sent, 32 are understood."""
U32 = Annotated[int, Field(ge=0, le=2**32 - 1)]
U63 = Annotated[int, Field(ge=0, le=2**63 - 1)]
"""Unsigned and within SQLite's integers."""
Seq = Annotated[int, Field(ge=1, le=2**63 - 1)]
Word = Annotated[str, Field(max_length=64)]
Sentence = Annotated[str, Field(max_length=400)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Metrics = Annotated[dict[Word, Finite], Field(max_length=32)]
Capabilities = Annotated[dict[Word, Sentence | int | float | bool], Field(max_length=32)]
Names = Annotated[tuple[Word, ...], Field(max_length=inputs.MOST)]

MOST_VERSION, MOST_GENERATION = 2**52, 2**31
"""Numbers that a federation never reaches, and far from the ends of their types: what claims more is wrong or a lie. An
aggregator goes on behind one that is announced up to these; so readers take twice as much."""

Hidden = Annotated[bytes, Field(max_length=60_000)]
"""What a message tells of its device beside the protocol, sealed by `wire.sealing.hide`; empty if nothing is sealed."""

MOST_TOKEN = 2**53 - 1
"""The highest fencing token; any language's numbers hold it exactly."""
OUTBOX_LIMIT = 16
"""How many updates a device holds at most, and how many verdicts of it the aggregator remembers."""


MICRO = "micro"
"""The class of devices that hold one update, keep no error feedback and receive small messages: microcontrollers."""
BODY_DIGEST = 8
"""Bytes of an update's digest in its receipt: enough to tell two updates of one device apart."""


class Message(BaseModel):
    """Strict about types, deaf to unknown fields, immutable."""

    # Built when first used: a device would spend a tenth of its start on messages that it never sees.
    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, defer_build=True)


class Verdict(StrEnum):
    """What the aggregator says of an update."""

    ACCEPTED = "accepted"
    STALE = "stale"
    UNKNOWN_BASE = "unknown_base"
    FOREIGN_LINEAGE = "foreign_lineage"
    WRONG_SCHEMA = "wrong_schema"
    UNKNOWN_CODEC = "unknown_codec"
    BAD_ENCODING = "bad_encoding"
    NON_FINITE = "non_finite"
    NORM_TOO_LARGE = "norm_too_large"
    TOO_LARGE = "too_large"
    BUSY = "busy"
    PAUSED = "paused"
    QUOTA = "quota"
    """The device has given as much as the federation's privacy budget allows of one."""
    BAD_SIGNATURE = "bad_signature"
    """Another client may have sent it in the device's name, so it settles nothing."""
    QUARANTINED = "quarantined"
    """For now, after many refusals."""
    FORGOTTEN = "forgotten"
    """The operator withdrew the device from the federation."""

    @property
    def final(self) -> bool:
        """True where the device forgets the update; else it keeps it and tries again."""
        return self not in (Verdict.BUSY, Verdict.PAUSED, Verdict.QUARANTINED, Verdict.BAD_SIGNATURE)


# ---------------------------------------------------------------- from a device


class Outgoing(Message):
    """What every message of a device's outbox says: whose it is and what the device still holds."""

    outbox: U63
    """Random bits made with the outbox file."""
    first: Seq
    """The lowest seq that the device still holds; all below it are settled or gone."""


class Update(Outgoing):
    """A delta: trained minus base. The body is the encoded delta; of an offer, it follows in chunks."""

    kind: Literal["update", "offer"] = "update"
    seq: Seq
    lineage: Id
    generation: U32
    base: U63
    """The version that the device trained from."""
    schema_hash: Annotated[bytes, Field(max_length=16)] = b""
    """Empty says that it is the lineage's, which has but one."""
    tensors: Annotated[tuple[U32, ...], Field(max_length=4096)] | None = None
    """Indices of the tensors that the delta covers, ascending; None is all that are shared."""
    codec: Word
    size: Annotated[int, Field(ge=0, le=2**40)]
    """Bytes of the encoded delta."""
    sha256: Sha
    """Of the encoded delta."""
    examples: U63 = 0
    steps: U63 = 0
    """Local optimiser steps."""
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """How long the training took on the device."""
    plan: U32 = 0
    """The revision of the plan that the device followed."""
    metrics: Metrics = {}
    parts: Annotated[int, Field(ge=1, le=2**20)] = 1
    """Of an offer: how many chunks will follow."""
    base_digest: Annotated[bytes, Field(max_length=16)] = b""
    """The first 8 bytes of the digest of the published state that it was trained from; empty says nothing."""
    sealed: Word = ""
    """How the encoded delta is sealed to the aggregator: `wire.sealing.NAME`, or empty where it is not. Then `size` and
    `sha256` are of the sealed bytes: of what travels."""
    feedback: bool = True
    """Whether what the codec leaves out goes into the device's next update; not False where it leaves nothing out."""
    confided: bool = False
    """Whether examples, steps, seconds and metrics are sealed with the delta, by `wire.sealing.confide`."""

    @property
    def digest(self) -> bytes:
        """What a receipt names it by."""
        return self.sha256[:BODY_DIGEST]


class Chunk(Outgoing):
    """One chunk of an offered update. The body is its bytes."""

    kind: Literal["chunk"] = "chunk"
    seq: Seq
    part: U32


class Fetch(Message):
    """A device asks for chunks of the model that the broker did not have for it."""

    kind: Literal["fetch"] = "fetch"
    lineage: Id
    version: U63
    span: U32
    parts: Annotated[tuple[U32, ...], Field(min_length=1, max_length=64)]
    channel: Literal["train", "serve"] = "train"


class Statistics(Message):
    """Federated statistics of a device's data: named moments with their numbers of channels; the body holds them."""

    kind: Literal["statistics"] = "statistics"
    lineage: Id
    names: Annotated[tuple[tuple[Word, U32], ...], Field(max_length=16)]
    missing: U63 = 0
    """How many values were missing and left out."""
    sha256: Annotated[bytes, Field(max_length=32)] = b""
    """Of the body as it travels, where the message is signed."""
    sealed: Word = ""
    """As that of an update."""
    hidden: Hidden = b""


class Report(Message):
    """Results of an evaluation on the device's own data."""

    kind: Literal["report"] = "report"
    lineage: Id
    version: U63
    examples: U63
    metrics: Metrics
    hidden: Hidden = b""


class DeviceState(StrEnum):
    """Where a device is in its life, as its retained status tells."""

    JOINING = "joining"
    READY = "ready"
    TRAINING = "training"
    SLEEPING = "sleeping"
    DISCONNECTED = "disconnected"
    LOST = "lost"

    @property
    def live(self) -> bool:
        return self in (DeviceState.READY, DeviceState.TRAINING)


class Hello(Message):
    """A device's status. READY asks the aggregator to answer with what it has of the device's outbox."""

    kind: Literal["hello"] = "hello"
    state: Annotated[DeviceState, Field(strict=False)]
    outbox: U63
    first: Seq = 1
    next: Seq = 1
    """The seq that the next update will get."""
    lineage: Id | None = None
    generation: U32 = 0
    version: U63 = 0
    wakes: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Seconds since 1970 by the device's clock at which a device that sleeps wakes next; 0 where it does not say."""
    capabilities: Capabilities = {}
    features: Names = ()
    """What the device calls its inputs, in order; none where it has no names."""
    waits: Sentence = ""
    """Why the device has not trained for a while although it is there, such as too few new rows; empty if it trains."""
    number: U63 = 0
    """Of JOINING, random bits: a live device of the same name answers with READY and `to`."""
    to: U63 = 0
    """In such an answer, the number of the question."""
    hidden: Hidden = b""
    verifies: Word = ""
    """With what the device wants receipts signed: `p256`, `hmac`; empty is the federation's release key."""
    largest: U32 = 0
    """Bytes of body that a message to the device may have; 0 sets no limit."""


# ------------------------------------------------------------- from the aggregator


class Settled(Message):
    """The verdict on one update."""

    seq: Seq
    verdict: Annotated[Verdict, Field(strict=False)]
    why: Sentence = ""
    retry_after: Annotated[float, Field(ge=0, le=86_400)] = 0.0
    """Seconds to wait before trying again; for a verdict that is not final."""
    repeat: bool = False
    """True where the update had come before and this is the verdict of then."""
    weight: Finite = 0.0
    staleness: U63 = 0
    body: Annotated[bytes, Field(max_length=BODY_DIGEST)] = b""
    """The first 8 bytes of the SHA-256 of the body that the verdict is for, as it travelled: sealed, if it was. A
    device that holds another one under this number was put back from a copy. Empty says nothing."""


class Grant(Message):
    """Leave to send chunks of an offered update: those that are missing, up to a window."""

    seq: Seq
    parts: Annotated[tuple[U32, ...], Field(max_length=64)]


class Receipt(Message):
    """The aggregator's word to one device. `hi`: every update up to it has been settled."""

    kind: Literal["receipt"] = "receipt"
    outbox: U63
    hi: U63
    settled: Annotated[tuple[Settled, ...], Field(max_length=64)] = ()
    grants: Annotated[tuple[Grant, ...], Field(max_length=16)] = ()
    token: U63 = 0
    """Of the aggregator's start: a device settles only by the highest that it has seen; 0 says nothing."""


class Trouble(Message):
    """What was dropped of a device that no receipt answers, and why. It settles nothing and asks for nothing."""

    kind: Literal["trouble"] = "trouble"
    why: Sentence


class Vouch(Message):
    """The aggregator's word to one device that an announcement is its own, if the device can verify no signature."""

    kind: Literal["vouch"] = "vouch"
    digest: Digest
    """Of the body of the announcement's envelope."""


class AggregatorState(StrEnum):
    """Whether the aggregator takes what is sent."""

    READY = "ready"
    PAUSED = "paused"
    STOPPED = "stopped"
    LOST = "lost"

    @property
    def serves(self) -> bool:
        """Whether its process is there."""
        return self in (AggregatorState.READY, AggregatorState.PAUSED)


class HealthState(StrEnum):
    """Whether a federation learns."""

    LEARNING = "learning"
    WAITING = "waiting"
    """Nothing is wrong, and nothing comes: no device is there, or those that are there have nothing to train on."""
    STALLED = "stalled"
    """Devices are there, and for three of their usual intervals no update was accepted."""
    HELD = "held"
    """Updates are accepted, and a step or a release is held back."""
    PAUSED = "paused"
    FULL = "full"
    """The store's disk has no room."""

    @property
    def alarming(self) -> bool:
        """Whether the operator has to look."""
        return self in (HealthState.STALLED, HealthState.HELD, HealthState.FULL)


class Health(Message):
    """Whether the federation learns, as its aggregator finds; sent if the state or the alarms change, and if asked."""

    state: Annotated[HealthState, Field(strict=False)]
    since: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Seconds since 1970 at which the state began."""
    accepted: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Seconds since 1970 of the last update that was accepted; 0 is none since the aggregator started."""
    why: Sentence = ""
    verdicts: Annotated[dict[Word, U63], Field(max_length=32)] = {}
    """How often each verdict was given in the last minutes."""
    devices: Annotated[dict[Word, U63], Field(max_length=32)] = {}
    """How many distinct devices got each."""
    alarms: Annotated[tuple[Sentence, ...], Field(max_length=16)] = ()
    """What the operator has to look at while others learn, such as a device that is refused every time."""

    @property
    def alarming(self) -> bool:
        """Whether a monitor is to raise an alarm."""
        return bool(self.alarms) or self.state.alarming


class AggregatorStatus(Message):
    """The aggregator's retained status. Devices hold their outbox while it is not READY."""

    kind: Literal["aggregator"] = "aggregator"
    state: Annotated[AggregatorState, Field(strict=False)]
    boot: U63
    """Random bits of this start: a new value means that devices greet again."""
    lineage: Id
    generation: U32 = 0
    version: U63 = 0
    step: U63 = 0
    why: Sentence = ""
    health: Health | None = None
    """None if the aggregator is older than this field."""
    token: U63 = 0
    """Higher than that of every start before; see `Receipt.token`."""


class Claim(Message):
    """One aggregator's question to others of its federation, or the answer: to serve it there must be but one."""

    kind: Literal["claim"] = "claim"
    boot: U63
    lineage: Id
    token: U63
    number: U63 = 0
    """Random bits of a question; 0 is an answer."""
    to: U63 = 0
    """The number of the question that is answered: so no answer can be recorded, or made without having heard it."""


class Plan(Message, populate_by_name=True):
    """What the announcement asks of a device. None leaves the choice to the device's trainer."""

    revision: U32 = 0
    codec: Word = "uq:4|rice"
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    local_steps: Annotated[int, Field(ge=1)] | None = None
    epochs: Annotated[int, Field(ge=1)] | None = None
    batch_size: Annotated[int, Field(ge=1)] | None = None
    proximal: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """The weight ρ of FedAsync's local term (ρ/2)·|x − x_v|²; 0 is none."""
    feedback: bool = True
    """Whether what the codec leaves out of one update goes into the device's next: error feedback."""
    narrow_codec: Word = ""
    """What a device whose link is narrow uses in place of `codec`; empty is the same."""
    seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """How long a training should take: a device that knows its speed scales its local steps to it, within
    `fewest_steps` and `most_steps`."""
    fewest_steps: Annotated[int, Field(ge=1)] = 1
    most_steps: Annotated[int, Field(ge=1)] = 10_000
    evaluate: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 60.0
    """Seconds at least between two evaluations on the device's own data; 0 is never."""
    seed: U63 = 0
    """Chance for the trainer: set by the device for each training from its name and the version."""
    tier: Annotated[Word, Field(alias="class")] = ""
    """Of the fleet that it is made for: `MICRO` has a device hold one update at a time. On the wire it is `class`."""
    micro_codec: Word = "int8:256"
    """What a device uses in place of `codec` that keeps no error feedback: it errs little, and at random."""

    def micro(self) -> Self:
        """The same for a fleet of constrained devices: a codec without feedback, and one update at a time."""
        return self.model_copy(update={"tier": MICRO, "codec": self.micro_codec, "feedback": False})


class StrictPlan(Plan, extra="forbid"):
    """A plan as a user writes it: an unknown name is an error. On the wire, unknown names are passed over."""


class FrameInfo(NamedTuple):
    """One frame that leads to `version`: over `span` versions, or a snapshot where `span` is 0."""

    version: U63
    span: U32
    size: Annotated[int, Field(ge=0, le=2**40)]
    parts: Annotated[int, Field(ge=1, le=2**20)]


class Moment(Message):
    """Federated statistics that the aggregator asks for: a name and how many channels."""

    name: Word
    channels: Annotated[int, Field(ge=1, le=2**24)]


class Participation(Message):
    """Who trains from a version: a device takes part where a hash of its name and the version falls under a share."""

    share: Annotated[float, Field(ge=0, le=1)] = 1.0
    interval: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Seconds at least between the starts of two trainings of one device."""
    bytes_per_month: U63 = 0
    """Payload bytes, both ways, of one device in a calendar month; 0 sets no limit."""
    joules_per_month: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Energy of one device in a calendar month, as it reckons it; 0 sets no limit."""
    rest: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Seconds that a device pauses besides, unless it has new rows: the model does not move."""

    @property
    def pause(self) -> float:
        """Seconds at least between the starts of two trainings of a device without new rows."""
        return max(self.interval, self.rest)


class Announcement(Message):
    """What there is to train from, and how to get there. Retained, small, replaced with each version.

    On the channel `serve`: what to use, the serving model, as a snapshot.
    """

    kind: Literal["announcement"] = "announcement"
    channel: Literal["train", "serve"] = "train"
    federation: Word
    lineage: Id
    generation: U32
    version: U63
    step: U63
    phase: Literal["statistics", "training"]
    schema_hash: Digest
    digest: Digest
    """Of the published state at `version`."""
    frames: Annotated[tuple[FrameInfo, ...], Field(max_length=256)] = ()
    """What leads to `version`. On the wire packed, by `wire.offers`: every device gets every announcement."""
    moments: Annotated[tuple[Moment, ...], Field(max_length=16)] = ()
    chunk: Annotated[int, Field(ge=256, le=2**28)] = 256 * 1024
    """Bytes of body that a chunk carries at most, both ways."""
    plan: Plan = Plan()
    participation: Participation = Participation()
    issued: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Seconds since 1970 at the aggregator."""
    expires: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Seconds since 1970; 0 is never."""
    parent: Annotated[bytes, Field(max_length=16)] = b""
    """The digest of the version before this one, where it is known."""
    log: Annotated[bytes, Field(max_length=16)] = b""
    """A hash over all releases up to this one (`wire.lineage.logged`), where it is known."""
    epoch: U63 = 0
    """Raised by the operator, and with each new store: in a higher one, devices follow to a lower version or another
    lineage."""
    seal_key: Annotated[bytes, Field(max_length=32)] = b""
    """The X25519 public key that updates are sealed to; empty where they are not."""
    confides: bool = False
    """Whether the aggregator reads what a sealed update says of itself inside the seal."""
    hides: bool = False
    """Whether it reads what is `hidden` in the headers of `hello`, `report` and `statistics`."""
    byte_rate: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Bytes a second that all devices together move, both ways; 0 sets no limit. See `wire.sharing`."""
    devices: U32 = 0
    """How many share it, about; 0 where that is not known."""
    features: Names = ()
    """Names of the model's inputs, in order; none if they are not known. A device whose own differ does not train."""
    smallest_chunk: Annotated[int, Field(ge=1, le=2**28)] = 1024
    """Bytes of body down to which a frame's parts are cut for devices that take no more (`Hello.largest`)."""

    @field_validator("frames", mode="before")
    @classmethod
    def _unpacked(cls, value: object) -> object:
        return offers.unpack(value) if isinstance(value, bytes) else value

    @field_validator("frames")
    @classmethod
    def _newest_first(cls, value: tuple[FrameInfo, ...]) -> tuple[FrameInfo, ...]:
        return tuple(sorted(value, key=lambda frame: (-frame.version, *frame[1:])))

    @field_serializer("frames")
    def _packed(self, value: tuple[FrameInfo, ...]) -> bytes:
        return offers.pack(value)


class Envelope(Message):
    """The announcement as it travels. Signatures cover the exact bytes of `body`."""

    body: Annotated[bytes, Field(max_length=65_536)]
    signatures: Annotated[tuple[Any, ...], Field(max_length=16)] = ()
    """Each a pair of a key's id, 8 bytes, and a signature, 64 bytes. Others are for later, and passed over."""
    chain: Annotated[tuple[Annotated[bytes, Field(max_length=1024)], ...], Field(max_length=16)] = ()
    """How the key that signs came to be the one: `Succession`s in envelopes, each signed by the key before."""


class Succession(Message):
    """The word of a release key that another one signs from some time on."""

    kind: Literal["succession"] = "succession"
    federation: Word
    number: U32
    """Counts from 1 within a federation."""
    key: Annotated[bytes, Field(min_length=32, max_length=128)]
    """The public key that follows: 32 bytes of Ed25519, or the SubjectPublicKeyInfo of P-256, DER."""
    since: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    """Seconds since 1970: what is issued from then on is signed by the new key."""


class Part(Message):
    """The header of one chunk of a model frame. The body is a slice of the frame."""

    kind: Literal["part"] = "part"
    lineage: Id
    generation: U32
    version: U63
    span: U32
    part: U32
    parts: Annotated[int, Field(ge=1, le=2**20)]
    sha256: Sha
    """Of the whole frame."""


ToAggregator = Update | Chunk | Fetch | Statistics
_TO_AGGREGATOR: dict[str, type[Update] | type[Chunk] | type[Fetch] | type[Statistics]] = {
    "update": Update,
    "offer": Update,
    "chunk": Chunk,
    "fetch": Fetch,
    "statistics": Statistics,
}


def decode_update(payload: frames.Buffer) -> tuple[ToAggregator, memoryview]:
    """Read what came on an update topic: its header and its body.

    Raises:
        WireError: it is no frame, of no known kind, or a field is wrong.
    """
    header, body = frames.decode(payload)
    kind = header.get("kind")
    model = _TO_AGGREGATOR.get(kind) if isinstance(kind, str) else None
    if model is None:
        raise WireError(f"unknown kind {_shown(kind)}")
    return frames.validate(model, header), body


def _shown(kind: object) -> str:
    """A kind that we do not know, for a message. What is nested too deep to print is named by its type."""
    return repr(kind[:40]) if isinstance(kind, str) else type(kind).__name__


def decode(model: type[frames.M], payload: frames.Buffer) -> tuple[frames.M, memoryview]:
    """Read a payload that must be of one kind.

    Raises:
        WireError: it is not.
    """
    header, body = frames.decode(payload)
    expected = model.model_fields["kind"].default if "kind" in model.model_fields else None
    if expected is not None and header.get("kind") != expected:
        raise WireError(f"expected kind {expected!r}, not {_shown(header.get('kind'))}")
    return frames.validate(model, header), body


def decode_answer(payload: frames.Buffer) -> tuple[Receipt | Trouble, memoryview]:
    """Read what came on a receipt topic.

    Raises:
        WireError: it is no frame, of no known kind, or a field is wrong.
    """
    header, body = frames.decode(payload)
    kind = header.get("kind")
    if kind not in ("receipt", "trouble"):
        raise WireError(f"unknown kind {_shown(kind)}")
    said = frames.validate(Receipt, header) if kind == "receipt" else frames.validate(Trouble, header)
    return said, body


def possible(generation: int, version: int) -> bool:
    """Whether a federation can have come that far."""
    return generation < 2 * MOST_GENERATION and version < 2 * MOST_VERSION


def encode_announcement(announcement: Announcement) -> bytes:
    """An announcement in its envelope."""
    return frames.encode(Envelope(body=frames.encode(announcement), signatures=()))


def decode_announcement(payload: frames.Buffer) -> Announcement:
    """Read an announcement out of its envelope.

    Raises:
        WireError: it is none.
    """
    envelope, _ = decode(Envelope, payload)
    return decode(Announcement, envelope.body)[0]
