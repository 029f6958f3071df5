"""The ingress checks: who is answered what, and that what anybody sends in another's name settles nothing."""

import hashlib
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from midge.aggregator.core.records import UpdateRecord
from midge.aggregator.ingress.authentication import Credentials, DeviceKeys
from midge.aggregator.ingress.rate_limits import Admission, IngressLimits
from midge.wire import chunks, frames, messages, sealing, signing
from midge.wire.errors import WireError
from midge.wire.messages import Chunk, Receipt, Settled, Statistics, Update, Verdict
from tests.aggregator.rig import OPEN, TOPICS, AllDevices, Rig, hello, receipts
from tests.aggregator.rig import rig as plain_rig
from tests.fuzz.payloads import MESSAGES

KEY, STRANGER, RELEASE = signing.new_key(), signing.new_key(), signing.new_key()
PRIVATE = sealing.derive(RELEASE)
ONES = np.ones(4, np.float32)


def guard(life: Rig, limits: IngressLimits = OPEN, *, withdrawn: tuple[str, ...] = (), **required: Any) -> Rig:
    """Say what an aggregator lets in."""
    life.ingress.admission = Admission(limits)
    life.ingress.credentials = Credentials(TOPICS, **required)
    life.ingress.known = Withdrawn(withdrawn)
    return life


class Withdrawn(AllDevices):
    """These take no part any more."""

    def __init__(self, devices: tuple[str, ...]) -> None:
        self.devices = devices

    def withdrawn(self, device: str) -> bool:
        return device in self.devices


@contextmanager
def guarded(directory: Path, limits: IngressLimits = OPEN, **required: Any) -> Iterator[Rig]:
    """An aggregator behind a gate."""
    with plain_rig(directory) as life:
        yield guard(life, limits, **required)


def signed(message: tuple[str, bytes], key: signing.PrivateKey = KEY, device: str = "a") -> tuple[str, bytes]:
    """The same message with a signature behind it."""
    topic, payload = message
    header, body = frames.decode(payload)
    head = bytes(payload[: len(payload) - len(body)])
    assert header
    return topic, signing.sign_frame(key, signing.DEVICE, signing.of_device("f", device), head, body)


def sole(found: list[Receipt]) -> Settled:
    ((settled,),) = [receipt.settled for receipt in found]
    return settled


def dropped(life: Rig) -> dict[str, int]:
    return dict(life.outlet.meters.dropped)


KNOWN: dict[str, Any] = {"device_keys": DeviceKeys({"a": KEY.public})}

# ------------------------------------------------------------------- signatures


def test_a_signed_update_counts_and_one_by_anybody_else_settles_nothing(tmp_path: Path) -> None:
    with guarded(tmp_path, **KNOWN) as life:
        update = life.update("a", 1, ONES)
        before = life.model.digest()
        for forged in (update, signed(update, STRANGER), signed(update, device="b")):
            (receipt,) = life.hear(forged)
            settled = sole([receipt])
            assert settled.verdict is Verdict.BAD_SIGNATURE
            assert not settled.verdict.final
            assert receipt.hi == 0
        assert life.model.digest() == before
        assert sole(life.hear(signed(update))).verdict is Verdict.ACCEPTED
        assert sole(life.hear(life.update("b", 1, ONES))).verdict is Verdict.ACCEPTED  # nobody has a key of b


def test_where_all_must_sign_a_device_without_a_key_takes_no_part(tmp_path: Path) -> None:
    with guarded(tmp_path, **KNOWN, require_signed=True) as life:
        assert sole(life.hear(life.update("b", 1, ONES))).verdict is Verdict.BAD_SIGNATURE
        assert life.hear(hello("b")) == []
        assert "b" not in life.roster.devices
        assert dropped(life) == {"bad signature": 2}


def test_another_body_behind_a_signed_header_does_not_cost_the_device_its_update(tmp_path: Path) -> None:
    """As a final refusal, an exchanged body would make the device forget the true one."""
    with guarded(tmp_path, **KNOWN) as life:
        topic, payload = signed(life.update("a", 1, ONES))
        exchanged = payload[:-80] + bytes(16) + payload[-64:]
        assert sole(life.hear((topic, exchanged))).verdict is Verdict.BAD_SIGNATURE
        assert sole(life.hear((topic, payload))).verdict is Verdict.ACCEPTED


