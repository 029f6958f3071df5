"""The announcement of a version with the plan of training, its envelope, and the chunks of the model."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Self, get_type_hints

from pydantic import Field, ValidationError, field_serializer, field_validator

from midge.wire import field_checks, offers
from midge.wire.errors import WireError
from midge.wire.messages.fields import MICRO, U32, U63, Digest, Id, Message, Names, Sha, Word
from midge.wire.messages.masking import Masking


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
    masking: Masking | None = None
    """How devices mask their updates (`wire.masking`), which then have no other codec; None masks nothing."""

    def micro(self) -> Self:
        """The same plan for constrained devices: a codec without feedback, and one update at a time."""
        return self.model_copy(update={"tier": MICRO, "codec": self.micro_codec, "feedback": False})


class StrictPlan(Plan, extra="forbid"):
    """A plan as a user writes it: an unknown name is an error. On the wire, unknown names are ignored.

    Examples:
        >>> midge.Plan(learning_rate=0.05, local_steps=20).codec
        'uq:4|rice'
        >>> midge.Plan(learning_rates=0.05)
        Traceback (most recent call last):
        ValueError: a plan has no learning_rates (did you mean learning_rate?).
    """

    if not TYPE_CHECKING:  # type checkers keep the fields as arguments

        def __init__(self, **values: Any) -> None:
            try:
                super().__init__(**{name: field_checks.plain(value) for name, value in values.items()})
            except ValidationError as error:
                raise ValueError(_in_words(error, values)) from None
            check_codecs(self)


def check_codecs(plan: Plan) -> None:
    """Check that devices can follow a plan.

    Raises:
        ValueError: a codec is unknown.
    """
    from midge.wire import codecs  # noqa: PLC0415 - who reads messages only needs none

    for name in ("codec", "micro_codec", "narrow_codec"):
        if (codec := getattr(plan, name)) or name != "narrow_codec":
            try:
                codecs.parse(codec)
            except WireError as error:
                raise ValueError(f"no device could follow the plan: {error}, such as int8:256.") from error


def _in_words(error: ValidationError, values: Mapping[str, Any]) -> str:
    """The first mistake in a user's plan."""
    first = error.errors(include_url=False)[0]
    name = str(first["loc"][0])
    if first["type"] == "extra_forbidden":
        known = field_checks.meant(name, Plan.model_fields) or f": it has {', '.join(Plan.model_fields)}"
        return f"a plan has no {name}{known}."
    words = field_checks.allowed(get_type_hints(Plan, include_extras=True).get(name, Any))
    return field_checks.refusal(name, values.get(name), words or str(first["msg"]))


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
    helper: Annotated[bytes, Field(max_length=4096)] = b""
    """The mask helper's statement of its keys, as its envelope; empty if updates are not masked."""
    weigh_examples: bool = False
    """Whether a gateway weights the updates in its sums by their numbers of rows."""
    ledger: Annotated[bytes, Field(max_length=40)] = b""
    """The head of the log of releases and their updates (`wire.ledger.Head`), if there is one."""

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


class SiteCertificate(Message):
    """A release key's statement that a gateway's key signs receipts to the devices of its site."""

    kind: Literal["site"] = "site"
    federation: Word
    name: Word
    """The gateway's name as a device of the federation."""
    key: Annotated[bytes, Field(min_length=32, max_length=128)]
    """The gateway's public key: 32 bytes of Ed25519, or the SubjectPublicKeyInfo of P-256, DER."""
    seal_key: Annotated[bytes, Field(max_length=32)] = b""
    """The X25519 public key that devices of the site seal to, in place of the announced one."""
    expires: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Seconds since 1970; 0 is never."""


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
