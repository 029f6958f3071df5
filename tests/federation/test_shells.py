"""The processes around the cores: learning, lost links, restarts, and ends that can be seen."""

import asyncio
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from midge.aggregator.core import records as rec
from midge.aggregator.engine import Engine
from midge.aggregator.model.model import Frame
from midge.aggregator.service import ForeignFederation
from midge.aggregator.store.store import Store, StoreError
from midge.broker.embedded.in_memory import Twin, _TwinConnection
from midge.broker.embedded.routing import RoutedMessage
from midge.broker.mqtt.connection import BrokerUnreachable, Options, QoS, SubscribeRefused
from midge.iot_client.connection.connection_loop import DuplicateDeviceName
from midge.iot_client.state.outbox import Outbox
from midge.iot_client.training.fit import Fit, Parameters, TrainingPlan
from midge.wire.messages import DeviceState
from tests.federation.live import (
    INITIAL,
    Log,
    aggregator,
    approach,
    clients,
    device,
    distance,
    serving,
    status,
)

pytestmark = pytest.mark.virtual

# --------------------------------------------------------------------------- together


async def test_three_devices_learn_and_settle_everything(tmp_path: Path) -> None:
    twin, log = Twin(), Log()
    server = aggregator(twin, tmp_path / "store", log, evaluate=lambda parameters: {"distance": distance(parameters)})
    devices = [device(twin, name, log, tmp_path / name) for name in "abc"]
    async with serving(server, *devices):
        await log.until(lambda: log.of("release", version=25) and distance(server.model.parameters()) < 0.01)
        await log.until(lambda: log.of("evaluation"))
    assert {event["device"] for event in log.of("receipt")} == set("abc")
    assert {event["verdict"] for event in log.of("receipt")} == {"accepted"}
    assert log.of("evaluation")[-1]["metrics"].keys() == {"distance"}
    assert {status(twin, name) for name in "abc"} == {DeviceState.DISCONNECTED}


async def test_links_break_and_the_broker_dies(tmp_path: Path) -> None:
    twin, log = Twin(), Log()
    server = aggregator(twin, tmp_path / "store", log)
    devices = [device(twin, name, log, tmp_path / name) for name in "abc"]
    async with serving(server, *devices):
        await log.until(lambda: log.of("release", version=3))
        twin.drop(clients(twin, "-a-")[0])
        twin.drop(clients(twin, "-aggregator-")[0])
        await log.until(lambda: log.of("disconnected", device="a"))
        version = server.core.version
        await log.until(lambda: log.of("release", version=version + 6))
        twin.kill()
        await log.until(lambda: len(log.of("disconnected")) >= 6)
        twin.restart()
        version = server.core.version
        await log.until(lambda: log.of("release", version=version + 6))
    settled = [(event["device"], event["seq"]) for event in log.of("receipt", repeat=False)]
    assert len(settled) == len(set(settled))


async def test_the_aggregator_is_restarted_and_everybody_goes_on(tmp_path: Path) -> None:
    twin, log = Twin(), Log()
    async with serving(*[device(twin, name, log, tmp_path / name) for name in "ab"]):
        for life in (1, 2, 3):
            server = aggregator(twin, tmp_path / "store", log)
            async with serving(server):
                await log.until(partial(log.of, "release", version=5 * life))
        assert server.core.generation == 0


async def test_a_store_that_was_put_back_begins_a_new_generation(tmp_path: Path) -> None:
    twin, log = Twin(), Log()
    async with serving(*[device(twin, name, log, tmp_path / name) for name in "ab"]):
        server = aggregator(twin, tmp_path / "store", log)
        async with serving(server):
            await log.until(lambda: log.of("release", version=4))
        version = server.core.version
        shutil.copytree(tmp_path / "store", tmp_path / "backup")
        server = aggregator(twin, tmp_path / "store", log)
        async with serving(server):
            await log.until(lambda: log.of("release", version=version + 5))
        version = server.core.version
        server = aggregator(twin, tmp_path / "backup", log)
        async with serving(server):
            await log.until(lambda: log.of("release", version=version + 5))
        assert (server.core.generation, len(log.of("put_back"))) == (1, 1)


