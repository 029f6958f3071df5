"""What a device follows: nothing forged, older, expired or mixed, across restarts and whatever its clock says."""

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from midge.aggregator.publish.announcement_signer import AnnouncementSigner, ReleaseKeys
from midge.iot_client.session.trust import EVERY, Trust, Untrusted
from midge.wire import envelopes, frames, messages, signing
from midge.wire.errors import WireError
from midge.wire.messages import Envelope, Receipt, Settled, Succession, Verdict
from midge.wire.signing import BadSignature
from midge.wire.topics import Topics
from tests.security.keys import Clock, announced, issuer

KEY, OTHER = signing.new_key(), signing.new_key()
NOW = 1_000_000.0


def trust(remembered: bytes | None = None, *, key: signing.PrivateKey = KEY, device: str = "a") -> Trust:
    return Trust([key.public], "f", device, remembered)


def signed(version: int = 1, key: signing.PrivateKey = KEY, at: float = NOW, epoch: int = 5, **fields: Any) -> bytes:
    """As an aggregator with this key says it at a time."""
    announcement = announced(version, **fields)
    return issuer(key, Clock(at), epoch=epoch).announcement(announcement)


def at_version(version: int) -> Trust:
    device = trust()
    device.announcement(signed(version), NOW, 0.0)
    return device


def test_what_is_signed_and_newer_is_followed() -> None:
    device = at_version(4)
    for version in (4, 5, 9):
        assert device.announcement(signed(version), NOW, 1.0).version == version
    assert device.announcement(signed(1, generation=1), NOW, 1.0).generation == 1


def changed(payload: bytes, **fields: Any) -> bytes:
    envelope, _ = messages.decode(Envelope, payload)
    return frames.encode(envelope.model_copy(update=fields))


def body_of(payload: bytes) -> bytes:
    return messages.decode(Envelope, payload)[0].body


FORGED = {
    "unsigned": messages.encode_announcement(announced(6)),
    "by another key": signed(6, OTHER),
    "another body under our signature": changed(signed(6), body=body_of(signed(7))),
    "one byte more": changed(signed(6), body=body_of(signed(6)) + b"\0"),
    "the other key's signature under our name": changed(
        signed(6), signatures=((KEY.public.id, OTHER.sign(signing.ANNOUNCEMENT, "f", body_of(signed(6)))),)
    ),
    "a signature for another purpose": changed(
        signed(6), signatures=((KEY.public.id, KEY.sign(signing.RECEIPT, "f", body_of(signed(6)))),)
    ),
    "signatures that are none": changed(signed(6), signatures=(1, b"", (), (KEY.public.id,), (KEY.public.id, 3))),
    "a chain that another key made": changed(
        signed(6, OTHER),
        chain=(
            envelopes.sign_succession(OTHER, Succession(federation="f", number=1, key=OTHER.public.raw, since=0.0)),
        ),
    ),
    "of another federation": AnnouncementSigner(Topics("g"), ReleaseKeys(((0.0, KEY),)), clock=Clock(NOW)).announcement(
        announced(6)
    ),
    "of another federation, said of ours": envelopes.sign_announcement(KEY, "f", announced(6, federation="g")),
    "of the other channel": signed(6, channel="serve"),
}


@pytest.mark.parametrize("payload", FORGED.values(), ids=FORGED.keys())
def test_what_is_forged_is_refused_and_changes_nothing(payload: bytes) -> None:
    device = at_version(5)
    before = device.packed()
    with pytest.raises((BadSignature, Untrusted)):
        device.announcement(payload, NOW, 1.0)
    assert device.packed() == before


REPLAYED = {
    "an older version": signed(4),
    "another model under the same version": signed(5, digest=bytes(16)),
    "a version that does not follow on ours": envelopes.sign_announcement(
        KEY, "f", announced(6, epoch=5, parent=b"x" * 16)
    ),
    "an older generation": signed(9, generation=0),
    "an older epoch": signed(9, epoch=4, generation=2),
    "another lineage in this epoch": signed(9, lineage=b"o" * 16, generation=2),
}


