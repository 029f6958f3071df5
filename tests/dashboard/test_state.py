"""The state of a page is what the messages say: fed without a broker, and bounded whatever comes."""

import json
from itertools import count
from typing import Any

from midge.broker.mqtt.connection import Delivery, Limits
from midge.dashboard import state as module
from midge.dashboard.device_log import COLUMNS, KEPT
from midge.dashboard.state import EVENTS, MOST, FederationState
from midge.wire import frames, messages
from midge.wire.messages import DeviceState, HealthState, Hello, Receipt, Settled, Trouble, Verdict
from midge.wire.topics import Topics
from tests.dashboard.synthetic import SyntheticFederation

TOPICS = Topics("pumps")
NOW = 1_800_000_000.0


class Fed:
    """A state, and a synthetic federation that feeds it."""

    def __init__(self, devices: int = 20, **how: Any) -> None:
        self.state = FederationState(TOPICS, NOW)
        self.messages = SyntheticFederation(TOPICS, devices, **how)
        self.state.connected(Limits(5), NOW)

    def take(self, topic: str, payload: bytes, now: float = NOW, *, retain: bool = False) -> None:
        self.state.take(Delivery(topic, payload, 0, retain), now)

    def hello(self, name: str, now: float = NOW, *, retain: bool = False, **fields: Any) -> None:
        said = {"state": DeviceState.READY, "outbox": 1, **fields}
        self.take(TOPICS.status(name), frames.encode(Hello(**said)), now, retain=retain)

    def settle(self, name: str, now: float, *settled: Settled) -> None:
        self.take(TOPICS.receipt(name), frames.encode(Receipt(outbox=1, hi=1, settled=settled)), now)

    def begin(self) -> None:
        for number, name in enumerate(self.messages.names):
            self.take(TOPICS.status(name), frames.encode(self.messages.hello(number)), retain=True)
        self.take(TOPICS.announcement(), messages.encode_announcement(self.messages.announcement()), retain=True)
        self.take(TOPICS.aggregator, frames.encode(self.messages.status()), retain=True)

    def answer(self, now: float = NOW) -> None:
        self.state.asked(now)
        for page in self.messages.pages():
            self.take(TOPICS.overview, page, now)

    def rows(self, found: dict[str, Any]) -> dict[str, dict[str, Any]]:
        return {row[0]: dict(zip(COLUMNS, row, strict=True)) for row in found.get("rows", ())}

    def row(self, name: str) -> dict[str, Any]:
        return self.rows(self.state.snapshot(NOW))[name]


def test_a_delta_has_only_what_has_changed_since_the_last_one() -> None:
    """Seen to fail when a row was sent for each message: 5,000 rows at each answer of the aggregator."""
    fed = Fed(50)
    fed.begin()
    fed.answer()
    fed.state.tick(NOW)
    assert len(fed.state.delta(NOW)["rows"]) == 50
    assert fed.state.delta(NOW) == {"now": NOW}
    before = {name: fed.row(name) for name in fed.messages.names}
    fed.answer(NOW + 1.0)  # the same devices, a second later
    assert fed.rows(fed.state.delta(NOW + 1.0)) == {}
    fed.settle("pump-0007", NOW + 9, Settled(seq=60, verdict=Verdict.ACCEPTED, staleness=3))
    delta = fed.rows(fed.state.delta(NOW + 9))
    assert list(delta) == ["pump-0007"]
    assert delta["pump-0007"]["updates"] == before["pump-0007"]["updates"] + 1
    assert delta["pump-0007"]["accepted"] == int(NOW + 9)


def test_a_snapshot_and_the_deltas_after_it_make_the_same_as_a_later_snapshot() -> None:
    fed = Fed(30)
    fed.begin()
    fed.state.delta(NOW)
    shown = fed.rows(fed.state.snapshot(NOW))
    fed.answer(NOW + 2)
    fed.hello("late-1", NOW + 3)
    fed.take(TOPICS.status("pump-0002"), b"", NOW + 3)
    for second in range(4, 20):
        fed.settle("pump-0003", NOW + second, Settled(seq=second, verdict=Verdict.STALE, why="too old"))
        delta = fed.state.delta(NOW + second)
        shown |= fed.rows(delta)
        for name in delta.get("gone", ()):
            shown.pop(name)
    assert shown == fed.rows(fed.state.snapshot(NOW + 20)) and "pump-0002" not in shown and "late-1" in shown


