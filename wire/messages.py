"""Every message of the protocol, as a pydantic model of its header.

Rules of evolution: add fields with defaults; never reorder, rename or reuse one, and never change a default, because a
field that equals its default does not travel; anything else needs a new root version. Unknown fields are ignored,
unknown kinds are refused, every length has a limit.
"""

from enum import StrEnum
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, field_serializer, field_validator

from midge.wire import frames, inputs, offers
from midge.wire.errors import WireError

Id = Annotated[bytes, Field(min_length=16, max_length=16)]
NO_LINEAGE = bytes(16)
"""A lineage that no store ever has: probes of the broker use it, and are ignored silently."""
Digest = Annotated[bytes, Field(min_length=16, max_length=16)]
"""The first 16 bytes of a SHA-256."""
Sha = Annotated[bytes, Field(min_length=16, max_length=32)]
"""The first bytes of the SHA-256 of a body: 16 are sent, up to 32 are accepted."""
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
"""Numbers that a federation never reaches, far from the ends of their types: higher claims are wrong or a lie. An
aggregator continues behind any announced number up to these; so readers accept twice as much."""

Hidden = Annotated[bytes, Field(max_length=60_000)]
"""Fields about the device itself, sealed by `wire.sealing.hide`; empty if nothing is sealed."""

MOST_TOKEN = 2**53 - 1
"""The highest fencing token; exact in any language's numbers."""
OUTBOX_LIMIT = 16
"""Most updates that a device holds, and most verdicts per device that the aggregator remembers."""


MICRO = "micro"
"""The class of devices that hold one update, keep no error feedback and receive small messages: microcontrollers."""
BODY_DIGEST = 8
"""Bytes of an update's digest in its receipt: enough to tell two updates of one device apart."""


class Message(BaseModel):
    """Strict about types, ignores unknown fields, immutable."""

    # Built lazily: otherwise a device would spend a tenth of its start-up on messages that it never uses.
    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, defer_build=True)


class Verdict(StrEnum):
    """The aggregator's verdict on an update."""

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
    """The device has used up its share of the federation's privacy budget."""
    BAD_SIGNATURE = "bad_signature"
    """Not final: another client may have sent it in the device's name."""
    QUARANTINED = "quarantined"
    """Not now, after many refusals."""
    FORGOTTEN = "forgotten"
    """The operator withdrew the device from the federation."""

    @property
    def final(self) -> bool:
        """Whether the device may forget the update; otherwise it keeps the update and retries."""
        return self not in (Verdict.BUSY, Verdict.PAUSED, Verdict.QUARANTINED, Verdict.BAD_SIGNATURE)


# ---------------------------------------------------------------- from a device


class Outgoing(Message):
    """Common fields of the messages of a device's outbox: their origin, and what the device still holds."""

    outbox: U63
    """Random bits, made with the outbox file."""
    first: Seq
    """The lowest seq that the device still holds; all below are settled or lost."""


class Update(Outgoing):
    """A delta: trained minus base. The body is the encoded delta; an offer's follows in chunks."""

    kind: Literal["update", "offer"] = "update"
    seq: Seq
    lineage: Id
    generation: U32
    base: U63
    """The version that the device trained from."""
    schema_hash: Annotated[bytes, Field(max_length=16)] = b""
    """Empty stands for the lineage's only schema."""
    tensors: Annotated[tuple[U32, ...], Field(max_length=4096)] | None = None
    """Indices of the tensors that the delta covers, ascending; None means all shared ones."""
    codec: Word
    size: Annotated[int, Field(ge=0, le=2**40)]
    """Bytes of the encoded delta."""
    sha256: Sha
    """SHA-256 of the encoded delta."""
    examples: U63 = 0
    steps: U63 = 0
    """Local optimiser steps."""
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """How long the training took on the device."""
    plan: U32 = 0
    """The revision of the plan that the device followed."""
    metrics: Metrics = {}
    parts: Annotated[int, Field(ge=1, le=2**20)] = 1
    """Number of chunks that follow an offer."""
    base_digest: Annotated[bytes, Field(max_length=16)] = b""
    """The first 8 bytes of the digest of the published state that was trained from; empty if not given."""
    sealed: Word = ""
    """How the encoded delta is sealed to the aggregator: `wire.sealing.NAME`, or empty if it is not. `size` and
    `sha256` are those of the sealed bytes, as they travel."""
    feedback: bool = True
    """Whether the codec's error goes into the device's next update; True also if the codec has no error."""
    confided: bool = False
    """Whether examples, steps, seconds and metrics are sealed with the delta, by `wire.sealing.confide`."""

    @property
    def digest(self) -> bytes:
        """The digest that names it in a receipt."""
        return self.sha256[:BODY_DIGEST]


