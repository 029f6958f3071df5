"""Registered versions, the names that stand for them, and what a rollback does, over a real store that is killed."""

import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from midge.aggregator.core import records as rec
from midge.aggregator.core.optimizers import sgd
from midge.aggregator.core.presets import fedbuff
from midge.aggregator.core.registry import Registry
from midge.aggregator.core.strategy import Strategy
from midge.aggregator.model.model import REGISTERED
from midge.aggregator.publish.announcement_signer import AnnouncementSigner
from midge.aggregator.registry.keeper import RegistryKeeper
from midge.aggregator.registry.policy import RegistryPolicy
from midge.aggregator.store.backup import backup
from midge.aggregator.store.device_erasure import Names, forget
from midge.aggregator.store.model_orders import ModelOrder, answered, give
from midge.aggregator.store.model_orders import given as waiting
from midge.aggregator.store.registered import registered_in
from midge.aggregator.store.restoring import restore
from midge.aggregator.store.salvage import salvage
from midge.aggregator.store.store import StoreFull
from midge.aggregator.store.verification import verify
from midge.wire import frames, lineage, messages
from midge.wire.messages import DeviceState, Hello, ModelAlias, Report, Verdict
from tests.aggregator.rig import EVERYTHING_COUNTS, TOPICS, QuickStore, Rig

NOW = 1_800_000_000.0
"""Seconds since 1970."""


class Life:
    """One life of an aggregator and its keeper; `look` is its only clock."""

    def __init__(self, directory: Path, policy: RegistryPolicy | None = None, **arguments: Any) -> None:
        self.rig = Rig(directory, **arguments)
        self.wall = NOW
        self.devices: dict[str, Hello] = {}
        self.observed = self.rig.observed
        bodies = self.rig.ingress.bodies
        self.keeper = RegistryKeeper(
            policy or RegistryPolicy(),
            self.observed,
            bodies,
            self.rig.outlet,
            AnnouncementSigner(TOPICS, clock=lambda: self.wall),
            devices=self.devices,
        )
        self.now = 0.0
        self.rig.start()

    def look(self, seconds: float = 2.0) -> None:
        self.now, self.wall = self.now + seconds, self.wall + seconds
        self.keeper.look(self.rig.engine, self.rig.processor, self.now)

    def order(self, verb: Any, version: int = 0, **fields: Any) -> dict[str, Any]:
        order = ModelOrder(verb, version, at=self.wall, by="anna", **fields)
        give(self.rig.store.directory, order)
        self.look()
        said = answered(self.rig.store.directory, order)
        assert said is not None
        return said

    def learn(self, *values: float, device: str = "a") -> None:
        """Updates of one device, each of which is a release."""
        for value in values:
            seq = self.rig.core.hi(device, 1) + 1
            assert self.rig.send(device, seq, [value] * 4, now=self.now).verdict is Verdict.ACCEPTED

    def aliases(self) -> dict[str, ModelAlias]:
        found = [post for post in self.rig.posts if post.topic.startswith(f"{TOPICS.prefix}/model/alias/")]
        return {post.topic.rsplit("/", 1)[1]: messages.decode_alias(post.payload)[0] for post in found}

    def measured(self, device: str, **values: float) -> None:
        """A device reports its loss with each of these versions, `v3=0.5`."""
        for version, loss in values.items():
            report = Report(
                lineage=self.rig.core.lineage, version=int(version[1:]), examples=10, metrics={"loss": loss}
            )
            self.rig.hear((TOPICS.report(device), frames.encode(report)), now=self.now)

    @property
    def registry(self) -> Any:
        return self.rig.core.registry

    @property
    def state(self) -> Any:
        return self.rig.state, self.registry.dump()


Begin = Callable[..., Life]


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Begin]:
    """Makes lives over one store, each of which ends as SIGKILL does when the next begins."""
    lives: list[Life] = []

    def make(policy: RegistryPolicy | None = None, folder: str = "store", **arguments: Any) -> Life:
        if lives and lives[-1].rig.store.directory == tmp_path / folder:
            lives[-1].rig.close()
        lives.append(Life(tmp_path / folder, policy, **arguments))
        return lives[-1]

    yield make
    for life in lives:
        life.rig.close()