def test_verdicts_and_staleness_come_from_receipts_and_repeats_count_once() -> None:
    fed = Fed()
    fed.begin()
    accepted, refused = Settled(seq=1, verdict=Verdict.ACCEPTED, staleness=4), Settled(seq=2, verdict=Verdict.STALE)
    fed.settle("pump-0001", NOW, accepted, refused, refused.model_copy(update={"repeat": True}))
    fed.take(TOPICS.receipt("pump-0001"), frames.encode(Trouble(why="no frame")))
    fed.take(TOPICS.receipt("unknown-1"), frames.encode(Receipt(outbox=1, hi=1, settled=(accepted,))))
    interval = fed.state.intervals.at(NOW)
    assert (interval.accepted, interval.refused, dict(interval.staleness)) == (1, 1, {4: 1})
    device = fed.state.device("pump-0001")
    assert device is not None
    assert [receipt[1:4] for receipt in device["receipts"]] == [(1, "accepted", 4), (2, "stale", 0)]


def test_the_aggregators_answer_gives_scores_with_their_spread_and_bytes_a_second() -> None:
    fed = Fed(40)
    fed.begin()
    fed.messages.began = fed.messages.began - 60
    fed.answer(NOW)
    fed.messages.began -= 10  # ten seconds of traffic more
    fed.answer(NOW + 10)
    interval, head = fed.state.intervals.at(NOW + 10), fed.state.head(NOW + 10)
    assert interval.scores is not None and head["metric"] == "accuracy"
    low, median, high = interval.scores.low, interval.scores.median, interval.scores.high
    assert low is not None and median is not None and high is not None and low < median < high
    assert interval.scores.evaluation == head["evaluation"]["accuracy"] and head["answered"]
    assert interval.up is not None and 2400 * 40 / 30 * 0.8 < interval.up < 2400 * 40 / 30 * 1.3
    assert sum(head["states"].values()) == 40


def test_what_midge_status_shows_as_an_alarm_is_an_alarm_here_and_its_end_is_told() -> None:
    fed = Fed(state=HealthState.STALLED, why="none came", alarms=("Refused every time as stale: a",))
    fed.begin()
    fed.answer()
    fed.state.tick(NOW)
    texts = [alarm["text"] for alarm in fed.state.head(NOW)["alarms"]]
    assert texts == ["stalled: none came", "Refused every time as stale: a"]
    fed.messages.state, fed.messages.alarms = HealthState.LEARNING, ()
    fed.answer(NOW + 5)
    fed.state.tick(NOW + 5)
    assert fed.state.head(NOW + 5)["alarms"] == []
    assert "No more: stalled: none came" in [event["text"] for event in fed.state.events]


def test_an_aggregator_that_hangs_or_is_lost_and_a_broker_that_is_away_are_alarms() -> None:
    fed = Fed()

    def alarms(now: float) -> list[str]:
        fed.state.tick(now)
        return [alarm["text"] for alarm in fed.state.head(now)["alarms"]]

    assert alarms(NOW + 1) == [], "what is retained has not come yet"
    assert alarms(NOW + 6) == ["No aggregator has announced itself for 'pumps'."]
    fed.begin()
    fed.answer(NOW + 7)
    assert alarms(NOW + 7) == []
    fed.state.asked(NOW + 10)
    assert alarms(NOW + 12) == []
    assert alarms(NOW + 16) == ["The aggregator does not answer."]
    fed.answer(NOW + 17)
    assert alarms(NOW + 17) == []
    fed.state.disconnected("Nothing serves MQTT there.", NOW + 20)
    assert alarms(NOW + 20) == ["The broker cannot be observed: Nothing serves MQTT there."]
    fed.state.ended("This run has ended.")
    assert fed.state.head(NOW + 20)["alarms"] == [], "before the next tick, too"
    assert alarms(NOW + 21) == [] and fed.state.head(NOW + 21)["ended"] == "This run has ended."


