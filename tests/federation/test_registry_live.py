"""Devices follow the names of registered versions: on virtual time, and over Mosquitto with real processes' parts."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from midge.aggregator.registry.policy import RegistryPolicy
from midge.aggregator.service import Aggregator
from midge.aggregator.store.model_orders import ModelOrder, answered, give, packed
from midge.broker.embedded.in_memory import Twin
from midge.broker.mqtt.federation_view import send_order
from midge.iot_client.board.duty_cycle import Duty
from midge.iot_client.device import Device
from midge.iot_client.state.alias_models import AliasModels, read_alias
from midge.iot_client.training.evaluation import Scores
from midge.iot_client.training.fit import Fit, Parameters, TrainingPlan
from midge.wire import frames, messages, overview, signing
from midge.wire.messages import Plan
from midge.wire.topics import Topics
from tests.federation.live import STRATEGY, Log, aggregator, device, serving

PLAIN = replace(STRATEGY, rate=1.0, release_floor=1, plan=Plan(codec="float32", evaluate=60.0))


async def idle(parameters: Parameters, plan: TrainingPlan) -> Fit:
    await asyncio.Event().wait()
    raise AssertionError


class World:
    """An aggregator and its devices over the broker in memory; what they train towards is set from outside."""

    def __init__(self, folder: Path, policy: RegistryPolicy | None = None, **arguments: Any) -> None:
        self.folder, self.twin, self.log = folder, Twin(), Log()
        self.policy = policy or RegistryPolicy(decides=False)
        self.arguments = {"strategy": PLAIN, **arguments}
        self.asked = asyncio.Semaphore(0)
        """Trainings that are to be made."""
        self.toward = 1.0

    def aggregator(self) -> Aggregator:
        return aggregator(self.twin, self.folder / "store", self.log, registry=self.policy, **self.arguments)

    async def train(self, parameters: Parameters, plan: TrainingPlan) -> Fit:
        await self.asked.acquire()
        return Fit({name: value + np.float32(self.toward) for name, value in parameters.items()}, examples=10)

    def device(self, name: str, **arguments: Any) -> Device:
        def predict(parameters: Parameters, x: Any) -> float:
            return float(np.asarray(parameters["b"])[0])

        given = {"predict": predict, "train": self.train, "outbox": self.folder / f"{name}.outbox", **arguments}
        return device(self.twin, name, self.log, **given)

    async def order(self, verb: Any, version: int = 0, **fields: Any) -> dict[str, Any]:
        order = ModelOrder(verb, version, **fields)
        give(self.folder / "store", order)
        said: list[dict[str, Any]] = []

        def came() -> bool:
            if not said and (found := answered(self.folder / "store", order)) is not None:
                said.append(found)
            return bool(said)

        await self.log.until(came)
        return said[0]

    async def learn(self, server: Aggregator) -> int:
        """One training of whichever device; the version that it becomes."""
        await self.log.until(lambda: server.open_now and server.core.version)
        before = server.core.version
        self.asked.release()
        await self.log.until(lambda: server.core.version > before)
        return server.core.version


def used(board: Device) -> int:
    model = board._parts.predicting.model
    return 0 if model is None else model.version


@pytest.mark.virtual
async def test_without_a_name_the_newest_is_used_and_with_one_what_it_stands_for(tmp_path: Path) -> None:
    world = World(tmp_path)
    server, board = world.aggregator(), world.device("a")
    async with serving(server, board):
        await world.log.until(lambda: used(board) == 1)
        await world.learn(server)
        await world.log.until(lambda: used(board) == 2)
        assert (await world.order("register"))["ok"]
        await world.order("promote", 2)
        await world.learn(server)
        await world.learn(server)
        await world.log.until(lambda: world.log.of("alias", device="a", version=2))
        assert used(board) == 2 and board.predict(None) == 1.0
    # Offline, and again after a restart: what is on the disk is used before anything is heard.
    again = world.device("a")
    assert used(again) == 2 and again.predict(None) == 1.0
    async with serving(world.aggregator(), again):
        await world.log.until(lambda: len(world.log.of("connected", device="a")) == 2)
        assert used(again) == 2


@pytest.mark.virtual
async def test_a_share_tries_the_candidate_and_a_withdrawal_reaches_it(tmp_path: Path) -> None:
    world = World(tmp_path)
    server = world.aggregator()
    boards = [world.device("trainer"), *(world.device(f"d{number}", train=idle) for number in range(12))]
    async with serving(server, *boards):
        await world.learn(server)
        await world.order("register")
        await world.order("promote", 2)
        await world.log.until(lambda: all(used(board) == 2 for board in boards))
        await world.learn(server)
        await world.order("register", attempt=True, share=0.5)
        alias = server.core.registry
        trying = {each.name for each in boards if AliasModels(None, each.name).tries(_alias(server))}
        assert 2 <= len(trying) <= 11 and alias.named == {"champion": 2, "candidate": 3}
        await world.log.until(lambda: {board.name for board in boards if used(board) == 3} == trying)
        assert all(used(board) == 2 for board in boards if board.name not in trying)
        await world.order("withdraw")
        await world.log.until(lambda: all(used(board) == 2 for board in boards))
        assert (tmp_path / f"{min(trying)}.outbox.candidate").exists(), "that it was withdrawn is kept, too"
        assert read_alias(tmp_path / f"{min(trying)}.outbox.candidate").state is None


@pytest.mark.virtual
async def test_only_devices_with_a_capability_try_the_candidate(tmp_path: Path) -> None:
    """Seen to fail on devices that ignore `where`, and on an aggregator that forgets it with its process."""
    world = World(tmp_path)
    sites = {"n1": "north", "n2": "north", "n3": "north", "s1": "south", "s2": "south", "plain": None}
    resting = (lambda: "it only predicts",)
    boards = [world.device("trainer")]
    for name, site in sites.items():
        capabilities = None if site is None else {"site": site, "hall": 3}
        boards.append(world.device(name, conditions=resting, capabilities=capabilities))
    north = {"n1", "n2", "n3"}

    def trying() -> set[str]:
        return {board.name for board in boards if used(board) == 3}

    async with serving(*boards):
        server = world.aggregator()
        async with serving(server):
            await world.learn(server)
            await world.order("register", attempt=True)
            await world.learn(server)
            said = await world.order("register", attempt=True, where={"site": "north", "hall": "3"})
            assert said["meant"] == {"devices": 3, "known": 7}
            await world.log.until(lambda: trying() == north)
            assert _alias(server).share == 0, "a device that does not know `where` tries nothing"
        server = world.aggregator()
        async with serving(server):
            await world.learn(server)
            assert trying() == north and _alias(server).where == {"site": "north", "hall": "3"}
            said = await world.order("withdraw")
            await world.log.until(lambda: not trying())
            said = await world.order("try", 3, where={"site": "north"}, share=0.5)
            chosen = {name for name in north if _alias(server).chooses(name, {"site": "north"})}
            await world.log.until(lambda: trying() == chosen)
            said = await world.order("promote")
            assert said["aliases"] == {"champion": 3} and "meant" not in said
            await world.log.until(lambda: len(trying()) == len(boards))


def _alias(server: Aggregator) -> messages.ModelAlias:
    posts = [post for post in server.federation.everything() if post.topic.endswith("alias/candidate")]
    return messages.decode_alias(posts[0].payload)[0]


@pytest.mark.virtual
@pytest.mark.parametrize("better", [True, False])
async def test_a_candidate_is_promoted_or_withdrawn_by_what_devices_measure(tmp_path: Path, better: bool) -> None:
    policy = RegistryPolicy(share=1.0, devices=8, alpha=0.05)
    world = World(tmp_path, policy)
    server = world.aggregator()
    goal = 10.0 if better else -10.0

    def evaluate(parameters: Parameters) -> Scores:
        return Scores(5, {"loss": abs(float(np.asarray(parameters["b"])[0]) - goal)})

    resting = (lambda: "it only predicts",)
    boards = [world.device("trainer", evaluate=evaluate)]
    boards += [world.device(f"d{number}", conditions=resting, evaluate=evaluate) for number in range(9)]
    async with serving(server, *boards):
        await world.learn(server)
        await world.order("register")
        await world.order("promote", 2)
        await world.learn(server)
        await world.order("register", attempt=True)
        expected = 3 if better else 2
        await world.log.until(lambda: world.log.of("alias", champion=expected, candidate=0, by="rule"))
        (told,) = world.log.of("trial")
        assert told["finding"] == ("better" if better else "worse") and told["evidence"]["devices"] >= 8
        await world.log.until(lambda: all(used(board) == expected for board in boards))
        spread = server.core.registry.versions[3].federated["loss"]
        assert spread["median"] == pytest.approx(abs(2.0 - goal))


@pytest.mark.virtual
async def test_a_rollback_reaches_every_device_and_counts_nothing_twice(tmp_path: Path) -> None:
    world = World(tmp_path)
    server, boards = world.aggregator(), [world.device("a"), world.device("b", train=idle)]
    async with serving(server, *boards):
        await world.learn(server)
        await world.order("register")
        await world.order("promote", 2)
        world.toward = 1000.0
        bad = await world.learn(server)
        said = await world.order("rollback", why="it diverged")
        assert said["ok"] and said["generation"] == 1 and said["version"] > bad
        np.testing.assert_array_equal(server.model.x, np.ones(10, np.float32))
        world.toward = 0.5
        # Whatever `a` trained from the bad version is refused; then it trains from the new generation.
        world.asked.release()
        world.asked.release()
        await world.log.until(lambda: server.core.version > said["version"])
        verdicts = [each["verdict"] for each in world.log.of("receipt", device="a")]
        assert set(verdicts) <= {"accepted", "stale"}
        accepted = server.core.counts["accepted"]
        assert len({(each["outbox"], each["seq"]) for each in world.log.of("receipt", device="a")}) == len(verdicts)
        await world.log.until(lambda: all(not board.holding for board in boards))
        assert server.core.applied == accepted - 1, "the bad one is in no model now"
        assert used(boards[0]) == used(boards[1]) == 2
        announced = boards[1]._runtime.session.announcement  # type: ignore[union-attr]
        assert announced is not None and announced.generation == 1


@pytest.mark.virtual
async def test_a_device_that_sleeps_follows_with_its_next_wake(tmp_path: Path) -> None:
    world = World(tmp_path)
    resting = (lambda: "it only predicts",)
    server, board = world.aggregator(), world.device("d", conditions=resting, duty=Duty(every=90.0, awake=60.0))
    async with serving(server, world.device("trainer"), board):
        await world.learn(server)
        await world.log.until(lambda: world.log.of("sleeping", device="d"))
        await world.order("register", attempt=True)
        await world.learn(server)
        said = await world.order("rollback")
        assert used(board) == 0 and len(world.log.of("sleeping", device="d")) == 1
        await world.log.until(lambda: len(world.log.of("sleeping", device="d")) == 2)
        assert used(board) == 2 and _known(board) == said["version"]
        assert len(world.log.of("awake", device="d")) == 1, "one wake was enough"


@pytest.mark.virtual
async def test_the_aggregator_that_is_killed_brings_names_and_trial_back(tmp_path: Path) -> None:
    world = World(tmp_path)
    server, board = world.aggregator(), world.device("a")
    async with serving(board):
        async with serving(server):
            await world.learn(server)
            await world.order("register")
            await world.order("promote", 2)
            await world.log.until(lambda: world.log.of("alias", device="a", version=2))
        world.twin.router._retained.clear()  # the broker was restarted, too
        server = world.aggregator()
        async with serving(server):
            await world.learn(server)
            assert server.core.registry.champion == 2 and used(board) == 2
            await world.order("register")
            await world.order("promote", server.core.registry.parent)
            await world.log.until(lambda: used(board) == server.core.registry.champion != 2)


@pytest.mark.virtual
async def test_what_was_lost_with_an_aggregator_is_measured_again_for_the_next(tmp_path: Path) -> None:
    """Seen to fail on devices that report once an hour, whoever was there to hear it."""
    world = World(tmp_path, RegistryPolicy(share=1.0, devices=8))
    resting = (lambda: "it only predicts",)

    def evaluate(parameters: Parameters) -> Scores:
        return Scores(5, {"loss": -float(np.asarray(parameters["b"])[0])})

    boards = [world.device(f"d{number}", conditions=resting, evaluate=evaluate) for number in range(9)]
    server = world.aggregator()
    async with serving(world.device("trainer"), *boards):
        async with serving(server):
            await world.learn(server)
            await world.order("register", attempt=True)
            await world.learn(server)
            await world.order("register", attempt=True)
            await world.log.until(lambda: len(world.log.of("evaluated", version=3)) == 9)
        assert len(server.core.registry.trial) < 8, "not all of it was counted"
        server = world.aggregator()
        async with serving(server):
            await world.log.until(lambda: world.log.of("alias", champion=3, by="rule"))
            assert len(world.log.of("trial")) == 1


@pytest.mark.virtual
async def test_a_name_of_another_lineage_counts_no_more(tmp_path: Path) -> None:
    world = World(tmp_path)
    server, board = world.aggregator(), world.device("a")
    async with serving(server, board):
        await world.learn(server)
        await world.order("register", attempt=True)
        await world.log.until(lambda: world.log.of("alias", device="a", version=2))
    # The store is lost, and another one begun: the broker still has the old names.
    (tmp_path / "store").rename(tmp_path / "lost")
    world.arguments["replace"] = True
    server, board = world.aggregator(), world.device("a")
    assert used(board) == 2
    async with serving(server, board):
        await world.log.until(lambda: used(board) == 1)
        await world.learn(server)
        await world.log.until(lambda: used(board) == 2)
        assert board.predict(None) == 1.0 and world.log.events[-1]["event"] != "alias"
        await world.order("register", attempt=True)
        await world.log.until(lambda: len(world.log.of("alias", device="a", alias="champion", version=2)) == 2)


# ------------------------------------------------------------------------------ trust


def signed(tmp_path: Path) -> tuple[World, dict[str, Any]]:
    key = signing.new_key()
    (tmp_path / "release.key").write_bytes(key.pem())
    world = World(tmp_path, release_key=tmp_path / "release.key")
    return world, {"release_key": key.public_pem()}


@pytest.mark.virtual
async def test_only_a_signed_name_is_followed_and_no_older_one(tmp_path: Path) -> None:
    world, pinned = signed(tmp_path)
    server, board = world.aggregator(), world.device("a", **pinned)
    topic = "midge/1/f/model/alias/champion"
    async with serving(server, board):
        await world.learn(server)
        await world.order("register")
        await world.order("promote", 2)
        await world.log.until(lambda: world.log.of("alias", device="a", version=2))
        (old,) = world.twin.router._retained_on(topic)
        await world.learn(server)
        await world.order("register")
        await world.order("promote", 3)
        await world.log.until(lambda: world.log.of("alias", device="a", version=3))
        alias, _ = messages.decode_alias(old.payload)
        forged = alias.model_copy(update={"number": 10**6})
        async with world.twin.connect(_options()) as evil:
            await evil.publish(topic, old.payload, retain=True)
            await evil.publish(topic, messages.encode_announcement(forged), retain=True)
            envelope, _ = messages.decode(messages.Envelope, old.payload)
            body = frames.encode(forged)
            await evil.publish(topic, frames.encode(envelope.model_copy(update={"body": body})), retain=True)
        version = await world.learn(server)
        await world.log.until(lambda: _known(board) == version)
        assert used(board) == 3
    again = world.device("a", **pinned)
    assert used(again) == 3
    async with serving(again):  # the aggregator is away, and the broker has what the attacker left
        await world.log.until(lambda: len(world.log.of("connected", device="a")) == 2)
        await asyncio.sleep(60)
        assert used(again) == 3


def _known(board: Device) -> int:
    announced = None if board._runtime is None else board._runtime.session.announcement
    return 0 if announced is None else announced.version


def _options() -> Any:
    from midge.broker.mqtt.connection import Options

    return Options(client_id="evil")


@pytest.mark.virtual
async def test_an_order_over_the_broker_is_followed_if_a_release_key_signed_it_now(tmp_path: Path) -> None:
    world, _ = signed(tmp_path)
    key = signing.read_private((tmp_path / "release.key").read_bytes())
    server, topics = world.aggregator(), Topics("f")
    board = world.device("a")
    async with serving(server, board):
        await world.learn(server)
        await world.order("register")
        order = ModelOrder("promote", 2)
        forged = overview.ordering(signing.new_key(), "f", packed(order))
        unsigned = frames.encode(overview.Ask(order=packed(order)))
        old = overview.ordering(key, "f", packed(ModelOrder("promote", 2, at=order.at - 3600)))
        for payload in (forged, unsigned, old):
            assert await send_order(world.twin.connect, topics, payload, 10.0) is None
        assert server.core.registry.champion == 0
        good = overview.ordering(key, "f", packed(order))
        assert await send_order(world.twin.connect, topics, good, 30.0) == {"champion": 2}
        await world.learn(server)
        await world.order("register")
        await world.order("promote", 3)
        await world.log.until(lambda: used(board) == 3)
        lsn = server.core.registry.number
        assert await send_order(world.twin.connect, topics, good, 10.0) is None
        assert server.core.registry.number == lsn, "what is sent again is not followed again"