def test_a_registered_version_is_kept_whole_with_where_it_comes_from(begin: Begin) -> None:
    life = begin()
    life.learn(0.5, 0.25)
    digest = life.rig.model.state.digest()
    assert life.order("register", why="it is good") == {
        "ok": True,
        "verb": "register",
        "generation": 0,
        "version": 3,
        "aliases": {},
    }
    life.learn(*[1.0] * 40, device="b")
    life.rig.engine.checkpoint(life.rig.core)
    reading = registered_in(life.rig.store.directory)
    registry, snapshots = reading.registry, reading.snapshots
    record = registry.versions[3].record
    assert (record.updates, record.devices, record.parent, record.by, record.step) == (2, 1, 0, "anna", 2)
    state = lineage.decode_snapshot(snapshots[3] or b"")
    assert state.digest() == record.digest == digest
    np.testing.assert_array_equal(state.values(), np.full(4, 0.75, np.float32))
    assert life.order("register", 3)["why"] == "version 3 is registered already"
    assert "not released" in life.order("register", 99)["why"]


def test_an_earlier_release_is_registered_as_long_as_something_leads_to_it(begin: Begin) -> None:
    life = begin(parameters={"x": np.zeros(400, np.float32)})
    for number in range(1, 12):
        seq = life.rig.core.hi("a", 1) + 1
        life.rig.send("a", seq, np.full(400, 0.5, np.float32), now=life.now)
        if number == 7:
            digest = life.rig.model.state.digest()
    assert life.order("register", 8)["ok"]
    reading = registered_in(life.rig.store.directory)
    registry, snapshots = reading.registry, reading.snapshots
    assert lineage.decode_snapshot(snapshots[8] or b"").digest() == registry.versions[8].record.digest == digest


def test_names_are_published_follow_orders_and_survive_a_kill(begin: Begin) -> None:
    life = begin()
    life.learn(1.0)
    assert life.aliases() == {}, "nothing is on the wire before the first name"
    life.order("register")
    assert life.order("promote", 2)["aliases"] == {"champion": 2}
    life.learn(1.0)
    assert life.order("register", attempt=True, share=0.25)["aliases"] == {"champion": 2, "candidate": 3}
    told = life.aliases()
    assert (told["champion"].version, told["candidate"].version, told["candidate"].share) == (2, 3, 0.25)
    chunks = {post.topic for post in life.rig.posts if "/model/registered/" in post.topic and post.payload}
    assert chunks == {TOPICS.part(version, 0, 0, "registered") for version in (2, 3)}
    before = life.state
    life = begin()
    assert life.state == before
    everything = list(life.rig.shelf.everything())
    assert {post.topic for post in everything} >= {TOPICS.alias("champion"), TOPICS.alias("candidate"), *chunks}
    assert life.order("promote")["aliases"] == {"champion": 3}
    told = life.aliases()
    assert told["candidate"].version == 0 and told["champion"].order > (*told["candidate"].order[:2], 0)
    assert life.registry.former == 2
    life.rig.tick(life.now)
    for post in life.rig.shelf.overdue(life.now + 60):
        life.rig.posts.append(post)
    assert [post.topic for post in life.rig.posts if not post.payload and "registered" in post.topic] == [
        TOPICS.part(2, 0, 0, "registered")
    ], "the chunks of what no name stands for leave the broker"


def test_the_oldest_without_a_name_is_pruned_and_never_one_with_a_name(begin: Begin) -> None:
    life = begin(RegistryPolicy(keep=3))
    life.learn(1.0)
    life.order("register")
    life.order("promote", 2)
    for _ in range(5):
        life.learn(1.0)
        life.order("register")
    assert list(life.registry.versions) == [2, 6, 7]
    life.rig.engine.checkpoint(life.rig.core)
    kept = {row.version for row in life.rig.store.published() if row.span == REGISTERED}
    assert kept == {2, 6, 7}
    before = life.state
    life = begin(RegistryPolicy(keep=3))
    assert life.state == before