def test_a_clock_is_compared_when_its_device_speaks_and_not_by_what_is_retained() -> None:
    """Seen to fail on retained statuses: each device that connected an hour ago was an hour behind."""
    fed = Fed()
    fed.hello("a", NOW, retain=True, capabilities={"clock": NOW - 3600})
    fed.hello("b", NOW, capabilities={"clock": NOW - 3600})
    fed.hello("c", NOW, capabilities={"clock": float("inf"), "battery": 0.4})
    fed.hello("d", NOW, capabilities={"clock": True, "battery": 40})
    assert [fed.row(name)["skew"] for name in "abcd"] == [None, -3600.0, None, None]
    assert [fed.row(name)["battery"] for name in "abcd"] == [None, None, 0.4, None]
    json.dumps(fed.state.device("c"), allow_nan=False)


def test_devices_that_keep_an_older_model_are_shown_and_counted() -> None:
    """Seen to fail on a row without the version, and on a count that stays."""
    fed = Fed(0)
    fed.hello("a", NOW, keeps=41)
    fed.hello("b", NOW)
    fed.state.tick(NOW)
    assert [fed.row(name)["keeps"] for name in "ab"] == [41, None]
    assert [text for text in fed.state.head(NOW)["notices"] if text.endswith("in use: 1 device.")]
    fed.hello("a", NOW + 1)
    fed.state.tick(NOW + 1)
    assert fed.row("a")["keeps"] is None
    assert not [text for text in fed.state.head(NOW + 1)["notices"] if "in use" in text]


def test_a_brokers_limit_that_cuts_models_smaller_is_shown() -> None:
    fed = Fed()
    fed.begin()
    fed.state.tick(NOW)
    assert fed.state.head(NOW)["notices"] == []
    fed.state.connected(Limits(5, maximum_packet_size=100_000), NOW)
    fed.state.tick(NOW)
    assert "100,000 bytes" in fed.state.head(NOW)["notices"][0]


def test_text_of_devices_cannot_hold_terminal_or_direction_controls() -> None:
    fed = Fed()
    fed.hello("a", waits="\x1b[31mred\u202e")
    fed.settle("a", NOW, Settled(seq=1, verdict=Verdict.STALE, why="line\nline"))
    device = fed.state.device("a")
    assert device is not None and fed.row("a")["why"].isprintable() and device["receipts"][0][5].isprintable()


def test_memory_is_bounded_in_devices_events_and_receipts() -> None:
    fed, number = Fed(), count()
    for _ in range(MOST + 50):
        fed.hello(f"d{next(number)}", retain=True)
    assert len(fed.state.view.devices) == MOST
    for seq in range(1, 100):
        fed.settle("d1", NOW + seq, Settled(seq=seq, verdict=Verdict.ACCEPTED))
        fed.hello("d1", NOW + seq, state=DeviceState.READY if seq % 2 else DeviceState.LOST)
    device = fed.state.device("d1")
    assert device is not None and len(device["receipts"]) == len(device["life"]) == KEPT
    for place in range(3 * EVENTS):
        fed.state.tell("action", f"{place}", NOW)
    assert len(fed.state.events) == EVENTS


def test_a_thousand_devices_that_change_at_once_are_few_events_and_a_number() -> None:
    fed = Fed(1000)
    fed.begin()
    fed.state.tick(NOW)
    before = len(fed.state.events)
    for name in fed.messages.names:
        fed.hello(name, NOW + 1, state=DeviceState.LOST)
    fed.state.tick(NOW + 1)
    told = [event["text"] for event in fed.state.events][before:]
    assert len(told) == module._AT_ONCE + 1 and "more devices changed in the same second" in told[-1]


def test_what_is_no_message_changes_nothing() -> None:
    fed = Fed()
    fed.begin()
    fed.state.delta(NOW)
    for topic in (TOPICS.aggregator, TOPICS.overview, TOPICS.status("pump-0001"), TOPICS.receipt("pump-0001")):
        for payload in (b"\x00", b"\xff" * 40, frames.encode(Trouble(why="x"))):
            fed.take(topic, payload)
    assert "rows" not in fed.state.delta(NOW)
