"""A root and its shards in one loop, over one broker in memory: who answers what, and that each update counts once."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from midge.aggregator.config import AggregatorConfig
from midge.aggregator.core import events as ev
from midge.aggregator.core.presets import balanced, fedasync
from midge.aggregator.service import Aggregator
from midge.aggregator.shards import Shards
from midge.aggregator.standby.policy import StandbyPolicy
from midge.aggregator.store.backup import backup
from midge.aggregator.store.device_erasure import ask
from midge.aggregator.store.errors import StoreError
from midge.aggregator.store.restoring import restore
from midge.aggregator.store.verification import verify
from midge.broker.embedded.in_memory import Twin
from midge.broker.embedded.routing import RoutedMessage
from midge.gateway import shard
from midge.gateway.shard import Shard
from midge.gateway.shard_aggregator import ShardPlace
from midge.iot_client.device import Device
from midge.iot_client.training.fit import Fit, Parameters, TrainingPlan
from midge.sensor_fleet.data import load
from midge.wire import frames, messages, signing
from midge.wire.errors import WireError
from midge.wire.messages import AggregatorState, AggregatorStatus, Fetch, Update, Verdict
from midge.wire.moments import Moments
from midge.wire.topics import SLOTS, Topics, slot
from tests.aggregator.rig import update_of
from tests.federation.live import INITIAL, STRATEGY, Log, aggregator, approach, device, distance, serving

NAMES = ["a", "b", "c", "d", "e", "f"]
SLOW = replace(STRATEGY, rate=0.1)
TOPICS = Topics("f")


def test_each_slot_has_exactly_one_shard() -> None:
    for number in range(1, SLOTS + 1):
        shards = Shards(number)
        slots = sorted(each for index in range(number) for each in shards.slots(index))
        assert slots == list(range(SLOTS))
        assert all(slot(name) in shards.slots(shards.of(name)) for name in NAMES)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"strategy": fedasync(form="mixing")}, "single devices"),
        ({"strategy": balanced(combine="trimmed", trim=0.1, buffer_size=5)}, "single devices"),
        ({"strategy": balanced(count_rows=("w",))}, "single updates that changed a row"),
        ({"sites": ("north",)}, "cannot be summed again"),
        ({"standby": StandbyPolicy(follow=True), "release_key": "release.key"}, "a standby copies one store"),
        ({"shards": 65}, "from 0 to 64"),
        ({"shards": -1}, "from 0 to 64"),
    ],
)
def test_what_needs_single_updates_is_refused_when_it_is_made(fields: dict[str, Any], why: str, tmp_path: Path) -> None:
    given = {"connector": Twin().connect, "federation": "f", "initial": INITIAL, "store": tmp_path, "shards": 2}
    with pytest.raises(ValueError, match=why):
        AggregatorConfig(**{**given, **fields})


@asynccontextmanager
async def sharded(root: Aggregator, number: int, *others: Any) -> AsyncIterator[list[Shard]]:
    """The root, then its shards, then the others; they end in the reverse order."""
    async with asyncio.TaskGroup() as tasks:
        serving = tasks.create_task(root.serve())
        await root.begun.wait()
        shards = [
            Shard(root.config, ShardPlace(index, number, root.core.lineage, root.boot)) for index in range(number)
        ]
        beside = [tasks.create_task(each.serve()) for each in (*shards, *others)]
        try:
            yield shards
        finally:
            for each in (*others, *shards):
                each.stop()
            await asyncio.wait(beside)
            root.stop()
            await serving


async def test_devices_of_two_shards_learn_with_the_root(tmp_path: Path) -> None:
    twin, log, told = Twin(), Log(), Log()
    root = aggregator(twin, tmp_path / "root", log, shards=2, strategy=SLOW)
    devices = [device(twin, name, told) for name in NAMES]
    async with sharded(root, 2, *devices):
        await log.until(lambda: root.open_now and distance(root.model.parameters()) < 0.05)
        assert root.core.steering.live == len(NAMES)  # not a second time by their shards
    accepted = {(event.get("side"), event["device"]) for event in log.of("update", verdict="accepted")}
    assert accepted == {(None, "shard-0"), (None, "shard-1"), *(("below", name) for name in NAMES)}


class Written:
    """What each client publishes at a broker."""

    def __init__(self, twin: Twin) -> None:
        self.messages: list[tuple[str, RoutedMessage]] = []
        self._publish = twin.publish
        twin.publish = self  # type: ignore[method-assign, assignment]

    def __call__(self, client: str, message: RoutedMessage) -> None:
        self.messages.append((client, message))
        self._publish(client, message)

    def of_kind(self, kind: str) -> list[tuple[str, RoutedMessage]]:
        return [(client, each) for client, each in self.messages if each.payload and _is(kind, each.payload)]


def _is(kind: str, payload: bytes) -> bool:
    with suppress(WireError):
        return messages.is_kind(kind, payload)
    return False


async def test_a_shard_retains_nothing_but_its_own_status(tmp_path: Path) -> None:
    """Seen to fail with a gateway's publisher: an old announcement of a shard replaced a newer one of the root."""
    twin, log, told = Twin(), Log(), Log()
    written = Written(twin)
    root = aggregator(twin, tmp_path / "root", log, shards=2, strategy=SLOW)
    async with sharded(root, 2, *(device(twin, name, told) for name in NAMES)):
        await log.until(lambda: root.open_now and root.core.version >= 5)
    topics = {message.topic for client, message in written.messages if "shard-" in client and message.retain}
    assert topics == {TOPICS.status("shard-0"), TOPICS.status("shard-1")}