def test_a_frame_of_a_registered_version_outlives_its_name_and_every_old_frame(begin: Begin) -> None:
    """Seen to fail on frames that are deleted as they leave the broker, and on those that are pruned as old ones."""
    life = begin()
    for version in (2, 3):
        life.learn(1.0)
        life.order("register")
        life.order("promote", version)
    gone = [post for post in life.rig.shelf.everything() if post.withdraws is not None]
    life.rig.shelf.withdrawn([post.withdraws for post in gone if post.withdraws is not None])
    assert (2, REGISTERED) in {post.withdraws for post in gone}
    with life.rig.store.transaction() as db:
        life.rig.store._frames.prune(db, 10**6, frozenset({2, 3}))
    kept_ = {(row.version, row.offered) for row in life.rig.store.published() if row.span == REGISTERED}
    assert kept_ == {(2, False), (3, True)}
    with life.rig.store.transaction() as db:
        life.rig.store._frames.prune(db, 10**6, frozenset())
    assert life.rig.store.frame(2, REGISTERED) is None, "pruned once it is registered no longer …"
    assert life.rig.store.frame(3, REGISTERED) is not None, "… and off the broker"


def test_an_order_that_was_followed_before_a_crash_is_answered_and_not_followed_twice(begin: Begin) -> None:
    life = begin()
    life.learn(1.0)
    life.order("register")
    order = ModelOrder("promote", 2, at=life.wall)
    give(life.rig.store.directory, order)
    life.look()
    give(life.rig.store.directory, order)  # as if the power had failed before it was removed
    lsn = life.rig.core.lsn
    life = begin()
    life.look()
    said = answered(life.rig.store.directory, order)
    assert said is not None and said["ok"] and life.rig.core.lsn == lsn
    assert not list(waiting(life.rig.store.directory))
    old = ModelOrder("withdraw", at=life.wall - 90_000)
    give(life.rig.store.directory, old)
    life.look()
    assert "too long ago" in (answered(life.rig.store.directory, old) or {})["why"]


def test_a_rollback_goes_on_from_the_registered_bits_as_a_new_generation(begin: Begin) -> None:
    life = begin()
    life.learn(0.5)
    life.order("register")
    digest = life.rig.model.state.digest()
    life.order("promote", 2)
    life.learn(100.0, 100.0, device="bad")
    version = life.rig.core.version
    said = life.order("rollback", why="it diverged")
    assert said["ok"] and (said["generation"], said["version"]) == (1, version + 1)
    assert life.rig.model.state.digest() == digest, "the bits that were registered, and released as they were"
    np.testing.assert_array_equal(life.rig.model.x, np.full(4, 0.5, np.float32))
    told = messages.decode_announcement(life.rig.shelf.announcement().payload)
    assert (told.generation, told.version, told.digest) == (1, version + 1, digest)
    late = life.rig.send("bad", 3, [100.0] * 4, generation=0, base=version, now=life.now)
    assert late.verdict is Verdict.STALE and "train again" in late.why
    assert life.rig.send("bad", 3, [9.0] * 4, now=life.now).repeat, "it is settled, and counts no more"
    life.learn(0.25)
    np.testing.assert_array_equal(life.rig.model.x, np.full(4, 0.75, np.float32))
    assert (life.rig.core.applied, life.registry.parent) == (2, 2)
    before = life.state
    life = begin()
    assert life.state == before


