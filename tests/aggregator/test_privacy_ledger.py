"""What a device has spent of its privacy budget is its own, whatever happens to its name, its outbox or the store."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from midge.__main__ import main
from midge.aggregator.core.core import AggregatorCore, Bounds
from midge.aggregator.core.presets import fedbuff, private
from midge.aggregator.core.privacy import Privacy
from midge.aggregator.core.privacy_ledger import PrivacyLedger
from midge.aggregator.core.records import GenerationRecord, StrategyRecord, pack
from midge.aggregator.store import device_erasure as forgetting
from midge.aggregator.store.backup import backup
from midge.aggregator.store.store import Store
from midge.aggregator.store.summary import summarise
from midge.wire import frames
from midge.wire.messages import Verdict
from tests.aggregator.rig import EVERYTHING_COUNTS, rig
from tests.security.test_forgetting import NAME, Keeping

PRIVACY = Privacy(clip=1.0, noise=4.0, epsilon=2.0)
"""Allows four contributions."""
STRATEGY = private(PRIVACY, 2)
OUTBOX = 2**62 + 11
"""Random ones are as large."""


def keeping(directory: Path, strategy: Any = STRATEGY, **arguments: Any) -> Keeping:
    return Keeping(directory, strategy, **arguments)


def pay(life: Keeping, device: str, seq: int) -> Verdict:
    """Contribute once, in a step with another device."""
    verdict = life.send(device, seq).verdict
    if verdict is Verdict.ACCEPTED:
        life.send(f"other-{life.federation.core.step}", 1)
    return verdict


def test_a_device_is_charged_with_its_steps_and_no_more(tmp_path: Path) -> None:
    assert PRIVACY.contributions == 4
    with rig(tmp_path, STRATEGY) as life:
        assert life.core.spent_of("a") == 0.0
        life.send("a", 1, [1, 0, 0, 0])
        assert life.core.spent_of("a") == 0.0, "nothing is published yet"
        life.send("b", 1, [1, 0, 0, 0])
        assert life.core.spent_of("a") == pytest.approx(PRIVACY.spent(1))
        assert life.send("a", 2, [1, 0, 0, 0]).verdict is Verdict.ACCEPTED
        assert life.send("a", 3, [1, 0, 0, 0]).verdict is Verdict.BUSY
        life.send("c", 1, [1, 0, 0, 0])
        spent = life.core.spent
    assert spent is not None
    assert spent.worst == pytest.approx(PRIVACY.spent(2)) and spent.accounts == 3 and spent.exhausted == 0
    with rig(tmp_path, STRATEGY) as life:
        assert life.core.spent == spent, "the journal alone tells it"


def test_a_reader_of_the_store_knows_the_budget_by_the_record_and_not_by_its_text(tmp_path: Path) -> None:
    with rig(tmp_path, STRATEGY) as life:
        life.processor.shell.carry_out(life.core.note_strategy("'privacy': {'epsilon': 9.0}"), 0.0)
        for device in "ab":
            life.send(device, 1, [1, 0, 0, 0])
        spent = life.core.spent
    found = summarise(tmp_path).privacy
    assert found is not None
    assert (found, found.budget) == (spent, PRIVACY.epsilon)
    with rig(tmp_path / "open") as life:
        life.processor.shell.carry_out(life.core.note_strategy("'privacy': {'epsilon': 9.0}"), 0.0)
        records = [entry.record for entry in life.store.entries(0)]
    assert summarise(tmp_path / "open").privacy is None
    (noted,) = [record for record in records if isinstance(record, StrategyRecord)]
    assert "privacy" not in frames.unpack(pack(noted)), "an earlier version reads it"


def test_it_survives_forgetting_and_readmission_beside_a_running_aggregator(tmp_path: Path) -> None:
    life = keeping(tmp_path)
    for seq in (1, 2, 3):
        assert pay(life, NAME, seq) is Verdict.ACCEPTED
    for readmit in (False, True, False, True):
        forgetting.ask(tmp_path, NAME, readmit=readmit)
        life.hear(later=10.0)
    assert pay(life, NAME, 1) is Verdict.ACCEPTED
    assert life.send(NAME, 2).verdict is Verdict.QUOTA
    assert life.federation.core.spent_of(NAME) == pytest.approx(PRIVACY.spent(4))
    life.federation.close()
    life = keeping(tmp_path)
    assert life.send(NAME, 3).verdict is Verdict.QUOTA
    life.federation.close()


def test_it_survives_forgetting_and_readmission_in_a_stopped_store(tmp_path: Path) -> None:
    life = keeping(tmp_path)
    for seq in (1, 2, 3):
        pay(life, NAME, seq)
    life.federation.close()
    assert main(["device-forget", NAME, "--store", str(tmp_path)]) == 0
    with Store(tmp_path) as store:
        assert NAME not in str(store.newest_checkpoint().core["ledger"]), "the account has an alias now"
        assert forgetting.readmit_in_stopped(store, NAME, "who")
    life = keeping(tmp_path)
    assert life.federation.core.spent_of(NAME) == pytest.approx(PRIVACY.spent(3))
    life.federation.close()


def test_it_survives_the_retention_of_names(tmp_path: Path) -> None:
    """Also under a strategy that is not private: the budget was promised for ever."""
    life = keeping(tmp_path)
    pay(life, NAME, 1)
    life.federation.names.write_heard(0.0, life.federation.core.version)  # long ago
    life.federation.close()
    plain = keeping(tmp_path, replace(EVERYTHING_COUNTS, max_staleness=5), retention=1000.0)
    plain.send("other", 1)
    plain.federation.names.write_heard(0.0, plain.federation.core.version)  # long ago
    for seq in range(2, 12):
        plain.send("busy", seq)
    plain.federation.upkeep.looked_for_silence = -1e9
    plain.hear(later=1.0)
    assert "silent" in plain.told, "the one that spent nothing"
    plain.federation.close()
    life = keeping(tmp_path)
    assert life.federation.core.spent_of(NAME) == pytest.approx(PRIVACY.spent(1))
    life.federation.close()


def test_it_survives_eviction_from_the_table_of_outboxes(tmp_path: Path) -> None:
    """A table of eight devices, and forty that push each other out of it."""
    strategy, sent = private(PRIVACY, 2, max_staleness=1), 0
    with rig(tmp_path, strategy, bounds=Bounds(devices=8)) as life:
        for seq in (1, 2):
            life.send("a", seq, [1, 0, 0, 0])
            life.send(f"with-{seq}", 1, [1, 0, 0, 0])
        for number in range(40):
            sent += life.send(f"d{number}", 1, [1, 0, 0, 0], now=float(number)).verdict is Verdict.ACCEPTED
        assert sent >= 20 and life.core.hi("a", 1) == 0, "its outbox was forgotten"
        assert life.core.spent_of("a") == pytest.approx(PRIVACY.spent(2))


def test_it_follows_an_outbox_to_another_name_and_back(tmp_path: Path) -> None:
    with rig(tmp_path, STRATEGY) as life:
        for seq, name in ((1, "old"), (2, "new"), (3, "old")):
            assert life.send(name, seq, [1, 0, 0, 0], outbox=OUTBOX).verdict is Verdict.ACCEPTED
            assert life.send("new" if name == "old" else "old", seq + 1, [1, 0, 0, 0], outbox=OUTBOX).verdict in (
                Verdict.BUSY,
                Verdict.QUOTA,
            ), "one update in a step, under whatever name"
            life.send(f"other-{seq}", 1, [1, 0, 0, 0])
        assert life.core.spent_of("new") == life.core.spent_of("old") == pytest.approx(PRIVACY.spent(3))
        assert life.send("new", 1, [1, 0, 0, 0], outbox=OUTBOX + 1).verdict is Verdict.ACCEPTED
        life.send("last", 1, [1, 0, 0, 0])
        assert life.send("old", 1, [1, 0, 0, 0], outbox=OUTBOX + 2).verdict is Verdict.QUOTA


def test_a_device_gives_one_update_between_two_versions_whatever_the_steps(tmp_path: Path) -> None:
    """Four steps to a version: seen to fail, with four updates of one device in one version, charged as one."""
    strategy = private(PRIVACY, 2, release_every=4)
    with rig(tmp_path, strategy) as life:
        assert life.send("a", 1, [1, 0, 0, 0], outbox=OUTBOX).verdict is Verdict.ACCEPTED
        life.send("o1", 1, [1, 0, 0, 0])
        assert life.core.step == 1
        assert life.send("a", 2, [1, 0, 0, 0], outbox=OUTBOX).verdict is Verdict.BUSY
        assert life.send("other-name", 2, [1, 0, 0, 0], outbox=OUTBOX).verdict is Verdict.BUSY
    with rig(tmp_path, strategy) as life:
        assert life.send("a", 2, [1, 0, 0, 0], outbox=OUTBOX).verdict is Verdict.BUSY
        version = life.core.version
        for number in range(2, 8):
            life.send(f"o{number}", 1, [1, 0, 0, 0])
        assert life.core.version == version + 1
        assert life.send("a", 2, [1, 0, 0, 0], outbox=OUTBOX).verdict is Verdict.ACCEPTED


def test_a_store_that_was_put_back_charges_all_that_may_have_been_spent_since(tmp_path: Path) -> None:
    """An update in each missing version, and one in that of the copy: also of devices that joined since it was made."""
    with rig(tmp_path, STRATEGY) as life:
        life.send("a", 1, [1, 0, 0, 0])
        life.send("b", 1, [1, 0, 0, 0])
        life.processor.shell.carry_out(life.core.begin_generation(0, life.core.version + 2, 1.0), 1.0)
        assert life.core.spent_of("a") == pytest.approx(PRIVACY.spent(4))
        assert life.core.spent_of("joined-since") == pytest.approx(PRIVACY.spent(3))
    with rig(tmp_path, STRATEGY) as life:
        assert life.core.spent_of("a") == pytest.approx(PRIVACY.spent(4))
        assert any(isinstance(entry.record, GenerationRecord) for entry in life.store.entries(0))
        life.send("joined-since", 1, [1, 0, 0, 0])
        life.send("c", 1, [1, 0, 0, 0])
        again = AggregatorCore(STRATEGY, lineage=life.core.lineage, schema_hash=life.core.schema_hash)
        again.load(life.core.dump())
        for name in ("joined-since", "c"):
            assert again.spent_of(name) == life.core.spent_of(name) == pytest.approx(PRIVACY.spent(4))


def test_a_store_that_the_operator_restored_charges_nothing_more(tmp_path: Path) -> None:
    """`--accept-spent` said so: its generation begins by the mark in the store, at the same version."""
    with rig(tmp_path, STRATEGY) as life:
        life.send("a", 1, [1, 0, 0, 0])
        life.send("b", 1, [1, 0, 0, 0])
        life.processor.shell.carry_out(life.core.begin_generation(life.core.generation, life.core.version, 1.0), 1.0)
        assert life.core.spent_of("a") == pytest.approx(PRIVACY.spent(1))


def test_a_backup_has_it(tmp_path: Path) -> None:
    life = keeping(tmp_path / "store")
    for seq in (1, 2):
        pay(life, NAME, seq)
    backup(tmp_path / "store", tmp_path / "backup")
    life.federation.close()
    assert main(["store", "restore", str(tmp_path / "backup"), str(tmp_path / "new")]) == 2, "more may have been spent"
    assert main(["store", "restore", str(tmp_path / "backup"), str(tmp_path / "new"), "--accept-spent"]) == 0
    life = keeping(tmp_path / "new")
    assert life.federation.core.spent_of(NAME) == pytest.approx(PRIVACY.spent(2))
    life.federation.close()


def test_less_noise_after_a_restart_charges_more_and_only_from_then_on(tmp_path: Path) -> None:
    less = private(Privacy(clip=1.0, noise=1.0, epsilon=8.0), 2)
    with rig(tmp_path, STRATEGY) as life:
        for seq in (1, 2):
            life.send("a", seq, [1, 0, 0, 0])
            life.send(f"other-{seq}", 1, [1, 0, 0, 0])
    with rig(tmp_path, less) as life:
        before = life.core.spent_of("a")
        assert before == pytest.approx(Privacy(clip=1.0, noise=1.0, epsilon=8.0).epsilon_of(2 * PRIVACY.rho))
        life.send("a", 3, [1, 0, 0, 0])
        life.send("b", 1, [1, 0, 0, 0])
        assert life.core.spent_of("a") == pytest.approx(less.privacy.epsilon_of(2 * PRIVACY.rho + 0.5))  # type: ignore[union-attr]


def test_an_update_that_its_step_cannot_afford_has_no_weight_in_it(tmp_path: Path) -> None:
    """Accepted under much noise, stepped under little: its content must not be published."""
    much, little = Privacy(clip=1.0, noise=4.0, epsilon=2.0), Privacy(clip=1.0, noise=2.0, epsilon=2.0)
    assert little.contributions == 1
    with rig(tmp_path, private(much, 2)) as life:
        for seq in (1, 2, 3):
            life.send("a", seq, [1, 0, 0, 0])
            life.send(f"other-{seq}", 1, [1, 0, 0, 0])
        life.send("a", 4, [1, 0, 0, 0])
    with rig(tmp_path, private(little, 2)) as life:
        before = life.core._state.ledger.spent("a")
        life.send("b", 1, [1, 0, 0, 0])
        assert life.core._state.ledger.spent("a") == before
        assert life.core._state.ledger.spent("b") == pytest.approx(little.rho)


def test_work_before_the_first_private_step_is_said_not_to_be_covered(tmp_path: Path) -> None:
    with rig(tmp_path, fedbuff(2)) as life:
        life.send("a", 1, [1, 0, 0, 0])
        life.send("b", 1, [1, 0, 0, 0])
        assert life.core.spent is None
    with rig(tmp_path, STRATEGY) as life:
        assert life.core.spent is not None and life.core.spent.bare == 1


def test_a_checkpoint_of_an_earlier_midge_knows_the_contributions(tmp_path: Path) -> None:
    with rig(tmp_path, STRATEGY) as life:
        for seq in (1, 2):
            life.send("a", seq, [1, 0, 0, 0])
            life.send(f"other-{seq}", 1, [1, 0, 0, 0])
        state = life.core.dump()
        del state["ledger"]
        core = AggregatorCore(STRATEGY, lineage=life.core.lineage, schema_hash=life.core.schema_hash)
        core.load(state)
        assert core.spent_of("a") == pytest.approx(PRIVACY.spent(2))


def test_an_account_moves_with_all_that_leads_to_it() -> None:
    ledger = PrivacyLedger()
    ledger.charge("a", OUTBOX, 0.5)
    ledger.charge("b", OUTBOX, 0.25)  # the same device
    assert ledger.spent("a") == ledger.spent("b") == 0.75
    ledger.move("b", "gone-1")
    assert not ledger.spent("b") and ledger.spent("a") == ledger.spent("gone-1") == 0.75
    ledger.move("a", "gone-2")
    assert not ledger.spent("a") and ledger.spent("gone-1") == ledger.spent("gone-2") == 0.75
    ledger.move("gone-1", "b")
    ledger.move("gone-2", "a")
    assert ledger.spent("a") == ledger.spent("b") == 0.75 and len(ledger) == 1
    assert not ledger.spent("c", OUTBOX), "as docs/strategies.md says: no outbox is kept of a device that was erased"
    again = PrivacyLedger()
    again.load(ledger.dump())
    assert again.dump() == ledger.dump()
