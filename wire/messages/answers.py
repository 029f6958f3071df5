"""The aggregator's messages to one device: receipts with verdicts, and what was dropped without one."""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from midge.wire.messages.fields import BODY_DIGEST, U32, U63, Digest, Finite, Message, Sentence, Seq


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
    """What names the update that was judged: its `number`, or, if that is 0, the first 8 bytes of the SHA-256 of its
    body as it travelled. A device with another one under this seq was restored from a copy. Empty if not given."""


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
    """What is wrong with messages of a device: dropped without a receipt, or doubted. It settles nothing."""

    kind: Literal["trouble"] = "trouble"
    why: Sentence


class Vouch(Message):
    """The aggregator's confirmation that an announcement is genuine, for a device that cannot verify signatures."""

    kind: Literal["vouch"] = "vouch"
    digest: Digest
    """Digest of the body of the announcement's envelope."""