def test_updates_that_waited_end_with_the_generation_and_are_named(begin: Begin) -> None:
    strategy = fedbuff(3, norm_limit=None, release_floor=1)
    life = begin(strategy=strategy)
    for device in "abc":
        life.rig.send(device, 1, [0.5] * 4)
    life.order("register")
    life.order("promote", life.rig.core.version)
    life.rig.send("a", 2, [7.0] * 4)
    assert life.rig.core.buffered == 1
    lsn = life.rig.core.lsn
    assert life.order("rollback")["ok"]
    record = next(entry.record for entry in life.rig.store.entries(lsn) if isinstance(entry.record, rec.RollbackRecord))
    assert record.dropped == (lsn,) and life.rig.core.buffered == 0
    assert life.rig.core.counts["rolled_back"] == 1 and life.rig.core.hi("a", 1) == 2
    before = life.state
    life = begin(strategy=strategy)
    assert life.state == before


def test_momentum_and_the_moving_average_begin_again(begin: Begin) -> None:
    strategy = fedbuff(1, optimizer=sgd(0.9), serve_decay=0.5, serve_interval=0.0, norm_limit=None, release_floor=1)
    life = begin(strategy=strategy)
    life.order("register")
    for number in range(1, 6):
        life.rig.send("a", number, [8.0] * 4, now=life.now)
    assert life.order("rollback", 1)["ok"]
    assert not life.rig.model.x.any() and not life.rig.model.used().values().any()
    life.rig.send("a", 6, [1.0] * 4, now=life.now)
    other = begin(strategy=strategy, folder="other")
    other.rig.send("a", 1, [1.0] * 4, now=other.now)
    np.testing.assert_array_equal(life.rig.model.x, other.rig.model.x)


class Dying(QuickStore):
    """Ends as the power does, where it is told to."""

    at = ""

    def commit(self, entries: Any) -> None:
        entries = list(entries)
        kinds = {rec.kind(entry.record) for entry in entries}
        when, _, kind = self.at.partition(" ")
        if when == "before" and kind in kinds:
            raise StoreFull("power")
        super().commit(entries)
        if when == "after" and kind in kinds:
            raise StoreFull("power")

    def add_frames(self, new: Any) -> None:
        new = list(new)
        parts = [parts for frame, parts in new if frame.span == REGISTERED]
        if (self.at == "frames" and parts) or (self.at == "offer" and any(parts)):
            raise StoreFull("power")
        super().add_frames(new)


ORDERS: list[tuple[Any, dict[str, Any]]] = [
    ("register", {}),
    ("promote", {"version": 2}),
    ("register", {"attempt": True, "share": 0.5}),
    ("withdraw", {}),
    ("rollback", {}),
]


def scripted(life: Life) -> None:
    """All orders, with a training between each."""
    for number, (verb, fields) in enumerate(ORDERS):
        life.learn(1.0 + number)
        order = ModelOrder(verb, at=life.wall, by="anna", name=f"{number:016x}", **fields)
        give(life.rig.store.directory, order)
        life.look()


@pytest.mark.parametrize(
    "at",
    [
        *(f"{when} {kind}" for when in ("before", "after") for kind in ("register", "alias", "rollback")),
        *("frames", "offer"),
    ],
)
def test_a_power_cut_anywhere_ends_at_the_same_registry(begin: Begin, at: str) -> None:
    whole = begin(folder="whole")
    scripted(whole)
    dying = Dying(whole.rig.store.directory.with_name("cut"))
    life = begin(folder="cut", store=dying)
    cuts = 0
    for number, (verb, fields) in enumerate(ORDERS):
        life.learn(1.0 + number)
        give(
            life.rig.store.directory,
            ModelOrder(verb, at=life.wall, by="anna", name=f"{number:016x}", **fields),
        )
        wall, now = life.wall, life.now
        if isinstance(life.rig.store, Dying):
            life.rig.store.at = at
        try:
            life.look()
        except StoreFull:
            cuts += 1
            life = begin(folder="cut")
            life.wall, life.now = wall, now
            life.look()
    assert cuts == 1, "the cut was made"
    assert not list(waiting(life.rig.store.directory))
    assert life.registry.dump() == whole.registry.dump()
    assert life.rig.model.digest() == whole.rig.model.digest()
    for version in life.registry.versions:
        assert life.rig.store.frame(version, REGISTERED) == whole.rig.store.frame(version, REGISTERED) is not None
    assert published(life) == published(whole)


