"""SIGHUP: what may change while an aggregator serves, and what is refused with nothing changed."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import pytest

import midge
from midge.aggregator.core import events as ev
from midge.aggregator.core import records as rec
from midge.aggregator.ingress.rate_limits import Admission, IngressLimits
from midge.aggregator.store.pausing import pause, resume
from midge.aggregator.store.store import Store, StoreFull
from midge.broker.embedded.in_memory import Twin
from midge.broker.local.local_broker import local_broker
from midge.configuration.aggregator_file import FIXED, RELOADED, changes, fixed
from midge.iot_client.training.fit import Parameters, TrainingPlan
from midge.wire.messages import Verdict
from tests.federation.live import STRATEGY, Log, aggregator, device, serving
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
            "limits.rate: rate is 0.0: it must be above 0"
        )
        change(process, "rate = 0", "rate = 10")("limits.rate changed.")
    with Store(tmp_path / "store") as store:
        journal = [entry.record for entry in store.entries(after=0)]
    decided = [record.strategy for record in journal if isinstance(record, rec.StrategyRecord)]
    assert [f"'deadline': {seconds}" in text for seconds, text in zip((5.0, 7.0), decided, strict=True)] == [True, True]


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