class Chunk(Outgoing):
    """One chunk of an offered update. The body is its bytes."""

    kind: Literal["chunk"] = "chunk"
    seq: Seq
    part: U32


class Fetch(Message):
    """A device requests chunks of a model frame that the broker did not have."""

    kind: Literal["fetch"] = "fetch"
    lineage: Id
    version: U63
    span: U32
    parts: Annotated[tuple[U32, ...], Field(min_length=1, max_length=64)]
    channel: Literal["train", "serve", "registered"] = "train"


class Statistics(Message):
    """Federated statistics of a device's data: named moments with their numbers of channels; the body holds them."""

    kind: Literal["statistics"] = "statistics"
    lineage: Id
    names: Annotated[tuple[tuple[Word, U32], ...], Field(max_length=16)]
    missing: U63 = 0
    """How many values were missing and left out."""
    sha256: Annotated[bytes, Field(max_length=32)] = b""
    """SHA-256 of the body as it travels, if the message is signed."""
    sealed: Word = ""
    """How the body is sealed; as `sealed` of an update."""
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
    """The state of a device, as in its retained status."""

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
    """A device's status. READY asks the aggregator for a receipt on the device's outbox."""

    kind: Literal["hello"] = "hello"
    state: Annotated[DeviceState, Field(strict=False)]
    outbox: U63
    first: Seq = 1
    next: Seq = 1
    """The seq of the next update."""
    lineage: Id | None = None
    generation: U32 = 0
    version: U63 = 0
    wakes: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Seconds since 1970, by the device's clock, at which a sleeping device wakes next; 0 if unknown."""
    capabilities: Capabilities = {}
    features: Names = ()
    """The device's names of its inputs, in order; empty if it has none."""
    waits: Sentence = ""
    """Why a device that is online has not trained for a while, such as too few new rows; empty if it trains."""
    number: U63 = 0
    """In JOINING, random bits: a live device of the same name answers with READY and `to`."""
    to: U63 = 0
    """In such an answer, the `number` that it answers."""
    hidden: Hidden = b""
    verifies: Word = ""
    """The scheme by which the device wants receipts signed: `p256`, `hmac`; empty is the federation's release key."""
    largest: U32 = 0
    """Most bytes of body in a message to the device; 0 sets no limit."""


# ------------------------------------------------------------- from the aggregator


class Settled(Message):
    """The verdict on one update."""

    seq: Seq
    verdict: Annotated[Verdict, Field(strict=False)]
    why: Sentence = ""
    retry_after: Annotated[float, Field(ge=0, le=86_400)] = 0.0
    """Seconds to wait before a retry, for a verdict that is not final."""
    repeat: bool = False
    """True for a duplicate: the verdict is the one given the first time."""
    weight: Finite = 0.0
    staleness: U63 = 0
    body: Annotated[bytes, Field(max_length=BODY_DIGEST)] = b""
    """The first 8 bytes of the SHA-256 of the body that was judged, as it travelled: sealed, if it was. A device that
    holds another body under this number was restored from a copy. Empty if not given."""


class Grant(Message):
    """Permission to send chunks of an offered update: the missing ones, up to a window."""

    seq: Seq
    parts: Annotated[tuple[U32, ...], Field(max_length=64)]


class Receipt(Message):
    """The aggregator's message to one device. `hi`: every update up to it is settled."""

    kind: Literal["receipt"] = "receipt"
    outbox: U63
    hi: U63
    settled: Annotated[tuple[Settled, ...], Field(max_length=64)] = ()
    grants: Annotated[tuple[Grant, ...], Field(max_length=16)] = ()
    token: U63 = 0
    """Fencing token of the aggregator's start: a device obeys only the highest that it has seen; 0 if not given."""


class Trouble(Message):
    """Messages of a device that were dropped without a receipt, and why. It settles nothing and needs no answer."""

    kind: Literal["trouble"] = "trouble"
    why: Sentence


class Vouch(Message):
    """The aggregator's confirmation that an announcement is genuine, for a device that cannot verify signatures."""

    kind: Literal["vouch"] = "vouch"
    digest: Digest
    """Digest of the body of the announcement's envelope."""