def published(life: Life) -> dict[str, ModelAlias]:
    """What a connection would bring, but for what differs between two stores and two lives."""
    found = {post.topic: post.payload for post in life.rig.shelf.everything() if "/model/alias/" in post.topic}
    return {
        topic: messages.decode_alias(payload)[0].model_copy(update={"lineage": bytes(16), "devices": 0})
        for topic, payload in found.items()
    }


STEPS = st.sampled_from(["learn", "register", "candidate", "promote", "withdraw", "rollback", "checkpoint", "kill"])


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(STEPS, max_size=20))
@example(
    ["learn", "register", "promote", "learn", "kill", "rollback", "checkpoint", "checkpoint", "checkpoint", "kill"]
)
@pytest.mark.parametrize("strategy", [EVERYTHING_COUNTS, replace(EVERYTHING_COUNTS, form="mixing"), fedbuff(2)])
def test_lives_with_kills_and_checkpoints_end_as_one_without(
    tmp_path_factory: pytest.TempPathFactory, strategy: Strategy, steps: list[str]
) -> None:
    found = []
    for kills in (False, True):
        folder = tmp_path_factory.mktemp("store")
        life = Life(folder, RegistryPolicy(keep=3), strategy=strategy)
        for number, step in enumerate(steps):
            match step:
                case "learn":
                    device = "ab"[number % 2]
                    life.rig.send(device, life.rig.core.hi(device, 1) + 1, [number + 1.0] * 4, now=life.now)
                case "kill" if kills:
                    life.rig.close()
                    wall, now = life.wall, life.now
                    life = Life(folder, RegistryPolicy(keep=3), strategy=strategy)
                    life.wall, life.now = wall, now
                case "checkpoint" if kills:
                    life.rig.engine.checkpoint(life.rig.core)
                case "kill" | "checkpoint":
                    pass
                case "candidate":
                    life.order("register", attempt=True, name=f"{number:016x}")
                case verb:
                    newest = max(life.registry.versions, default=0)
                    version = newest if verb == "promote" else 0
                    life.order(verb, version, name=f"{number:016x}")
        names = {each.version for each in life.rig.store.published() if each.span == REGISTERED}
        assert set(life.registry.versions) <= names and len(life.registry.versions) <= 3
        for version, each in life.registry.versions.items():
            data = life.rig.store.frame(version, REGISTERED)
            assert data is not None and lineage.decode_snapshot(data).digest() == each.record.digest
        found.append((life.registry.dump(), life.rig.model.digest(), published(life)))
        life.rig.close()
    assert found[0] == found[1]


# -------------------------------------------------------------------- what keeps a store


def kept(folder: Path) -> tuple[Any, Mapping[int, bytes | None]]:
    """The registry of a store, and the snapshots of its versions."""
    reading = registered_in(folder)
    registry, snapshots = reading.registry, reading.snapshots
    return registry.dump(), snapshots


def closed(begin: Begin, *, checkpoint: bool) -> Path:
    """A store that was killed, with two registered versions and a champion; with or without a checkpoint of them."""
    life = begin(RegistryPolicy(decides=False))
    scripted(life)
    life.learn(1.0)
    if checkpoint:
        for _ in range(4):
            life.rig.engine.checkpoint(life.rig.core)
            life.learn(1.0)
    folder = life.rig.store.directory
    life.rig.close()
    return folder


@pytest.mark.parametrize("checkpoint", [False, True])
def test_a_backup_a_restore_and_a_salvage_keep_what_is_registered(
    begin: Begin, tmp_path: Path, checkpoint: bool
) -> None:
    folder = closed(begin, checkpoint=checkpoint)
    wanted = kept(folder)
    assert all(wanted[1].values()) and len(wanted[1]) == 2
    backup(folder, tmp_path / "backup")
    restore(tmp_path / "backup", tmp_path / "restored", "anna")
    assert kept(tmp_path / "restored") == wanted
    salvage(folder, tmp_path / "salvaged", "anna")
    assert kept(tmp_path / "salvaged") == wanted
    assert not [part for part in verify(tmp_path / "restored") if part.damaged]
    for made in ("restored", "salvaged"):
        life = begin(folder=made)
        assert life.registry.champion and life.order("rollback")["ok"]


