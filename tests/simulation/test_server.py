"""The aggregator on virtual time takes what devices send in production: offers, chunks, statistics and fetches."""

from typing import Any

import numpy as np

from midge.aggregator.core.presets import fedasync
from midge.aggregator.core.staleness import constant
from midge.aggregator.ingress.reassembly import DISPLACED
from midge.sensor_fleet.simulation.clock import Clock
from midge.sensor_fleet.simulation.encoding import DecodedUpdate
from midge.sensor_fleet.simulation.publisher import PublishedVersion
from midge.sensor_fleet.simulation.server import Server
from midge.sensor_fleet.simulation.server_setup import DeviceCalls, ServerSetup
from midge.wire.messages import Chunk, Fetch, Grant, Moment, Settled, Statistics, Update, Verdict
from midge.wire.moments import Moments
from midge.wire.schema import Schema

CHUNK = 8
STRATEGY = fedasync(1.0, constant(), norm_limit=None, release_floor=1, form="delta", bounded=False, byte_rate=0.0)


class Fleet:
    """What the devices of a test are told."""

    def __init__(self, initial: dict[str, Any], **arguments: Any) -> None:
        self.replies: list[tuple[str, int, tuple[Settled, ...]]] = []
        self.grants: list[Grant] = []
        self.fetched: list[Fetch] = []
        self.versions: list[PublishedVersion] = []
        self.troubles: list[tuple[str, str]] = []
        schema = Schema.of(initial, arguments.pop("roles", None))
        self.server = Server(
            Clock(),
            ServerSetup(
                strategy=STRATEGY,
                initial=initial,
                schema=schema,
                seed=0,
                places={"a": 0, "b": 1},
                framed=True,
                **arguments,
            ),
            DeviceCalls(
                reply=lambda device, _, hi, settled: self.replies.append((device, hi, settled)),
                released=self.versions.append,
                granted=lambda _device, _outbox, _hi, grant: self.grants.append(grant),
                republished=self.fetched.append,
                trouble=lambda device, trouble: self.troubles.append((device, trouble.why)),
            ),
        )
        self.server.start()

    def update(self, **fields: Any) -> Update:
        core = self.server.core
        size = 4 * self.server.model.schema.size
        header = {"outbox": 1, "first": 1, "seq": 1, "base": core.version, "codec": "float32", "size": size}
        known = {"lineage": core.lineage, "generation": core.generation, "schema_hash": core.schema_hash}
        return Update(**{**header, **known, "sha256": bytes(16), **fields})


def decoded(values: int) -> DecodedUpdate:
    delta = np.ones(values, np.float32)
    return DecodedUpdate(delta=delta, norm=float(np.linalg.norm(delta)), size=4 * values, codec="float32")


def test_an_update_comes_in_chunks_by_windows_and_counts_once() -> None:
    fleet = Fleet({"x": np.zeros(24, np.float32)}, chunk=CHUNK)
    offer = fleet.update(kind="offer", parts=12)
    fleet.server.offered("a", offer, decoded(24))
    for part in range(12):
        (*_, grant) = fleet.grants
        assert part in grant.parts
        fleet.server.chunk("a", Chunk(outbox=1, first=1, seq=1, part=part))
    assert [grant.parts for grant in fleet.grants] == [tuple(range(8)), tuple(range(8, 12))]
    assert [(hi, settled[0].verdict) for _, hi, settled in fleet.replies] == [(1, Verdict.ACCEPTED)]
    np.testing.assert_array_equal(fleet.server.model.x, np.ones(24, np.float32))
    fleet.server.offered("a", offer, decoded(24))
    assert fleet.replies[-1][2][0].repeat
    np.testing.assert_array_equal(fleet.server.model.x, np.ones(24, np.float32))


def test_an_offer_beyond_the_memory_is_told_to_come_again() -> None:
    fleet = Fleet({"x": np.zeros(24, np.float32)}, chunk=CHUNK, memory=64)
    fleet.server.offered("a", fleet.update(kind="offer", parts=12), decoded(24))
    ((_, hi, (settled,)),) = fleet.replies
    assert (hi, settled.verdict, settled.retry_after > 0) == (0, Verdict.BUSY, True)


def test_a_device_whose_half_update_makes_room_for_another_is_told() -> None:
    """Seen to fail: the simulation dropped it without a word, where production says why."""
    fleet = Fleet({"x": np.zeros(24, np.float32)}, chunk=CHUNK, memory=3000)
    offer = fleet.update(kind="offer", parts=12)
    fleet.server.offered("a", offer, decoded(24))
    fleet.server._clock.now = 1000.0  # too slow: nothing of it has come
    fleet.server.offered("b", offer, decoded(24))
    assert len(fleet.grants) == 2 and fleet.troubles == [("a", DISPLACED)]
    fleet.server._clock.now = 2000.0
    fleet.server.offered("a", offer, decoded(24))
    assert fleet.troubles == [("a", DISPLACED), ("b", DISPLACED)]


def test_an_encoder_that_piles_up_what_it_leaves_out_is_told_so_not_more_often_than_every_ten_seconds() -> None:
    fleet = Fleet({"x": np.zeros(24, np.float32)})
    for number in range(1, 16):
        fleet.server._clock.now += 6.0
        delta = np.full(24, 2.0**number, np.float32)
        grown = DecodedUpdate(delta=delta, norm=float(np.linalg.norm(delta)), size=96, codec="uq:4|rice")
        fleet.server.arrived("a", fleet.update(seq=number, codec="uq:4|rice"), grown)
    doubts = [why for device, why in fleet.troubles if device == "a" and why.startswith("its updates grow")]
    assert len(doubts) == len(fleet.troubles) == 4  # of the ninth to the fifteenth update, each second one


def test_statistics_of_two_devices_begin_the_training() -> None:
    roles = {"i_mean": "frozen", "i_scale": "frozen"}
    initial = {"x": np.zeros(4, np.float32), "i_mean": np.zeros(1, np.float32), "i_scale": np.ones(1, np.float32)}
    fleet = Fleet(initial, roles=roles, moments=(Moment(name="i", channels=1),), statistics_devices=2)
    server = fleet.server
    for device, values in (("a", [1.0, 3.0] * 10), ("b", [5.0, 7.0] * 10)):
        assert server.core.version == 0
        moments = Moments.of([[value] for value in values])
        server.statistics(device, Statistics(lineage=server.core.lineage, names=(("i", 1),)), moments.to_bytes())
    assert server.core.version == 1
    assert fleet.versions[-1].announcement.phase == "training"
    np.testing.assert_allclose(server.serving()["i_mean"], [4.0])


def test_a_device_that_lacks_chunks_is_heard() -> None:
    fleet = Fleet({"x": np.zeros(4, np.float32)})
    fetch = Fetch(outbox=1, lineage=fleet.server.core.lineage, version=1, span=0, parts=(0,))
    fleet.server.fetch_asked("a", fetch)
    assert fleet.fetched == [fetch]