def test_a_forged_chunk_does_not_cost_the_device_its_update(tmp_path: Path) -> None:
    with guarded(tmp_path, **KNOWN) as life:
        topic, whole = life.update("a", 1, ONES)
        update, body = messages.decode_update(whole)
        assert isinstance(update, Update)
        offer = update.model_copy(update={"kind": "offer", "parts": 2})
        cut = list(chunks.cut(body, 8))
        head = (topic, frames.encode(offer))

        def send(first: bytes) -> list[Receipt]:
            parts = [
                (topic, frames.encode(Chunk(outbox=1, first=1, seq=1, part=number), data))
                for number, data in enumerate((first, bytes(cut[1])))
            ]
            life.hear(signed(head))
            return life.hear(*parts)

        assert sole(life.hear(head)).verdict is Verdict.BAD_SIGNATURE  # an offer without a signature
        assert sole(send(b"12345678")).verdict is Verdict.BAD_SIGNATURE
        assert sole(send(bytes(cut[0]))).verdict is Verdict.ACCEPTED


def test_a_forged_greeting_does_not_settle_what_was_never_sent(tmp_path: Path) -> None:
    """`first` says what a device no longer holds: in another's mouth it would make all its updates repeats."""
    with guarded(tmp_path, **KNOWN) as life:
        assert life.hear(hello("a", first=1000)) == []
        (receipt,) = life.hear(signed(hello("a")))
        assert receipt.hi == 0
        assert sole(life.hear(signed(life.update("a", 1, ONES)))).verdict is Verdict.ACCEPTED


def test_forgeries_in_a_devices_name_do_not_bring_it_into_quarantine(tmp_path: Path) -> None:
    limits = IngressLimits(rate=None, fleet_rate=None, strikes=3)
    with guarded(tmp_path, limits, **KNOWN) as life:
        for _ in range(10):
            life.hear(life.update("a", 1, ONES), (TOPICS.update("a"), b"garbage"))
        assert sole(life.hear(signed(life.update("a", 1, ONES)))).verdict is Verdict.ACCEPTED


def test_keys_in_a_directory_are_taken_up_and_let_go_as_they_come_and_go(tmp_path: Path) -> None:
    keys = DeviceKeys(tmp_path)
    assert keys.of("a") is None
    (tmp_path / "a.pub").write_bytes(KEY.public_pem())
    assert keys.of("a") == KEY.public
    (tmp_path / "a.pub").unlink()
    assert keys.of("a") is None
    (tmp_path / "a.crt").write_bytes(b"garbage")
    assert keys.of("a") is None


def test_what_is_required_must_be_possible() -> None:
    with pytest.raises(ValueError, match="device_keys"):
        Credentials(TOPICS, require_signed=True)
    with pytest.raises(ValueError, match="release_key"):
        Credentials(TOPICS, require_sealed=True)


# ------------------------------------------------------------------------ seals


def sealed(message: tuple[str, bytes], device: str = "a", to: bytes | None = None) -> tuple[str, bytes]:
    topic, payload = message
    update, body = messages.decode_update(payload)
    assert isinstance(update, Update)
    update = update.model_copy(update={"sealed": sealing.NAME})
    about = sealing.about("f", device, update)
    data = sealing.seal(body, to or sealing.public(PRIVATE), about)
    update = update.model_copy(update={"size": len(data), "sha256": hashlib.sha256(data).digest()})
    return topic, frames.encode(update, data)


def test_a_sealed_update_counts_and_the_journal_needs_no_key_to_replay_it(tmp_path: Path) -> None:
    with guarded(tmp_path, seal_keys=(PRIVATE,)) as life:
        assert sole(life.hear(sealed(life.update("a", 1, ONES)))).verdict is Verdict.ACCEPTED
        assert sole(life.hear(signed(sealed(life.update("a", 2, ONES))))).verdict is Verdict.ACCEPTED
        state = life.state
    with plain_rig(tmp_path) as life:  # without any key
        assert life.state == state
        np.testing.assert_array_equal(life.model.x, 2 * ONES)