async def test_each_message_of_a_device_is_answered_by_one_process(tmp_path: Path) -> None:
    """Greetings and updates by the device's shard; a request of chunks by the root, which its shard asks."""
    twin, log, told = Twin(), Log(), Log()
    written = Written(twin)
    root = aggregator(twin, tmp_path / "root", log, shards=2, strategy=SLOW)
    async with sharded(root, 2, *(device(twin, name, told) for name in NAMES)):
        await log.until(lambda: root.open_now and root.core.version >= 3)
        answering = {
            (message.topic.rpartition("/")[2], client)
            for client, message in written.of_kind("receipt")
            if not message.topic.endswith(("shard-0", "shard-1"))
        }
        assert {(name, f"midge-f-shard-{Shards(2).of(name)}") for name in NAMES} == {
            (name, client.rpartition("-")[0]) for name, client in answering
        }
        fetch = Fetch(lineage=root.core.lineage, version=root.core.version, span=0, parts=(0,))
        twin.publish("a", RoutedMessage(TOPICS.update("a"), frames.encode(fetch), 1, False))
        await log.until(lambda: len(written.of_kind("fetch")) >= 2)
    forwarded = [client for client, _ in written.of_kind("fetch")]
    assert forwarded[0] == "a" and [client.rpartition("-")[0] for client in forwarded[1:]] == [
        f"midge-f-shard-{Shards(2).of('a')}"
    ]


