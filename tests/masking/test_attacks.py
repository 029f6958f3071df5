"""Each attack on one device's update, by an aggregator, a broker, a device or a thief, against the real helper."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from midge.iot_client.masking import Masker
from midge.iot_client.masking_requirement import RequireSecure
from midge.iot_client.training.update_encoder import update_of
from midge.mask_helper.opening_keys import DAY, KEEP, VALID
from midge.wire import chunks, envelopes, frames, masking, sealing, signing
from midge.wire.errors import WireError
from midge.wire.messages import Announcement, Plan, Update
from midge.wire.messages.masking import Masking
from midge.wire.schema import Schema
from tests.announced import announced
from tests.masking.party import (
    HELPER,
    LINEAGE,
    OPENS,
    VALUES,
    Asker,
    Sender,
    delta,
    helper_of,
    opened,
    rejections,
    senders,
)


def test_a_sum_is_the_sum_and_its_members_are_named(tmp_path: Path) -> None:
    devices = senders(4)
    asker = Asker(helper_of(tmp_path, devices, least=3))
    held = [asker.hold(each, each.send(asker.helper, delta(n))) for n, each in enumerate(devices)]
    answers = asker.ask(held, size=4)
    (total,) = asker.sums(answers)
    assert total.tolist() == np.sum([delta(n) for n in range(4)], axis=0).tolist()
    assert {each.device for each in answers[-1][0].members} == {each.name for each in devices}


def test_a_helper_that_changes_to_post_quantum_keys_sums_what_was_sealed_to_either(tmp_path: Path) -> None:
    devices = senders(4)
    classical = helper_of(tmp_path, devices, least=3)
    early = [(each, each.send(classical, delta(n))) for n, each in enumerate(devices[:2])]
    classical.close()
    asker = Asker(helper_of(tmp_path, devices, least=3, post_quantum=True))
    stated = envelopes.read_statement(asker.helper.statement(), "plant", [HELPER.public])
    assert [len(key.key) for key in stated.keys] == [sealing.HYBRID_KEY, sealing.KEY]
    assert len(asker.helper.statement()) < 4096, "the announcement's room for it"
    late = [(each, each.send(asker.helper, delta(n))) for n, each in enumerate(devices[2:], 2)]
    entries = [masking.parse_entry(sent.entry) for _, (sent, _) in early + late]
    assert [len(entry.seed) for entry in entries] == 2 * [32 + sealing.OVERHEAD] + 2 * [32 + sealing.HYBRID_OVERHEAD]
    answers = asker.ask([asker.hold(*each) for each in early + late], size=4)
    (total,) = asker.sums(answers)
    assert total.tolist() == np.sum([delta(n) for n in range(4)], axis=0).tolist()


def test_fewer_than_k_min_devices_open_nothing_whatever_size_is_asked(tmp_path: Path) -> None:
    devices = senders(3)
    asker = Asker(helper_of(tmp_path, devices, least=3))
    held = [asker.hold(each, each.send(asker.helper, delta(1))) for each in devices[:2]]
    assert asker.sums(asker.ask(held, size=1)) == []
    # Many updates of two devices are still two devices.
    held += [asker.hold(each, each.send(asker.helper, delta(2))) for each in devices[:2] for _ in range(4)]
    assert asker.sums(asker.ask(held, size=1)) == []


def test_the_aggregator_cannot_extend_the_roster(tmp_path: Path) -> None:
    devices, dummies = senders(3), [Sender(f"dummy-{number}") for number in range(5)]
    asker = Asker(helper_of(tmp_path, devices, least=3))
    held = [asker.hold(each, each.send(asker.helper, delta(1))) for each in (devices[0], *dummies)]
    answers = asker.ask(held, size=2)
    assert asker.sums(answers) == []
    assert set(rejections(answers)) == {each.name for each in dummies}
    assert "roster" in rejections(answers)["dummy-0"]


def test_nobody_writes_in_a_devices_name(tmp_path: Path) -> None:
    devices, liar = senders(3), Sender("pump-1")
    asker = Asker(helper_of(tmp_path, devices, least=3))
    forged = asker.hold(liar, liar.send(asker.helper, delta(1)))
    assert "not signed" in rejections(asker.ask([forged]))["pump-1"]
    # It does not use up the number of the device's own update, which comes later.
    held = [asker.hold(each, each.send(asker.helper, delta(2))) for each in devices]
    assert len(asker.sums(asker.ask(held, size=3))) == 1


def test_a_changed_base_or_parameter_opens_no_seed(tmp_path: Path) -> None:
    devices = senders(3)
    asker = Asker(helper_of(tmp_path, devices))
    name, update = asker.hold(devices[0], devices[0].send(asker.helper, delta(1), base=7))
    for changed in ({"base": 1}, {"base_digest": b"another"}, {"plan": 3}, {"seq": 9}, {"sha256": bytes(16)}):
        answers = asker.ask([(name, update.model_copy(update=changed))])
        assert "not signed" in rejections(answers)[name], changed


def test_two_sets_that_differ_by_one_device_are_never_dealt(tmp_path: Path) -> None:
    """The classic difference: sum of A, B, C, D minus sum of A, B, C. A seed is used once, so sets are disjoint."""
    devices = senders(4)
    asker = Asker(helper_of(tmp_path, devices, least=3))
    held = [asker.hold(each, each.send(asker.helper, delta(n))) for n, each in enumerate(devices)]
    first = asker.ask(held[:3], size=3)
    again = asker.ask(held, size=4)
    assert len(asker.sums(first)) == 1
    assert [body for dealt, body in again if dealt.number] == [body for dealt, body in first if dealt.number]
    assert asker.ask(held, size=1, after=1, store=first[0][0].store)[-1][0].number == 0


def test_a_seed_under_a_second_identity_is_refused(tmp_path: Path) -> None:
    """A renewed or copied outbox sends the same body under another identity: it would count twice."""
    devices = senders(3)
    asker = Asker(helper_of(tmp_path, devices, least=3))
    sent = devices[0].send(asker.helper, delta(1))
    name, update = asker.hold(devices[0], sent)
    bare = update.model_copy(update={"entry": update.entry[:-64], "outbox": 2, "seq": 1})
    again = masking.signed_entry(devices[0].key, "plant", name, bare)
    assert "seed was used" in rejections(asker.ask([(name, update), (name, again)]))[name]


def test_an_answer_is_repeated_byte_for_byte_also_after_a_restart(tmp_path: Path) -> None:
    devices = senders(3)
    helper = helper_of(tmp_path, devices)
    asker = Asker(helper)
    held = [asker.hold(each, each.send(helper, delta(1))) for each in devices]
    first = helper.take(asker.payload(held, size=3))
    helper.close()
    asker.helper = helper_of(tmp_path, devices)
    again = asker.helper.take(asker.payload([], size=1))
    assert first[-1] == again[-1]


def test_a_device_with_another_model_is_not_summed(tmp_path: Path) -> None:
    """An aggregator gives one device a model of its own, to read the device's answer in the sum."""
    devices = senders(5)
    asker = Asker(helper_of(tmp_path, devices, least=3))
    victim = asker.hold(devices[0], devices[0].send(asker.helper, delta(0), digest=b"bait for one"))
    others = [asker.hold(each, each.send(asker.helper, delta(1))) for each in devices[1:]]
    (dealt, _) = asker.ask([victim, *others], size=3)[-1]
    assert devices[0].name not in {each.device for each in dealt.members}
    later = asker.hold(devices[0], devices[0].send(asker.helper, delta(0), digest=b"bait for one"))
    assert "another model" in rejections(asker.ask([later]))[devices[0].name]