def confided(message: tuple[str, bytes], inside: bytes | None = None) -> tuple[str, bytes]:
    topic, payload = message
    update, body = messages.decode_update(payload)
    assert isinstance(update, Update)
    update, within = sealing.confide(update, body)
    return sealed((topic, frames.encode(update, within if inside is None else inside)))


def test_what_an_update_confides_counts_as_if_it_had_been_said(tmp_path: Path) -> None:
    with guarded(tmp_path / "sealed", seal_keys=(PRIVATE,)) as life:
        message = confided(life.update("a", 1, ONES, examples=7, seconds=2.5, steps=3))
        update, _ = messages.decode_update(message[1])
        assert isinstance(update, Update) and (update.examples, update.seconds, update.steps) == (0, 0.0, 0)
        assert sole(life.hear(message)).verdict is Verdict.ACCEPTED
        updates = [entry.record for entry in life.store.entries(0) if isinstance(entry.record, UpdateRecord)]
        assert [(each.examples, each.steps) for each in updates] == [(7, 3)]
        junks = (b"", b"junk", frames.encode({"examples": -1}, bytes(16)), frames.encode({"seconds": 1e999}, bytes(16)))
        for seq, junk in enumerate(junks, 2):
            assert sole(life.hear(confided(life.update("a", seq, ONES), junk))).verdict is Verdict.BAD_ENCODING


def test_what_is_confided_has_room_and_no_more(tmp_path: Path) -> None:
    metrics = {f"{number:02}" + "\N{SNOWMAN}" * 62: 0.1 for number in range(32)}
    with guarded(tmp_path, seal_keys=(PRIVATE,)) as life:
        message = life.update("a", 1, ONES, examples=2**62, steps=2**62, seconds=1e300, metrics=metrics)
        assert sole(life.hear(confided(message))).verdict is Verdict.ACCEPTED
        much = confided(life.update("a", 2, ONES), bytes(sealing.LONGEST + 100))
        assert sole(life.hear(much)).verdict is Verdict.TOO_LARGE


def test_a_key_that_was_succeeded_still_opens(tmp_path: Path) -> None:
    newer = sealing.derive(signing.new_key())
    with guarded(tmp_path, seal_keys=(newer, PRIVATE)) as life:
        assert sole(life.hear(sealed(life.update("a", 1, ONES)))).verdict is Verdict.ACCEPTED


def test_what_is_not_sealed_as_it_must_be_is_refused_with_a_reason(tmp_path: Path) -> None:
    other = sealing.public(sealing.derive(STRANGER))
    with guarded(tmp_path, seal_keys=(PRIVATE,), require_sealed=True) as life:
        wrong = {
            "only sealed updates": life.update("a", 1, ONES),
            "not sealed to this": sealed(life.update("a", 2, ONES), to=other),
            "or its header was changed": sealed(life.update("a", 3, ONES), device="b"),
        }
        before = life.model.digest()
        for why, message in wrong.items():
            settled = sole(life.hear(message))
            assert settled.verdict is Verdict.BAD_ENCODING
            assert why in settled.why
        assert life.model.digest() == before
    with guarded(tmp_path) as life:
        assert "no key" in sole(life.hear(sealed(life.update("a", 4, ONES)))).why


def test_the_largest_update_fits_sealed(tmp_path: Path) -> None:
    with guarded(tmp_path, seal_keys=(PRIVATE,)) as life:
        topic, payload = sealed(life.update("a", 1, ONES))
        update, _ = messages.decode_update(payload)
        assert isinstance(update, Update)
        assert update.size == 4 * 4 + sealing.OVERHEAD
        assert sole(life.hear((topic, payload))).verdict is Verdict.ACCEPTED


# --------------------------------------------------------------------- too much


