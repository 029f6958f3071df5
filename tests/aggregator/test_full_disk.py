"""A full disk: nothing is receipted that is not written, everything stays with its device, and it goes on by itself."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from midge.aggregator.config import CHECKPOINT_RECORDS, AggregatorConfig
from midge.aggregator.core.strategy import Strategy
from midge.aggregator.federation import FederationRuntime
from midge.aggregator.publish.outlet import Outlet
from midge.aggregator.publish.publish_queue import Post
from midge.aggregator.store.store import RESERVED, Store, StoreFull
from midge.broker.embedded.in_memory import Twin
from midge.broker.mqtt.connection import Delivery
from midge.wire.messages import Receipt, Verdict
from tests import needs
from tests.aggregator.rig import EVERYTHING_COUNTS, TOPICS, Rig, receipts
from tests.harness.disk import SmallDisk

SIZE = 4


class Life(Rig):
    """A whole federation in place of the bare processor."""

    def __init__(self, store: Store, records: int = CHECKPOINT_RECORDS, strategy: Strategy = EVERYTHING_COUNTS) -> None:
        self.posts: list[Post] = []
        self.put = self.posts.append
        self.told: list[tuple[str, dict[str, Any]]] = []
        config = AggregatorConfig(
            connector=Twin().connect,
            federation=TOPICS.federation,
            initial={"x": np.zeros(SIZE, np.float32)},
            store=store.directory,
            strategy=strategy,
            chunk=1024,
            memory=2**20,
            checkpoint_records=records,
        )
        self.federation = FederationRuntime(config, Outlet(self.put, self.tell), 0, store=store)
        self.look()

    def look(self) -> None:
        found = self.federation
        self.core, self.engine, self.store = found.core, found.engine, found.store

    def hear(self, *messages: tuple[str, bytes], now: float = 0.0, retain: bool = False) -> list[Receipt]:
        before = len(self.posts)
        self.federation.process([Delivery(topic, payload, 1, retain) for topic, payload in messages], now)
        self.look()
        return receipts(self.posts[before:])


class Filling(Store):
    """A store whose disk is full from the n-th transaction on, for as long as a test says so."""

    left = 10**9

    @contextmanager
    def _writing(self) -> Iterator[Any]:
        self.left -= 1
        if self.left < 0:
            raise StoreFull("full")
        with super()._writing() as db:
            yield db

    def has_room(self) -> bool:
        return self.left > 0


def one_hot(seq: int) -> list[float]:
    return [float(place == seq % SIZE) for place in range(SIZE)]


@pytest.mark.parametrize("good", range(12))
def test_a_disk_that_is_full_from_any_write_on_loses_and_doubles_nothing(tmp_path: Path, good: int) -> None:
    store = Filling(tmp_path)
    life = Life(store)
    life.federation.begin(0)
    store.left = good
    accepted: dict[int, bool] = {}
    now = 0.0
    for turn in range(40):
        if turn == 20:
            store.left = 10**9
        now += 3
        seq = len(accepted) + 1
        for receipt in life.hear(life.update("a", seq, one_hot(seq), base=1), now=now):
            for settled in receipt.settled:
                assert settled.verdict in (Verdict.ACCEPTED, Verdict.BUSY)
                if settled.verdict is Verdict.ACCEPTED:
                    assert settled.seq == seq
                    accepted[seq] = True
    expected = np.sum([one_hot(seq) for seq in accepted], axis=0, dtype=np.float32)
    np.testing.assert_array_equal(life.model.x, expected)
    assert len(accepted) >= 15, "it goes on by itself once there is room"
    digest = life.model.digest()
    life.federation.close(failed=True)
    again = Life(Store(tmp_path))
    assert again.model.digest() == digest
    again.federation.close()


@contextmanager
def small_disk(directory: Path, size: int) -> Iterator[Path]:
    try:
        disk = SmallDisk(directory, size)
    except OSError:
        pytest.skip(needs.MOUNTS)
    try:
        yield directory
    finally:
        disk.close()


def test_a_really_full_disk(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", RESERVED + 2**21) as disk:
        life = Life(Store(disk / "store"))
        life.federation.begin(0)
        accepted: list[int] = []
        with (disk / "rubbish").open("wb", buffering=0) as rubbish:  # somebody else fills it
            while True:
                try:
                    rubbish.write(bytes(4096))
                except OSError:
                    break
        verdicts = []
        for turn in range(400):
            if turn == 300:
                (disk / "rubbish").unlink()
            seq = len(accepted) + 1
            (receipt,) = life.hear(life.update("a", seq, one_hot(seq), base=1), now=turn)
            (settled,) = receipt.settled
            verdicts.append(settled.verdict)
            if settled.verdict is Verdict.ACCEPTED:
                accepted.append(seq)
        assert Verdict.BUSY in verdicts
        assert verdicts[-1] is Verdict.ACCEPTED
        events = [event for event, _ in life.told if event in ("full", "room")]
        assert events == ["full", "room"], "seen to fail: room of its own reserve, six times before there was any"
        expected = np.sum([one_hot(seq) for seq in accepted], axis=0, dtype=np.float32)
        np.testing.assert_array_equal(life.model.x, expected)
        life.federation.close()
        again = Life(Store(disk / "store"))
        np.testing.assert_array_equal(again.model.x, expected)
        again.federation.close()


def test_a_store_that_is_first_opened_on_a_full_disk_says_so(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 2**16) as disk:
        store = Store(disk)
        with (disk / "rubbish").open("wb", buffering=0) as rubbish, suppress(OSError):
            while True:
                rubbish.write(bytes(4096))
        with pytest.raises(StoreFull, match="is full"), store:
            pass
