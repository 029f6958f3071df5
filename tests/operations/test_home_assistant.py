"""What is published for Home Assistant: its structure here; a real Home Assistant reads it in `make home-assistant`."""

import asyncio
import json
import re
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from midge.__main__ import main
from midge.aggregator.home_assistant import FederationView, messages, wanted_pause
from midge.aggregator.home_assistant_bridge import MOST, ShownAggregator, view_of
from midge.aggregator.store.pausing import paused
from midge.broker.embedded.in_memory import Twin
from midge.broker.mqtt.connection import Delivery, Options
from midge.broker.mqtt.federation_view import clear_federation
from midge.broker.provisioning import acl
from midge.wire.messages import Health, HealthState, Report
from midge.wire.overview import DeviceRow
from midge.wire.topics import HomeTopics, Topics
from tests.aggregator.rig import hello
from tests.broker.test_cleaning import blinded
from tests.federation.live import Log, aggregator, device, serving

TOPICS = HomeTopics(Topics("pumps"))
MATCHER = re.compile(r"(?P<component>\w+)/(?:(?P<node_id>[a-zA-Z0-9_-]+)/)?(?P<object_id>[a-zA-Z0-9_-]+)/config")
"""Of Home Assistant 2025.4, components/mqtt/discovery.py."""
FIELD = re.compile(r"value_json\.(\w+)")
ROWS = (
    DeviceRow(name="pump-1", state="ready", version=4, metrics={"loss": 0.25}),
    DeviceRow(name="pump.2", state="sleeping", wakes=1_790_000_000.0, why="it \x1b[2J sleeps"),
    DeviceRow(name="pump_2", state="of a later version", metrics={"loss": float("1e9")}),
)
HEALTH = Health(state=HealthState.LEARNING, since=0.0, accepted=1_790_000_000.0, alarms=("x\ny",))
VIEW = FederationView("pumps", 4, 9, HEALTH, there=2, score=("accuracy", 0.9), rows=ROWS)


def decoded(view: FederationView) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """Discovery messages and states, by topic."""
    found = messages(TOPICS, view)
    plain = {TOPICS.availability: b"online", TOPICS.found: b"homeassistant"}
    assert plain.items() <= found.items()
    rest = {topic: json.loads(payload) for topic, payload in found.items() if topic not in plain}
    configs = {topic: value for topic, value in rest.items() if topic.endswith("/config")}
    return configs, {topic: value for topic, value in rest.items() if topic not in configs}


@pytest.mark.parametrize(
    "view", [VIEW, FederationView("pumps", 0, 0, Health(state=HealthState.FULL, since=0.0), there=0, paused="x")]
)
def test_every_entity_reads_a_field_that_its_state_has(view: FederationView) -> None:
    """Seen to fail on a template with a field that the state does not have, and on a state that is no option."""
    configs, states = decoded(view)
    identifiers = []
    for topic, config in configs.items():
        assert MATCHER.fullmatch(topic.removeprefix("homeassistant/")), topic
        assert config["avty_t"] == TOPICS.availability and config["dev"]["name"] and config["o"]["name"]
        for key, part in config["cmps"].items():
            identifiers.append(part["uniq_id"])
            state = states[config["stat_t"]]
            assert set(FIELD.findall(part["val_tpl"])) <= state.keys()
            if "json_attr_tpl" in part:
                assert set(FIELD.findall(part["json_attr_tpl"])) <= states[part["json_attr_t"]].keys()
            if part.get("dev_cla") == "enum":
                assert state[key] in part["ops"]
            if part.get("dev_cla") == "timestamp" and state[key] is not None:
                assert datetime.fromisoformat(state[key]).tzinfo is not None
            assert (part["p"] == "switch") == ("cmd_t" in part)
    assert len(identifiers) == len(set(identifiers))
    assert len(configs) == 1 + len(view.rows)