def test_a_version_for_one_device_is_in_no_sum(tmp_path: Path) -> None:
    """The bait has a number of its own; the others get a dead model, whose updates are zeros: the sum was the victim's.

    The others' deltas are known to whoever made their model, so only devices of the same model hide each other.
    """
    devices = senders(12)
    asker = Asker(helper_of(tmp_path, devices, least=5))
    victim = asker.hold(devices[0], devices[0].send(asker.helper, delta(7), base=9, digest=b"bait for one"))
    dead = [asker.hold(each, each.send(asker.helper, 0 * delta(0), base=1)) for each in devices[1:6]]
    (dealt, _) = asker.ask([victim, *dead], size=6)[-1]
    assert dealt.number == 0
    (dealt, _) = asker.ask([], size=5)[-1]
    assert {each.device for each in dealt.members} == {each.name for each in devices[1:6]}
    # The same version for K_min devices: the sum is of these, whoever else is in it.
    more = [
        asker.hold(each, each.send(asker.helper, delta(7), base=9, digest=b"bait for one")) for each in devices[6:9]
    ]
    assert asker.ask(more, size=2, after=1, store=dealt.store)[-1][0].number == 0
    last = asker.hold(devices[9], devices[9].send(asker.helper, delta(7), base=9, digest=b"bait for one"))
    (total,) = asker.sums(asker.ask([last], size=2, after=1, store=dealt.store))
    assert total.tolist() == (5 * delta(7)).tolist()


