"""SIGHUP: what may change while an aggregator serves, and what is refused with nothing changed."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import midge
from midge.aggregator.core import events as ev
from midge.aggregator.core import records as rec
from midge.aggregator.home_assistant_bridge import ShownAggregator
from midge.aggregator.ingress.rate_limits import Admission, IngressLimits
from midge.aggregator.registry.policy import RegistryPolicy
from midge.aggregator.store.model_orders import ModelOrder, answered, give
from midge.aggregator.store.pausing import pause, paused, resume
from midge.aggregator.store.store import Store, StoreFull
from midge.broker import Endpoint, connector
from midge.broker.embedded.in_memory import Twin
from midge.broker.local.local_broker import local_broker
from midge.broker.mqtt.connection import Options
from midge.broker.mqtt.retained import read_retained
from midge.commands.page_actions import actions_on
from midge.configuration.aggregator_file import FIXED, RELOADED, changes, fixed
from midge.dashboard.actions import ActionRequest
from midge.iot_client.training.evaluation import Scores
from midge.iot_client.training.fit import Parameters, TrainingPlan
from midge.wire.messages import Verdict
from midge.wire.topics import HomeTopics, Topics
from tests.federation.live import STRATEGY, Log, aggregator, device, serving
from tests.federation.test_registry_live import PLAIN, World, used
from tests.operations.test_home_assistant import retained, shown
from tests.waiting import until

NEWER = replace(STRATEGY, rate=0.25, release_every=2)


# ------------------------------------------------------------------------------- an aggregator that serves


@pytest.mark.virtual
async def test_a_strategy_changes_while_devices_train_and_nothing_is_lost_or_doubled(tmp_path: Path) -> None:
    twin, log = Twin(), Log()
    server = aggregator(twin, tmp_path / "store", log)
    devices = [device(twin, name, log, tmp_path / name) for name in "abc"]
    async with serving(server, *devices):
        await log.until(lambda: log.of("release", version=5))
        held = server.model.state.digest()
        server.config = replace(server.config, strategy=NEWER, limits=IngressLimits(rate=40.0))
        assert server.model.state.digest() == held, "the state is that of the store"
        assert server.core.strategy == server.config.strategy == NEWER
        version = server.core.version
        await log.until(lambda: log.of("release", version=version + 10))
    settled = [(event["device"], event["seq"]) for event in log.of("receipt", repeat=False)]
    assert len(settled) == len(set(settled))
    assert {event["verdict"] for event in log.of("receipt")} == {"accepted"}
    with Store(tmp_path / "store") as store:
        journal = [entry.record for entry in store.entries(after=0)]
    decided = [record.strategy for record in journal if isinstance(record, rec.StrategyRecord)]
    assert decided == [repr(asdict(STRATEGY)), repr(asdict(NEWER))]


@pytest.mark.virtual
async def test_a_plan_that_changes_is_announced_to_the_devices(tmp_path: Path) -> None:
    twin, log = Twin(), Log()
    asked: list[int | None] = []

    def train(parameters: Parameters, plan: TrainingPlan) -> midge.Fit:
        asked.append(plan.local_steps)
        return midge.Fit({name: value + 1 for name, value in parameters.items()}, examples=1)

    server = aggregator(twin, tmp_path / "store", log)
    async with serving(server, *[device(twin, name, log, tmp_path / name, train) for name in "ab"]):
        await log.until(lambda: log.of("release", version=3))
        plan = midge.Plan(codec="float32", local_steps=7)
        server.config = replace(server.config, strategy=replace(STRATEGY, plan=plan))
        await log.until(lambda: 7 in asked)
    assert asked[0] is None


@pytest.mark.virtual
async def test_a_pause_lasts_through_a_reload(tmp_path: Path) -> None:
    twin, log = Twin(), Log()
    server = aggregator(twin, tmp_path / "store", log)
    async with serving(server, *[device(twin, name, log, tmp_path / name) for name in "ab"]):
        await log.until(lambda: log.of("release", version=3))
        pause(tmp_path / "store", "maintenance")
        await log.until(lambda: server.core.paused == "maintenance")
        server.config = replace(server.config, strategy=NEWER)
        version = server.core.version
        assert server.core.paused == "maintenance"
        resume(tmp_path / "store")
        await log.until(lambda: log.of("release", version=version + 1))


@pytest.mark.virtual
async def test_a_store_without_ties_stays_so(tmp_path: Path) -> None:
    twin, log = Twin(), Log()
    server = aggregator(twin, tmp_path / "store", log)
    async with serving(server, *[device(twin, name, log, tmp_path / name) for name in "ab"]):
        await log.until(lambda: log.of("release", version=3))
        server.federation.config = untied = server.config.untied
        server.config = replace(server.config, strategy=NEWER)
        assert server.federation.config.roles is untied.roles
        assert server.federation.config.strategy == NEWER


@pytest.mark.virtual
async def test_what_does_not_fit_changes_nothing(tmp_path: Path) -> None:
    twin, log = Twin(), Log()
    server = aggregator(twin, tmp_path / "store", log)
    async with serving(server, *[device(twin, name, log, tmp_path / name) for name in "ab"]):
        await log.until(lambda: log.of("release", version=3))
        core = server.core
        with pytest.raises(RuntimeError, match="chunk of an aggregator cannot change while it serves"):
            server.config = replace(server.config, chunk=2048, strategy=NEWER)
        server.federation.core.handle(ev.StoreFilled("full"), 0.0)
        with pytest.raises(StoreFull):
            server.config = replace(server.config, strategy=NEWER)
        assert server.core is core and server.config.strategy == STRATEGY
        server.federation.core.handle(ev.StoreWritable(), 0.0)


@pytest.mark.virtual
async def test_what_home_assistant_shows_goes_on_through_a_reload_and_its_switch_works(tmp_path: Path) -> None:
    """Seen to fail on a view that keeps the core of before the reload, and on a pause that a reload ends."""
    twin, log, topics = Twin(), Log(), HomeTopics(Topics("f"))
    server = aggregator(twin, tmp_path / "store", log)
    home = ShownAggregator(server, topics)

    async def switched(word: bytes) -> None:
        async with twin.connect(Options(client_id="home-assistant")) as connection:
            await connection.publish(topics.pause, word)

    async with serving(home, *[device(twin, name, log, tmp_path / name) for name in "ab"]):
        await log.until(lambda: shown(twin, topics.state).get("version", 0) >= 3)
        configured = retained(twin, topics.config())
        server.config = replace(server.config, strategy=NEWER, limits=IngressLimits(rate=40.0))
        version = server.core.version
        await log.until(lambda: shown(twin, topics.state)["version"] > version + 2)
        await switched(b"ON")
        await log.until(lambda: shown(twin, topics.state)["paused"])
        assert server.core.paused == "paused in Home Assistant"
        server.config = replace(server.config, strategy=STRATEGY)
        assert server.core.paused == "paused in Home Assistant"
        version = server.core.version
        await switched(b"OFF")
        await log.until(lambda: shown(twin, topics.state)["version"] > version and not server.core.paused)
        assert not shown(twin, topics.state)["paused"]
        assert retained(twin, topics.config()) == configured
        assert len(log.of("connected")) == 3, "no connection was given up"


@pytest.mark.virtual
async def test_orders_that_wait_and_a_trial_that_runs_go_on_through_a_reload(tmp_path: Path) -> None:
    """Seen to fail on a registry that is rebuilt without its pairs."""
    world = World(tmp_path, RegistryPolicy(share=1.0, devices=8), strategy=PLAIN)
    resting = (lambda: "it only predicts",)

    def evaluate(parameters: Parameters) -> Scores:
        return Scores(5, {"loss": -float(np.asarray(parameters["b"])[0])})

    boards = [world.device(f"d{number}", conditions=resting, evaluate=evaluate) for number in range(6)]
    late = [world.device(f"late{number}", conditions=resting, evaluate=evaluate) for number in range(3)]
    server = world.aggregator()
    store = tmp_path / "store"

    def reload(rate: float) -> None:
        server.config = replace(server.config, strategy=replace(PLAIN, rate=rate))

    async with serving(server, world.device("trainer"), *boards):
        await world.learn(server)
        first = ModelOrder("register", attempt=True)
        give(store, first)
        reload(0.5)  # before it was looked for
        await world.log.until(lambda: answered(store, first))
        await world.learn(server)
        orders = [ModelOrder("register", attempt=True), ModelOrder("promote", 2), ModelOrder("withdraw")]
        orders += [ModelOrder("try", 3)]
        for order in orders:
            give(store, order)
            reload(0.25 if server.config.strategy.rate == 0.5 else 0.5)
        said: list[dict[str, Any]] = []

        def came() -> bool:
            said.extend(found for each in orders[len(said) :][:1] if (found := answered(store, each)) is not None)
            return len(said) == len(orders)

        await world.log.until(came)
        assert [each["ok"] for each in said] == [True, False, True, True]
        assert server.core.registry.named == {"champion": 2, "candidate": 3}
        await world.log.until(lambda: len(server.core.registry.trial) == 6)
        server.federation.engine.checkpoint(server.core)
        reload(1.0)
        assert len(server.core.registry.trial) == 6
        async with serving(*late):
            await world.log.until(lambda: world.log.of("alias", champion=3, candidate=0, by="rule"))
            assert len(world.log.of("trial")) == 1
            await world.log.until(lambda: all(used(board) == 3 for board in (*boards, *late)))
    with Store(store) as closed:
        followed = [
            entry.record.order
            for entry in closed.entries(after=0)
            if isinstance(entry.record, rec.AliasRecord | rec.RegisterRecord) and entry.record.order
        ]
    assert {followed.count(each.name) for each in (first, orders[0])} == {2}, "a registration, and the name"
    assert [followed.count(each.name) for each in orders[1:]] == [0, 1, 1]


@pytest.mark.virtual
async def test_actions_of_the_page_are_followed_by_an_aggregator_that_is_reloaded(tmp_path: Path) -> None:
    twin, log, store = Twin(), Log(), tmp_path / "store"
    server = aggregator(twin, store, log)
    do, nothing = {action.name: action for action in actions_on(store)}, ActionRequest()
    async with serving(server, device(twin, "a", log), device(twin, "b", log)):
        await log.until(lambda: log.of("release", version=3))
        registering = asyncio.create_task(do["register"].carry_out(nothing))
        pausing = asyncio.create_task(do["pause"].carry_out(ActionRequest(text="the winter")))
        withdrawing = asyncio.create_task(do["withdraw"].carry_out(ActionRequest("b")))
        await asyncio.sleep(0)
        server.config = replace(server.config, strategy=NEWER)
        assert "champion" in await registering and await pausing == "Paused: the winter"
        assert "withdrawn" in await withdrawing
        await log.until(lambda: log.of("health", state="paused") and log.of("erased"))
        server.config = replace(server.config, strategy=STRATEGY)
        assert server.core.paused == "the winter"
        assert "champion" in await do["rollback"].carry_out(nothing)
        generation = server.core.generation
        server.config = replace(server.config, strategy=NEWER)
        assert server.core.generation == generation == 1
        await do["resume"].carry_out(nothing)
        await log.until(lambda: not server.core.paused)


def test_new_limits_hold_at_once_and_quarantines_stay() -> None:
    gate = Admission(IngressLimits(rate=1.0, burst=1.0, strikes=1, quarantine=100.0))
    assert gate.refuses("a", 0.0) is None
    assert gate.refuses("a", 0.0) is not None
    assert gate.offended("b", 0.0) == 100.0
    gate.limit(IngressLimits(rate=10.0, burst=5.0, strikes=1, quarantine=100.0), 0.0)
    assert [gate.refuses("a", 0.0) is None for _ in range(6)] == [True] * 5 + [False]
    held = gate.refuses("b", 1.0)
    assert held is not None and held.verdict is Verdict.QUARANTINED
    gate.limit(IngressLimits(rate=None, fleet_rate=None), 0.0)
    assert all(gate.refuses("a", 0.0) is None for _ in range(100))


def test_every_key_that_is_fixed_is_one_that_would_change() -> None:
    assert all(fixed(key) is None for key in RELOADED)
    assert {key: fixed(key) for key in FIXED} == FIXED
    assert fixed("strategy.pace.interval") is None
    assert fixed("strategy.privacy.epsilon") == FIXED["strategy.privacy"]
    assert fixed("store.path") == fixed("broker.url") == fixed("log.json_lines") == "it is read at the start only"
    assert changes({"a": {"b": 1, "c": 2}, "d": {}}, {"a": {"b": 1, "c": 3}, "e": {"f": 0}}) == ["a.c", "e.f"]


# ------------------------------------------------------------------------------- the process

SETTINGS = """\
[broker]
url = "{url}"

