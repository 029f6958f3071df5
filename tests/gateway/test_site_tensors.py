"""Tensors of a site: averaged by its gateway, begun with by its devices, and in no byte at the federation's broker."""

import argparse
from collections.abc import Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from midge.aggregator.core.update_admission import Bounds
from midge.aggregator.metrics.prometheus import Exposition
from midge.aggregator.store.device_erasure import Names, ask, forget
from midge.broker.embedded.in_memory import Twin
from midge.broker.mqtt.connection import Connection, Options
from midge.commands import status
from midge.gateway.config import site_strategy
from midge.gateway.site_values import mean_of
from midge.iot_client.config import DeviceConfig
from midge.iot_client.connection.identity import Identity
from midge.iot_client.connection.sealed_updates import SealedUpdates
from midge.iot_client.device import Device
from midge.iot_client.session.trust import Untrusted
from midge.iot_client.state.local_tensors import LocalTensors
from midge.iot_client.state.memory_outbox import MemoryOutbox
from midge.iot_client.state.site_tensors import SiteTensors
from midge.iot_client.training.evaluation import Scores
from midge.iot_client.training.fit import Fit, Parameters, TrainingPlan
from midge.iot_client.training.update_encoder import cut
from midge.wire import chunks, frames, messages, sealing, signing
from midge.wire.errors import WireError
from midge.wire.messages import AggregatorState, AggregatorStatus, Plan, Report, SiteValues, Update, Verdict
from midge.wire.schema import Schema
from midge.wire.signing import BadSignature, PrivateKey
from midge.wire.topics import Topics
from tests.aggregator.rig import Rig, rig
from tests.federation.live import INITIAL, STRATEGY, Log, aggregator, approach, device, distance, overheard, serving
from tests.gateway.test_live import gateway, keys
from tests.gateway.test_sums import follow, sums

TOPICS = Topics("f")
WIDE = {**INITIAL, "head": np.zeros(6, np.float32)}
ROLES = {"head": "site"}
OWN = {"head": np.full(6, 0.5, np.float32)}
Values = npt.NDArray[np.float32]


def values(seed: int) -> Values:
    """Values of a head that no other bytes of a federation look like."""
    return np.random.default_rng(seed).normal(size=6).astype(np.float32)


class Trainer:
    """Learns the shared tensors as all do, and has its own head; keeps the heads that its trainings began with."""

    def __init__(self, head: Values) -> None:
        self.head = head
        self.began: list[Values] = []

    def __call__(self, parameters: Parameters, plan: TrainingPlan) -> Fit:
        shared = {name: value for name, value in parameters.items() if name != "head"}
        self.began.append(parameters["head"].copy())
        fit = approach(shared, plan)
        return replace(fit, parameters={**fit.parameters, "head": self.head})

    def began_with(self, head: Values) -> bool:
        return any(np.allclose(each, head) for each in self.began)


def wide(twin: Twin, name: str, log: Log, train: Any, outbox: Path | None = None, **arguments: Any) -> Device:
    return device(twin, name, log, outbox, train, **{"local": OWN, **arguments})


def root_of(twin: Twin, store: Path, log: Log, **arguments: Any) -> Any:
    return aggregator(twin, store, log, **{"sites": ("site-*",), "initial": WIDE, "roles": ROLES, **arguments})


def published(twin: Twin) -> SiteValues | None:
    """The header of the message that the site's broker retains."""
    found = twin.router._retained_on(TOPICS.site_values)
    return messages.decode(SiteValues, found[0].payload)[0] if found and found[0].payload else None


