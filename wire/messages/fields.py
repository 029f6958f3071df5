"""The base of all messages, and types of their fields: every length and range has a limit."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from midge.wire import inputs
from midge.wire.participation import MOST_WHERE

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
Where = Annotated[dict[Word, Word], Field(max_length=MOST_WHERE)]
"""Capabilities by name, each with the text of its value: a device with all of them is meant."""
Names = Annotated[tuple[Word, ...], Field(max_length=inputs.MOST)]
Hidden = Annotated[bytes, Field(max_length=60_000)]
"""Fields about the device itself, sealed by `wire.sealing.hide`; empty if nothing is sealed."""

MOST_VERSION, MOST_GENERATION = 2**52, 2**31
"""Numbers that a federation never reaches, far from the ends of their types: higher claims are wrong or a lie. An
aggregator continues behind any announced number up to these; so readers accept twice as much."""
MOST_TOKEN = 2**53 - 1
"""The highest fencing token; exact in any language's numbers."""
OUTBOX_LIMIT = 16
"""Most updates that a device holds, and most verdicts per device that the aggregator remembers."""
BODY_DIGEST = 8
"""Bytes of an update's digest in its receipt: enough to tell two updates of one device apart."""
MICRO = "micro"
"""The class of devices that hold one update, keep no error feedback and receive small messages: microcontrollers."""


class Message(BaseModel):
    """Strict about types, ignores unknown fields, immutable."""

    # Built lazily: otherwise a device would spend a tenth of its start-up on messages that it never uses.
    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, defer_build=True)


def possible(generation: int, version: int) -> bool:
    """Whether a federation can have these numbers."""
    return generation < 2 * MOST_GENERATION and version < 2 * MOST_VERSION