[federation]
name = "pumps"

[model]
kind = "linear"
task = "regression"
inputs = 3

[strategy]
deadline = 5.0

[store]
path = "store"

[log]
level = "warning"
"""


class Process:
    """`midge aggregate --config midge.toml`, and what it has said."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder, self.path = folder, folder / "midge.toml"
        self.path.write_text(SETTINGS.format(url=url))
        self.out, self.err = folder / "out", folder / "err"

    @contextmanager
    def running(self, *more: str, settings: bool = True, **environment: str) -> Iterator["subprocess.Popen[bytes]"]:
        config = ["--config", str(self.path)] if settings else []
        command = [sys.executable, "-m", "midge", "aggregate", *config, *more]
        with self.out.open("wb") as out, self.err.open("wb") as err:
            own = {name: value for name, value in {**os.environ, **environment}.items() if value}
            # Under nohup, SIGHUP is ignored by all children.
            process = subprocess.Popen(
                command,
                cwd=self.folder,
                stdout=out,
                stderr=err,
                env=own,
                preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # noqa: PLW1509 - as its parent is
            )
            try:
                until("it serves", lambda: process.poll() is not None or b"Connected" in self.out.read_bytes())
                assert process.poll() is None, self.err.read_text()
                yield process
            finally:
                process.terminate()
                assert process.wait(60) in (0, -signal.SIGHUP), self.err.read_text()

    def change(self, process: "subprocess.Popen[bytes]", old: str, new: str) -> Callable[[str], None]:
        """Change the file, send SIGHUP, and return what waits for words of its answer."""
        text = self.path.read_text()
        assert old in text
        self.path.write_text(text.replace(old, new))
        known = self.out.stat().st_size, self.err.stat().st_size
        process.send_signal(signal.SIGHUP)

        def answers(words: str) -> None:
            until(words, lambda: process.poll() is not None or words in self._said(known))
            assert process.poll() is None

        return answers

    def _said(self, known: tuple[int, int]) -> str:
        """What was said behind these places of the two files."""
        files = zip((self.out, self.err), known, strict=True)
        return b"".join(path.read_bytes()[place:] for path, place in files).decode()


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "broker").mkdir()
    managed = local_broker("auto", directory=tmp_path / "broker")
    with asyncio.Runner() as runner:
        yield str(runner.run(managed.__aenter__()).endpoint)
        runner.run(managed.__aexit__(None, None, None))


