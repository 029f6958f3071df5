"""Field names that travel as numbers."""

import hashlib
import inspect
import re
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from midge.wire import frames, messages
from midge.wire.errors import WireError
from midge.wire.messages import Message
from midge.wire.names import NAMES

MODELS = [model for _, model in inspect.getmembers(messages, inspect.isclass) if issubclass(model, Message)]
PLAIN: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=8) | st.binary(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)


AS_TEXT = {"site_size", "who"}
"""Fields that are younger than the last number."""


def frame(header: object) -> bytes:
    packed: bytes = msgpack.packb(header)
    return len(packed).to_bytes(2, "little") + packed


def test_every_field_has_a_number() -> None:
    fields = {field.alias or name for model in MODELS for name, field in model.model_fields.items()}
    assert fields - AS_TEXT <= set(NAMES), "the numbers of one byte are all given: add them here, to travel as text"
    assert not AS_TEXT & set(NAMES)
    assert len(set(NAMES)) == len(NAMES) <= 128


def test_numbers_stay_as_they_are() -> None:
    """A device in the field has this list, and maybe a shorter one."""
    known = "\n".join(NAMES[:96]).encode()
    assert hashlib.sha256(known).hexdigest()[:16] == "2b03cfd05865493c"


def test_the_protocol_page_has_them_all() -> None:
    page = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text(encoding="utf-8")
    assert re.findall(r"(?<![`\w])(\d+)\s`(\w+)`", page.split("## Names")[1].split("## ")[0]) == [
        (str(number), name) for number, name in enumerate(NAMES)
    ]


@given(st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=8), PLAIN, max_size=6))
def test_what_is_said_is_heard(header: dict[str, Any]) -> None:
    header.pop("kind", None)
    assert frames.decode(frames.encode(header))[0] == header


@given(st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=8), PLAIN, max_size=6))
def test_text_is_understood_for_every_name(header: dict[str, Any]) -> None:
    header.pop("kind", None)
    assert frames.decode(frame(header))[0] == header


@pytest.mark.parametrize("key", [len(NAMES), 128, 2**64 - 1, -1, b"seq", None, 1.5, True, (1, 2)])
def test_other_keys_are_passed_over(key: Any) -> None:
    assert frames.decode(frame({key: {"a": key}, "seq": 1, 14: {key: 2}}))[0] == {"seq": 1, "first": {}}


def test_a_name_comes_once() -> None:
    twice = b"\x82" + msgpack.packb(NAMES.index("seq")) + b"\x01" + msgpack.packb("seq") + b"\x02"
    with pytest.raises(WireError, match="twice"):
        frames.decode(len(twice).to_bytes(2, "little") + twice)


def test_keys_that_collide_cost_nothing() -> None:
    """A table of integers that all fall into one place would take time by the square of their number."""
    body = (
        b"\xde"
        + (6000).to_bytes(2, "big")
        + b"".join(b"\xcf" + (2**61 - 1 + 2**61 * (n % 7) + n).to_bytes(8, "big") + b"\x00" for n in range(6000))
    )
    assert frames.decode(len(body).to_bytes(2, "little") + body)[0] == {}