def test_a_registered_version_that_rotted_is_found_and_named(begin: Begin, tmp_path: Path) -> None:
    folder = closed(begin, checkpoint=True)
    version = min(kept(folder)[1])
    with closing(sqlite3.connect(folder / "store.db")) as db, db:
        db.execute("UPDATE frames SET data = substr(data, 2) WHERE span = ? AND version = ?", (REGISTERED, version))
    (part,) = [part for part in verify(folder) if part.damaged]
    assert (part.name, part.damaged, part.at_stake) == ("registered versions", 1, 0)
    assert part.found == (f"the registered version {version} is damaged",)
    assert kept(folder)[1][version] is None
    remains = salvage(folder, tmp_path / "salvaged", "anna")
    assert f"the values of the registered version {version} are lost" in remains.loss.said
    life = begin()
    assert "damaged" in life.order("rollback", version)["why"], "and the training goes on as it is"


# ------------------------------------------------------------------------------ candidates


def tried(begin: Begin, **policy: Any) -> Life:
    """A champion, version 2, and a candidate, version 3."""
    life = begin(RegistryPolicy(**{"devices": 5, "alpha": 0.05, **policy}))
    life.learn(1.0)
    life.order("register")
    life.order("promote", 2)
    life.learn(1.0)
    life.order("register", attempt=True)
    life.look()
    return life


def test_a_candidate_that_most_devices_are_better_off_with_is_promoted(begin: Begin) -> None:
    life = tried(begin)
    for number in range(7):
        life.measured(f"d{number}", v2=1.0 + number, v3=0.9 + number)
        life.look()
        expected = 2 if number < 6 else 3  # (2^8 - 1) / 8 = 31.9 is the first above 20
        assert life.registry.champion == expected, number
    entry = life.registry.versions[3]
    assert entry.devices == 7 and entry.federated["loss"]["median"] == pytest.approx(3.9)
    assert life.registry.why == "loss: better on 7, worse on 0 of 7 devices"
    assert life.registry.versions[2].devices == 7


def test_a_candidate_that_most_devices_are_worse_off_with_is_withdrawn(begin: Begin) -> None:
    life = tried(begin)
    for number in range(7):
        life.measured(f"d{number}", v2=1.0, v3=2.0)
        life.look()
    assert (life.registry.champion, life.registry.candidate) == (2, 0)
    assert life.aliases()["candidate"].version == 0


def test_pairs_are_counted_once_also_over_a_kill_and_for_too_few_devices_nothing_is_decided(begin: Begin) -> None:
    life = tried(begin, devices=8)
    for number in range(7):
        life.measured(f"d{number}", v3=0.5)
        life.measured(f"d{number}", v2=1.0)
        life.look()
    before = life.registry.dump()
    life = begin(RegistryPolicy(devices=8))
    life.look()
    assert life.registry.dump() == before and len(life.registry.trial) == 7
    for _ in range(3):
        life.measured("d0", v2=1.0, v3=0.1)
        life.look()
    assert life.registry.candidate == 3, "seven devices are too few, however often they report"
    life.measured("d7", v2=1.0, v3=0.5)
    life.look()
    assert life.registry.champion == 3


def test_by_hand_only_and_patience_that_ends(begin: Begin) -> None:
    life = tried(begin, decides=False)
    for number in range(30):
        life.measured(f"d{number}", v2=1.0, v3=0.5)
    life.look()
    assert life.registry.candidate == 3
    life = begin(RegistryPolicy(devices=1000, patience=3600.0))
    life.look(3500.0)
    assert life.registry.candidate == 3
    life.look(200.0)
    assert life.registry.candidate == 0 and life.registry.why.startswith("undecided. ")