def test_a_hangup_reads_the_file_again(tmp_path: Path, broker: str) -> None:
    own = Process(tmp_path, broker)
    with own.running() as process:
        change = own.change
        change(process, "deadline = 5.0", "deadline = 7.0")(f"Read {own.path} again: strategy.deadline changed.")
        change(process, '"warning"', '"debug"')("log.level changed.")
        change(process, 'path = "store"', 'path = "other"')(
            "store.path cannot change while it runs (it is read at the start only): start the aggregator again for "
            "that. Nothing was changed."
        )
        change(process, 'path = "other"', 'path = "store"')("nothing has changed.")
        change(process, "deadline = 7.0", 'preset = "fedbuff"')("strategy.preset cannot change while it runs")
        change(process, 'preset = "fedbuff"', "deadlin = 1.0")(
            "midge.toml:13: strategy.deadlin is not known: did you mean"
        )
        change(process, "deadlin = 1.0", "deadline = 7.0\n[limits]\nrate = 0")(
            "limits.rate is 0.0: it must be a finite number above 0"
        )
        change(process, "rate = 0", "rate = 10")("limits.rate changed.")
    with Store(tmp_path / "store") as store:
        journal = [entry.record for entry in store.entries(after=0)]
    decided = [record.strategy for record in journal if isinstance(record, rec.StrategyRecord)]
    assert [f"'deadline': {seconds}" in text for seconds, text in zip((5.0, 7.0), decided, strict=True)] == [True, True]


