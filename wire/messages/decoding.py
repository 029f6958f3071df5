"""Reading of payloads: the kind is checked first, then every field."""

from midge.wire import frames
from midge.wire.errors import WireError
from midge.wire.messages.announcement import Announcement, Envelope
from midge.wire.messages.answers import Receipt, Trouble
from midge.wire.messages.device import Chunk, Fetch, Statistics, Update
from midge.wire.messages.model_alias import ModelAlias
from midge.wire.messages.proofs import Proof, Prove
from midge.wire.messages.survey import SurveyRequest

ToAggregator = Update | Chunk | Fetch | Statistics | Prove
_TO_AGGREGATOR: dict[str, type[Update] | type[Chunk] | type[Fetch] | type[Statistics] | type[Prove]] = {
    "update": Update,
    "offer": Update,
    "chunk": Chunk,
    "fetch": Fetch,
    "statistics": Statistics,
    "prove": Prove,
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


Answer = Receipt | Trouble | Proof
_ANSWERS: dict[str, type[Receipt] | type[Trouble] | type[Proof]] = {
    "receipt": Receipt,
    "trouble": Trouble,
    "proof": Proof,
}


def decode_answer(payload: frames.Buffer) -> tuple[Answer, memoryview]:
    """Read the payload of a receipt topic.

    Raises:
        WireError: it is no frame, of no known kind, or a field is wrong.
    """
    header, body = frames.decode(payload)
    kind = header.get("kind")
    model = _ANSWERS.get(kind) if isinstance(kind, str) else None
    if model is None:
        raise WireError(f"unknown kind {_shown(kind)}")
    return frames.validate(model, header), body


def encode_announcement(announcement: Announcement | ModelAlias | SurveyRequest) -> bytes:
    """Put an announcement, a name of a registered version, or a survey's request, into an envelope."""
    return frames.encode(Envelope(body=frames.encode(announcement), signatures=()))


def decode_alias(payload: frames.Buffer) -> tuple[ModelAlias, Envelope]:
    """Read the name of a registered version, and its envelope.

    Raises:
        WireError: it is invalid.
    """
    envelope, _ = decode(Envelope, payload)
    return decode(ModelAlias, envelope.body)[0], envelope


def decode_survey(payload: frames.Buffer) -> tuple[SurveyRequest, Envelope]:
    """Read the request of a survey, and its envelope.

    Raises:
        WireError: it is invalid.
    """
    envelope, _ = decode(Envelope, payload)
    return decode(SurveyRequest, envelope.body)[0], envelope


def is_kind(kind: str, payload: frames.Buffer) -> bool:
    """Whether a payload is a frame of this kind, of which nothing else is read.

    Raises:
        WireError: it is no frame.
    """
    return frames.decode(payload)[0].get("kind") == kind


def decode_announcement(payload: frames.Buffer) -> Announcement:
    """Read an announcement from its envelope.

    Raises:
        WireError: it is invalid.
    """
    envelope, _ = decode(Envelope, payload)
    return decode(Announcement, envelope.body)[0]
