"""Every message comes back as it was sent, and a frame holds what was put into it."""

from enum import Enum
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from midge.wire import frames, messages
from midge.wire.errors import WireError
from midge.wire.messages import (
    AggregatorState,
    AggregatorStatus,
    Announcement,
    Chunk,
    Claim,
    DeviceState,
    Envelope,
    Fetch,
    Hello,
    ModelAlias,
    Moment,
    Part,
    Plan,
    Receipt,
    Report,
    Settled,
    SiteCertificate,
    SiteValues,
    Statistics,
    Succession,
    Surveyed,
    SurveyRequest,
    Trouble,
    Update,
    Verdict,
    Vouch,
)

ID, DIGEST, SHA = b"i" * 16, b"d" * 16, b"s" * 32
TO_AGGREGATOR: list[type[BaseModel]] = [Update, Chunk, Fetch, Statistics]
OTHERS: list[type[BaseModel]] = [
    *(Report, Hello, Receipt, Trouble, Vouch, AggregatorStatus, Claim, Announcement, ModelAlias, Part, Envelope),
    SurveyRequest,
    Surveyed,
    Succession,
    SiteCertificate,
    SiteValues,
]
MOST = 4
"""Items of a generated collection; the limits themselves have tests of their own."""


def values(annotation: Any, metadata: tuple[Any, ...] = ()) -> st.SearchStrategy[Any]:
    """Values that a field of this type and these limits may have."""
    if get_origin(annotation) is Annotated:
        inner, *more = get_args(annotation)
        flat = [part for item in more for part in (item.metadata if isinstance(item, FieldInfo) else [item])]
        return values(inner, (*flat, *metadata))
    limits = {
        name: getattr(part, name)
        for part in metadata
        for name in ("ge", "gt", "le", "min_length", "max_length")
        if getattr(part, name, None) is not None
    }
    most = min(MOST, limits.get("max_length", MOST))
    arguments = get_args(annotation)
    match get_origin(annotation) or annotation:
        case origin if origin in (Union, UnionType):
            return st.one_of([values(argument, metadata) for argument in arguments])
        case origin if origin is Literal:
            return st.sampled_from(arguments)
        case origin if origin is tuple and arguments[-1:] == (...,):
            return st.lists(values(arguments[0]), min_size=limits.get("min_length", 0), max_size=most).map(tuple)
        case origin if origin is tuple:
            return st.tuples(*map(values, arguments))
        case origin if origin is dict:
            return st.dictionaries(*map(values, arguments), max_size=most)
        case kind if kind is NoneType:
            return st.none()
        case kind if kind is Any:
            return st.booleans() | st.binary(max_size=MOST)
        case kind if kind is bool:
            return st.booleans()
        case kind if kind is int:
            return st.integers(limits.get("ge", -(2**63)), limits.get("le", 2**63 - 1))
        case kind if kind is float:
            low, high = limits.get("ge", limits.get("gt")), limits.get("le")
            floats = st.floats(
                low, high, exclude_min="gt" in limits, allow_nan=False, allow_infinity=False, allow_subnormal=False
            )
            return floats.map(lambda value: value + 0.0)  # no negative zero: it equals the default, which is not sent
        case kind if kind is str:
            return st.text(max_size=limits.get("max_length", MOST))
        case kind if kind is bytes:
            return st.binary(min_size=limits.get("min_length", 0), max_size=limits.get("max_length", MOST))
        case kind if issubclass(kind, Enum):
            return st.sampled_from(list(kind))
        case kind if issubclass(kind, tuple):  # a NamedTuple
            hints = get_type_hints(kind, include_extras=True)
            return st.builds(kind, **{name: values(hint) for name, hint in hints.items()})
        case kind:
            return message(kind)


def message(model: type[BaseModel]) -> st.SearchStrategy[Any]:
    """Messages of this kind with any allowed values."""
    fields = model.model_fields.items()
    return st.builds(model, **{name: values(field.annotation, tuple(field.metadata)) for name, field in fields})


@given(st.data(), st.binary(max_size=300))
@pytest.mark.parametrize("model", TO_AGGREGATOR, ids=lambda model: model.__name__)
def test_what_devices_send_comes_back(model: type[BaseModel], data: st.DataObject, body: bytes) -> None:
    sent = data.draw(message(model))
    received, rest = messages.decode_update(frames.encode(sent, body))
    assert (received, bytes(rest)) == (sent, body)
    assert repr(received) == repr(sent)  # equal values can differ in type


@given(st.data(), st.binary(max_size=300))
@pytest.mark.parametrize("model", OTHERS, ids=lambda model: model.__name__)
def test_every_other_message_comes_back(model: type[BaseModel], data: st.DataObject, body: bytes) -> None:
    sent = data.draw(message(model))
    received, rest = messages.decode(model, frames.encode(sent, body))
    assert (received, bytes(rest)) == (sent, body)
    assert repr(received) == repr(sent)


@given(message(Announcement))
def test_an_announcement_comes_back_out_of_its_envelope(sent: Announcement) -> None:
    assert messages.decode_announcement(messages.encode_announcement(sent)) == sent


def test_every_message_is_tested() -> None:
    every = {
        value
        for value in vars(messages).values()
        if isinstance(value, type) and issubclass(value, messages.Message) and "kind" in value.model_fields
    }
    assert every | {Envelope} == {*TO_AGGREGATOR, *OTHERS}


@given(st.dictionaries(st.text(max_size=8), st.integers(0, 2**64 - 1) | st.binary(max_size=9)), st.binary())
def test_a_frame_comes_back_and_its_body_is_not_copied(header: dict[str, Any], body: bytes) -> None:
    payload = frames.encode(header, body)
    fields, view = frames.decode(payload)
    assert (fields, bytes(view)) == (header, body)
    assert view.obj is payload