async def test_two_sites_end_with_tensors_of_their_own_and_one_shared_model(tmp_path: Path) -> None:
    """And no byte of these tensors is at the federation's broker."""
    top, north, south, log, below = Twin(), Twin(), Twin(), Log(), Log()
    heads = [values(seed) for seed in range(3)]
    a, b, c = trainers = [Trainer(head) for head in heads]
    root = root_of(top, tmp_path / "root", log)
    sites = [
        gateway(top, north, "site-north", tmp_path / "north", below),
        gateway(top, south, "site-south", tmp_path / "south", below),
    ]
    devices = [
        wide(twin, name, below, train) for twin, name, train in zip((north, north, south), "abc", trainers, strict=True)
    ]
    mean = mean_of(heads[:2], robust=False)
    seen = overheard(top)
    async with serving(root, *sites, *devices):
        await log.until(lambda: root.open_now and distance({n: root.model.parameters()[n] for n in INITIAL}) < 0.05)
        await log.until(lambda: a.began_with(mean) and b.began_with(mean) and c.began_with(heads[2]))
        assert "head" not in root.model.parameters()
    np.testing.assert_array_equal(a.began[0], OWN["head"])
    assert published(north) is not None and published(south) is not None
    forbidden = {value.tobytes() for head in (*heads, mean) for value in head}
    assert len(seen) > 10
    assert not [each.topic for each in seen if any(value in bytes(each.payload) for value in forbidden)]
    updates = [messages.decode_update(each.payload)[0] for each in seen if "/update/" in each.topic]
    assert updates and not any(update.site_size for update in updates if isinstance(update, Update))


LONG = 700
"""Values of a head that makes an update larger than a chunk of a kilobyte."""


@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.parametrize("chunk", [1024, 2**18])
async def test_the_values_arrive_as_they_were_trained(tmp_path: Path, chunk: int, *, sealed: bool) -> None:
    """Whole or in chunks, sealed or not.

    Seen to fail: with the values of a sealed update cut off its sealed bytes, and with the size of the delta alone as
    the bound of an update.
    """
    top, north, log, below = Twin(), Twin(), Log(), Log()
    initial, own = {**INITIAL, "head": np.zeros(LONG, np.float32)}, {"head": np.zeros(LONG, np.float32)}
    above: dict[str, Any] = {"chunk": chunk, "initial": initial}
    here: dict[str, Any] = {}
    there: dict[str, Any] = {"local": own}
    if sealed:
        release, key, certificate = keys(tmp_path)
        pinned = signing.read_private(release.read_bytes()).public_pem()
        above |= {"release_key": release, "sites": ("site",)}
        here |= {"release_key": pinned, "signing_key": key, "certificate": certificate}
        there |= {"release_key": pinned}
    heads = {name: np.random.default_rng(ord(name)).normal(size=LONG).astype(np.float32) for name in "ab"}
    root = root_of(top, tmp_path / "root", log, **{"sites": ("site",), **above})
    site = gateway(top, north, "site", tmp_path / "north", below, **here)
    trainers = {name: Trainer(head) for name, head in heads.items()}
    devices = [wide(north, name, below, trainers[name], tmp_path / name, **there) for name in heads]
    seen = overheard(north)
    mean = mean_of(list(heads.values()), robust=False)
    async with serving(root, site, *devices):
        await below.until(lambda: all(each.began_with(mean) for each in trainers.values()))
        assert site.site is not None
        kept = site.site.store.site.values()
    assert kept == {name: head.tobytes() for name, head in heads.items()}
    assert not below.of("update", verdict="bad_encoding")
    came = [messages.decode_update(each.payload)[0] for each in seen if "/update/" in each.topic and each.payload]
    assert any(isinstance(each, Update) and each.kind == "offer" for each in came) is (chunk == 1024)
    assert all(bool(each.sealed) is sealed for each in came if isinstance(each, Update))


# ---------------------------------------------------------------------------------- the mean

DEVICES = st.integers(3, 12).flatmap(
    lambda count: st.lists(
        st.lists(st.floats(-1e6, 1e6, width=32), min_size=4, max_size=4), min_size=count, max_size=count
    )
)


def stacked(each: Sequence[Sequence[float]]) -> list[Values]:
    return [np.array(one, np.float32) for one in each]


@given(DEVICES, st.randoms(use_true_random=False))
def test_each_device_has_one_voice_whatever_their_order(each: list[list[float]], chance: Any) -> None:
    honest = stacked(each)
    shuffled = list(honest)
    chance.shuffle(shuffled)
    for robust in (False, True):
        np.testing.assert_array_equal(mean_of(shuffled, robust=robust), mean_of(honest, robust=robust))
        np.testing.assert_array_equal(mean_of([honest[0]] * 5, robust=robust), honest[0])
    np.testing.assert_allclose(mean_of(honest, robust=False), np.mean(honest, axis=0, dtype=np.float64), rtol=1e-6)