class AggregatorState(StrEnum):
    """Whether the aggregator accepts messages."""

    READY = "ready"
    PAUSED = "paused"
    STOPPED = "stopped"
    LOST = "lost"

    @property
    def serves(self) -> bool:
        """Whether its process is running."""
        return self in (AggregatorState.READY, AggregatorState.PAUSED)


class HealthState(StrEnum):
    """Whether a federation learns."""

    LEARNING = "learning"
    WAITING = "waiting"
    """No fault and no updates: no device is online, or those online have no new data."""
    STALLED = "stalled"
    """Devices are online, and no update was accepted for three of their usual intervals."""
    HELD = "held"
    """Updates are accepted, but a step or a release is held back."""
    PAUSED = "paused"
    FULL = "full"
    """The store's disk is full."""

    @property
    def alarming(self) -> bool:
        """Whether the operator must act."""
        return self in (HealthState.STALLED, HealthState.HELD, HealthState.FULL)


class Health(Message):
    """Whether the federation learns; sent if the state or the alarms change, and on request."""

    state: Annotated[HealthState, Field(strict=False)]
    since: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Seconds since 1970 at which the state began."""
    accepted: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Seconds since 1970 of the last accepted update; 0 if none since the aggregator started."""
    why: Sentence = ""
    verdicts: Annotated[dict[Word, U63], Field(max_length=32)] = {}
    """Number of times that each verdict was given in the last minutes."""
    devices: Annotated[dict[Word, U63], Field(max_length=32)] = {}
    """Number of distinct devices per verdict."""
    alarms: Annotated[tuple[Sentence, ...], Field(max_length=16)] = ()
    """Problems for the operator although others learn, such as a device that is refused every time."""

    @property
    def alarming(self) -> bool:
        """Whether a monitor should raise an alarm."""
        return bool(self.alarms) or self.state.alarming


class AggregatorStatus(Message):
    """The aggregator's retained status. Devices hold back their outbox unless it is READY."""

    kind: Literal["aggregator"] = "aggregator"
    state: Annotated[AggregatorState, Field(strict=False)]
    boot: U63
    """Random bits of this start: at a new value, devices send their status again."""
    lineage: Id
    generation: U32 = 0
    version: U63 = 0
    step: U63 = 0
    why: Sentence = ""
    health: Health | None = None
    """None if the aggregator is older than this field."""
    token: U63 = 0
    """Higher than that of every earlier start; see `Receipt.token`."""


class Claim(Message):
    """An aggregator's question whether another one serves its federation, or the answer: there must be only one."""

    kind: Literal["claim"] = "claim"
    boot: U63
    lineage: Id
    token: U63
    number: U63 = 0
    """Random bits of a question; 0 in an answer."""
    to: U63 = 0
    """The number of the question that is answered, so that an answer cannot be replayed or guessed."""


class Plan(Message, populate_by_name=True):
    """How devices shall train. None leaves the choice to the device's trainer."""

    revision: U32 = 0
    codec: Word = "uq:4|rice"
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Rate of the local optimiser."""
    local_steps: Annotated[int, Field(ge=1)] | None = None
    """Steps of the local optimiser."""
    epochs: Annotated[int, Field(ge=1)] | None = None
    """Passes over the device's rows."""
    batch_size: Annotated[int, Field(ge=1)] | None = None
    """Rows of a step."""
    proximal: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """The weight ρ of FedAsync's local term (ρ/2)·|x − x_v|²; 0 disables it."""
    feedback: bool = True
    """Whether the codec's error goes into the device's next update: error feedback."""
    narrow_codec: Word = ""
    """The codec of devices with a narrow link, in place of `codec`; empty is the same."""
    seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Target duration of a training: a device that knows its throughput scales its local steps to it, between
    `fewest_steps` and `most_steps`."""
    fewest_steps: Annotated[int, Field(ge=1)] = 1
    """Lower bound of the steps that `seconds` scales."""
    most_steps: Annotated[int, Field(ge=1)] = 10_000
    """Their upper bound."""
    evaluate: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 60.0
    """Least seconds between two evaluations on the device's own data; 0 disables them."""
    seed: U63 = 0
    """Seed of the trainer: set by the device for each training from its name and the version."""
    tier: Annotated[Word, Field(alias="class")] = ""
    """The class of devices that it is made for: with `MICRO` a device holds one update at a time. On the wire it is
    `class`."""
    micro_codec: Word = "int8:256"
    """The codec of devices without error feedback, in place of `codec`: its error is small and random."""

    def micro(self) -> Self:
        """The same plan for constrained devices: a codec without feedback, and one update at a time."""
        return self.model_copy(update={"tier": MICRO, "codec": self.micro_codec, "feedback": False})


