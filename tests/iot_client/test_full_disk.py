"""A full disk on the device: what is not stored is not sent, what is settled is forgotten, and it goes on by itself."""

from pathlib import Path

import pytest

from midge.iot_client.session import events as ev
from midge.iot_client.session import session as s
from midge.iot_client.state.outbox import RESERVED, Outbox, OutboxFull
from midge.wire.messages import Announcement, Update
from tests.aggregator.test_full_disk import small_disk


def update(seq: int, size: int) -> Update:
    return Update(
        outbox=1, first=1, seq=seq, lineage=b"l" * 16, generation=0, base=1, schema_hash=b"s" * 16,
        codec="float32", size=size, sha256=b"d" * 32,
    )  # fmt: skip


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as rubbish:
        for size in (65536, 4096, 1):
            try:
                while True:
                    rubbish.write(bytes(size))
            except OSError:
                continue


def test_an_outbox_on_a_full_disk_refuses_forgets_and_goes_on(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", RESERVED + 2**20) as disk:
        with Outbox(disk / "a.outbox") as outbox:
            outbox.store(update(1, 50_000), bytes(50_000))
            outbox.store(update(2, 10), bytes(10))
            fill(disk / "rubbish")
            with pytest.raises(OutboxFull, match="is full"):  # noqa: PT012 - SQLite has some room left at first
                while True:
                    outbox.store(update(outbox.next_seq, 50_000), bytes(50_000))
            seq = outbox.next_seq
            assert [held.seq for held in outbox.held()] == list(range(1, seq))
            outbox.forget(1)
            assert [held.seq for held in outbox.held()] == list(range(2, seq))
            (disk / "rubbish").unlink()
            outbox.store(update(seq, 50_000), bytes(50_000))
        with Outbox(disk / "a.outbox") as again:
            assert [held.seq for held in again.held()] == list(range(2, seq + 1))
            assert (disk / "a.outbox.lock").stat().st_size == RESERVED


def test_an_outbox_that_is_first_opened_on_a_full_disk_says_so_and_opens_later(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 2**18) as disk:
        fill(disk / "rubbish")
        with pytest.raises(OutboxFull, match="is full"), Outbox(disk / "a.outbox"):
            pass
        (disk / "rubbish").unlink()
        with Outbox(disk / "a.outbox") as outbox:
            assert outbox.next_seq == 1


def test_a_session_whose_update_was_not_stored_uses_its_seq_again_and_waits() -> None:
    session = s.DeviceSession("a", 1, [], 1, lambda: 0.5)
    session._cycle.work = s.Work.TRAINING
    session._cycle.target = Announcement(
        federation="f", lineage=b"l" * 16, generation=0, version=1, step=0, phase="training",
        schema_hash=b"s" * 16, digest=b"d" * 16,
    )  # fmt: skip
    (store,) = session.handle(ev.Trained(update(1, 10), 7), 0.0)
    assert isinstance(store, ev.StoreUpdate) and store.update.seq == 1
    session.handle(ev.NotStored(), 0.0)
    assert (session.next, session.holding) == (1, 0)
    assert session._cycle.disk_full.due == 30.0
    session.tick(31.0)
    assert session._cycle.disk_full.due is None