@pytest.mark.parametrize(
    "dead",
    [
        {"plan": {"learning_rate": 1e-30}},
        {"plan": {"local_steps": 1}},
        {"masking": {"clip": 1e-30}},
        {"digest": b"8 bytes " + b"of another"[:8]},
    ],
)
def test_a_plan_for_all_but_one_device_hides_nothing(tmp_path: Path, dead: dict[str, Any]) -> None:
    """The same version and digest, and a learning rate of 1e-30 for the others: their updates were zeros again.

    Two models that share eight bytes of their digests are found by 2^32 attempts.
    """
    devices = senders(6)
    asker = Asker(helper_of(tmp_path, devices, least=5))
    scale = Masking(ring=12, scale=1.0, clip=1e9)
    plan = Plan(masking=scale)
    fields: dict[str, Any] = {
        "federation": "plant",
        "lineage": LINEAGE,
        "plan": plan,
        "seal_key": sealing.public(OPENS),
        "helper": asker.helper.statement(),
        "digest": b"8 bytes " + bytes(8),
    }
    asked = announced(**fields)
    masked = scale.model_copy(update=dead.get("masking", {}))
    others = plan.model_copy(update={"masking": masked, **dead.get("plan", {})})
    bait = announced(**{**fields, "plan": others, "digest": dead.get("digest", fields["digest"])})
    schema = Schema.of({"w": np.zeros(VALUES, np.float32)})

    def sent(device: Sender, announcement: Announcement) -> tuple[str, Update]:
        device.seq += 1
        masker = Masker(RequireSecure(helper_key=HELPER.public_pem()), "plant", device.name, lambda: 1.7e9)
        made = masker.mask(delta(1), update_of(announcement, "", b""), announcement, schema, None)
        update = made.update.model_copy(update={"outbox": 1, "seq": device.seq})
        return asker.hold(device, (masking.signed_entry(device.key, "plant", device.name, update), made.body))

    held = [sent(each, bait) for each in devices[1:]]
    assert asker.sums(asker.ask([sent(devices[0], asked), *held], size=6)) == []
    answers = asker.ask([], size=5)
    assert {each.device for each in answers[-1][0].members} == {each.name for each in devices[1:]}


def test_each_base_of_a_sum_has_k_min_devices(tmp_path: Path) -> None:
    """Five of version 8 and four of version 9: the four wait for a fifth, and then both are one set, of two weights."""
    devices = senders(10)
    asker = Asker(helper_of(tmp_path, devices, least=5))
    bases = [6] * 5 + [9] * 4
    held = [asker.hold(each, each.send(asker.helper, delta(n), bases[n])) for n, each in enumerate(devices[:9])]
    assert asker.sums(asker.ask(held, size=9)) == []
    last = asker.hold(devices[9], devices[9].send(asker.helper, delta(9), 9))
    answers = asker.ask([last], size=9)
    assert sorted(each.weight for each in answers[-1][0].members) == [2] * 5 + [4] * 5
    (total,) = asker.sums(answers)
    assert total.tolist() == np.sum([(2 if n < 5 else 4) * delta(n) for n in range(10)], axis=0).tolist()