async def test_another_store_on_our_topics_is_refused_unless_it_is_told_to_take_over(tmp_path: Path) -> None:
    twin, log = Twin(), Log()
    async with serving(*[device(twin, name, log) for name in "ab"]):
        async with serving(aggregator(twin, tmp_path / "one", log)):
            await log.until(lambda: log.of("release", version=2))
        with pytest.raises(ForeignFederation, match="--replace"):
            await aggregator(twin, tmp_path / "two", log).serve()
        log.events.clear()
        async with serving(aggregator(twin, tmp_path / "two", log, replace=True)):
            await log.until(lambda: log.of("release", version=4))


async def test_a_pause_keeps_the_work_and_its_end_brings_it(tmp_path: Path) -> None:
    twin, log = Twin(), Log()
    server = aggregator(twin, tmp_path / "store", log)
    devices = [device(twin, name, log) for name in "ab"]
    async with serving(server, *devices):
        await log.until(lambda: log.of("training", version=2))
        server.pause("maintenance")
        version = server.core.version
        await asyncio.sleep(60)
        assert server.core.version == version
        assert sum(each.holding for each in devices) >= 1
        server.pause(None)
        await log.until(lambda: log.of("release", version=version + 3))


# ------------------------------------------------------------------- ends of a device


async def fails(
    tmp_path: Path, train: object, error: type[BaseException] | tuple[type[BaseException], ...], match: str
) -> Twin:
    """A device whose training ends it so; the aggregator goes on."""
    twin, log = Twin(), Log()
    async with serving(aggregator(twin, tmp_path / "store", log)):
        with pytest.raises(error, match=match):
            await device(twin, "a", log, train=train).serve()
        assert status(twin, "a") is DeviceState.LOST
    return twin


async def test_a_trainer_that_raises_ends_its_device_visibly(tmp_path: Path) -> None:
    def train(parameters: Parameters, plan: TrainingPlan) -> Fit:
        raise ZeroDivisionError("no data today")

    await fails(tmp_path, train, ZeroDivisionError, "no data today")


async def test_a_trainer_that_returns_other_shapes_is_told_which(tmp_path: Path) -> None:
    def train(parameters: Parameters, plan: TrainingPlan) -> Fit:
        return Fit({**parameters, "b": np.zeros(3, np.float32)}, 1)

    await fails(tmp_path, train, ValueError, r"b is \(3,\), not \(2,\)")


async def test_a_trainer_that_returns_no_fit_is_told_what_one_is(tmp_path: Path) -> None:
    await fails(tmp_path, lambda parameters, plan: parameters, (TypeError, ValueError), r"midge\.Fit")


async def test_a_training_that_diverged_sends_nothing_and_the_next_one_may(tmp_path: Path) -> None:
    twin, log = Twin(), Log()
    times = iter(range(100))

    def train(parameters: Parameters, plan: TrainingPlan) -> Fit:
        fit = approach(parameters, plan)
        return Fit({**fit.parameters, "b": np.array([np.nan, 1])}, 1) if next(times) == 0 else fit

    others = [device(twin, name, log) for name in "bc"]
    async with serving(aggregator(twin, tmp_path / "store", log), device(twin, "a", log, train=train), *others):
        await log.until(lambda: log.of("receipt", device="a"))
    assert len(log.of("unfit", device="a")) == 1


async def test_a_namesake_ends_with_one_sentence_and_the_first_goes_on(tmp_path: Path) -> None:
    twin, log = Twin(), Log()
    server, first = aggregator(twin, tmp_path / "store", log), device(twin, "a", log)
    async with serving(server, first, device(twin, "b", log)):
        await log.until(lambda: log.of("receipt", device="a"))
        with pytest.raises(DuplicateDeviceName, match="give each device its own name"):
            await device(twin, "a", Log()).serve()
        version = server.core.version
        await log.until(lambda: log.of("release", version=version + 3))