def test_states_are_of_what_was_seen() -> None:
    _, states = decoded(VIEW)
    assert states[TOPICS.state] | {"why": "", "step": 9} == {
        "version": 4,
        "step": 9,
        "devices": 2,
        "updated": "2026-09-21T14:13:20+00:00",
        "health": "learning",
        "why": "",
        "alarms": ["x\N{REPLACEMENT CHARACTER}y"],
        "problem": True,
        "paused": False,
        "score": 0.9,
    }
    sleeping = states[TOPICS.device("pump.2")]
    assert sleeping["next"] == "2026-09-21T14:13:20+00:00" and "\x1b" not in sleeping["why"]
    assert states[TOPICS.device("pump_2")]["state"] == "unknown"


def test_names_with_other_characters_stay_apart() -> None:
    names = ["a.b", "a_b", "a-b", "a.b.", "a..b"]
    assert len({TOPICS.config(name) for name in names}) == len(names)
    assert all(MATCHER.fullmatch(TOPICS.config(name).removeprefix("homeassistant/")) for name in names)
    other = HomeTopics(Topics("pumps", "acme/fl"))
    assert other.node != TOPICS.node and other.prefix.startswith("midge/ha/acme_fl_pumps-")
    with pytest.raises(ValueError, match="discovery prefix"):
        HomeTopics(Topics("pumps"), "home/+")


def test_only_on_and_off_are_commands() -> None:
    assert [wanted_pause(payload) for payload in (b"ON", b"OFF", b"on", b"", b"\xff")] == [
        True,
        False,
        None,
        None,
        None,
    ]


def retained(twin: Twin, topic: str) -> bytes | None:
    found = twin.router._retained_on(topic)
    return bytes(found[0].payload) if found else None


async def until(done: Any) -> None:
    """Wait for what the bridge publishes; it tells nothing of it."""
    async with asyncio.timeout(600):
        while not done():  # noqa: ASYNC110 - on a virtual clock
            await asyncio.sleep(0.05)


def shown(twin: Twin, topic: str) -> dict[str, Any]:
    payload = retained(twin, topic)
    return {} if not payload else dict(json.loads(payload))


@pytest.mark.virtual
async def test_a_federation_is_shown_paused_and_resumed_and_marked_as_away(tmp_path: Path) -> None:
    """Seen to fail without the last message, with retained commands obeyed, and with stale devices left."""
    twin, log, home = Twin(), Log(), HomeTopics(Topics("f"))
    service = aggregator(twin, tmp_path, log, evaluate=lambda _: {"accuracy": 0.5})
    async with twin.connect(Options("operator")) as operator:
        gone = [home.config("long-gone"), home.device("long-gone")]
        for topic in gone:
            await operator.publish(topic, b"{}", retain=True)
        await operator.publish(home.pause, b"ON", retain=True)  # an old command
        served = ShownAggregator(service, home)
        async with serving(served, device(twin, "pump-1", log), device(twin, "pump-2", log)):
            await until(lambda: shown(twin, home.state).get("devices") == 2)
            await until(lambda: shown(twin, home.state).get("score") == 0.5)
            await until(lambda: shown(twin, home.device("pump-1")).get("version", 0) > 0)
            assert shown(twin, home.config())["cmps"]["score"]["name"] == "Accuracy"
            assert retained(twin, home.availability) == b"online"
            assert not any(retained(twin, topic) for topic in gone)
            assert shown(twin, home.state)["paused"] is False
            await operator.publish(home.pause, b"ON")
            await until(lambda: shown(twin, home.state)["paused"])
            assert service.core.paused == paused(tmp_path) == "paused in Home Assistant"
            await operator.publish(home.pause, b"OFF")
            await until(lambda: not shown(twin, home.state)["paused"])
            assert paused(tmp_path) is None
        assert retained(twin, home.availability) == b"offline"