def test_a_liar_about_a_model_keeps_no_others_out(tmp_path: Path) -> None:
    """An empty digest passed, and became the one of its version: the updates of all honest devices were refused."""
    devices = senders(8)
    asker = Asker(helper_of(tmp_path, devices, least=3))
    for digest in (b"a lie, and first", b"", b"short"):
        lie = asker.hold(devices[0], devices[0].send(asker.helper, delta(0), base=2, digest=digest))
        old = [asker.hold(each, each.send(asker.helper, delta(1), base=1)) for each in devices[1:4]]
        answers = asker.ask([lie, *old], size=3)
        dealt = answers[-1][0]
        assert {each.device for each in dealt.members} == {each.name for each in devices[1:4]}
        assert ("digest" in rejections(answers).get(devices[0].name, "")) == (len(digest) < 8)
        asker.ask([], size=8, after=dealt.number, store=dealt.store)
    honest = [asker.hold(each, each.send(asker.helper, delta(2), base=2)) for each in devices[1:]]
    answers = asker.ask(honest, size=7, after=dealt.number, store=dealt.store)
    assert rejections(answers) == {}
    assert len(asker.sums(answers)) == 1


def test_one_digest_counts_for_a_version_if_k_min_devices_state_it(tmp_path: Path) -> None:
    """With noise, a set may hold one update of a version: that one decides nothing about the others."""
    devices = senders(6)
    asker = Asker(helper_of(tmp_path, devices, least=3))
    noisy: dict[str, Any] = {"noise": 8.0, "honest": 2}
    lie = asker.hold(devices[0], devices[0].send(asker.helper, delta(0), 2, digest=b"a lie, and first", **noisy))
    old = [asker.hold(each, each.send(asker.helper, delta(1), 1, **noisy)) for each in devices[1:3]]
    dealt = asker.ask([lie, *old], size=3)[-1][0]
    assert dealt.number == 1
    honest = [asker.hold(each, each.send(asker.helper, delta(2), 2, **noisy)) for each in devices[1:]]
    assert rejections(asker.ask(honest, size=5, after=1, store=dealt.store)) == {}


@pytest.mark.parametrize(("noise", "honest", "dealt"), [(3.5, 5, 1), (3.4, 5, 0), (100.0, 6, 0)])
def test_only_noise_that_hides_a_device_by_itself_lets_bases_be_mixed(
    tmp_path: Path, noise: float, honest: int, dealt: int
) -> None:
    """The plan says how much there is: of shares for more devices than a set has, or of next to nothing, it is none."""
    devices = senders(6)
    asker = Asker(helper_of(tmp_path, devices, least=5))
    shared: dict[str, Any] = {"least": 5, "ring": 16, "noise": noise, "honest": honest}
    held = [asker.hold(each, each.send(asker.helper, delta(n), n, **shared)) for n, each in enumerate(devices)]
    assert asker.ask(held, size=6)[-1][0].number == dealt


def test_the_helpers_minimum_holds_for_each_weight_too(tmp_path: Path) -> None:
    """Entries of K_min 2, a helper of 6: two late updates among eight showed their sum modulo 2."""
    devices = senders(12)
    asker = Asker(helper_of(tmp_path, devices, least=6))
    held = [
        asker.hold(each, each.send(asker.helper, delta(n), 6 if n < 2 else 9)) for n, each in enumerate(devices[:8])
    ]
    dealt = asker.ask(held, size=2)[-1][0]
    assert {each.device for each in dealt.members} == {each.name for each in devices[2:8]}
    more = [asker.hold(each, each.send(asker.helper, delta(0), 6)) for each in devices[8:]]
    dealt = asker.ask(more, size=2, after=1, store=dealt.store)[-1][0]
    assert [each.weight for each in dealt.members] == [1] * 6