async def test_statistics_and_reports_are_for_the_root(tmp_path: Path) -> None:
    """It reads the devices' update topics until the model trains, and nothing but statistics there.

    Seen to fail: with every message read there, the root accepted updates that shards had accepted.
    """
    twin, log, told = Twin(), Log(), Log()
    initial = {"w": np.zeros((4, 2), np.float32), "b": np.zeros(2, np.float32)}
    initial |= {"input_mean": np.zeros(4, np.float32), "input_scale": np.ones(4, np.float32)}
    root = aggregator(
        *(twin, tmp_path / "root", log),
        initial=initial,
        roles={"input_*": "frozen"},
        moments={"input": 4},
        statistics_devices=len(NAMES),
        statistics_deadline=600.0,
        shards=2,
        strategy=SLOW,
    )

    def train(parameters: Parameters, plan: TrainingPlan) -> Fit:
        made = approach({name: parameters[name] for name in INITIAL}, plan)
        return replace(made, parameters={**parameters, **made.parameters})

    rows = np.random.default_rng(0).normal(3.0, 1.0, (64, 4))
    devices = [device(twin, name, told, train=train, moments={"input": Moments.of(rows)}) for name in NAMES]
    async with sharded(root, 2, *devices):
        await log.until(lambda: root.open_now and root.core.version >= 4)
    assert log.of("freeze", devices=len(NAMES))
    direct = {event["device"] for event in log.of("update") if event.get("side") is None}
    assert direct == {"shard-0", "shard-1"}


async def test_a_signed_federation_needs_no_change_of_its_devices(tmp_path: Path) -> None:
    """Receipts are signed by the key that devices pin; updates are sealed to the root's key of the day."""
    twin, log, told = Twin(), Log(), Log()
    release = signing.new_key()
    (tmp_path / "release.key").write_bytes(release.pem())
    root = aggregator(
        *(twin, tmp_path / "root", log), release_key=tmp_path / "release.key", require_sealed=True, shards=2
    )
    pinned = release.public_pem()
    devices = [device(twin, name, told, tmp_path / name, release_key=pinned) for name in NAMES]
    async with sharded(root, 2, *devices):
        await log.until(lambda: root.open_now and root.core.version >= 4)
    assert told.of("receipt", verdict="accepted")
    assert not log.of("update", verdict="bad_encoding") and not log.of("update", verdict="bad_signature")


async def test_a_sum_that_no_shard_has_signed_is_refused(tmp_path: Path) -> None:
    """Whoever may publish under a shard's name could move the model as thousands of devices."""
    twin, log = Twin(), Log()
    (tmp_path / "release.key").write_bytes(signing.new_key().pem())
    root = aggregator(twin, tmp_path / "root", log, release_key=tmp_path / "release.key", shards=2)
    async with serving(root):
        await root.begun.wait()
        body = np.ones(10, "<f4").tobytes()
        forged = update_of(root.core, 1, body, accepted=3, devices=3, weight=3.0)
        twin.publish("x", RoutedMessage(TOPICS.update("shard-0"), frames.encode(forged, body), 1))
        await log.until(lambda: root.meters.dropped["bad signature"])
        assert root.core.applied == 0


async def test_another_number_of_shards_is_refused_on_the_same_store(tmp_path: Path) -> None:
    """Seen to fail without the check: what a device sent may be settled at its earlier shard alone."""
    twin, log = Twin(), Log()
    first = aggregator(twin, tmp_path / "root", log, shards=2)
    async with serving(first):
        await first.begun.wait()
    for number in (0, 3):
        with pytest.raises(StoreError, match="begun with --shards 2"):
            aggregator(twin, tmp_path / "root", log, shards=number).open()
    second = aggregator(twin, tmp_path / "root", log, shards=2)
    second.open()
    second.close()


async def test_a_shard_decides_nothing_while_another_roots_status_is_at_the_broker(tmp_path: Path) -> None:
    """A root that was suspended while a copy of its store took over: its shards must not accept for both."""
    twin, log, told = Twin(), Log(), Log()
    root = aggregator(twin, tmp_path / "root", log, shards=1, strategy=SLOW)
    async with sharded(root, 1, *(device(twin, name, told) for name in NAMES)) as (ours,):
        await log.until(lambda: root.open_now and root.core.version >= 3)
        other = AggregatorStatus(
            state=AggregatorState.READY, boot=root.boot + 1, lineage=root.core.lineage, generation=0, version=9, step=9
        )
        ours.lower._status_of_root(frames.encode(other))
        assert not ours.lower.follows
        assert ours.due(ours.lower.site) == float("inf")
        same = replace_status(other, boot=root.boot)
        ours.lower._status_of_root(frames.encode(same))
        assert ours.lower.follows