@pytest.mark.parametrize("payload", REPLAYED.values(), ids=REPLAYED.keys())
def test_what_was_signed_once_is_no_way_back(payload: bytes) -> None:
    device = trust()
    generation = 1 if payload is REPLAYED["an older generation"] else 0
    device.announcement(signed(5, generation=generation), NOW, 0.0)
    for again in (device, trust(device.packed())):
        before = again.packed()
        with pytest.raises(Untrusted):
            again.announcement(payload, NOW, 1.0)
        assert again.packed() == before


def test_a_higher_epoch_leads_back_and_to_other_lineages_once() -> None:
    device = at_version(9)
    assert device.announcement(signed(2, epoch=6, lineage=b"o" * 16), NOW, 1.0).version == 2
    with pytest.raises(Untrusted):
        device.announcement(signed(10), NOW, 1.0)


def test_what_has_expired_is_refused() -> None:
    device = trust()
    device.announcement(signed(5), NOW + 999, 0.0)
    with pytest.raises(Untrusted, match="expired"):
        device.announcement(signed(5), NOW + 1001, 1.0)


def test_a_clock_of_1970_is_taken_for_no_earlier_than_what_was_verified() -> None:
    """Without that, a board without a battery would follow the last day's announcement for ever."""
    device = at_version(5)
    again = trust(device.packed())
    with pytest.raises(Untrusted, match="expired"):
        again.announcement(signed(6, at=NOW - 2000), 100.0, 0.0)
    assert again.announcement(signed(5), 100.0, 10.0).version == 5
    with pytest.raises(Untrusted, match="expired"):
        again.announcement(signed(5), 200.0, 10.0 + 1001.0)


def test_a_device_without_a_key_takes_what_comes() -> None:
    device = Trust([], "f", "a")
    for payload in (messages.encode_announcement(announced(6)), signed(3, OTHER)):
        assert device.announcement(payload, NOW, 0.0).version in (6, 3)
    assert not device.unwritten


def test_another_pinned_key_begins_anew() -> None:
    device = Trust([OTHER.public], "f", "a", at_version(9).packed())
    assert device.announcement(signed(1, OTHER), NOW, 0.0).version == 1


# ------------------------------------------------------------------------ keys


def succession(*since: float) -> tuple[list[signing.PrivateKey], list[bytes], ReleaseKeys]:
    keys = [KEY, *(signing.new_key() for _ in since)]
    chain = [
        envelopes.sign_succession(old, Succession(federation="f", number=number, key=new.public.raw, since=when))
        for number, (old, new, when) in enumerate(zip(keys, keys[1:], since, strict=False), start=1)
    ]
    release = ReleaseKeys(tuple(zip((0.0, *since), keys, strict=True)), tuple(chain), tuple(since))
    return keys, chain, release


def said(release: ReleaseKeys, version: int, at: float) -> bytes:
    made = AnnouncementSigner(Topics("f"), release, lifetime=10_000, clock=Clock(at))
    made.epoch = 5
    return made.announcement(announced(version))


def test_a_device_follows_the_chain_of_keys_and_never_back() -> None:
    keys, _, release = succession(NOW + 10, NOW + 20)
    device = trust()
    for version, at, number in ((1, NOW, 0), (2, NOW + 9, 0), (3, NOW + 10, 1), (4, NOW + 25, 2)):
        device.announcement(said(release, version, at), NOW, 1.0)
        assert device.newest.number == number
        assert device.newest.keys == (keys[number].public.raw,)
    for stolen in keys[:2]:
        for later in (device, trust(device.packed())):
            with pytest.raises(BadSignature):
                later.announcement(signed(9, stolen, at=NOW + 30), NOW, 1.0)
    for late in (trust(), trust(device.packed())):
        assert late.announcement(said(release, 5, NOW + 30), NOW, 1.0).version == 5


def test_the_old_key_is_refused_from_when_the_new_one_signs() -> None:
    keys, chain, _ = succession(NOW + 10)
    early = announced(9, issued=NOW + 11, expires=NOW + 1000, epoch=5)
    with pytest.raises(BadSignature):
        trust().announcement(envelopes.sign_announcement(keys[0], "f", early, chain), NOW, 1.0)