def test_a_device_that_asks_for_more_than_the_ring_holds_stops_no_others(tmp_path: Path) -> None:
    """After an outage, 90 updates wait. One of them wants 80 others, whose sum does not fit: no sum was dealt."""
    devices = senders(90)
    asker = Asker(helper_of(tmp_path, devices, least=3))
    shy = asker.hold(devices[0], devices[0].send(asker.helper, delta(0), least=80, ring=10))
    held = [asker.hold(each, each.send(asker.helper, delta(1), ring=10)) for each in devices[1:]]
    answers = asker.ask([shy, *held], size=200)
    assert "ring" in rejections(answers)[devices[0].name]
    assert len(answers[-1][0].members) == 73, "an aggregator that asks for more than fits gets as many as fit"
    assert asker.sums(answers)[0].tolist() == (73 * delta(1)).tolist()


def test_an_update_that_its_version_left_behind_is_refused_in_the_end(tmp_path: Path) -> None:
    """It would wait for ever, and the aggregator holds back a device of which many updates wait."""
    devices = senders(4)
    asker = Asker(helper_of(tmp_path, devices, least=3))
    late, store, after = [], b"", 0
    found: dict[str, str] = {}
    for base in range(1, 9):
        late.append(asker.hold(devices[0], devices[0].send(asker.helper, delta(0), base - 1)))
        held = [asker.hold(each, each.send(asker.helper, delta(0), base)) for each in devices[1:]]
        answers = asker.ask([late[-1], *held], size=3, after=after, store=store)
        store, after = answers[-1][0].store, answers[-1][0].number
        assert after == base
        found |= {f"{each.device} {each.seq}": each.why for dealt, _ in answers for each in dealt.rejected}
    assert set(found) == {f"{devices[0].name} {seq}" for seq in range(1, 7)}
    assert "too few devices" in found["pump-0 1"]
    # If the answer was lost, the update is named again, and refused again.
    assert "too few devices" in rejections(asker.ask([late[0]], size=3, after=after, store=store))["pump-0"]


def test_weights_come_from_signed_bases_and_single_no_device_out(tmp_path: Path) -> None:
    """With weights 1, 16, 256 a sum would show each value; here each weight is that of K_min devices."""
    devices = senders(6)
    apart = helper_of(tmp_path, devices, least=3)
    asker = Asker(apart)
    held = [asker.hold(each, each.send(apart, delta(n), base=9 if n < 3 else 6)) for n, each in enumerate(devices)]
    answers = asker.ask(held, size=6)
    assert [each.weight for each in answers[-1][0].members] == [4, 4, 4, 2, 2, 2]
    (total,) = asker.sums(answers)
    assert total.tolist() == np.sum([(4 if n < 3 else 2) * delta(n) for n in range(6)], axis=0).tolist()


def test_the_devices_own_minimum_holds_in_the_helper_too(tmp_path: Path) -> None:
    devices = senders(6)
    asker = Asker(helper_of(tmp_path, devices, least=2))
    shy = asker.hold(devices[0], devices[0].send(asker.helper, delta(0), least=6))
    others = [asker.hold(each, each.send(asker.helper, delta(1))) for each in devices[1:4]]
    (dealt, _) = asker.ask([shy, *others], size=2)[-1]
    assert devices[0].name not in {each.device for each in dealt.members}


def test_a_restored_ledger_answers_nothing_that_was_sealed_before(tmp_path: Path) -> None:
    devices = senders(4)
    helper = helper_of(tmp_path / "helper", devices, least=3)
    asker = Asker(helper)
    held = [asker.hold(each, each.send(helper, delta(n))) for n, each in enumerate(devices)]
    asker.ask(held[:2], size=4)
    helper.close()
    shutil.copytree(tmp_path / "helper", tmp_path / "copy")
    asker.helper = helper_of(tmp_path / "helper", devices, least=3)
    assert len(asker.sums(asker.ask(held[:3], size=3))) == 1
    asker.helper.close()
    for name in ("ledger.db", "ledger.db-wal", "ledger.db-shm"):  # the ledger is put back; the keys are not
        (tmp_path / "helper" / name).unlink(missing_ok=True)
        if (tmp_path / "copy" / name).exists():
            shutil.copy(tmp_path / "copy" / name, tmp_path / "helper" / name)
    asker.helper = helper_of(tmp_path / "helper", devices, least=3)
    answers = asker.ask([held[0], held[1], held[3]], size=3)
    assert asker.sums(answers) == []
    assert all("erased" in why for why in rejections(answers).values())


