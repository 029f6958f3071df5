"""What is published for Home Assistant: its structure here; a real Home Assistant reads it in `make home-assistant`."""

import asyncio
import json
import re
import shutil
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from midge.__main__ import main
from midge.aggregator.config import AggregatorConfig
from midge.aggregator.home_assistant import ENCODING, HomeView, messages, wanted_pause, within
from midge.aggregator.home_assistant_bridge import MOST, SharedConnection, ShownAggregator, view_of
from midge.aggregator.service import Aggregator, AnotherAggregator
from midge.aggregator.store.pausing import paused
from midge.broker import connector
from midge.broker.embedded.in_memory import Twin
from midge.broker.mqtt.connection import Connection, Delivery, Options, PublishRefused, QoS, SubscribeRefused
from midge.broker.mqtt.federation_view import clear_federation
from midge.broker.provisioning.bundles import read_bundle
from midge.broker.provisioning.fleet_registry import HOME_ASSISTANT
from midge.wire.frames import encode
from midge.wire.messages import AggregatorState, AggregatorStatus, Health, HealthState, Report
from midge.wire.overview import DeviceRow
from midge.wire.topics import HomeTopics, Topics
from tests import needs
from tests.aggregator.rig import hello
from tests.broker.fleets import device as fleet_device
from tests.broker.fleets import make_fleet
from tests.broker.fleets import serving as serving_broker
from tests.broker.test_cleaning import blinded
from tests.federation.live import INITIAL, Log, aggregator, device, overheard, serving
from tests.ports import free_port

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
VIEW = HomeView("pumps", 4, 9, HEALTH, there=2, score=("accuracy", 0.9), rows=ROWS)


def decoded(view: HomeView) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """Discovery messages and states, by topic."""
    found = messages(TOPICS, view)
    plain = {TOPICS.found: b"homeassistant"}
    assert plain.items() <= found.items()
    rest = {topic: json.loads(payload) for topic, payload in found.items() if topic not in plain}
    configs = {topic: value for topic, value in rest.items() if topic.endswith("/config")}
    return configs, {topic: value for topic, value in rest.items() if topic not in configs}


@pytest.mark.parametrize(
    "view", [VIEW, HomeView("pumps", 0, 0, Health(state=HealthState.FULL, since=0.0), there=0, paused="x")]
)
def test_every_entity_reads_a_field_that_its_state_has(view: HomeView) -> None:
    """Seen to fail on a template with a field that the state does not have, and on a state that is no option."""
    configs, states = decoded(view)
    identifiers = []
    for topic, config in configs.items():
        assert MATCHER.fullmatch(topic.removeprefix("homeassistant/")), topic
        assert config["avty_t"] == Topics("pumps").aggregator and config["dev"]["name"] and config["o"]["name"]
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
    async with asyncio.timeout(60):
        while not done():  # noqa: ASYNC110 - on a virtual clock
            await asyncio.sleep(0.05)


def shown(twin: Twin, topic: str) -> dict[str, Any]:
    payload = retained(twin, topic)
    return {} if not payload else dict(json.loads(payload))


@pytest.mark.virtual
async def test_a_federation_is_shown_paused_and_resumed(tmp_path: Path) -> None:
    """Seen to fail with retained commands obeyed, with stale devices left and with a connection of its own."""
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
            assert len(twin._connections) == 4, "the aggregator has one connection"
            assert not any(retained(twin, topic) for topic in gone)
            assert shown(twin, home.state)["paused"] is False
            await operator.publish(home.pause, b"ON")
            await until(lambda: shown(twin, home.state)["paused"])
            assert service.core.paused == paused(tmp_path) == "paused in Home Assistant"
            await operator.publish(home.pause, b"OFF")
            await until(lambda: not shown(twin, home.state)["paused"])
            assert paused(tmp_path) is None


def test_the_aggregators_own_status_says_whether_it_is_available() -> None:
    """As the template reads it: a frame as latin-1, also where a reason speaks of other states."""
    for state in AggregatorState:
        health = (
            Health(state=HealthState.PAUSED, since=0.0, why="lost stopped $\xa4lost $\xa7stopped")
            if state.serves
            else None
        )
        status = AggregatorStatus(state=state, boot=2**62, lineage=bytes(16), why="lost: stopped", health=health)
        text = encode(status).decode(ENCODING)
        assert any(within(gone) in text for gone in AggregatorState if not gone.serves) != state.serves


@pytest.mark.virtual
async def test_a_new_connection_is_followed_and_one_without_rights_ends_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    twin, log, home = Twin(), Log(), HomeTopics(Topics("f"))
    async with serving(ShownAggregator(aggregator(twin, tmp_path, log), home), device(twin, "pump-1", log)):
        await until(lambda: shown(twin, home.state).get("devices") == 1)
        (mine,) = [name for name in twin._connections if "aggregator" in name]
        subscribe = SharedConnection.subscribe

        async def refused(self: SharedConnection, *filters: str, qos: QoS = 1) -> None:
            if home.everything in filters:
                raise SubscribeRefused("No right.")
            await subscribe(self, *filters, qos=qos)

        monkeypatch.setattr(SharedConnection, "subscribe", refused)
        twin.drop(mine)
        await until(lambda: "No right." in caplog.text)
        assert caplog.text.count("Nothing is shown") == 1
        monkeypatch.setattr(SharedConnection, "subscribe", subscribe)
        releases = len(log.of("release"))
        twin.drop(mine)
        twin.router._retained.pop(home.state)
        await until(lambda: shown(twin, home.state).get("devices") == 1)
        await device_joins(twin, log, releases)