def test_what_is_over_the_rate_is_told_to_come_again_and_is_not_lost(tmp_path: Path) -> None:
    with guarded(tmp_path, IngressLimits(rate=1, burst=3, fleet_rate=None)) as life:
        verdicts = [sole(life.hear(life.update("a", seq, ONES))).verdict for seq in (1, 2, 3)]
        assert verdicts == [Verdict.ACCEPTED] * 3
        (receipt,) = life.hear(life.update("a", 4, ONES))
        assert (receipt.hi, sole([receipt]).verdict) == (3, Verdict.BUSY)
        again = life.hear(life.update("a", 4, ONES), now=receipt.settled[0].retry_after)
        assert sole(again).verdict is Verdict.ACCEPTED
        np.testing.assert_array_equal(life.model.x, 4 * ONES)


def test_repeated_refusals_bring_a_quarantine_and_a_way_back(tmp_path: Path) -> None:
    limits = IngressLimits(rate=None, fleet_rate=None, strikes=3, quarantine=60)
    with guarded(tmp_path, limits) as life:
        for seq in (1, 2, 3):
            assert sole(life.hear(life.update("a", seq, ONES, body=b"xx"))).verdict is Verdict.BAD_ENCODING
        settled = sole(life.hear(life.update("a", 4, ONES)))
        assert settled.verdict is Verdict.QUARANTINED
        assert sole(life.hear(life.update("b", 1, ONES))).verdict is Verdict.ACCEPTED
        assert sole(life.hear(life.update("a", 4, ONES), now=settled.retry_after)).verdict is Verdict.ACCEPTED
        assert [fields for event, fields in life.told if event == "quarantine"] == [{"device": "a", "seconds": 60}]


def test_chunks_that_were_granted_are_not_counted_against_the_rate(tmp_path: Path) -> None:
    with guarded(tmp_path, IngressLimits(rate=1, burst=1, fleet_rate=None)) as life:
        topic, whole = life.update("a", 1, ONES)
        update, body = messages.decode_update(whole)
        assert isinstance(update, Update)
        life.hear((topic, frames.encode(update.model_copy(update={"kind": "offer", "parts": 4}))))
        parts = [
            (topic, frames.encode(Chunk(outbox=1, first=1, seq=1, part=number), data))
            for number, data in enumerate(chunks.cut(body, 4))
        ]
        assert sole(life.hear(*parts)).verdict is Verdict.ACCEPTED


# -------------------------------------------------------------------- forgotten


def test_a_withdrawn_device_is_told_so_for_good_and_leaves_no_trace(tmp_path: Path) -> None:
    with guarded(tmp_path, withdrawn=("a",)) as life:
        before = life.state
        (receipt,) = life.hear(life.update("a", 7, ONES))
        assert (receipt.hi, sole([receipt]).verdict) == (7, Verdict.FORGOTTEN)
        assert sole(life.hear(hello("a"))).verdict is Verdict.FORGOTTEN
        life.hear(hello("a"), retain=True)
        assert life.posts[-1].topic == TOPICS.status("a")
        assert (life.posts[-1].payload, life.posts[-1].retain) == (b"", True)
        assert life.state == before
        assert not life.roster.devices


# ----------------------------------------------------------------- any bytes at all

TOPIC_NAMES = st.sampled_from(
    [
        *6 * [TOPICS.update("a")],
        TOPICS.update("b"),
        TOPICS.status("a"),
        TOPICS.report("a"),
        TOPICS.update("a").replace("/a", "/b"),
        "midge/1/f/update/0/a",
        "midge/1/f/update/x/a",
        "midge/1/f/status/-",
        "midge/1/f/status/" + "n" * 65,
        "midge/1/g/update/0/a",
        "other",
    ]
)