def test_a_copy_of_ledger_and_keys_answers_nothing_after_their_days(tmp_path: Path) -> None:
    devices, now = senders(3), [1.7e9]
    helper = helper_of(tmp_path, devices, clock=lambda: now[0])
    asker = Asker(helper)
    held = [asker.hold(each, each.send(helper, delta(1))) for each in devices]
    now[0] += VALID + KEEP + 1
    assert helper.roll()
    answers = asker.ask(held, size=3)
    assert asker.sums(answers) == []
    assert len(rejections(answers)) == 3


def test_devices_seal_to_a_new_key_each_day(tmp_path: Path) -> None:
    devices, now = senders(3), [1.7e9]
    helper = helper_of(tmp_path, devices, clock=lambda: now[0])
    asker = Asker(helper)
    first = asker.hold(devices[0], devices[0].send(helper, delta(0)))
    now[0] += DAY
    assert helper.roll()
    others = [asker.hold(each, each.send(helper, delta(1))) for each in devices[1:]]
    keys = {masking.parse_entry(update.entry).key for _, update in (first, *others)}
    assert len(keys) == 2
    assert len(asker.sums(asker.ask([first, *others], size=3))) == 1  # yesterday's key still opens


def test_the_broker_and_the_helper_hold_no_value_of_a_device(tmp_path: Path) -> None:
    """What the broker carries and the helper stores opens nothing: bodies are sealed to the aggregator, and masked."""
    devices = senders(3)
    helper = helper_of(tmp_path, devices)
    asker = Asker(helper)
    sent = [each.send(helper, np.zeros_like(delta(1))) for each in devices]  # all values are zero
    bodies = [body for _, body in sent]
    assert len(set(bodies)) == 3
    assert all(np.frombuffer(body, np.uint8).std() > 50 for body in bodies)  # as random bytes: 73.9
    held = [asker.hold(each, pair) for each, pair in zip(devices, sent, strict=True)]
    answers = helper.take(asker.payload(held, size=3))
    ((_, body),) = [answer for answer in opened(answers) if answer[0].number]
    assert all(body[:16] not in payload for payload in answers)  # the sum of masks is sealed
    helper.close()
    stored = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert body[:16] not in stored
    for _, update in held:
        private = next(iter(_privates(tmp_path)))
        entry = masking.parse_entry(update.entry)
        ticket = masking.ticket_of(update, _)
        seed = masking.open_seed("plant", LINEAGE, ticket, entry, private)
        assert seed not in stored.replace((tmp_path / "opening.keys").read_bytes(), b"")


def _privates(directory: Path) -> list[bytes]:
    return [private for private, _ in frames.unpack((directory / "opening.keys").read_bytes())["keys"]]


def test_only_the_release_key_gets_an_answer(tmp_path: Path) -> None:
    devices = senders(3)
    helper = helper_of(tmp_path, devices)
    thief = Asker(helper, signing.new_key())
    held = [thief.hold(each, each.send(helper, delta(1))) for each in devices]
    with pytest.raises(signing.BadSignature):
        thief.ask(held)
    payload = Asker(helper).payload(held, size=3)
    tampered = payload.replace(chunks.checksum(b"")[:4], b"abcd")[:-70] + bytes(6) + payload[-64:]
    with pytest.raises(WireError):
        helper.take(tampered)


def test_a_device_of_two_names_is_refused_as_a_roster(tmp_path: Path) -> None:
    one = Sender("pump-0")
    with pytest.raises(ValueError, match="same key"):
        helper_of(tmp_path, [one, Sender("pump-1", one.key), Sender("pump-2")])


