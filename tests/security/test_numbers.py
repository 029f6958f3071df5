"""Numbers from outside: none stops a process, and none in the journal keeps a store from opening again."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from midge.aggregator.config import AggregatorConfig
from midge.aggregator.core import records as rec
from midge.aggregator.core.presets import fedasync
from midge.aggregator.federation import FederationRuntime
from midge.aggregator.publish.outlet import Outlet
from midge.aggregator.service import ForeignFederation
from midge.aggregator.store.store import Entry, Store
from midge.broker.embedded.in_memory import Twin
from midge.broker.mqtt.connection import Delivery, Options
from midge.wire import frames, messages
from midge.wire.messages import Announcement, DeviceState, Hello, Report, Statistics
from midge.wire.moments import MAX_COUNT, MAX_VALUE, Moments
from midge.wire.topics import Topics
from tests.aggregator.rig import update_of
from tests.federation.live import INITIAL, STRATEGY, Log, aggregator, device, serving
from tests.security.keys import write_keys

TOPICS = Topics("f")
TOP, LARGEST = 2**63 - 1, sys.float_info.max
NORMALISED = {"w": np.zeros(4, np.float32), "in_mean": np.zeros(2, np.float32), "in_scale": np.ones(2, np.float32)}


class Federation:
    """One life of a whole federation without a broker: what it takes in goes the way of production."""

    def __init__(self, directory: Path, initial: dict[str, Any], **arguments: Any) -> None:
        self.told: list[tuple[str, dict[str, Any]]] = []
        config = AggregatorConfig(
            connector=Twin().connect, federation="f", store=directory, initial=initial, **arguments
        )
        outlet = Outlet(lambda _post: None, lambda event, **fields: self.told.append((event, fields)))
        self.runtime = FederationRuntime(config, outlet, 0.0)
        self.runtime.begin(0.0)

    def hear(self, topic: str, payload: bytes, now: float = 1.0) -> None:
        self.runtime.process([Delivery(topic, payload, 1, False)], now)

    def update(self, name: str, seq: int, delta: Sequence[float], now: float = 1.0, **fields: Any) -> None:
        body = np.asarray(delta, "<f4").tobytes()
        self.hear(TOPICS.update(name), frames.encode(update_of(self.runtime.core, seq, body, **fields), body), now)

    def close(self) -> None:
        """As SIGKILL ends it: everything is replayed by the next life."""
        self.runtime.store.close()


def test_a_store_replays_the_most_extreme_word_of_a_device_in_every_kind_of_record(tmp_path: Path) -> None:
    """Sums of such numbers once went beyond what a checkpoint or a database can hold."""
    arguments: dict[str, Any] = {
        "strategy": replace(
            fedasync(0.5, norm_limit=None, release_floor=1, bounded=False), serve_interval=0.0, even_steps=True
        ),
        "moments": {"in": 2},
        "roles": {"in_mean": "frozen", "in_scale": "frozen"},
        "statistics_devices": 2,
        "statistics_factor": None,
    }
    life = Federation(tmp_path, NORMALISED, **arguments)
    for name, mean in (("a", MAX_VALUE / 1e10), ("b", -MAX_VALUE / 1e10)):
        count = np.full(2, MAX_COUNT)
        moments = Moments(count, np.full(2, mean), np.full(2, 1e40))
        header = Statistics(lineage=life.runtime.core.lineage, names=(("in", 2),), missing=TOP)
        life.hear(TOPICS.update(name), frames.encode(header, moments.to_bytes()))
    life.hear(TOPICS.update("a"), b"", 20.0)
    assert life.runtime.core.frozen
    extreme = {"examples": TOP, "steps": TOP, "seconds": LARGEST, "plan": 2**32 - 1, "metrics": {"loss": -LARGEST}}
    for seq in (1, 2):
        life.update("a", seq, [1, 1, 1, 1], 30.0 + seq, **extreme)
    for outbox in (TOP, TOP - 1):
        greeting = Hello(state=DeviceState.READY, outbox=outbox, first=TOP, next=TOP, wakes=LARGEST, version=TOP)
        life.hear(TOPICS.status("b"), frames.encode(greeting), 40.0)
        life.update("b", TOP, [1, 1, 1, 1], 41.0, outbox=outbox, **extreme)
        life.update("b", TOP, [1, 1, 1, 1], 41.0, outbox=outbox, base=TOP, generation=2**32 - 1, **extreme)
    report = Report(lineage=life.runtime.core.lineage, version=TOP, examples=TOP, metrics={"loss": LARGEST})
    life.hear(TOPICS.report("a"), frames.encode(report), 50.0)
    life.runtime.reports.combined()
    life.runtime.begin_generation(messages.MOST_GENERATION, messages.MOST_VERSION, 60.0)
    life.update("a", 3, [1, 1, 1, 1], 61.0, **extreme)
    kinds = {rec.kind(entry.record) for entry in life.runtime.store.entries(0)}
    assert kinds >= {"update", "step", "release", "serve", "statistics", "freeze", "generation", "strategy"}
    state, core = life.runtime.engine.model.digest(), life.runtime.core
    heard = {"accepted": core.counts["accepted"], "version": core.version, "generation": core.generation}
    life.close()
    for _ in range(2):  # by the journal, and by the checkpoint that its orderly end writes
        again = Federation(tmp_path, NORMALISED, **arguments)
        assert again.runtime.engine.model.digest() == state
        core = again.runtime.core
        found = {"accepted": core.counts["accepted"], "version": core.version, "generation": core.generation}
        assert found == heard
        again.runtime.close()


async def forge(twin: Twin, *announced: Announcement, channel: str = "train") -> None:
    async with twin.connect(Options("forger")) as forger:
        for each in announced:
            await forger.publish(f"midge/1/f/model/{channel}", messages.encode_announcement(each), retain=True)


def retained(twin: Twin) -> Announcement:
    (message,) = twin.router._retained_on(TOPICS.announcement())
    return messages.decode_announcement(message.payload)


EXTREMES: dict[str, dict[str, Any]] = {
    "version": {"version": TOP},
    "generation": {"generation": 2**32 - 1},
    "both": {"version": TOP, "generation": 2**32 - 1},
    "epoch": {"epoch": TOP},
    "issued": {"issued": LARGEST, "expires": LARGEST, "version": 10**6},
    "near the end": {"version": messages.MOST_VERSION, "generation": messages.MOST_GENERATION},
}


@pytest.mark.virtual
@pytest.mark.parametrize("lie", EXTREMES.values(), ids=EXTREMES.keys())
async def test_an_unsigned_federation_survives_a_forged_announcement_and_restarts(
    tmp_path: Path, lie: dict[str, Any]
) -> None:
    twin, log = Twin(), Log()
    async with serving(*[device(twin, name, log, tmp_path / name) for name in "ab"]):
        async with serving(aggregator(twin, tmp_path / "store", log)):
            await log.until(lambda: log.of("release", version=3))
        forged = retained(twin).model_copy(update=lie)
        for _ in range(3):
            await forge(twin, forged)
            log.events.clear()
            server = aggregator(twin, tmp_path / "store", log)
            async with serving(server):
                await log.until(lambda: len(log.of("release")) > 3)
    assert server.core.generation <= messages.MOST_GENERATION + 1


@pytest.mark.virtual
async def test_what_cannot_be_is_told(tmp_path: Path) -> None:
    twin, log = Twin(), Log()
    async with serving(device(twin, "a", log), device(twin, "b", log)):
        async with serving(aggregator(twin, tmp_path / "store", log)):
            await log.until(lambda: log.of("release", version=2))
        await forge(twin, retained(twin).model_copy(update={"version": TOP}))
        async with serving(aggregator(twin, tmp_path / "store", log)):
            await log.until(lambda: [event for event in log.of("untrusted") if "device" not in event])
            await log.until(lambda: log.of("untrusted", device="a"))
            await log.until(lambda: log.of("release", version=5))


@pytest.mark.virtual
async def test_a_device_follows_its_aggregator_again_after_a_forged_announcement(tmp_path: Path) -> None:
    """One that is far ahead, and within what is possible: it held the device until its next start."""
    twin, log = Twin(), Log()
    server = aggregator(twin, tmp_path / "store", log)
    async with serving(server, *[device(twin, name, log) for name in "ab"]):
        await log.until(lambda: log.of("release", version=2))
        await forge(twin, retained(twin).model_copy(update={"version": 10**6, "generation": 7, "frames": ()}))
        server.federation.processor.announce()
        version = server.core.version
        await log.until(lambda: server.core.version > version + 5)
    assert server.core.generation == 0


@pytest.mark.virtual
@pytest.mark.parametrize("lineage", [None, b"another" + bytes(9)])
async def test_where_we_sign_what_we_did_not_sign_is_ignored(tmp_path: Path, lineage: bytes | None) -> None:
    """A foreign lineage ended the aggregator at its next connection, whoever had said it."""
    twin, log = Twin(), Log()
    private, _ = write_keys(tmp_path)
    async with serving(aggregator(twin, tmp_path / "store", log, release_key=private)):
        await log.until(lambda: twin.router._retained_on(TOPICS.announcement()))
        forged = retained(twin).model_copy(update={"version": 10**6, **({"lineage": lineage} if lineage else {})})
    await forge(twin, forged)
    server = aggregator(twin, tmp_path / "store", log, release_key=private)
    async with serving(server):
        await log.until(lambda: log.of("untrusted"))
        await log.until(lambda: len(log.of("connected")) == 2)
        await log.until(lambda: retained(twin).lineage == server.core.lineage)
        assert server.core.generation == 0
        await forge(twin, forged)
        twin.drop(next(name for name in twin._connections if "-aggregator-" in name))
        await log.until(lambda: len(log.of("connected")) == 3)
        await log.until(lambda: retained(twin).version < 10**6)


@pytest.mark.virtual
async def test_a_running_aggregator_without_keys_is_not_ended_by_a_foreign_announcement(tmp_path: Path) -> None:
    twin, log = Twin(), Log()
    server = aggregator(twin, tmp_path / "store", log)
    async with serving(server):
        await log.until(lambda: log.of("connected"))
        await log.until(lambda: twin.router._retained_on(TOPICS.announcement()))
        forged = retained(twin).model_copy(update={"lineage": b"another" + bytes(9)})
        await forge(twin, forged)
        twin.drop(next(name for name in twin._connections if "-aggregator-" in name))
        await log.until(lambda: len(log.of("connected")) == 2)
        await log.until(lambda: retained(twin).lineage == server.core.lineage)
    await forge(twin, forged)
    with pytest.raises(ForeignFederation, match="--replace"):  # but at a start it may be another store's
        await aggregator(twin, tmp_path / "store", log).serve()


@pytest.mark.parametrize(
    ("generation", "version"), [(1, TOP), (2**32, 3), (2**32, TOP)], ids=["version", "generation", "both"]
)
def test_a_store_that_a_forged_announcement_had_closed_opens(tmp_path: Path, generation: int, version: int) -> None:
    life = Federation(tmp_path, INITIAL, strategy=STRATEGY)
    core, store = life.runtime.core, life.runtime.store
    step = core.step
    store.commit(
        [
            Entry(rec.GenerationRecord(core.lsn + 1, generation, version), None),
            Entry(rec.ReleaseRecord(core.lsn + 2, version + 1, step, 0), None),
        ]
    )
    life.close()
    for _ in range(2):
        again = Federation(tmp_path, INITIAL, strategy=STRATEGY)
        assert messages.possible(again.runtime.core.generation, again.runtime.core.version)
        assert (again.runtime.core.generation, again.runtime.core.version) > (0, 1)
        assert again.runtime.shelf.announcement().payload
        again.runtime.close()
    with Store(tmp_path) as store:
        assert store.newest_lsn() > 2