@pytest.fixture(scope="module")
def long_life(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with plain_rig(tmp_path_factory.mktemp("long")) as life:
        yield life


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(TOPIC_NAMES, MESSAGES, st.booleans()), min_size=1, max_size=8), st.integers(0, 2))
def test_any_bytes_on_any_topic_come_to_one_answer_or_one_count(
    long_life: Rig, sent: list[tuple[str, bytes, bool]], choice: int
) -> None:
    """Whatever comes: no error, one verdict or one counted drop, and the model is as it was unless one was accepted."""
    required: list[dict[str, Any]] = [{}, KNOWN, {"seal_keys": (PRIVATE,), "require_sealed": True}]
    life = guard(long_life, IngressLimits(strikes=3 if choice == 2 else None), **required[choice])
    life.ingress.reassembler._assembling.clear()
    for topic, payload, retain in sent:
        actual = _meant_for(life, payload)
        model, before, told = life.model.digest(), sum(dropped(life).values()), len(life.posts)
        life.hear((topic, actual), retain=retain)
        new = receipts(life.posts[told:])
        settled = [item for receipt in new for item in receipt.settled]
        drops = sum(dropped(life).values()) - before
        assert len(settled) <= 1
        assert drops <= 1
        if _asks(topic, actual):
            assert new or drops
        if not any(item.verdict is Verdict.ACCEPTED for item in settled):
            assert life.model.digest() == model


def _meant_for(life: Rig, payload: bytes) -> bytes:
    """With the lineage and the schema of this aggregator where the payload has zeros for them."""
    for name, value in ((b"lineage", life.core.lineage), (b"schema_hash", life.core.schema_hash)):
        payload = payload.replace(name + b"\xc4\x10" + bytes(16), name + b"\xc4\x10" + value)
    return payload


def _asks(topic: str, payload: bytes) -> bool:
    """Whether this must be answered or counted: an update, or what is nothing at all."""
    if "/update/" not in topic:
        return False
    try:
        message, _ = messages.decode_update(payload)
    except WireError:
        return True
    return isinstance(message, Update)


@pytest.mark.parametrize("size", [0, 47, 48, 49, 96, 112])
def test_statistics_of_any_length_end_nothing(tmp_path: Path, size: int) -> None:
    """One byte behind the moments once ended the aggregator: it was no WireError."""
    with guarded(tmp_path, seal_keys=(PRIVATE,)) as life:
        many = Statistics(lineage=life.core.lineage, names=(("x", 2),))
        for header in (many, many.model_copy(update={"sealed": "hpke"})):
            life.hear((TOPICS.update("a"), frames.encode(header, bytes(size))))
        assert sum(dropped(life).values()) == 2 - (size in (48, 112))


def test_new_outboxes_do_not_fill_the_memory(tmp_path: Path) -> None:
    with guarded(tmp_path) as life:
        life.core._state.outboxes._devices = 5
        for number in range(200):
            life.hear(hello(f"n{number % 5}", outbox=number))
        assert life.core._state.outboxes.dump() == [], "a greeting makes nothing durable"
        for number in range(200):
            life.send(f"n{number % 5}", 1, ONES, outbox=number, lineage=bytes(16))
        assert len(life.core._state.outboxes.dump()) == 20
        assert sole(life.hear(life.update("n1", 1, ONES, outbox=10**6))).verdict is Verdict.ACCEPTED
        assert sole(life.hear(life.update("n1", 1, ONES, outbox=1))).verdict is Verdict.ACCEPTED
        assert len(life.core._state.outboxes.dump()) == 20


def test_a_flood_takes_no_memory_that_stays(tmp_path: Path) -> None:
    """Statuses, offers, statistics and garbage under names that are made up as it goes."""
    limits = IngressLimits(tracked=50)
    with guarded(tmp_path, limits) as life:
        life.core._state.outboxes._devices = life.roster._most = 50

        def flood(start: int) -> None:
            for number in range(start, start + 300):
                name = f"n{number}"
                offer = life.update(name, 1, ONES, kind="offer", size=10**6, parts=1000)
                many = Statistics(lineage=life.core.lineage, names=(("x", 2),))
                life.hear(hello(name), offer, (TOPICS.update(name), frames.encode(many, bytes(48))))
                life.hear((TOPICS.update(name), b"\xff" * 1000), now=float(number) / 100)
                life.posts.clear()
                life.told.clear()

        flood(0)
        tracemalloc.start()
        try:
            flood(300)
            assert tracemalloc.get_traced_memory()[0] < 500_000
        finally:
            tracemalloc.stop()
        assert len(life.roster.devices) <= 50