def test_colluding_devices_reduce_who_hides_whom_by_their_number(tmp_path: Path) -> None:
    """Not prevented, and said so: with t of K devices the aggregator knows the sum of the other K − t."""
    devices = senders(4)
    asker = Asker(helper_of(tmp_path, devices, least=4))
    held = [asker.hold(each, each.send(asker.helper, delta(n))) for n, each in enumerate(devices)]
    (total,) = asker.sums(asker.ask(held, size=4))
    left = total - delta(2) - delta(3)
    assert left.tolist() == (delta(0) + delta(1)).tolist()


def test_a_deposit_that_is_no_list_of_tickets_ends_nothing(tmp_path: Path) -> None:
    """A signed one with a text or nil among its tickets ended the process, and a large number took all its memory."""
    devices = senders(3)
    asker = Asker(helper_of(tmp_path, devices))
    for ticket in ("a text", None, 7, 2**40, [b"ticket"], {"ticket": b""}, 1.5, True, b""):
        with pytest.raises(WireError):
            asker.helper.take(asker.signed(frames.pack([ticket])))
    for body in (b"", frames.pack("tickets"), frames.pack({"a": b"b"})):
        with pytest.raises(WireError):
            asker.helper.take(asker.signed(body))
    held = [asker.hold(each, each.send(asker.helper, delta(1))) for each in devices]
    assert len(asker.sums(asker.ask(held, size=3))) == 1


def test_a_broker_that_repeats_an_old_deposit_changes_nothing(tmp_path: Path) -> None:
    """It had asked for one set: repeated, it dealt one in the order of arrival, where the aggregator wants groups."""
    devices = senders(9)
    asker = Asker(helper_of(tmp_path, devices))
    old = asker.payload([], size=3, groups=1)
    held = [asker.hold(each, each.send(asker.helper, delta(n))) for n, each in enumerate(devices)]
    assert asker.sums(asker.ask(held[:8], size=3, groups=3)) == []
    ((answer, _),) = opened(asker.helper.take(old))
    assert (answer.number, answer.answers, answer.turn) == (0, 0, 2)
    newest = asker.payload(held[8:], size=3, groups=3)
    first = asker.helper.take(newest)
    assert opened(first)[-1][0].number == 1
    assert asker.helper.take(newest)[-1] == first[-1]  # a broker may deliver the newest twice
    asker.helper.close()
    asker.helper = helper_of(tmp_path, devices)
    assert [dealt.number for dealt, _ in opened(asker.helper.take(old))] == [0]
    assert asker.ask([], size=3, groups=3)[-1][0].number == 1


def test_deposits_of_an_earlier_midge_are_taken_until_a_numbered_one_comes(tmp_path: Path) -> None:
    devices = senders(3)
    asker = Asker(helper_of(tmp_path, devices))
    held = [asker.hold(each, each.send(asker.helper, delta(1))) for each in devices]
    asker.turns = False
    before = asker.payload([], size=3)
    assert asker.ask(held[:2], size=3)[-1][0].answers == 2
    asker.turns = True
    assert len(asker.sums(asker.ask(held[2:], size=3))) == 1
    assert [dealt.number for dealt, _ in opened(asker.helper.take(before))] == [0]


def test_an_update_of_a_confirmed_sum_is_refused_whatever_sum_is_pending(tmp_path: Path) -> None:
    """A restored aggregator holds it again; while a later sum was pending, it was left to wait for ever."""
    devices = senders(6)
    asker = Asker(helper_of(tmp_path, devices))
    first = [asker.hold(each, each.send(asker.helper, delta(1))) for each in devices[:3]]
    second = [asker.hold(each, each.send(asker.helper, delta(1))) for each in devices[3:]]
    store = asker.ask(first, size=3)[0][0].store
    assert asker.ask(second, size=3, after=1, store=store)[-1][0].number == 2
    answers = asker.ask([*first, *second], size=3)
    assert set(rejections(answers)) == {each.name for each in devices[:3]}
    assert answers[-1][0].number == 2