def replace_status(status: AggregatorStatus, **fields: Any) -> AggregatorStatus:
    return status.model_copy(update=fields)


async def test_a_shard_that_lags_behind_holds_an_update_of_a_newer_version(tmp_path: Path) -> None:
    """Seen to fail: it was refused for good as of an unknown version, and the device's work was lost."""
    twin, log, told = Twin(), Log(), Log()
    root = aggregator(twin, tmp_path / "root", log, shards=1)
    async with sharded(root, 1) as (ours,):
        await told.until(lambda: ours.lower.follows and ours.lower.site.core.version == 1)
        core = ours.lower.site.core
        body = np.ones(10, "<f4").tobytes()
        ahead = update_of(core, 1, body, base=core.version + 1)
        (reply, *_) = core.handle(ev.Arrived("a", ahead, 1), 0.0)
        assert isinstance(reply, ev.Reply)
        assert [settled.verdict for settled in reply.settled] == [Verdict.BUSY]


async def test_a_device_that_is_forgotten_is_refused_by_its_shard(tmp_path: Path) -> None:
    """Seen to fail with a request in the root's store alone: its shard went on to accept."""
    twin, log, told = Twin(), Log(), Log()
    root = aggregator(twin, tmp_path / "root", log, shards=2, strategy=SLOW)
    async with sharded(root, 2, *(device(twin, name, told) for name in NAMES)):
        await log.until(lambda: log.of("update", device="a", side="below"))
        ask(tmp_path / "root", "a")
        await told.until(lambda: told.of("receipt", device="a", verdict="forgotten"))


async def test_a_paused_root_takes_nothing_and_loses_nothing(tmp_path: Path) -> None:
    """What the shards took before they knew waits, and counts once after it. Seen to fail with a final verdict."""
    twin, log, told = Twin(), Log(), Log()
    root = aggregator(twin, tmp_path / "root", log, shards=2, strategy=SLOW)
    devices = [device(twin, name, told, tmp_path / name) for name in NAMES]
    async with sharded(root, 2, *devices):
        await log.until(lambda: root.open_now and root.core.version >= 4)
        root.core.handle(ev.OperatorPaused("a test"), 0.0)  # before its status says so
        await log.until(lambda: log.of("held", verdict="paused"))
        root.pause("a test")
        applied = root.core.applied + root.core.buffered
        await told.until(lambda: all(_aggregator(each) is AggregatorState.PAUSED for each in devices))
        assert root.core.applied + root.core.buffered == applied
        root.pause(None)
        await log.until(lambda: root.core.applied >= applied + 2 * len(NAMES))
    assert root.core.applied + root.core.buffered == len(log.of("update", side="below", verdict="accepted"))


def _aggregator(device: Device) -> AggregatorState | None:
    """What the device knows of the aggregator."""
    runtime = device._runtime
    status = None if runtime is None else runtime.session._situation.aggregator
    return None if status is None else status.state