def test_a_hangup_beside_home_assistant_and_with_an_order_that_waits(tmp_path: Path, broker: str) -> None:
    """The process: signals, the switch at the broker, and an order in the store, all within the same second."""
    own, topics = Process(tmp_path, broker), HomeTopics(Topics("pumps"))

    async def switch(word: bytes) -> None:
        async with connector(Endpoint.parse(broker))(Options(client_id="home-assistant")) as connection:
            await connection.publish(topics.pause, word)

    with own.running("--home-assistant") as process:
        store = tmp_path / "store"
        order = ModelOrder("promote", 7)
        give(store, order)
        own.change(process, "deadline = 5.0", "deadline = 7.0")("strategy.deadline changed.")
        until("the order is answered", lambda: not list((store / "orders").glob("*.json")))
        said = answered(store, order)
        assert said is not None and not said["ok"] and said["why"].startswith("version 7 is not registered")

        def state() -> dict[str, Any]:
            async def read() -> dict[str, Any]:
                async with connector(Endpoint.parse(broker))(Options(client_id="a-reader")) as connection:
                    found = await read_retained(connection, topics.state, marker=f"{topics.prefix}/reader")
                return dict(json.loads(bytes(found[0].payload))) if found else {}

            return asyncio.run(read())

        until("it is shown", state, every=0.5)
        asyncio.run(switch(b"ON"))
        until("it is paused", lambda: state()["paused"], every=0.5)
        own.change(process, "deadline = 7.0", "deadline = 9.0")("strategy.deadline changed.")
        assert paused(store) == "paused in Home Assistant"
        asyncio.run(switch(b"OFF"))
        until("it goes on", lambda: not state()["paused"], every=0.5)