def test_the_rules_capabilities_are_tried_and_survive_a_kill_and_a_checkpoint(begin: Begin) -> None:
    policy = RegistryPolicy(every=100.0, share=0.5, where={"site": "north"})
    life = begin(policy)
    life.look()
    life.learn(1.0)
    life.look(110.0)
    alias = life.aliases()["candidate"]
    assert (alias.version, alias.share, alias.where, alias.where_share) == (2, 0.0, {"site": "north"}, 0.5)
    assert life.aliases()["champion"].where == {} and life.aliases()["champion"].share == 1.0
    life = begin(policy)
    assert life.registry.where == {"site": "north"}
    life.rig.engine.checkpoint(life.rig.core)
    life = begin(policy)
    assert life.registry.where == {"site": "north"}
    assert life.order("withdraw")["ok"] and life.registry.where == {}


def test_an_order_says_whom_it_means_before_the_policy_does(begin: Begin) -> None:
    life = begin(RegistryPolicy(share=0.1, where={"site": "north"}))
    life.devices |= {
        name: Hello(state=DeviceState.READY, outbox=1, capabilities={"site": site, "main": True, "rows": 3})
        for name, site in (("a", "north"), ("b", "south"), ("c", "south"))
    }
    life.order("register", attempt=True)
    life.learn(1.0)
    said = life.order("register", attempt=True, where={"site": "south", "main": "true"})
    assert said["meant"] == {"devices": 2, "known": 3} and life.registry.share == 1.0
    life.order("withdraw")
    assert life.order("try", 2)["meant"] == {"devices": 1, "known": 3} and life.registry.share == 0.1


def test_a_registry_of_before_capabilities_is_read(begin: Begin) -> None:
    life = tried(begin)
    registry = Registry()
    registry.load(life.registry.dump()[:-1])
    assert registry.where == {} and registry.named == life.registry.named


@pytest.mark.parametrize(
    "where", [["site"], {"site": 3}, {"": "north"}, {"x" * 65: "a"}, {str(i): "a" for i in range(5)}]
)
def test_what_no_message_can_hold_is_no_order(where: Any) -> None:
    with pytest.raises(ValueError, match="where"):
        ModelOrder("try", 2, where=where)
    with pytest.raises(ValueError, match="where"):
        RegistryPolicy(where=where)


def test_a_rule_registers_and_tries_what_is_due(begin: Begin) -> None:
    life = begin(RegistryPolicy(every=100.0))
    life.look()
    assert life.registry.named == {"champion": 1}, "the first is the champion"
    life.learn(1.0)
    life.look(50.0)
    assert list(life.registry.versions) == [1]
    life.look(60.0)
    assert life.registry.named == {"champion": 1, "candidate": 2}
    life.learn(1.0)
    life.look(300.0)
    assert list(life.registry.versions) == [1, 2], "one is tried at a time"


def test_a_forgotten_device_leaves_its_count_and_not_its_name(begin: Begin) -> None:
    life = tried(begin)
    life.measured("anton", v2=1.0, v3=0.5)
    life.look()
    names = Names(life.rig.store)
    forget(life.rig.engine, life.rig.core, names, ["anton"])
    assert len(life.registry.trial) == 1 and "anton" not in str(life.registry.dump())
    life.rig.store.close()
    assert b"anton" not in b"".join(path.read_bytes() for path in life.rig.store.directory.glob("store.db*"))


def test_the_servers_results_are_kept_with_the_version(begin: Begin) -> None:
    life = begin()
    life.learn(1.0)
    life.order("register")
    found = life.keeper.unmeasured(life.rig.core, life.rig.engine)
    assert found is not None and found[0] == 2 and found[1]["x"].tolist() == [1.0] * 4
    life.keeper.evaluated(2, {"rmse": 0.25})
    life.look()
    assert dict(life.registry.versions[2].server) == {"rmse": 0.25}
    assert life.keeper.unmeasured(life.rig.core, life.rig.engine) is None
