"""Names, slots, and who sent what by its topic alone."""

import re
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from midge.wire.errors import WireError
from midge.wire.topics import SLOTS, Origin, Topics, check_name, slot

NAMES = st.from_regex(re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII), fullmatch=True)
TOPICS = Topics("pumps")


@given(NAMES)
def test_a_good_name_is_returned(name: str) -> None:
    assert check_name(name) == name
    assert Topics(name, name).prefix == f"{name}/{name}"


@pytest.mark.parametrize("name", ["", ".", "-a", "a b", "a/b", "a+", "#", "$SYS", "é", "a\n", "a\0", "٣", "a" * 65])
def test_a_bad_name_is_refused_with_what_is_allowed(name: str) -> None:
    with pytest.raises(ValueError, match=r"use 1 to 64 letters"):
        check_name(name)
    with pytest.raises(ValueError, match="cannot be a federation"):
        Topics(name)
    with pytest.raises(WireError):
        TOPICS.origin(f"midge/1/pumps/status/{name}")


@pytest.mark.parametrize("root", ["", "/", "a//b", "a/+", "#", "$SYS", "a/\n", "a b"])
def test_a_bad_root_is_refused(root: str) -> None:
    with pytest.raises(ValueError, match="cannot be a topic root"):
        Topics("pumps", root)


def test_slots_are_crc32_of_the_name() -> None:
    assert zlib.crc32(b"123456789") == 0xCBF43926  # the check value of the CRC catalogue
    assert slot("123456789") == 0xCBF43926 % 64 == 38
    assert TOPICS.update("123456789") == "midge/1/pumps/update/38/123456789"
    assert {slot(f"device-{number}") for number in range(2_000)} == set(range(SLOTS))


@given(NAMES, NAMES, st.lists(NAMES, min_size=1, max_size=3).map("/".join))
def test_the_origin_of_every_topic_of_a_device(device: str, federation: str, root: str) -> None:
    topics = Topics(federation, f"/{root}/")
    assert topics.origin(topics.update(device)) == Origin("update", device, slot(device))
    assert topics.origin(topics.status(device)) == Origin("status", device)
    assert topics.origin(topics.report(device)) == Origin("report", device)
    for topic in (topics.update(device), topics.status(device), topics.report(device)):
        assert any(matches(pattern, topic) for pattern in topics.from_devices)
        assert matches(topics.everything, topic)
    for topic in (topics.receipt(device), topics.aggregator, topics.announcement(), topics.part(3, 0, 1)):
        assert not any(matches(pattern, topic) for pattern in topics.from_devices)
        with pytest.raises(WireError):
            topics.origin(topic)


def matches(pattern: str, topic: str) -> bool:
    """Whether an MQTT filter matches a topic (MQTT 3.1.1, section 4.7)."""
    expression = re.escape(pattern).replace(r"\+", "[^/]*").replace(r"\#", ".*").replace("#", ".*")
    return re.fullmatch(expression, topic) is not None


@given(NAMES, st.text(max_size=3) | st.integers(0, 100).map("{:02}".format))
def test_any_slot_that_there_is_is_taken(device: str, number: str) -> None:
    """A wrong CRC in firmware was dropped in silence, and while one aggregator reads all slots nothing needs it."""
    topic = f"midge/1/pumps/update/{number}/{device}"
    assert TOPICS.named(topic) == ("" if "/" in number else device)
    if re.fullmatch("[0-9]{1,2}", number, re.ASCII) and int(number) < SLOTS:
        assert TOPICS.origin(topic) == Origin("update", device, int(number))
    else:
        with pytest.raises(WireError, match=f"that of .* is {slot(device)}|no topic"):
            TOPICS.origin(topic)


@given(st.text() | st.text().map("midge/1/pumps/".__add__) | st.text().map("midge/1/pumps/update/".__add__))
def test_any_text_is_an_origin_or_refused_in_one_short_line(topic: str) -> None:
    why = ""
    try:
        assert TOPICS.origin(topic).sort in {"update", "status", "report"}
    except WireError as error:
        why = str(error)
    assert len(why) <= 300
    assert why.isprintable()


def test_a_long_topic_is_refused_in_a_short_line() -> None:
    with pytest.raises(WireError) as caught:
        TOPICS.origin("midge/1/pumps/" + "x" * 60_000)
    assert len(str(caught.value)) <= 300


def test_another_federation_with_a_longer_name_is_foreign() -> None:
    with pytest.raises(WireError, match="not under"):
        TOPICS.origin(Topics("pumps2").status("a"))


def test_parts_and_channels_do_not_collide() -> None:
    topics = [TOPICS.announcement("train"), TOPICS.announcement("serve")]
    topics += [TOPICS.part(version, span, index) for version in (1, 11) for span in (0, 1) for index in (0, 1, 11)]
    topics += [TOPICS.part(1, 0, 0, "serve"), TOPICS.receipt("a"), TOPICS.aggregator]
    assert len(set(topics)) == len(topics)