def test_a_chain_that_is_out_of_order_is_refused() -> None:
    keys, chain, _ = succession(NOW - 20, NOW - 10)
    announcement = announced(3, issued=NOW, epoch=5)
    for wrong in (chain[1:], [chain[1], chain[0]], [b"", *chain]):
        with pytest.raises(WireError):
            trust().announcement(envelopes.sign_announcement(keys[2], "f", announcement, wrong), NOW, 1.0)


# -------------------------------------------------------------------- receipts

RECEIPT = Receipt(outbox=1, hi=3, settled=(Settled(seq=3, verdict=Verdict.ACCEPTED),))


def test_a_receipt_is_believed_where_it_is_signed_for_this_device() -> None:
    payload = issuer(KEY, Clock()).receipt("a", RECEIPT)
    assert trust().read_answer(payload) == RECEIPT
    forged = {
        "for another device": issuer(KEY, Clock()).receipt("b", RECEIPT),
        "by another key": issuer(OTHER, Clock()).receipt("a", RECEIPT),
        "unsigned": frames.encode(RECEIPT),
        "changed": frames.encode(RECEIPT.model_copy(update={"hi": 9})) + payload[-64:],
        "with more behind it": payload + b"\0",
    }
    for other in forged.values():
        with pytest.raises(BadSignature):
            trust().read_answer(other)
    assert Trust([], "f", "a").read_answer(payload) == RECEIPT


# ------------------------------------------------------------------- flash wear


def test_versions_alone_are_written_every_ten_minutes_and_all_else_at_once() -> None:
    device = trust()
    device.announcement(signed(1), NOW, 0.0)
    assert device.urgent(0.0)
    device.wrote(0.0)
    for version in range(2, 100):
        device.announcement(signed(version), NOW, 1.0)
    assert device.unwritten
    assert not device.urgent(EVERY - 1)
    assert device.urgent(EVERY)
    device.wrote(EVERY)
    for fields in ({"generation": 1}, {"epoch": 6}, {"epoch": 7, "lineage": b"o" * 16}):
        device.announcement(signed(200, **fields), NOW, EVERY)
        assert device.urgent(EVERY)
        device.wrote(EVERY)


# ---------------------------------------------------------------------- machine


class Trusting(RuleBasedStateMachine):
    """A broker that says anything that was ever signed, to a device that loses its memory back to what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock(NOW)
        self.issuer = issuer(KEY, self.clock, lifetime=1e6)
        self.version, self.generation, self.lineage = 1, 0, b"l" * 16
        self.ever: list[bytes] = []
        self.device = trust()
        self.written: bytes | None = None
        self.highest: tuple[int, int, int] = (0, 0, 0)

    @rule(by=st.integers(1, 5))
    def release(self, by: int) -> None:
        self.version += by
        self.clock.now += 1
        self.ever.append(
            self.issuer.announcement(announced(self.version, generation=self.generation, lineage=self.lineage))
        )

    @rule(version=st.integers(1, 30))
    def put_back(self, version: int) -> None:
        """An old copy of the store, which does not know better, in the epoch of now."""
        self.version = version

    @rule()
    def roll_back(self) -> None:
        self.issuer.epoch += 1
        self.version, self.lineage = 1, bytes([self.issuer.epoch]) * 16

    @precondition(lambda self: self.ever)
    @rule(choice=st.randoms(use_true_random=False), now=st.floats(0, 1e5))
    def hear(self, choice: Any, now: float) -> None:
        try:
            self.device.announcement(choice.choice(self.ever), NOW, now)
        except Untrusted:
            return
        if self.device.urgent(now):
            self.written = self.device.packed()
            self.device.wrote(now)

    @rule()
    def power_cut(self) -> None:
        self.device = trust(self.written)
        assert self.device.newest.order[:2] >= self.highest[:2]  # only versions are written late
        self.highest = min(self.highest, self.device.newest.order)

    @invariant()
    def never_back(self) -> None:
        assert self.device.newest.order >= self.highest
        assert self.highest[:2] <= self.device.newest.order[:2]
        self.highest = self.device.newest.order


TestTrusting = Trusting.TestCase
TestTrusting.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
