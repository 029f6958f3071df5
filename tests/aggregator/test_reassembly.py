"""Updates that come in chunks: over breaking links, from many at once, and never more than there is room for."""

import os
from pathlib import Path

import numpy as np
import pytest

from midge.wire import chunks, frames, messages
from midge.wire.messages import Chunk, Receipt, Update, Verdict
from tests.aggregator.rig import TOPICS, Rig, rig

SIZE = 4000
MODEL = {"x": np.zeros(SIZE // 4, np.float32)}
ONES = np.ones(SIZE // 4, np.float32)


class Sender:
    """A device's side of an update in chunks."""

    def __init__(self, life: Rig, device: str = "a", *, parts: int = 4, **fields: object) -> None:
        self.life, self.device, self.parts = life, device, parts
        _, whole = life.update(device, 1, ONES)
        update, body = messages.decode_update(whole)
        assert isinstance(update, Update)
        self.update = update.model_copy(update={"kind": "offer", "parts": parts, **fields})
        self.body = bytes(body)

    def offer(self, now: float = 0.0) -> Receipt:
        (receipt,) = self.life.hear((TOPICS.update(self.device), frames.encode(self.update)), now=now)
        return receipt

    def chunk(self, part: int, body: bytes | None = None) -> tuple[str, bytes]:
        cut = list(chunks.cut(self.body, -(-SIZE // self.parts)))
        header = Chunk(outbox=self.update.outbox, first=1, seq=self.update.seq, part=part)
        return TOPICS.update(self.device), frames.encode(header, cut[part] if body is None else body)

    def send(self, *parts: int) -> list[Receipt]:
        return self.life.hear(*[self.chunk(part) for part in parts])


def granted(receipt: Receipt) -> tuple[int, ...]:
    (grant,) = receipt.grants
    return grant.parts


def verdict(receipts: list[Receipt]) -> Verdict:
    ((settled,),) = [receipt.settled for receipt in receipts]
    return settled.verdict


def test_chunks_come_in_any_order_and_twice(tmp_path: Path) -> None:
    with rig(tmp_path, parameters=MODEL) as life:
        sender = Sender(life)
        assert granted(sender.offer()) == (0, 1, 2, 3)
        assert sender.send(3, 1, 1) == []
        assert verdict(sender.send(0, 2, 2)) is Verdict.ACCEPTED
        np.testing.assert_array_equal(life.model.x, ONES)
        assert sender.offer().settled[0].repeat


def test_what_is_missing_is_granted_again(tmp_path: Path) -> None:
    with rig(tmp_path, parameters=MODEL) as life:
        sender = Sender(life)
        sender.offer()
        sender.send(0, 2)
        assert granted(sender.offer()) == (1, 3)


def test_a_window_is_granted_when_the_one_before_is_here(tmp_path: Path) -> None:
    with rig(tmp_path, parameters=MODEL) as life:
        sender = Sender(life, parts=20)
        assert granted(sender.offer()) == tuple(range(8))
        assert sender.send(*range(7)) == []
        (further,) = sender.send(7)
        assert granted(further) == tuple(range(8, 16))


def test_what_came_whole_within_a_batch_is_not_granted_again(tmp_path: Path) -> None:
    """Seen to fail: the window that was due made room a second time, and held it until the device's patience ended."""
    with rig(tmp_path, parameters=MODEL) as life:
        sender = Sender(life, parts=9)
        assert granted(sender.offer()) == tuple(range(8))
        (receipt,) = sender.send(*range(9))
        assert [settled.verdict for settled in receipt.settled] == [Verdict.ACCEPTED]
        assert receipt.grants == ()
        assert not life.ingress.reassembler._assembling


def test_after_a_restart_in_the_middle_the_device_begins_again(tmp_path: Path) -> None:
    with rig(tmp_path, parameters=MODEL) as life:
        sender = Sender(life)
        sender.offer()
        sender.send(0, 1, 2)
    with rig(tmp_path, parameters=MODEL) as life:
        sender.life = life
        assert sender.send(3) == []
        assert granted(sender.offer()) == (0, 1, 2, 3)
        assert verdict(sender.send(0, 1, 2, 3)) is Verdict.ACCEPTED
        np.testing.assert_array_equal(life.model.x, ONES)


def test_a_device_may_cut_it_otherwise_over_another_link(tmp_path: Path) -> None:
    with rig(tmp_path, parameters=MODEL) as life:
        first = Sender(life)
        first.offer()
        first.send(0)
        then = Sender(life, parts=8)
        assert granted(then.offer()) == tuple(range(8))
        assert verdict(then.send(*range(8))) is Verdict.ACCEPTED


def test_a_body_that_is_not_what_was_offered_is_refused(tmp_path: Path) -> None:
    with rig(tmp_path, parameters=MODEL) as life:
        sender = Sender(life, sha256=bytes(32))
        sender.offer()
        assert verdict(sender.send(0, 1, 2, 3)) is Verdict.BAD_ENCODING


@pytest.mark.parametrize("parts", [2, 3999])
def test_chunks_of_another_size_than_ours_are_told(tmp_path: Path, parts: int) -> None:
    with rig(tmp_path, parameters=MODEL) as life:
        receipt = Sender(life, parts=parts).offer()
        assert [settled.verdict for settled in receipt.settled] == [Verdict.BUSY]
        assert receipt.hi == 0


def test_no_more_is_taken_than_there_is_room_for(tmp_path: Path) -> None:
    with rig(tmp_path, parameters=MODEL, memory=2 * SIZE) as life:
        senders = [Sender(life, device) for device in "abc"]
        for sender in senders[:2]:
            sender.offer()
        (settled,) = senders[2].offer().settled
        assert (settled.verdict, settled.retry_after > 0) == (Verdict.BUSY, True)
        assert granted(senders[0].offer(now=100.0))
        assert granted(senders[2].offer(now=130.0)), "b fell silent, and made room"
        assert senders[1].send(0) == []


def begun(life: Rig, names: str, parts: int = 16) -> list[Sender]:
    """Devices of which a chunk has come."""
    senders = [Sender(life, device, parts=parts) for device in names]
    for sender in senders:
        if sender.offer().grants:
            sender.send(0)
    return senders


def test_who_keeps_half_an_update_alive_makes_room_for_who_sends(tmp_path: Path) -> None:
    """Seen to fail: a chunk a minute, the same one, held a body's room for ever, and an honest device was `busy`."""
    with rig(tmp_path, parameters=MODEL, memory=2 * SIZE) as life:
        idle = begun(life, "abcdefgh")
        honest = Sender(life, "honest", parts=16)
        assert honest.offer(now=1.0).settled[0].verdict is Verdict.BUSY
        for minute in (60.0, 120.0):
            for sender in idle:
                life.hear(sender.chunk(0), now=minute)
        assert granted(honest.offer(now=121.0)) == tuple(range(8))
        (receipt,) = life.hear(*map(honest.chunk, range(8)), now=122.0)
        assert granted(receipt) == tuple(range(8, 16))
        assert verdict(life.hear(*map(honest.chunk, range(8, 16)), now=123.0)) is Verdict.ACCEPTED


def test_what_is_coming_is_not_given_up_for_another(tmp_path: Path) -> None:
    with rig(tmp_path, parameters=MODEL, memory=2 * SIZE) as life:
        fast = begun(life, "ab")
        for sender in fast:
            life.hear(*map(sender.chunk, range(8)), now=5.0)  # now all of the room is theirs
        assert Sender(life, "c").offer(now=20.0).settled[0].verdict is Verdict.BUSY
        for sender in fast:
            assert verdict(life.hear(*map(sender.chunk, range(8, 16)), now=30.0)) is Verdict.ACCEPTED


def test_a_device_that_is_known_has_room_whoever_else_begins(tmp_path: Path) -> None:
    with rig(tmp_path, parameters=MODEL, memory=2 * SIZE) as life:
        known = Sender(life, "known", parts=16)
        known.offer()
        life.hear(*map(known.chunk, range(8)))
        assert verdict(life.hear(*map(known.chunk, range(8, 16)))) is Verdict.ACCEPTED
        known.update = known.update.model_copy(update={"seq": 2})
        begun(life, "abcdefgh")
        assert granted(known.offer(now=1.0)) == tuple(range(8))


def test_an_offer_takes_memory_for_what_has_come(tmp_path: Path) -> None:
    """Seen to fail: 36 offers with a chunk each took a gigabyte."""
    size = 2**24
    assembly = chunks.Assembly(size, size // 16, bytes(16), limit=size)
    before = resident()
    assembly.add(3, bytes(size // 16))
    assert resident() - before < size // 4


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_an_update_larger_than_the_model_is_refused_before_a_byte_of_it_is_kept(tmp_path: Path) -> None:
    with rig(tmp_path, parameters=MODEL, memory=2**40) as life:
        (settled,) = Sender(life, size=2 * SIZE, parts=8).offer().settled
        assert settled.verdict is Verdict.TOO_LARGE


def test_what_is_malformed_is_counted_and_harms_nobody(tmp_path: Path) -> None:
    with rig(tmp_path, parameters=MODEL) as life:
        sender = Sender(life)
        sender.offer()
        topic = TOPICS.update("a")
        strays = [(topic, b""), (topic, b"\x00\x00"), (topic, frames.encode({"kind": "prophecy"})), ("elsewhere", b"")]
        assert life.hear(*strays, sender.chunk(0, b"short"), ("midge/1/f/update/99/a", b"")) == []
        assert len([event for event, _ in life.told if event == "dropped"]) == 6
        assert verdict(sender.send(0, 1, 2, 3)) is Verdict.ACCEPTED