def test_options_go_before_the_file_at_a_reload_too(tmp_path: Path, broker: str) -> None:
    own = Process(tmp_path, broker)
    with own.running("--set", "strategy.deadline=9", "--plan", "micro") as process:
        own.change(process, "deadline = 5.0", "deadline = 7.0\nfairness = 2.0")("strategy.fairness changed.")
    with Store(tmp_path / "store") as store:
        journal = [entry.record for entry in store.entries(after=0)]
    decided = [record.strategy for record in journal if isinstance(record, rec.StrategyRecord)]
    assert len(decided) == 2
    assert all("'deadline': 9.0" in text and "tier='micro'" in text for text in decided)


def test_a_program_under_a_service_manager_is_not_ended_by_a_hangup(tmp_path: Path, broker: str) -> None:
    """`systemctl reload` of a unit that runs a program; without a manager a hangup ends it, as ever."""
    (tmp_path / "server.py").write_text(
        f"import midge\napp = midge.Aggregator({broker!r}, federation='f', initial={{'w': [0.0]}}, store='store')\n"
    )
    own = Process(tmp_path, broker)
    with own.running("server:app", settings=False, NOTIFY_SOCKET="/nowhere/notify") as process:
        process.send_signal(signal.SIGHUP)
        until("it says so", lambda: "There is no settings file to read again" in own.err.read_text())
    with own.running("server:app", settings=False, NOTIFY_SOCKET="") as process:
        process.send_signal(signal.SIGHUP)
        assert process.wait(60) == -signal.SIGHUP
