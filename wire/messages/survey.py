"""Messages of a survey: an operator asks the devices for statistics of their rows, and each answers once."""

from collections.abc import Mapping
from typing import Annotated, Final, Literal

from pydantic import Field

from midge.wire.messages.fields import U32, Message, Seq, Word

MOST_SUMMARY: Final = 2**24
"""Most bytes of the body of an answer."""
REASONS: Final[Mapping[str, str]] = {
    "few": "too few rows yet",
    "own": "a program with rows of its own, which are not in samples",
    "withheld": "its owner has withdrawn consent",
    "secure": "its owner requires secure aggregation",
    "forgotten": "the aggregator has withdrawn it",
    "muted": "its link must not be used now",
    "unfit": "its rows cannot be summarised",
}
"""What a `state` other than `rows` means, as text."""


class SurveyRequest(Message):
    """A request for statistics of the devices' rows. Retained while it is open, in an envelope."""

    kind: Literal["survey"] = "survey"
    federation: Word
    number: Seq
    """Random bits, which name the request."""
    seal_key: Annotated[bytes, Field(max_length=32)] = b""
    """The public key of X25519, made for this request, that the answers are sealed to; empty: they are not sealed."""
    issued: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Seconds since 1970 at the operator."""
    expires: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Seconds since 1970, after which no device answers."""
    devices: U32 = 0
    """Number of devices online: they spread their answers by it."""


class Surveyed(Message):
    """A device's answer. The body is the summary of its rows (`wire.row_statistics`), unless `state` says why not."""

    kind: Literal["surveyed"] = "surveyed"
    to: Seq
    """The `number` of the request."""
    state: Literal["rows", "few", "own", "withheld", "secure", "forgotten", "muted", "unfit"] = "rows"
    sealed: Word = ""
    """How the body is sealed; as `sealed` of an update."""
    size: Annotated[int, Field(ge=0, le=MOST_SUMMARY)] = 0
    """Bytes of the body as it travels."""
    sha256: Annotated[bytes, Field(max_length=32)] = b""
    """SHA-256 of the body as it travels."""
