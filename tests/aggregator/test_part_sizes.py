"""The model's parts fit the smallest device that is there, and nobody else pays much for it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from midge.__main__ import main
from midge.aggregator.config import AggregatorConfig
from midge.aggregator.metrics.device_activity import DeviceActivity
from midge.aggregator.metrics.watchdog import FleetSituation, Watchdog
from midge.aggregator.publish.part_sizes import MOST, PART, PartSizes, Refetches, count
from midge.aggregator.service import Aggregator
from midge.broker.embedded.in_memory import Twin
from midge.broker.mqtt.connection import Delivery
from midge.commands import aggregate
from midge.wire import frames, messages
from midge.wire.messages import Announcement, DeviceState, Envelope, Fetch, Hello, Part, Plan, Trouble
from tests.aggregator.rig import EVERYTHING_COUNTS, TOPICS, answers, hello
from tests.security.test_budgets import Life

MODEL = {"x": np.random.default_rng(0).normal(size=20_000).astype(np.float32)}


def greets(device: str, largest: int, state: DeviceState = DeviceState.READY) -> Delivery:
    payload = frames.encode(Hello(state=state, outbox=1, largest=largest))
    return Delivery(TOPICS.status(device), payload, 1, retain=False)


class Broker:
    """What stands at the broker, by topic."""

    def __init__(self, life: Life) -> None:
        self.life = life
        self.kept: dict[str, bytes] = {}
        for post in life.federation.everything():
            life.posts.append(post)
        self.take()

    def take(self) -> None:
        for post in self.life.posts:
            if post.retain and post.payload:
                self.kept[post.topic] = post.payload
            elif post.retain:
                self.kept.pop(post.topic, None)
        self.life.posts.clear()

    def hear(self, *deliveries: Delivery, now: float) -> list[Any]:
        self.life.federation.process(list(deliveries), now)
        said = answers(self.life.posts)
        self.take()
        return said

    @property
    def announced(self) -> Announcement:
        return messages.decode_announcement(self.kept[TOPICS.announcement()])

    def largest(self) -> int:
        """Bytes of the largest part; every frame that is announced is there, whole, and nothing else."""
        announced, bodies, topics = self.announced, [0], {TOPICS.announcement()}
        for frame in announced.frames:
            size = 0
            for index in range(frame.parts):
                topic = TOPICS.part(frame.version, frame.span, index)
                topics.add(topic)
                part, body = messages.decode(Part, self.kept[topic])
                assert part.parts == frame.parts
                size += len(body)
                bodies.append(len(body))
            assert size == frame.size
        assert {topic for topic in self.kept if "/model/" in topic} == topics
        return max(bodies)


@pytest.fixture
def broker(tmp_path: Path) -> Broker:
    return Broker(Life(tmp_path, MODEL))


def test_parts_fit_the_smallest_device_that_is_there_and_grow_again_when_it_is_gone(broker: Broker) -> None:
    before = broker.largest()
    assert before > 8000
    broker.hear(greets("board", 3000), now=1.0)
    assert 1024 < broker.largest() <= 2048, "in powers of two: most boards make no change"
    assert broker.announced.smallest_chunk == 1024
    broker.hear(greets("smaller", 1200), now=2.0)
    assert broker.largest() > 1024, "not often"
    broker.hear(now=40.0)
    assert broker.largest() <= 1024
    broker.hear(greets("smaller", 1200, DeviceState.LOST), now=50.0)
    broker.hear(greets("board", 3000, DeviceState.SLEEPING), now=51.0)
    broker.hear(now=60.0)
    assert broker.largest() <= 1024, "it may only have started again"
    broker.hear(now=700.0)
    assert 1024 < broker.largest() <= 2048, "a device that sleeps wakes again"
    broker.hear(Delivery(TOPICS.status("board"), b"", 1, retain=False), now=701.0)
    broker.hear(now=702.0)
    broker.hear(now=1400.0)
    assert broker.largest() == before
    told = [fields for event, fields in broker.life.told if event == "parts"]
    assert [each["largest"] for each in told] == [2048, 1024, 2048, None]


def test_who_takes_less_than_the_floor_is_left_out_and_told(broker: Broker) -> None:
    before = broker.largest()
    said = broker.hear(greets("tiny", 512), now=1.0)
    assert broker.largest() == before, "nobody pays for who is left out"
    (trouble,) = [each for each in said if isinstance(each, Trouble)]
    assert "512 bytes" in trouble.why and "1,024" in trouble.why
    ((_, fields),) = [each for each in broker.life.told if each[0] == "left_out"]
    assert (fields["device"], fields["largest"], fields["least"]) == ("tiny", 512, 1024)
    assert "512" in broker.life.federation.waits["tiny"]
    assert list(broker.life.federation.situation(0.0).left_out) == ["tiny"]
    broker.hear(greets("tiny", 2048), now=5.0)
    assert "tiny" not in broker.life.federation.waits and not broker.life.federation.situation(0.0).left_out


def test_a_restart_and_a_release_keep_to_what_devices_take(tmp_path: Path) -> None:
    first = Broker(life := Life(tmp_path, MODEL))
    first.hear(greets("board", 1024), now=1.0)
    life.send("a", 1, 2.0)
    life.send("b", 1, 3.0)
    first.take()
    assert first.announced.version > 1 and first.largest() <= 1024
    life.federation.close()
    again = Broker(Life(tmp_path, MODEL))
    again.kept |= {topic: payload for topic, payload in first.kept.items() if topic not in again.kept}
    again.hear(greets("board", 1024), now=1.0)
    assert again.largest() <= 1024
    again.life.federation.close()


def test_nobody_is_cut_for_beyond_256_parts_a_frame() -> None:
    assert count(300_000, PART, None) == 5
    assert count(300_000, PART, 1024) == MOST == 256
    assert count(100_000_000, PART, 1024) == count(100_000_000, PART, None) > MOST
    sizes = PartSizes()
    sizes.needed = 31_250
    sizes.hear("board", 4096)
    assert sizes.left_out() == {"board": 4096}


def test_a_crowd_of_names_costs_one_change() -> None:
    sizes = PartSizes()
    changes = 0
    for second in range(100):
        for number in range(20):
            sizes.hear(f"n{second}-{number}", 1024 + 7 * number if second % 2 else 1)
        changes += bool(sizes.look(float(second)))
    assert changes == 1


def test_a_part_that_is_fetched_three_times_is_told(broker: Broker) -> None:
    announced = broker.announced
    (frame, *_) = announced.frames
    fetch = Fetch(lineage=announced.lineage, version=frame.version, span=frame.span, parts=(0,))
    asks = Delivery(TOPICS.update("board"), frames.encode(fetch), 1, retain=False)
    assert not [each for at in (1.0, 10.0) for each in broker.hear(asks, now=at)]
    (trouble,) = broker.hear(asks, now=20.0)
    assert isinstance(trouble, Trouble) and "3 times" in trouble.why and "largest" in trouble.why
    ((_, fields),) = [each for each in broker.life.told if each[0] == "fetched_again"]
    assert fields["device"] == "board" and fields["size"] > 8000
    assert not broker.hear(asks, now=40.0)


def test_a_fleet_of_microcontrollers_has_small_parts_whoever_says_what(tmp_path: Path) -> None:
    strategy = replace(EVERYTHING_COUNTS, plan=Plan(local_steps=5).micro())
    life = Life(tmp_path, MODEL, strategy=strategy)
    broker = Broker(life)
    assert broker.largest() <= 1024
    broker.hear(greets("board", 4096), now=1.0)
    assert broker.largest() <= 1024
    plan = broker.announced.plan
    assert (plan.tier, plan.codec, plan.feedback, plan.local_steps) == ("micro", "int8:256", False, 5)
    envelope, _ = messages.decode(Envelope, broker.kept[TOPICS.announcement()])
    assert frames.decode(envelope.body)[0]["plan"]["class"] == "micro"


def test_what_is_remembered_of_fetches_is_bounded() -> None:
    refetches = Refetches()
    fetch = Fetch(lineage=b"l" * 16, version=1, span=0, parts=(0, 1, 1))
    assert [refetches.note("a", fetch) for _ in range(3)] == [None, None, 1]
    for number in range(5000):
        refetches.note(f"n{number}", fetch)
    assert len(refetches._devices) <= 1024


def test_the_floor_is_checked_and_announced(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="smallest_chunk is 32"):
        AggregatorConfig(connector=Twin().connect, federation="f", initial=MODEL, store=tmp_path, smallest_chunk=32)
    assert "largest" not in frames.decode(hello("a")[1])[0], "what says nothing does not travel"


def test_left_out_devices_are_an_alarm() -> None:
    watchdog = Watchdog(DeviceActivity(10), 0.0)
    (alarm,) = watchdog.look(1.0, FleetSituation(left_out=["tiny"])).alarms
    assert "tiny" in alarm


def test_a_command_can_make_the_plan_of_an_app_micro(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = Aggregator(AggregatorConfig(connector=Twin().connect, federation="f", initial=MODEL, store=tmp_path))
    monkeypatch.setattr(aggregate, "load_app", lambda *_: app)
    monkeypatch.setattr(aggregate, "run_until_interrupted", lambda app, _: app.open())
    monkeypatch.setattr(aggregate, "moved", lambda *_: ({}, None))
    assert main(["aggregate", "a:b", "--plan", "micro", "--model", str(tmp_path / "m")]) == 0
    assert app.config.strategy.plan.tier == "micro" and app.config.largest_part == 1024
    app.close()