@given(DEVICES, st.lists(st.floats(-(2.0**79), 2.0**79, width=32), min_size=4, max_size=4))
def test_one_liar_turns_no_value(each: list[list[float]], lie: list[float]) -> None:
    """Each value stays within those of the honest devices. Seen to fail: with the plain mean."""
    honest = stacked(each)[:-1]
    found = mean_of([*honest, *stacked([lie])], robust=len(honest) > 1)
    assert (found >= np.min(honest, axis=0)).all() and (found <= np.max(honest, axis=0)).all()


def test_a_large_mean_is_that_of_its_parts() -> None:
    heads = list(np.random.default_rng(0).normal(size=(5, 200_000)).astype(np.float32))
    np.testing.assert_array_equal(
        mean_of(heads, robust=True)[150_000:150_010], mean_of([each[150_000:150_010] for each in heads], robust=True)
    )
    np.testing.assert_allclose(mean_of(heads, robust=False), np.mean(heads, axis=0), atol=1e-6)


@given(st.integers(10, 30), st.data())
def test_a_fifth_of_liars_turns_no_value(count: int, data: st.DataObject) -> None:
    honest = [np.full(2, data.draw(st.floats(-1, 1, width=32)), np.float32) for _ in range(count - count // 5)]
    found = mean_of([*honest, *[np.full(2, 1e20, np.float32)] * (count // 5)], robust=True)
    assert (found >= np.min(honest, axis=0)).all() and (found <= np.max(honest, axis=0)).all()


# ------------------------------------------------------------------------------- the gateway


async def test_the_others_mean_is_published_once_a_device_is_withdrawn(tmp_path: Path) -> None:
    top, north, log, below = Twin(), Twin(), Log(), Log()
    root = root_of(top, tmp_path / "root", log)
    site = gateway(top, north, "site-north", tmp_path / "north", below)
    a, b, c = (Trainer(values(seed)) for seed in range(3))
    devices = [wide(north, name, below, train) for name, train in zip("abc", (a, b, c), strict=True)]
    async with serving(root, site, *devices):
        await below.until(lambda: b.began_with(mean_of([a.head, b.head, c.head], robust=False)))
        ask(tmp_path / "north", "a")
        await below.until(lambda: below.of("withdrawn", device="a"))
        await below.until(lambda: b.began_with(mean_of([b.head, c.head], robust=False)))


async def test_a_restarted_gateway_publishes_what_its_devices_gave(tmp_path: Path) -> None:
    """Also at a broker that has forgotten it, while they are away; and above what it published before."""
    top, north, log, below = Twin(), Twin(), Log(), Log()
    a, b = Trainer(values(0)), Trainer(values(1))
    root = root_of(top, tmp_path / "root", log)
    site = gateway(top, north, "site-north", tmp_path / "north", below)
    async with serving(root, site, wide(north, "a", below, a), wide(north, "b", below, b)):
        await below.until(lambda: a.began_with(mean_of([a.head, b.head], robust=False)))
    before, empty = published(north), Twin()
    assert before is not None
    site = gateway(top, empty, "site-north", tmp_path / "north", below)
    root = root_of(top, tmp_path / "root", log)
    async with serving(root, site):
        await below.until(lambda: published(empty))
        again = published(empty)
    assert again is not None and again.devices == 2 and again.sha256 == before.sha256
    assert again.order > before.order and again.token > before.token


async def test_a_liar_does_not_turn_its_site(tmp_path: Path) -> None:
    top, north, log, below = Twin(), Twin(), Log(), Log()
    root = root_of(top, tmp_path / "root", log)
    site = gateway(top, north, "site-north", tmp_path / "north", below, robust=True)
    honest, liar = [Trainer(values(seed)) for seed in range(3)], Trainer(np.full(6, 1e20, np.float32))
    everyone = zip("abcd", [*honest, liar], strict=True)
    mean = mean_of([each.head for each in (*honest, liar)], robust=True)
    async with serving(root, site, *(wide(north, name, below, train) for name, train in everyone)):
        await below.until(lambda: all(each.began_with(mean) for each in honest))
    assert np.abs(mean).max() <= max(float(np.abs(each.head).max()) for each in honest)


def test_the_length_of_the_values_is_bound_to_their_seal() -> None:
    """Seen to fail: a broker that changed it split the delta elsewhere."""
    private = sealing.new_key()
    body = DELTA + bytes(8)
    plain_update = Update(
        outbox=1, first=1, seq=1, lineage=LINEAGE, generation=0, base=1, codec="float32", size=len(body),
        sha256=chunks.checksum(body), site_size=8,
    )  # fmt: skip
    sealed = sealing.seal(body, sealing.public(private), sealing.about("f", "a", plain_update))
    assert sealing.unseal(sealed, private, sealing.about("f", "a", plain_update)) == body
    for changed in (0, 4, 12):
        about = sealing.about("f", "a", plain_update.model_copy(update={"site_size": changed}))
        with pytest.raises(WireError):
            sealing.unseal(sealed, private, about)


SMALL = {"x": np.zeros(4, np.float32), "head": np.zeros(2, np.float32)}
SCHEMA = Schema.of(SMALL, ROLES)
DELTA = np.ones(4, np.float32).tobytes()


def at_site(directory: Path, root: Rig) -> Rig:
    """A life of a gateway's lower side, which knows the root's newest version."""
    strategy, bounds = site_strategy(robust=False), replace(Bounds.of(SCHEMA), site_size=SCHEMA.site_size)
    life = Rig(directory, strategy, parameters=SMALL, roles=ROLES, bounds=bounds)
    if not life.core.version:
        follow(life, root)
    return life


def given_values(life: Rig, device: str, seq: int, *head: float) -> Verdict:
    body = DELTA + np.array(head, np.float32).tobytes()
    return life.send(device, seq, [], body=body, site_size=4 * len(head)).verdict


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Rig]:
    with rig(tmp_path / "root", parameters=SMALL, roles=ROLES) as life:
        yield life


def kept(life: Rig) -> dict[str, list[float]]:
    return {name: np.frombuffer(each, "<f4").tolist() for name, each in life.store.site.values().items()}


def test_the_newest_values_of_each_device_survive_kills(tmp_path: Path, root: Rig) -> None:
    """Also those of updates whose bodies have gone with their sum. Seen to fail: with values kept in memory."""
    life = at_site(tmp_path / "site", root)
    assert given_values(life, "a", 1, 1, 2) is Verdict.ACCEPTED
    assert given_values(life, "b", 1, 3, 4) is Verdict.ACCEPTED
    assert len(sums(life)) == 1
    assert given_values(life, "a", 2, 5, 6) is Verdict.ACCEPTED
    life.engine.checkpoint(life.core)
    life.close()
    life = at_site(tmp_path / "site", root)
    assert kept(life) == {"a": [5, 6], "b": [3, 4]}
    assert given_values(life, "a", 1, 7, 8) is Verdict.ACCEPTED  # a repetition, with its first verdict
    assert kept(life) == {"a": [5, 6], "b": [3, 4]}
    life.close()


def test_values_are_kept_with_their_update_or_not_at_all(
    tmp_path: Path, root: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen to fail: with the values in a transaction of their own, before the update's."""
    life = at_site(tmp_path / "site", root)
    assert given_values(life, "a", 1, 1, 2) is Verdict.ACCEPTED

    def killed(name: str) -> None:
        if name == "commit.within":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("midge.aggregator.store.store.failpoint", killed)
        with pytest.raises(KeyboardInterrupt):
            given_values(life, "a", 2, 3, 4)
    life.close()
    life = at_site(tmp_path / "site", root)
    assert kept(life) == {"a": [1, 2]}
    assert given_values(life, "a", 2, 3, 4) is Verdict.ACCEPTED
    assert kept(life) == {"a": [3, 4]}
    life.close()


def test_names_cannot_fill_the_disk(tmp_path: Path, root: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen to fail: with a row for each name for ever."""
    monkeypatch.setattr("midge.aggregator.store.site_table.MOST_BYTES", 3 * SCHEMA.site_size)
    life = at_site(tmp_path / "site", root)
    for seq, name in enumerate(["a", "b", "c", "a", "d"]):
        assert given_values(life, name, 2 if seq == 3 else 1, seq, seq) is Verdict.ACCEPTED
    assert kept(life) == {"a": [3, 3], "c": [2, 2], "d": [4, 4]}
    life.close()


@pytest.mark.parametrize(
    ("body", "size", "verdict"),
    [
        (DELTA + np.array([np.nan, 0], np.float32).tobytes(), 8, Verdict.NON_FINITE),
        (DELTA + np.array([0, np.inf], np.float32).tobytes(), 8, Verdict.NON_FINITE),
        (DELTA + np.array([1e30, 0], np.float32).tobytes(), 8, Verdict.NON_FINITE),
        (DELTA + bytes(12), 12, Verdict.BAD_ENCODING),
        (DELTA + bytes(7), 8, Verdict.BAD_ENCODING),
        (bytes(4), 8, Verdict.BAD_ENCODING),
        (DELTA + bytes(8), 0, Verdict.TOO_LARGE),
    ],
)
def test_bad_values_cost_their_own_update(tmp_path: Path, root: Rig, body: bytes, size: int, verdict: Verdict) -> None:
    life = at_site(tmp_path / "site", root)
    assert given_values(life, "a", 1, 1, 2) is Verdict.ACCEPTED
    refused = life.send("b", 1, [], body=body + (bytes(80) if not size else b""), site_size=size)
    assert refused.verdict is verdict and refused.why
    assert life.core.counts[verdict.value] == 1
    assert kept(life) == {"a": [1, 2]}
    assert given_values(life, "b", 2, 3, 4) is Verdict.ACCEPTED
    life.close()


def test_the_root_refuses_what_must_not_come_up(root: Rig) -> None:
    """Seen to fail: without the check, it accepted the delta and kept the values."""
    refused = root.send("a", 1, [], body=DELTA + bytes(8), site_size=8)
    assert refused.verdict is Verdict.BAD_ENCODING
    assert "only the site's gateway may read" in refused.why
    assert kept(root) == {}


def test_a_device_that_is_revoked_or_erased_has_no_voice(tmp_path: Path, root: Rig) -> None:
    life = at_site(tmp_path / "site", root)
    for place, name in enumerate("abc"):
        assert given_values(life, name, 1, place, place) is Verdict.ACCEPTED
    sums(life)
    life.store.site.clear()
    names = Names(life.store)
    names.withdraw("a")
    assert life.store.site.removed
    assert kept(life) == {"b": [1, 1], "c": [2, 2]}
    forget(life.engine, life.core, names, ["b"])
    assert kept(life) == {"c": [2, 2]}
    life.close()


# -------------------------------------------------------------------------------- the device


def header_of(body: bytes, number: int = 1, token: int = 5, name: str = "site") -> SiteValues:
    sha = chunks.checksum(body)
    return SiteValues(lineage=LINEAGE, name=name, size=len(body), sha256=sha, token=token, number=number, devices=2)


LINEAGE = bytes(range(16))


def status_of(name: str, **fields: Any) -> AggregatorStatus:
    about = {"state": AggregatorState.READY, "boot": 1, "lineage": LINEAGE, "name": name, "token": 5, **fields}
    return AggregatorStatus(**about)


def test_a_restarted_device_begins_with_the_values_of_its_site(tmp_path: Path) -> None:
    """And takes no older ones. Seen to fail: with the order of messages in memory."""
    schema, newest = Schema.of(SMALL, ROLES), np.array([3, 4], np.float32)
    own = LocalTensors(tmp_path / "local", {"head": np.ones(2, np.float32)}, SiteTensors(tmp_path / "s", pinned=True))
    own.site.seen(status_of("site", site_size=8))
    shared = {"x": SMALL["x"]}
    np.testing.assert_array_equal(own.join(shared, schema)["head"], [1, 1])
    own.keep({"head": np.array([7, 7], np.float32)}, schema, 0.0)
    np.testing.assert_array_equal(own.join(shared, schema)["head"], [7, 7])
    assert own.site.take(header_of(newest.tobytes(), 2), newest.tobytes())
    np.testing.assert_array_equal(own.join(shared, schema)["head"], newest)
    own.keep({"head": np.array([8, 8], np.float32)}, schema, 0.0)
    np.testing.assert_array_equal(own.join(shared, schema)["head"], newest)
    own.save()
    again = LocalTensors(tmp_path / "local", None, SiteTensors(tmp_path / "s", pinned=True))
    np.testing.assert_array_equal(again.join(shared, schema)["head"], newest)
    again.site.seen(status_of("site", site_size=8))
    for header in (header_of(bytes(8), 1), header_of(bytes(8), 2), header_of(bytes(8), 9, token=4)):
        with pytest.raises(WireError, match="older"):
            again.site.take(header, bytes(8))
    assert not again.site.take(header_of(newest.tobytes(), 2), newest.tobytes()), "it is retained, and comes again"
    again.site.seen(status_of(""))
    np.testing.assert_array_equal(again.join(shared, schema)["head"], [8, 8], "at the root, they are its own")
    again.site.seen(status_of("other", site_size=8))
    np.testing.assert_array_equal(again.join(shared, schema)["head"], [8, 8], "the other site has published none yet")
    with pytest.raises(WireError, match="another site"):
        again.site.take(header_of(bytes(8), 3), bytes(8))
    assert again.site.take(header_of(bytes(8), 1, name="other"), bytes(8))
    np.testing.assert_array_equal(again.join(shared, schema)["head"], [0, 0])


def test_a_damaged_file_is_put_aside(tmp_path: Path) -> None:
    path = tmp_path / "box.site"
    tensors = SiteTensors(path)
    tensors.seen(status_of("site"))
    tensors.take(header_of(bytes(8)), bytes(8))
    tensors.save()
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    assert SiteTensors(path).values(SCHEMA) == {}
    assert (tmp_path / "box.site.damaged").exists()


def test_only_the_certified_gateway_of_this_start_is_believed(tmp_path: Path) -> None:
    """Seen to fail: without the signature's check, and without the comparison of tokens."""
    release, own, certificate = keys(tmp_path)
    key, other = signing.read_private(own.read_bytes()), signing.new_key()
    identity = Identity(TOPICS, release_key=signing.read_private(release.read_bytes()).public_pem())
    identity.begin("a", MemoryOutbox())

    def signed(by: PrivateKey, header: SiteValues, body: bytes, purpose: str = signing.SITE_VALUES) -> bytes:
        return signing.sign_frame(by, purpose, "f", frames.encode(header), body)

    body = np.array([3, 4], np.float32).tobytes()
    with pytest.raises(BadSignature):
        identity.site_values(signed(key, header_of(body), body))  # its certificate is not known yet
    head = frames.encode(status_of("site", vouch=certificate, site_size=8))
    identity.status(signing.sign_frame(key, signing.AGGREGATOR, "f", head))
    assert identity.site_size == 8
    assert identity.site_values(signed(key, header_of(body), body)) == (header_of(body), body)
    for forged in (
        signed(other, header_of(body), body),
        signed(key, header_of(body), body, signing.AGGREGATOR),
        frames.encode(header_of(body), body),
    ):
        with pytest.raises(BadSignature):
            identity.site_values(forged)
    with pytest.raises(Untrusted):
        identity.site_values(signed(key, header_of(body, token=4), body))
    with pytest.raises(WireError, match="not those of their header"):
        identity.site_values(signed(key, header_of(body), bytes(8)))
    identity.status(frames.encode(status_of("site", site_size=16)))
    assert identity.site_size == 0, "a status that the gateway has not signed says nothing"


@pytest.mark.parametrize("sealed", [False, True])
def test_an_update_that_was_never_sent_leaves_the_values_of_its_site_behind(*, sealed: bool) -> None:
    """Seen to fail: the root refuses the update, and the training is lost."""
    release = signing.new_key()
    identity = Identity(TOPICS, release_key=release.public_pem() if sealed else None)
    outbox = MemoryOutbox()
    identity.begin("a", outbox)
    update = Update(
        outbox=outbox.identity, first=1, seq=1, lineage=LINEAGE, generation=0, base=1, codec="float32", size=16,
        sha256=chunks.checksum(DELTA), number=7 if sealed else 0,
    )  # fmt: skip
    body = DELTA + bytes(8)
    outbox.store(cut(update, body, 8), body)
    private = sealing.new_key()
    if sealed:
        head = frames.encode(status_of("", seal_key=sealing.public(private), number=1))
        identity.status(signing.sign_frame(release, signing.AGGREGATOR, "f", head))
    forms = SealedUpdates(identity, outbox, lambda: None, {})
    (held,) = outbox.held()
    sent = forms.outgoing(held)
    assert sent is not None and sent.site_size == 0
    plain = forms.body(sent)
    if sealed:
        plain = sealing.unseal(plain, private, sealing.about("f", "a", sent))
        plain = bytes(sealing.revealed(sent, memoryview(plain))[1])
    assert bytes(plain) == DELTA
    assert chunks.fits(forms.body(sent), sent.sha256)
    identity.site_size = 8
    again = SealedUpdates(identity, outbox, lambda: None, {}).outgoing(cut(update, body, 8))
    assert again is not None and again.site_size == 8, "where they are taken they go along"


async def test_a_device_that_moves_takes_the_tensors_of_its_new_site(tmp_path: Path) -> None:
    """And behaves at the root as if they were its own."""
    top, north, south, log, below = Twin(), Twin(), Twin(), Log(), Log()
    root = root_of(top, tmp_path / "root", log)
    sites = [
        gateway(top, north, "site-north", tmp_path / "north", below),
        gateway(top, south, "site-south", tmp_path / "south", below),
    ]
    a, b, c = (Trainer(values(seed)) for seed in range(3))
    at = [north]

    def connect(options: Options) -> AbstractAsyncContextManager[Connection]:
        return at[0].connect(options)

    moving = Device(
        DeviceConfig(
            connector=connect, federation="f", name="a", train=a, outbox=tmp_path / "a", on_event=below, local=OWN
        )
    )
    async with serving(root, *sites, moving, wide(north, "b", below, b), wide(south, "c", below, c)):
        await below.until(lambda: a.began_with(mean_of([a.head, b.head], robust=False)))
        at[0] = south
        moving.hang_up()
        await below.until(lambda: a.began_with(mean_of([a.head, c.head], robust=False)))
        at[0] = top
        moving.hang_up()
        before = len(a.began)
        await log.until(lambda: log.of("update", device="a", verdict="accepted"))
        await below.until(lambda: any(np.array_equal(each, a.head) for each in a.began[before:]))
    assert not log.of("update", verdict="bad_encoding")


async def test_each_sites_evaluation_is_shown_at_the_root_with_its_spread(tmp_path: Path) -> None:
    top, log, below = Twin(), Log(), Log()
    plan = Plan(codec="float32", evaluate=0.001)
    root = root_of(top, tmp_path / "root", log, strategy=replace(STRATEGY, plan=plan))
    twins = {"north": Twin(), "south": Twin(), "east": Twin()}
    sites = [gateway(top, twin, f"site-{name}", tmp_path / name, below) for name, twin in twins.items()]
    scores = {"a": ("north", 10, 0.5), "b": ("north", 30, 0.9), "c": ("south", 5, 0.2), "d": ("east", 5, 0.6)}

    def score(rows: int, accuracy: float) -> Any:
        return lambda _parameters: Scores(rows, {"accuracy": accuracy})

    devices = [
        wide(twins[place], name, below, Trainer(values(1)), evaluate=score(rows, accuracy))
        for name, (place, rows, accuracy) in scores.items()
    ]

    def reported() -> dict[str, tuple[int, float]]:
        found = {name: root.federation.reports.newest(f"site-{name}") for name in twins} if root.open_now else {}
        return {name: (each.devices, round(each.metrics["accuracy"], 6)) for name, each in found.items() if each}

    expected = {"north": (2, 0.8), "south": (1, 0.2), "east": (1, 0.6)}
    async with serving(root, *sites, *devices):
        await log.until(lambda: reported() == expected)
        found = await status._described(top.connect, TOPICS, argparse.Namespace(until=None))
        (gauge,) = (metric for metric in Exposition(root).collect() if metric.name == "midge_sites")
        scraped = {sample.labels["of"]: sample.value for sample in gauge.samples}
    assert found["devices"]["site-north"]["reported"] == 2
    assert found["sites"] == {"accuracy": {"least": 0.2, "median": 0.6, "largest": 0.8, "sites": 3}}
    assert scraped == found["sites"]["accuracy"]
    assert root.federation.reports.devices == 4
    text = list(status.lines(found))
    assert "sites       accuracy: least 0.2, median 0.6, largest 0.8, over 3 sites" in text
    assert any("accuracy 0.8 over 2 devices" in line for line in text)


def test_a_device_that_is_no_site_reports_for_itself_only(root: Rig) -> None:
    report = Report(lineage=root.core.lineage, version=1, examples=1, metrics={"accuracy": 1.0}, devices=9)
    root.hear((TOPICS.report("a"), frames.encode(report)))
    assert root.observed.reports.sites() == {}
    assert root.observed.reports.devices == 1
