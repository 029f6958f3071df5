"""Messages from a device: updates and their chunks, statistics, reports, its status."""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from midge.wire.messages.fields import (
    BODY_DIGEST,
    U32,
    U63,
    Capabilities,
    Hidden,
    Id,
    Message,
    Metrics,
    Names,
    Sentence,
    Seq,
    Sha,
    Word,
)


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
    metrics: Metrics = {}  # noqa: RUF012 - pydantic copies it
    parts: Annotated[int, Field(ge=1, le=2**20)] = 1
    """Number of chunks that follow an offer."""
    base_digest: Annotated[bytes, Field(max_length=16)] = b""
    """The first 8 bytes of the digest of the published state that was trained from; empty if not given."""
    sealed: Word = ""
    """How the encoded delta is sealed to the aggregator: `wire.sealing.NAME`, or empty if it is not. `size` and
    `sha256` are those of the sealed bytes, as they travel."""
    feedback: bool = True
    """Whether the codec's error goes into the device's next update; True also if the codec has no error."""
    entry: Annotated[bytes, Field(max_length=4096)] = b""
    """Of a masked update: what the mask helper needs (`messages.masking.MaskEntry`), and the device's signature."""
    confided: bool = False
    """Whether examples, steps, seconds and metrics are sealed with the delta, by `wire.sealing.confide`."""
    accepted: U32 = 0
    """Of a gateway: the number of its devices' updates of which the body is the weighted sum; 0 is a device's own
    update."""
    devices: U32 = 0
    """The number of distinct devices that they are of."""
    weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """The sum of their weights in it."""
    who: Annotated[bytes, Field(max_length=4 * 4096)] = b""
    """Of a shard: 4 bytes of a hash of each of these devices' names, so that two sums do not count one device twice."""
    number: U63 = 0
    """Random bits, drawn when the update was stored: they name it in a receipt. It can then be sealed again, to another
    key, and a broker cannot confirm a guess of its content. 0 if it was sealed once, or not at all."""
    key: Annotated[bytes, Field(max_length=8)] = b""
    """Which of the aggregator's keys of the day it is sealed to (`wire.sealing.key_id`); empty: the announced key."""
    site_size: U32 = 0
    """To a gateway: bytes of the device's values of the site's tensors, which follow the encoded delta; 0 if none do.
    `size` and `sha256` are those of both."""

    @property
    def digest(self) -> bytes:
        """What names it in a receipt."""
        return self.number.to_bytes(BODY_DIGEST, "big") if self.number else self.sha256[:BODY_DIGEST]

    @property
    def awaits_seal(self) -> bool:
        """Whether, in an outbox, it must be sealed before it is sent."""
        return self.number != 0 and not self.sealed

    def named_by(self, digest: bytes) -> bool:
        """Whether a receipt's `body` means this update: an earlier aggregator names the body as it came."""
        return digest in (self.digest, self.sha256[:BODY_DIGEST])


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
    devices: U32 = 0
    """Of a gateway: the number of its devices of whose results these are the means; 0 is a device's own report."""


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
    capabilities: Capabilities = {}  # noqa: RUF012
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
    keeps: U63 = 0
    """The version that the device goes on using, because a newer one is worse on its own rows; 0 if it keeps none."""
    devices: U32 = 0
    """Of a site's gateway: the number of its devices that are online; 0 is one device."""