@pytest.mark.virtual
async def test_a_view_that_dies_is_away_by_its_will(tmp_path: Path) -> None:
    twin, log, home = Twin(), Log(), HomeTopics(Topics("f"))
    async with serving(ShownAggregator(aggregator(twin, tmp_path, log), home)):
        await until(lambda: retained(twin, home.availability) == b"online")
        (mine,) = [name for name in twin._connections if name.startswith("midge-ha-")]
        twin.drop(mine)
        assert retained(twin, home.availability) == b"offline"
        await until(lambda: retained(twin, home.availability) == b"online")  # it comes back by itself


@pytest.mark.virtual
async def test_a_bug_in_the_view_ends_the_aggregator_cleanly_and_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: object) -> FederationView:
        raise KeyError("a bug")

    monkeypatch.setattr("midge.aggregator.home_assistant_bridge.view_of", broken)
    log = Log()
    with pytest.raises(KeyError, match="a bug"):
        await ShownAggregator(aggregator(Twin(), tmp_path, log), HomeTopics(Topics("f"))).serve()
    assert log.of("stop")


@pytest.mark.parametrize("sealed", [False, True])
async def test_a_large_fleet_is_shown_in_part_and_sealed_scores_are_not_shown(tmp_path: Path, sealed: bool) -> None:
    key = tmp_path / "release.key"
    assert main(["release-key", "new", str(key)]) == 0
    service = aggregator(Twin(), tmp_path / "store", Log(), release_key=key, require_sealed=sealed)
    service.open()
    try:
        for number in range(MOST + 10):
            topic, payload = hello(f"pump-{number:04}")
            service.federation.process([Delivery(topic, payload, 1, retain=True)], 0.0)
        report = Report(lineage=service.core.lineage, version=0, examples=5, metrics={"loss": 0.5})
        service.federation.reports.take("pump-0003", report)
        view = view_of(service)
    finally:
        service.close()
    assert [row.name for row in view.rows] == [f"pump-{number:04}" for number in range(MOST)]
    assert view.there == MOST + 10
    assert [dict(row.metrics) for row in view.rows if row.metrics] == ([] if sealed else [{"loss": 0.5}])


@pytest.mark.virtual
@pytest.mark.parametrize("blind", [False, True])
async def test_clean_leaves_nothing_of_it(tmp_path: Path, blind: bool) -> None:
    twin, log, home = Twin(), Log(), HomeTopics(Topics("f"), "ha/discovery")
    async with serving(ShownAggregator(aggregator(twin, tmp_path, log), home), device(twin, "a", log)):
        await until(lambda: shown(twin, home.device("a")))
    mine = [topic for topic in twin.router._retained if topic.startswith(("midge/ha/", "ha/discovery/"))]
    assert len(mine) == 6, "config and state of the aggregator and the device, availability, prefix"
    if blind:
        blinded(twin)
    await clear_federation(twin.connect, Topics("f"), ["a"])
    assert not twin.router._retained


def test_a_broker_of_ours_lets_the_aggregator_publish_it_and_the_operator_pause() -> None:
    topics = Topics("pumps")
    ours, theirs = acl.of_aggregator(topics, "aggregator"), acl.of_operator(topics, "operator", "victim")
    assert {f"topic readwrite {TOPICS.everything}", f"topic readwrite {TOPICS.configs}"} <= set(ours)
    assert {f"topic read {TOPICS.everything}", f"topic read {TOPICS.configs}", f"topic write {TOPICS.pause}"} <= set(
        theirs
    )
    assert not any("midge/ha" in line or "homeassistant" in line for line in acl.of_devices(topics, ["pump-1"]))


def test_a_prefix_that_cannot_be_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    (tmp_path / "prefixed.py").write_text(
        "import midge, numpy as np\n"
        "app = midge.Aggregator('mqtt://localhost', federation='f', initial={'w': np.zeros(2)}, store='s')\n"
    )
    monkeypatch.chdir(tmp_path)
    assert main(["aggregate", "prefixed:app", "--home-assistant", "a/#"]) == 2
    assert "discovery prefix" in capsys.readouterr().err