class StrictPlan(Plan, extra="forbid"):
    """A plan as a user writes it: an unknown name is an error. On the wire, unknown names are ignored."""


class FrameInfo(NamedTuple):
    """A frame that leads to `version`: a step over `span` versions, or a snapshot if `span` is 0."""

    version: U63
    span: U32
    size: Annotated[int, Field(ge=0, le=2**40)]
    parts: Annotated[int, Field(ge=1, le=2**20)]


class Moment(Message):
    """Federated statistics that the aggregator requests: a name and a number of channels."""

    name: Word
    channels: Annotated[int, Field(ge=1, le=2**24)]


class Participation(Message):
    """Which devices train from a version: those for which a hash of name and version falls below a share."""

    share: Annotated[float, Field(ge=0, le=1)] = 1.0
    interval: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Least seconds between the starts of two trainings of one device."""
    bytes_per_month: U63 = 0
    """Payload bytes of one device, both ways, in a calendar month; 0 sets no limit."""
    joules_per_month: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Energy of one device in a calendar month, by its own estimate; 0 sets no limit."""
    rest: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Additional seconds that a device pauses unless it has new rows, because the model does not move."""

    @property
    def pause(self) -> float:
        """Least seconds between the starts of two trainings of a device without new rows."""
        return max(self.interval, self.rest)


class Announcement(Message):
    """What to train from and how to get it. Retained, small, replaced with each version.

    On the channel `serve`: the serving model, as a snapshot.
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
    """Digest of the published state at `version`."""
    frames: Annotated[tuple[FrameInfo, ...], Field(max_length=256)] = ()
    """Frames that lead to `version`. On the wire packed by `wire.offers`, because every device gets every announcement.
    """
    moments: Annotated[tuple[Moment, ...], Field(max_length=16)] = ()
    chunk: Annotated[int, Field(ge=256, le=2**28)] = 256 * 1024
    """Most bytes of body in a chunk, both ways."""
    plan: Plan = Plan()
    participation: Participation = Participation()
    issued: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Seconds since 1970 at the aggregator."""
    expires: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Seconds since 1970; 0 is never."""
    parent: Annotated[bytes, Field(max_length=16)] = b""
    """The digest of the version before this one, if known."""
    log: Annotated[bytes, Field(max_length=16)] = b""
    """A hash over all releases up to this one (`wire.lineage.logged`), if known."""
    epoch: U63 = 0
    """Raised by the operator, and with each new store: in a higher epoch, devices follow to a lower version or another
    lineage."""
    seal_key: Annotated[bytes, Field(max_length=32)] = b""
    """The X25519 public key that updates are sealed to; empty if they are not sealed."""
    confides: bool = False
    """Whether the aggregator reads an update's fields about its training from inside the seal."""
    hides: bool = False
    """Whether it reads the field `hidden` of `hello`, `report` and `statistics`."""
    byte_rate: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Bytes a second of all devices together, both ways; 0 sets no limit. See `wire.sharing`."""
    devices: U32 = 0
    """Number of devices that share it, about; 0 if unknown."""
    features: Names = ()
    """Names of the model's inputs, in order; empty if unknown. A device with other names does not train."""
    smallest_chunk: Annotated[int, Field(ge=1, le=2**28)] = 1024
    """Least bytes of body to which a frame is cut for devices with small limits (`Hello.largest`)."""

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


