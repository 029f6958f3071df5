"""The names of inputs, and the sentence about two lists that differ."""

from hypothesis import given
from hypothesis import strategies as st

from midge.wire import frames, messages
from midge.wire.inputs import LONGEST, MOST, difference, sayable
from midge.wire.messages import DeviceState, Hello
from tests.announced import announced

names = st.lists(st.text(max_size=80), max_size=300)


@given(names)
def test_what_is_sayable_travels(said: list[str]) -> None:
    hello = Hello(state=DeviceState.READY, outbox=1, features=sayable(said))
    assert messages.decode(Hello, frames.encode(hello))[0] == hello
    assert hello.features in ((), tuple(said))


@given(st.lists(st.sampled_from("abcdef"), unique=True), st.lists(st.sampled_from("abcdef"), unique=True))
def test_two_lists_differ_unless_they_are_the_same_or_one_is_empty(ours: list[str], theirs: list[str]) -> None:
    assert bool(difference(theirs, ours)) == (bool(ours) and bool(theirs) and ours != theirs)


def test_sentences() -> None:
    assert difference(["a", "b"], ["c", "a", "b"]).startswith("the model has 2 inputs, this device gives 3: c, a, b.")
    assert "in another order, b, a" in difference(["a", "b"], ["b", "a"])
    assert difference(["a", "b"], ["a", "c"]) == "the model's inputs are a, b; this device gives a, c"
    many = [f"channel_{number}" for number in range(100)]
    swapped = [*many[:98], many[99], many[98]]
    assert "Number 99 is 'channel_98' there and 'channel_99' here" in difference(many, swapped)


def test_what_does_not_travel() -> None:
    assert sayable(["a", "a"]) == sayable([""]) == sayable(["a\n"]) == sayable(["x" * (LONGEST + 1)]) == ()
    assert sayable([str(number) for number in range(MOST + 1)]) == ()
    assert len(sayable([str(number) for number in range(MOST)])) == MOST


def test_the_largest_names_fit_an_announcement() -> None:
    longest = tuple(f"{number:03}" + "é" * (LONGEST - 3) for number in range(MOST))
    full = announced(
        features=longest,
        moments=tuple(messages.Moment(name="é" * 64, channels=2**24) for _ in range(16)),
        frames=tuple(
            messages.FrameInfo(version=2**63 - 1, span=2**32 - 1, size=2**40, parts=2**20) for _ in range(256)
        ),
    )
    assert messages.decode_announcement(messages.encode_announcement(full)) == full