def test_a_header_has_a_limit_when_it_is_written() -> None:
    with pytest.raises(ValueError, match="over 65535"):
        frames.encode({"x": b"0" * 65_536})


def test_the_kind_travels_though_it_is_a_default() -> None:
    for sent in (Chunk(outbox=0, first=1, seq=1, part=0), Hello(state=DeviceState.READY, outbox=0)):
        assert frames.decode(frames.encode(sent))[0]["kind"] == sent.kind


def test_a_field_at_its_default_is_left_out() -> None:
    status = AggregatorStatus(state=AggregatorState.READY, boot=1, lineage=ID)
    assert set(frames.decode(frames.encode(status))[0]) == {"kind", "state", "boot", "lineage"}


UPDATE = frames.decode(
    frames.encode(
        Update(
            outbox=1,
            first=1,
            seq=2,
            lineage=ID,
            generation=0,
            base=0,
            schema_hash=DIGEST,
            codec="float32",
            size=0,
            sha256=SHA,
        )
    )
)[0]
ANNOUNCEMENT = frames.decode(
    frames.encode(
        Announcement(
            federation="pumps",
            lineage=ID,
            generation=0,
            version=0,
            step=0,
            phase="training",
            schema_hash=DIGEST,
            digest=DIGEST,
        )
    )
)[0]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("kind", "updates"),
        ("kind", None),
        ("kind", b"update"),
        ("seq", 0),
        ("seq", 2**63),
        ("seq", True),
        ("seq", 1.0),
        ("seq", "1"),
        ("lineage", b"short"),
        ("lineage", "i" * 16),
        ("schema_hash", DIGEST + b"x"),
        ("codec", "c" * 65),
        ("size", -1),
        ("size", 2**40 + 1),
        ("tensors", (-1,)),
        ("tensors", tuple(range(4097))),
        ("seconds", float("nan")),
        ("seconds", float("inf")),
        ("seconds", -1.0),
        ("metrics", {"loss": float("nan")}),
        ("metrics", {"loss": "0.5"}),
        ("metrics", {"m" * 65: 0.5}),
        ("metrics", {str(number): 0.5 for number in range(33)}),
        ("parts", 0),
    ],
)
def test_a_wrong_field_of_an_update_is_refused(field: str, value: object) -> None:
    messages.decode_update(frames.encode(UPDATE))
    with pytest.raises(WireError):
        messages.decode_update(frames.encode({**UPDATE, field: value}))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("issued", float("inf")),
        ("issued", float("nan")),
        ("expires", float("inf")),
        ("expires", -1.0),
        ("phase", "sleeping"),
        ("chunk", 255),
        ("plan", {"learning_rate": 0.0}),
        ("plan", {"learning_rate": float("inf")}),
        ("plan", {"batch_size": 0}),
        ("frames", ({"version": 1, "span": 0, "size": 1},)),
        ("moments", ({"name": "x", "channels": 0},)),
    ],
)
def test_a_wrong_field_of_an_announcement_is_refused(field: str, value: object) -> None:
    messages.decode(Announcement, frames.encode(ANNOUNCEMENT))
    with pytest.raises(WireError):
        messages.decode(Announcement, frames.encode({**ANNOUNCEMENT, field: value}))


@pytest.mark.parametrize("state", ["asleep", "", 0, None, b"asleep", ("ready",)])
def test_an_unknown_state_is_refused(state: object) -> None:
    with pytest.raises(WireError):
        messages.decode(Hello, frames.encode({"kind": "hello", "outbox": 1, "state": state}))


def test_unknown_fields_are_ignored_and_missing_ones_are_not() -> None:
    assert messages.decode_update(frames.encode({**UPDATE, "colour": "red", "nested": {b"raw": 1}}))[0].kind == "update"
    for field in UPDATE.keys() - {"schema_hash"}:
        with pytest.raises(WireError):
            messages.decode_update(frames.encode({name: value for name, value in UPDATE.items() if name != field}))


def test_one_kind_is_not_taken_for_another() -> None:
    with pytest.raises(WireError, match="expected kind 'hello', not 'update'"):
        messages.decode(Hello, frames.encode(UPDATE))


def test_an_error_that_quotes_a_peer_is_short_and_one_line() -> None:
    with pytest.raises(WireError) as caught:
        messages.decode_update(frames.encode({**UPDATE, "metrics": {"k\n\x1b[2J" * 8_000: 1.0}}))
    why = str(caught.value)
    assert why.isprintable()
    assert Settled(seq=1, verdict=Verdict.BAD_ENCODING, why=why).why == why


def test_final_verdicts() -> None:
    waiting = {verdict for verdict in Verdict if not verdict.final}
    assert waiting == {Verdict.BUSY, Verdict.PAUSED, Verdict.QUARANTINED, Verdict.BAD_SIGNATURE}


def test_limits_of_one_announcement_fit_a_header() -> None:
    full = Announcement(
        **{
            **ANNOUNCEMENT,
            "frames": tuple(
                messages.FrameInfo(version=2**63 - 1, span=2**32 - 1, size=2**40, parts=2**20) for _ in range(256)
            ),
            "moments": tuple(Moment(name="é" * 64, channels=2**24) for _ in range(16)),
            "plan": Plan(revision=1, codec="c" * 64, learning_rate=0.1, proximal=0.5, seed=2**63 - 1),
        }
    )
    assert messages.decode_announcement(messages.encode_announcement(full)) == full