class ModelAlias(Message):
    """Which registered version of the model a name stands for. Retained, in an envelope."""

    kind: Literal["alias"] = "alias"
    name: Literal["champion", "candidate"]
    federation: Word
    lineage: Id
    generation: U32
    """The newest generation of the lineage, not that of the version."""
    number: U63
    """Rises with each decision on the names. In order of (epoch, generation, number), a lower one is old."""
    version: U63 = 0
    """0: the name stands for none."""
    schema_hash: Annotated[bytes, Field(max_length=16)] = b""
    digest: Annotated[bytes, Field(max_length=16)] = b""
    """Digest of the registered state."""
    size: Annotated[int, Field(ge=0, le=2**40)] = 0
    """Bytes of its snapshot."""
    parts: Annotated[int, Field(ge=1, le=2**20)] = 1
    """Number of chunks of its snapshot."""
    share: Annotated[float, Field(ge=0, le=1)] = 1.0
    """The share of the devices that use it: those that `wire.participation.takes_part` chooses by `number`."""
    chunk: Annotated[int, Field(ge=256, le=2**28)] = 256 * 1024
    """Most bytes of body in a chunk."""
    issued: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Seconds since 1970 at the aggregator."""
    expires: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Seconds since 1970; 0 is never."""
    epoch: U63 = 0
    """Raised by the operator, and with each new store."""
    byte_rate: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Bytes a second of all devices together, both ways; 0 sets no limit."""
    devices: U32 = 0
    """Number of devices that share it, about; 0 if unknown."""
    features: Names = ()
    """Names of the model's inputs, in order; empty if unknown."""

    @property
    def order(self) -> tuple[int, int, int]:
        """Orders what was published under one name."""
        return self.epoch, self.generation, self.number

    def announcement(self) -> Announcement:
        """The version as an announcement, by which it is fetched and verified."""
        return Announcement(
            channel="serve",
            federation=self.federation,
            lineage=self.lineage,
            generation=self.generation,
            version=self.version,
            step=0,
            phase="training",
            schema_hash=self.schema_hash,
            digest=self.digest,
            frames=(FrameInfo(self.version, 0, self.size, self.parts),),
            chunk=self.chunk,
            byte_rate=self.byte_rate,
            devices=self.devices,
            features=self.features,
        )


class Envelope(Message):
    """An announcement as it travels. Signatures cover the exact bytes of `body`."""

    body: Annotated[bytes, Field(max_length=65_536)]
    signatures: Annotated[tuple[Any, ...], Field(max_length=16)] = ()
    """Pairs of a key's id, 8 bytes, and a signature, 64 bytes. Other items are for later versions, and ignored."""
    chain: Annotated[tuple[Annotated[bytes, Field(max_length=1024)], ...], Field(max_length=16)] = ()
    """Succession from an earlier key to the one that signs: `Succession`s in envelopes, each signed by the key before.
    """


class Succession(Message):
    """A release key's statement that another key signs from some time on."""

    kind: Literal["succession"] = "succession"
    federation: Word
    number: U32
    """Counts from 1 within a federation."""
    key: Annotated[bytes, Field(min_length=32, max_length=128)]
    """The next public key: 32 bytes of Ed25519, or the SubjectPublicKeyInfo of P-256, DER."""
    since: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    """Seconds since 1970: announcements issued from then on are signed by the new key."""


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
    """SHA-256 of the whole frame."""


ToAggregator = Update | Chunk | Fetch | Statistics
_TO_AGGREGATOR: dict[str, type[Update] | type[Chunk] | type[Fetch] | type[Statistics]] = {
    "update": Update,
    "offer": Update,
    "chunk": Chunk,
    "fetch": Fetch,
    "statistics": Statistics,
}


def decode_update(payload: frames.Buffer) -> tuple[ToAggregator, memoryview]:
    """Read the payload of an update topic: its header and its body.

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
    """An unknown kind, for an error message. A value nested too deep to print is shown as its type."""
    return repr(kind[:40]) if isinstance(kind, str) else type(kind).__name__


def decode(model: type[frames.M], payload: frames.Buffer) -> tuple[frames.M, memoryview]:
    """Read a payload of one expected kind.

    Raises:
        WireError: it is of another kind, or invalid.
    """
    header, body = frames.decode(payload)
    expected = model.model_fields["kind"].default if "kind" in model.model_fields else None
    if expected is not None and header.get("kind") != expected:
        raise WireError(f"expected kind {expected!r}, not {_shown(header.get('kind'))}")
    return frames.validate(model, header), body


def decode_answer(payload: frames.Buffer) -> tuple[Receipt | Trouble, memoryview]:
    """Read the payload of a receipt topic.

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
    """Whether a federation can have these numbers."""
    return generation < 2 * MOST_GENERATION and version < 2 * MOST_VERSION


def encode_announcement(announcement: Announcement | ModelAlias) -> bytes:
    """Put an announcement, or a name of a registered version, into an envelope."""
    return frames.encode(Envelope(body=frames.encode(announcement), signatures=()))


def decode_alias(payload: frames.Buffer) -> tuple[ModelAlias, Envelope]:
    """Read an alias, and its envelope.

    Raises:
        WireError: it is invalid.
    """
    envelope, _ = decode(Envelope, payload)
    return decode(ModelAlias, envelope.body)[0], envelope


def decode_announcement(payload: frames.Buffer) -> Announcement:
    """Read an announcement from its envelope.

    Raises:
        WireError: it is invalid.
    """
    envelope, _ = decode(Envelope, payload)
    return decode(Announcement, envelope.body)[0]