async def test_a_restored_backup_knows_what_its_shards_knew(tmp_path: Path) -> None:
    """Seen to fail with a backup of the aggregator's store alone: new shards accepted a forgotten device."""
    twin, log, told = Twin(), Log(), Log()
    written = Written(twin)

    def federation(store: Path, names: list[str]) -> Any:
        root = aggregator(twin, store, log, shards=2, strategy=SLOW)
        return root, sharded(root, 2, *(device(twin, name, told, tmp_path / name) for name in names))

    root, everybody = federation(tmp_path / "store", NAMES)
    async with everybody:
        await log.until(lambda: log.of("update", device="a", side="below") and log.of("update", device="b"))
        ask(tmp_path / "store", "a")
        await told.until(lambda: told.of("receipt", device="a", verdict="forgotten"))
        settled = log.of("update", device="b", side="below", verdict="accepted")[-1]["seq"]
        kept = backup(tmp_path / "store", tmp_path / "backup")
        await log.until(lambda: root.core.version >= 8)
    assert kept.shards == ["shard-0", "shard-1"]
    assert not any(part.damaged for part in verify(tmp_path / "backup"))
    restore(tmp_path / "backup", tmp_path / "restored", "who")
    (repeated, *_) = (each for _, each in written.of_kind("update") if _seq(each, TOPICS.update("b")) == settled)
    log.events.clear()
    root, others = federation(tmp_path / "restored", ["c", "d", "e", "f"])
    async with others:
        await log.until(lambda: root.open_now and root.core.generation == 1 and root.core.version >= 3)
        forgotten = device(twin, "a", told, tmp_path / "a")
        told.events.clear()
        async with serving(forgotten):
            await told.until(lambda: told.of("receipt", device="a"))
        assert {event["verdict"] for event in told.of("receipt", device="a")} == {"forgotten"}
        twin.publish("b", repeated)  # as if its receipt had been lost
        await log.until(lambda: log.of("repeat", device="b"))
    assert [event["verdict"] for event in log.of("repeat", device="b")] == ["accepted"]


def _seq(message: RoutedMessage, topic: str) -> int | None:
    """The number of the update that a message is; None if it is not on this topic."""
    return messages.decode(Update, message.payload)[0].seq if message.topic == topic else None


async def test_two_shards_learn_the_digits(tmp_path: Path) -> None:
    """The data of `midge demo`, a linear model, and the default strategy."""
    data = load("digits", devices=12, seed=0)
    twin, log, told = Twin(), Log(), Log()

    def scores(parameters: Parameters, x: Any) -> Any:
        return x.reshape(len(x), -1) @ parameters["w"] + parameters["b"]

    def trainer(rows: Any) -> Any:
        x, y = rows.x.reshape(len(rows.x), -1).astype(np.float32), np.eye(10, dtype=np.float32)[rows.y]

        def train(parameters: Parameters, _plan: TrainingPlan) -> Fit:
            w, b = parameters["w"].copy(), parameters["b"].copy()
            for _ in range(5):
                odds = np.exp((z := x @ w + b) - z.max(axis=1, keepdims=True))
                wrong = (odds / odds.sum(axis=1, keepdims=True) - y) / len(x)
                w, b = w - np.float32(2.0) * x.T @ wrong, b - np.float32(2.0) * wrong.sum(axis=0)
            return Fit({"w": w, "b": b}, examples=len(x))

        return train

    size = int(np.prod(data.shape))
    initial = {"w": np.zeros((size, 10), np.float32), "b": np.zeros(10, np.float32)}
    root = aggregator(twin, tmp_path / "root", log, initial=initial, strategy=balanced(), shards=2)

    def accuracy() -> float:
        return float((scores(root.model.parameters(), data.test.x).argmax(axis=1) == data.test.y).mean())

    devices = [device(twin, name, told, train=trainer(rows)) for name, rows in data.devices.items()]
    async with sharded(root, 2, *devices):
        await log.until(lambda: root.open_now and accuracy() > 0.9)


async def test_what_waits_is_given_when_the_shards_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen to fail with shards that end at once: it would wait in their stores until the next start."""
    monkeypatch.setattr(shard, "_PATIENCE", 3600.0)
    twin, log, told = Twin(), Log(), Log()
    root = aggregator(twin, tmp_path / "root", log, shards=2, strategy=balanced(buffer_size=50))
    async with sharded(root, 2, *(device(twin, name, told) for name in NAMES)):
        await log.until(lambda: len(log.of("update", side="below", verdict="accepted")) >= len(NAMES))
        assert not log.of("sum")
    accepted = log.of("update", side="below", verdict="accepted")
    assert root.core.buffered + root.core.applied == len(accepted)