async def test_of_two_devices_on_copies_of_one_outbox_one_goes_on(tmp_path: Path) -> None:
    twin, log = Twin(), Log()
    with Outbox(tmp_path / "one"):
        pass
    shutil.copy(tmp_path / "one", tmp_path / "two")
    server = aggregator(twin, tmp_path / "store", log)
    async with serving(server, device(twin, "b", log)):
        first = asyncio.create_task(device(twin, "a", log, tmp_path / "one").serve())
        await log.until(lambda: log.of("receipt", device="a"))
        async with serving(device(twin, "a", log, tmp_path / "two")):
            with pytest.raises(DuplicateDeviceName, match="never copy"):
                await first
            version = server.core.version
            await log.until(lambda: log.of("release", version=version + 3))


async def test_no_broker_at_the_beginning_is_an_end(tmp_path: Path) -> None:
    twin = Twin()
    twin.reachable = False
    with pytest.raises(BrokerUnreachable):
        await device(twin, "a", Log()).serve()
    with pytest.raises(BrokerUnreachable):
        await aggregator(twin, tmp_path / "store", Log()).serve()
    with Store(tmp_path / "store"):
        pass  # it has been let go


async def test_a_broker_that_vanishes_at_once_is_waited_for(tmp_path: Path) -> None:
    twin, log = Twin(), Log()
    came = asyncio.Event()

    def copies(client: str, message: RoutedMessage) -> int:
        came.set()
        return 0

    twin.copies = copies
    async with serving(device(twin, "a", log)):
        await came.wait()
        twin.kill()
        twin.copies = lambda _client, _message: 1
        await log.until(lambda: log.of("disconnected"))
        twin.restart()
        await log.until(lambda: log.of("connected"))


async def test_stopped_before_they_began(tmp_path: Path) -> None:
    twin, log = Twin(), Log()
    for service in (device(twin, "a", log), aggregator(twin, tmp_path / "store", log)):
        service.stop()
        await service.serve()


# ----------------------------------------------------------------- ends of an aggregator


async def test_another_model_than_the_stores_is_refused_with_the_difference(tmp_path: Path) -> None:
    async def once(**arguments: object) -> None:
        server = aggregator(Twin(), tmp_path / "store", Log(), **arguments)
        server.stop()
        await server.serve()

    await once()
    with pytest.raises(StoreError, match=r"b is trained \(2,\) float32 there and trained \(3,\) float32 here"):
        await once(initial={**INITIAL, "b": np.zeros(3, np.float32)})
    with pytest.raises(StoreError, match="another order"):
        await once(initial=dict(reversed(INITIAL.items())))
    await once()


