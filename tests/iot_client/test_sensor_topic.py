"""Sensors as they speak over MQTT become rows; what they do not say properly stops nobody."""

import asyncio
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from midge.broker.embedded.in_memory import Twin
from midge.broker.mqtt.connection import Delivery, Options
from midge.iot_client.data.mqtt_source import SensorTopic, fields_of
from midge.iot_client.data.samples import Samples

pytestmark = pytest.mark.virtual

ZIGBEE = b'{"battery":97,"linkquality":120,"temperature":21.4,"power":"230.5","state":"ON","update":{"state":"idle"}}'


def test_payloads_as_zigbee2mqtt_and_home_assistant_have_them() -> None:
    found = fields_of("zigbee2mqtt/pump-17", ZIGBEE)
    assert found["temperature"] == 21.4 and found["state"] == 1 and found["power"] == "230.5"
    assert found["update.state"] == "idle"
    assert fields_of("homeassistant/sensor/pump_heat/state", b"21.5") == {"pump_heat": 21.5}
    assert fields_of("homeassistant/binary_sensor/door/state", b"off") == {"door": 0}
    assert fields_of("plant/pressure", b"unavailable") == {"pressure": "unavailable"}
    assert fields_of("a/b", msgpack.packb({"heat": {"in": 3, "out": 2.5}})) == {"heat.in": 3, "heat.out": 2.5}
    for nothing in (b"", b"[1,2]", b"null", b"\xff\xfe", b"x" * 100_000, b"[" * 60_000):
        assert fields_of("a/b", nothing) == {}


def rows(*messages: tuple[float, str, bytes], retain: bool = False, **options: Any) -> list[list[float]]:
    """Rows of heat, speed and power that come of messages at their times."""
    samples, now = Samples(None, ["heat", "speed"], "power", clip=None, kind=options.pop("kind", "regression")), 0.0
    source = SensorTopic(Twin().connect, "#", clock=lambda: now, **options)
    for now, topic, payload in messages:  # noqa: B007 - the clock reads it
        source.take(Delivery(topic, payload, 0, retain), samples)
    x, y = samples.arrays()
    return [[*map(float, values), float(label)] for values, label in zip(x, y, strict=True)]


def test_one_message_with_all_is_a_row() -> None:
    assert rows((0, "p", b'{"power":1,"heat":2,"speed":"3","other":9}')) == [[2, 3, 1]]


def test_values_of_several_topics_meet_when_the_label_comes() -> None:
    found = rows(
        (0, "s/heat/state", b"20"),
        (1, "s/speed/state", b"5"),
        (2, "s/power/state", b"100"),
        (3, "s/heat/state", b"21"),
        (4, "s/power/state", b"101"),
    )
    assert found == [[20, 5, 100], [21, 5, 101]]


def test_a_value_that_is_too_old_is_missing() -> None:
    (row,) = rows((0, "heat", b"20"), (50, "speed", b"5"), (100, "power", b"1"), hold=60)
    assert row[0] != row[0] and row[1:] == [5, 1]


def test_what_is_retained_fills_gaps_and_makes_no_row() -> None:
    assert rows((0, "p", b'{"power":1,"heat":2,"speed":3}'), retain=True) == []


def test_classes_by_name() -> None:
    found = rows(
        (0, "p", b'{"power":"idle","heat":2,"speed":3}'),
        (1, "p", b'{"power":"busy","heat":2,"speed":4}'),
        (2, "p", b'{"power":"broken","heat":2,"speed":5}'),
        kind="classification",
        classes=["idle", "busy"],
    )
    assert found == [[2, 3, 0], [2, 4, 1]]


@given(topic=st.text(min_size=1, max_size=20), payload=st.binary(max_size=200))
def test_no_payload_raises(topic: str, payload: bytes) -> None:
    for value in fields_of(topic, payload).values():
        Samples(None, ["a"], "b").observe({"a": value, "b": value})


async def test_it_follows_across_a_broker_that_dies() -> None:
    twin, samples = Twin(), Samples(None, ["heat"], "power")
    source = SensorTopic(twin.connect, "zigbee2mqtt/+")
    following = asyncio.create_task(source.follow(samples))

    async def say(power: int) -> None:
        """Until it was heard: the source may not be there yet."""
        before = len(samples)
        async with twin.connect(Options("sensor")) as sensor:
            while len(samples) == before:
                await sensor.publish("zigbee2mqtt/pump", b'{"heat":1,"power":%d}' % power)
                await asyncio.sleep(0.02)

    await say(1)
    twin.kill()
    twin.restart()
    await say(2)
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    assert {1, 2} == {int(each) for each in samples.arrays()[1]}


def test_a_topic_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="#"):
        SensorTopic(Twin().connect, "a/#/b")


def test_an_address_that_is_no_brokers_is_refused() -> None:
    with pytest.raises(ValueError, match="http"):
        SensorTopic("http://localhost", "a/b")
