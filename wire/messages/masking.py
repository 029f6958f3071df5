"""Secure aggregation: what a device hides from whom, and the messages of the mask helper (`wire.masking`)."""

from typing import Annotated, Literal

from pydantic import Field

from midge.wire.messages.fields import U32, U63, Digest, Id, Message, Sentence, Seq, Sha, Word

Ring = Annotated[int, Field(ge=4, le=31)]
Least = Annotated[int, Field(ge=2, le=4096)]
Levels = Annotated[int, Field(ge=1, le=2**15)]
Scale = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Slices = Annotated[int, Field(ge=1, le=64)]
Noise = Annotated[float, Field(ge=0, le=2.0**31, allow_inf_nan=False)]
Honest = Annotated[int, Field(ge=0, le=4096)]
SeedKey = Annotated[bytes, Field(min_length=32, max_length=1216)]
KeyId = Annotated[bytes, Field(min_length=8, max_length=8)]


class Masking(Message):
    """How devices turn a delta into integers and mask them; part of the plan."""

    ring: Ring
    """b: integers are added modulo 2^b."""
    levels: Levels = 7
    """A device's integers are from −levels to levels."""
    scale: Scale
    """The value of one level."""
    clip: Scale
    """L2 norm to which a device scales its delta down."""
    slices: Slices = 1
    """An update covers one of this number of slices of the vector, by the number of its base."""
    least: Least = 5
    """Fewest distinct devices in a sum."""
    noise: Noise = 0.0
    """Standard deviation, in levels, of the noise that `honest` devices add together; with 0, devices add none."""
    honest: Honest = 0
    """Fewest devices in a sum that add their share of the noise and do not disclose it."""


class MaskEntry(Message):
    """A masked update's message to the helper; the device signs it with the update's identity (`masking.voucher`)."""

    key: KeyId
    """Identifies the helper's key that the seed is sealed to."""
    ring: Ring
    levels: Levels
    scale: Scale
    slices: Slices
    part: U32
    """The slice that is covered."""
    least: Least
    """Fewest distinct devices in the sum that this update may be in: the larger of the plan's and the device's own."""
    seed: Annotated[bytes, Field(min_length=48, max_length=2048)]
    """Of the mask, sealed to the helper."""
    noise: Noise = 0.0
    """Of the plan; with noise, the updates of a sum have equal weights."""
    honest: Honest = 0
    """Of the plan."""
    terms: Annotated[bytes, Field(max_length=16)] = b""
    """Digest of the model and the plan of the training (`masking.terms`): devices that agree in it hide each other."""


class Ticket(Message):
    """An accepted update as the aggregator names it to the helper: its identity, and the entry with its signature."""

    device: Word = ""
    generation: U32 = 0
    base: U63
    base_digest: Annotated[bytes, Field(max_length=16)] = b""
    plan: U32 = 0
    outbox: U63
    seq: Seq
    sha256: Sha
    entry: Annotated[bytes, Field(min_length=65, max_length=4096)]


class SealingKey(Message):
    """A key that devices seal seeds to, for a day."""

    key: SeedKey
    """Public: 32 bytes of X25519, or 1,216 of ML-KEM-768 and X25519."""
    since: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    """Seconds since 1970."""
    until: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    """Devices seal to it until then; it is erased some days later."""


class HelperStatement(Message):
    """The mask helper's statement of its current keys, in an envelope that its signing key signs. Retained."""

    kind: Literal["helper"] = "helper"
    federation: Word
    store: Id
    """Identifies the helper's journal."""
    keys: Annotated[tuple[SealingKey, ...], Field(min_length=1, max_length=4)]
    """The newest first."""
    least: Least
    """Fewest distinct devices in a sum, of the helper's own configuration."""
    roster: Digest
    """Digest of the devices' names and public keys that the helper knows (`masking.roster_digest`)."""
    devices: U32
    """Their number."""


class Deposit(Message):
    """The aggregator's message to the helper: tickets of accepted updates, and a request for the next sum.

    The body is a msgpack array of tickets; the signature of the release key follows it.
    """

    kind: Literal["deposit"] = "deposit"
    lineage: Id
    number: U63
    """Counts deposits of this process; the answer repeats it."""
    turn: U63 = 0
    """Rises with each deposit of a lineage, over restarts too: one with a lower number changes nothing."""
    store: Annotated[bytes, Field(max_length=16)] = b""
    """The helper's journal that `after` refers to; empty if none is known."""
    after: U63 = 0
    """The number of the newest sum that is in the aggregator's journal: the helper may delete it and those before."""
    size: U32 = 0
    """Number of devices that the aggregator wants in a sum; the helper's own minimum holds in any case."""
    groups: Annotated[int, Field(ge=1, le=256)] = 1
    """Number of sets that are dealt together, at random, once there are devices for all of them."""
    seal_key: Annotated[bytes, Field(min_length=32, max_length=32)]
    """What the answer is sealed to."""
    values: U32
    """Number of values of the model's vector."""
    sha256: Digest
    """Of the body."""


class SumMember(Message):
    """An update in a sum."""

    device: Word
    outbox: U63
    seq: Seq
    weight: Annotated[int, Field(ge=1, le=4)] = 1


class Rejected(Message):
    """An update that the helper has refused for ever."""

    device: Word
    outbox: U63
    seq: Seq
    why: Sentence = ""


class Dealt(Message):
    """The helper's answer: the sum of the masks of a set of updates, and which updates it will never sum.

    It is signed by the helper, then sealed to the aggregator, then cut into `Piece`s.
    """

    store: Id
    lineage: Id
    answers: U63 = 0
    """The number of the deposit; of a sum, that of the deposit that it was first dealt for."""
    number: U63 = 0
    """Counts sums from 1; 0 if there is none yet."""
    turn: U63 = 0
    """The highest turn of a deposit; of a sum 0."""
    members: Annotated[tuple[SumMember, ...], Field(max_length=4096)] = ()
    ring: U32 = 0
    levels: U32 = 0
    scale: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    slices: U32 = 0
    part: U32 = 0
    rejected: Annotated[tuple[Rejected, ...], Field(max_length=4096)] = ()
    sha256: Annotated[bytes, Field(max_length=16)] = b""
    """Of the body: the packed sum of the masks."""


class Piece(Message):
    """One slice of a sealed answer of the helper; the body is its bytes."""

    kind: Literal["dealt"] = "dealt"
    sha256: Digest
    """Of the whole."""
    part: U32
    parts: Annotated[int, Field(ge=1, le=2**16)]
