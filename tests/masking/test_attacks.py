"""Each attack on one device's update, by an aggregator, a broker, a device or a thief, against the real helper."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from midge.mask_helper.opening_keys import DAY, KEEP, VALID
from midge.wire import chunks, envelopes, masking, sealing, signing
from midge.wire.errors import WireError
from tests.masking.party import HELPER, LINEAGE, Asker, Sender, delta, helper_of, opened, rejections, senders


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


def test_one_liar_about_a_model_does_not_keep_the_others_out(tmp_path: Path) -> None:
    devices = senders(4)
    asker = Asker(helper_of(tmp_path, devices, least=3))
    lie = asker.hold(devices[0], devices[0].send(asker.helper, delta(0), digest=b"a lie, and first"))
    others = [asker.hold(each, each.send(asker.helper, delta(1))) for each in devices[1:]]
    assert len(asker.sums(asker.ask([lie, *others], size=3))) == 1


def test_weights_come_from_signed_bases_and_single_no_device_out(tmp_path: Path) -> None:
    """With weights 1, 16, 256 a sum would show each value; with 4, 4 … 1 its residue modulo 4 would be one device's."""
    devices = senders(6)
    asker = Asker(helper_of(tmp_path, devices, least=3))
    held = [asker.hold(each, each.send(asker.helper, delta(n), base=9 if n else 1)) for n, each in enumerate(devices)]
    (dealt, _) = asker.ask(held, size=6)[-1]
    assert [each.weight for each in dealt.members] == [1] * 6
    apart = helper_of(tmp_path / "two", devices, least=3)
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
    from midge.wire import frames

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