async def device_joins(twin: Twin, log: Log, releases: int) -> None:
    """The aggregator still hears devices: a second one brings a release."""
    joining = device(twin, "pump-2", log)
    serving_it = asyncio.create_task(joining.serve())
    await until(lambda: len(log.of("release")) > releases)
    joining.stop()
    await serving_it


@pytest.mark.virtual
async def test_one_that_must_not_serve_shows_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While it asks whether another aggregator serves. Seen to fail without waiting for its service."""
    twin, log, home = Twin(), Log(), HomeTopics(Topics("f"))
    first, second = tmp_path / "first", tmp_path / "second"
    async with serving(aggregator(twin, first, log), device(twin, "a", log)):
        await until(lambda: log.of("connected"))
    shutil.copytree(first, second)

    async def silent(*_: object) -> bool:
        await asyncio.sleep(30)  # no answer comes: the link is bad
        raise AnotherAggregator("Another one serves.")

    async with serving(ShownAggregator(aggregator(twin, first, log), home), device(twin, "a", log)):
        await until(lambda: shown(twin, home.device("a")))
        monkeypatch.setattr("midge.aggregator.contention.Contention.contend", silent)
        seen = overheard(twin)
        with pytest.raises(AnotherAggregator):
            await ShownAggregator(aggregator(twin, second, Log()), HomeTopics(Topics("f"), "other")).serve()
    assert seen and not [message.topic for message in seen if message.topic.startswith("other/")]


@pytest.mark.virtual
async def test_a_bug_in_the_view_ends_the_aggregator_cleanly_and_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: object) -> HomeView:
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
    assert len(mine) == 5, "config and state of the aggregator and the device, and the prefix"
    if blind:
        blinded(twin)
    await clear_federation(twin.connect, Topics("f"), ["a"])
    assert not twin.router._retained


def test_a_prefix_that_cannot_be_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    (tmp_path / "prefixed.py").write_text(
        "import midge, numpy as np\n"
        "app = midge.Aggregator('mqtt://localhost', federation='f', initial={'w': np.zeros(2)}, store='s')\n"
    )
    monkeypatch.chdir(tmp_path)
    assert main(["aggregate", "prefixed:app", "--home-assistant", "a/#"]) == 2
    assert "discovery prefix" in capsys.readouterr().err


@pytest.mark.mosquitto
@needs.mosquitto
def test_a_broker_of_ours_lets_home_assistant_read_and_pause_and_a_device_do_neither(tmp_path: Path) -> None:
    """With `use_username_as_clientid`: a second connection of the aggregator would end the first, endlessly.

    Seen to fail without each of the lines for Home Assistant in the ACL.
    """
    port, directory = free_port(), tmp_path / "fleet"
    make_fleet(directory, port=port, names=["dev0001", HOME_ASSISTANT])
    bundle, log, reach = read_bundle(directory / "aggregator" / "aggregator.toml"), Log(), {}
    for name in ("dev0001", HOME_ASSISTANT):
        reach[name] = connector(fleet_device(directory, name).endpoint)
    home = HomeTopics(bundle.topics)
    config = AggregatorConfig(
        connector=connector(bundle.endpoint),
        federation=bundle.topics.federation,
        initial=INITIAL,
        store=tmp_path / "store",
        on_event=log,
    )
    service = Aggregator(config)

    async def look() -> None:
        async with (
            serving(ShownAggregator(service, home)),
            reach[HOME_ASSISTANT](Options("ignored")) as theirs,
            reach["dev0001"](Options("ignored")) as devices,
        ):
            seen: dict[str, list[bytes]] = {}

            async def read(name: str, connection: Connection) -> None:
                await connection.subscribe("homeassistant/#", "midge/#")
                async for delivery in connection.messages():
                    connection.ack(delivery)
                    seen.setdefault(f"{name} {delivery.topic}", []).append(bytes(delivery.payload))

            reading = [
                asyncio.create_task(read(HOME_ASSISTANT, theirs)),
                asyncio.create_task(read("dev0001", devices)),
            ]
            try:
                for topic in (home.config(), home.state, bundle.topics.aggregator):
                    await until(lambda topic=topic: f"{HOME_ASSISTANT} {topic}" in seen)
                for connection in (devices, theirs):
                    with suppress(PublishRefused):
                        await connection.publish(home.pause, b"ON" if connection is theirs else b"OFF")
                await until(lambda: paused(tmp_path / "store"))
                with suppress(PublishRefused):
                    await devices.publish(home.pause, b"OFF")
                await until(lambda: json.loads(seen[f"{HOME_ASSISTANT} {home.state}"][-1])["paused"])
            finally:
                for task in reading:
                    task.cancel()
                await asyncio.gather(*reading, return_exceptions=True)
            assert paused(tmp_path / "store"), "the device has ended the pause"
            assert not [each for each in seen if each.startswith(("dev0001 midge/ha/", "dev0001 homeassistant/"))]

    with serving_broker(directory / "broker" / "mosquitto.conf", port), asyncio.Runner() as runner:
        runner.run(look())
    assert len(log.of("connected")) == 1 and not log.of("disconnected")