async def test_a_decision_that_could_not_be_carried_out_is_carried_out_after_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the core had in mind when the process failed must not get into a checkpoint: only the journal knows."""
    twin, log = Twin(), Log()
    carry = Engine.carry

    def failing(engine: Engine, record: rec.Record) -> list[Frame]:
        if isinstance(record, rec.StepRecord) and record.step == 5:
            raise MemoryError("no room for a step")
        return carry(engine, record)

    async with serving(*[device(twin, name, log, tmp_path / name) for name in "ab"]):
        with monkeypatch.context() as broken:
            broken.setattr(Engine, "carry", failing)
            with pytest.raises(MemoryError):
                await aggregator(twin, tmp_path / "store", log).serve()
        server = aggregator(twin, tmp_path / "store", log)
        server.open()
        whole = server.model.digest(), server.core.step
        server.close()
        assert whole[1] >= 5
        for checkpoint in sorted((tmp_path / "store").glob("checkpoint-*"))[1:]:
            checkpoint.unlink()
        server = aggregator(twin, tmp_path / "store", log)
        server.open()
        assert (server.model.digest(), server.core.step) == whole
        server.close()


async def test_garbage_on_every_topic_stops_nobody(tmp_path: Path) -> None:
    twin, log = Twin(), Log()
    server = aggregator(twin, tmp_path / "store", log)
    topics = ["aggregator", "model/train", "update/0/a", "update/x/a", "receipt/a", "status/a", "report/a", "status/-"]
    async with serving(server, device(twin, "a", log), device(twin, "b", log)), twin.connect(Options("c")) as hostile:
        await log.until(lambda: log.of("release", version=2))
        for topic in topics:
            for payload in (b"", b"\x00", b"\xff\xff\xff", b"\x01\x00\x80", b"\x01\x00\xc0" + bytes(1000)):
                await hostile.publish(f"midge/1/f/{topic}", payload)
        version = server.core.version
        await log.until(lambda: log.of("release", version=version + 3) and log.of("dropped"))


async def test_updates_that_were_lost_on_the_way_come_again(tmp_path: Path) -> None:
    """The broker acknowledges and drops one; a later receipt of the aggregator shows the gap."""
    twin, log = Twin(), Log()
    lost: list[RoutedMessage] = []

    def copies(client: str, message: RoutedMessage) -> int:
        if "-a-" in client and "/update/" in message.topic and len(lost) < 1:
            lost.append(message)
            return 0
        return 2

    twin.copies = copies
    server = aggregator(twin, tmp_path / "store", log)
    async with serving(server, *[device(twin, name, log) for name in "abc"]):
        await log.until(lambda: log.of("receipt", device="a", seq=2))
    told = [event["seq"] for event in log.of("receipt", device="a", repeat=False)]
    assert told == sorted(set(told))
    assert 1 in told


async def test_rights_that_are_taken_away_and_given_again_end_no_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broker that reads its rights again refuses what it granted before, also to who is connected."""
    twin, log = Twin(), Log()
    subscribe, taken = _TwinConnection.subscribe, [False]

    async def guarded(self: _TwinConnection, *filters: str, qos: QoS = 1) -> None:
        if taken[0] and any("/model/" in each for each in filters) and "-a-" in self._client_id:
            raise SubscribeRefused(f"The broker refused the subscription to {filters[0]!r} (Not authorized).")
        await subscribe(self, *filters, qos=qos)

    monkeypatch.setattr(_TwinConnection, "subscribe", guarded)
    server = aggregator(twin, tmp_path / "store", log)
    async with serving(server, *[device(twin, name, log) for name in "ab"]):
        await log.until(lambda: log.of("receipt", device="a", seq=2))
        taken[0] = True
        await log.until(lambda: log.of("fetch_failed", device="a"))  # and so there is no further version
        await log.until(lambda: log.of("refused", device="a", topic="midge/1/f/model/train"))  # read again
        taken[0] = False
        before = len(log.of("receipt", device="a"))
        await log.until(lambda: len(log.of("receipt", device="a")) > before + 2)


async def test_a_store_that_is_older_than_ties_goes_on(tmp_path: Path) -> None:
    log, ties = Log(), {"c": "=b"}
    initial = {**INITIAL, "c": INITIAL["b"]}

    def tied(parameters: Parameters, plan: TrainingPlan) -> Fit:
        return Fit({**approach({name: parameters[name] for name in INITIAL}, plan).parameters, "c": parameters["c"]}, 1)

    async def live(store: str, roles: dict[str, str]) -> int:
        twin = Twin()
        server = aggregator(twin, tmp_path / store, log, initial=initial, roles=roles)
        releases = len(log.of("release"))
        async with serving(server, device(twin, "a", log, train=tied), device(twin, "b", log, train=tied)):
            await log.until(lambda: len(log.of("release")) > releases)
        return log.of("release")[-1]["version"]  # type: ignore[no-any-return]

    assert await live("old", {}) < await live("old", ties)
    await live("new", ties)
    with pytest.raises(StoreError, match="another model"):
        await aggregator(Twin(), tmp_path / "new", log, initial=initial, roles={"c": "local"}).serve()
