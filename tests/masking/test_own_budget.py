"""A device's own count of what it spends of its ε: in the outbox, and beyond the reach of aggregator and plan."""

import argparse
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from midge.__main__ import main
from midge.aggregator.core.participation_controller import Pace
from midge.aggregator.core.presets import secure
from midge.aggregator.core.privacy import Privacy
from midge.commands.device import _trust
from midge.commands.parser import command_parser
from midge.commands.parts import Problem
from midge.iot_client.masking import Masker, cost
from midge.iot_client.masking_requirement import RequireSecure
from midge.iot_client.state import outbox as module
from midge.iot_client.state.outbox import Outbox
from midge.iot_client.state.outbox_state import FORMAT, OutboxState
from midge.wire.messages import Announcement, Plan
from midge.wire.messages.masking import Masking
from midge.wire.noise import zcdp_epsilon
from tests.federation.live import Log, serving
from tests.iot_client.test_session import made
from tests.masking.test_federation import NAMES, Party, _announcement

PRIVACY = Privacy(clip=2.0, noise=1.0, epsilon=1e6)
"""A budget that never ends: the aggregator is whom the device protects itself from."""
STRATEGY = secure(3, 4, privacy=PRIVACY, server_rate=0.5, deadline=1.0, pace=Pace(rest=0.0), plan=Plan())
OWN = replace(PRIVACY, epsilon=12.0, honest=3)
"""The arithmetic of the aggregator, for what the device's owner allows."""
assert 2 <= OWN.contributions <= 4


def required(party: Party, **more: Any) -> RequireSecure:
    return RequireSecure(helper_key=party.key.public_pem(), k_min=3, **{"epsilon": 12.0, **more})


def masking() -> Masking:
    assert STRATEGY.plan.masking is not None
    return STRATEGY.plan.masking


async def test_a_device_stops_once_its_own_budget_is_spent_whatever_the_aggregator_asks(tmp_path: Path) -> None:
    """Also after a restart. Without the count, a device gave 1,000 updates: ε = 649."""
    party, logs = Party(tmp_path, NAMES, STRATEGY), {name: Log() for name in NAMES}
    own, stops = required(party), "exceed the ε = 12 that its owner allows"
    devices = [party.device(name, log, secure=own) for name, log in logs.items()]
    async with serving(party.helper(), party.aggregator(), *devices):
        for log in logs.values():
            await log.until(lambda: log.of("hindered") and stops in log.of("hindered")[-1]["why"])  # noqa: B023
    for name, log in logs.items():
        assert len(log.of("uncounted")) == 1, "its outbox was new"
        assert len(log.of("stored")) == len(log.of("training")) == OWN.contributions
        assert spent(tmp_path / f"{name}.outbox") == pytest.approx(OWN.contributions * OWN.rho)
    again = Log()
    async with serving(party.helper(), party.aggregator(), party.device(NAMES[0], again, secure=own)):
        await again.until(lambda: again.of("hindered") and stops in again.of("hindered")[-1]["why"])
    assert not again.of("uncounted") and not again.of("training")


async def test_a_device_whose_outbox_was_put_back_says_that_it_does_not_know_what_it_spent(tmp_path: Path) -> None:
    party, log = Party(tmp_path, NAMES, STRATEGY), Log()
    own, name = required(party, epsilon=1000.0), NAMES[0]
    others = [party.device(each) for each in NAMES[1:]]
    path, copy = tmp_path / f"{name}.outbox", tmp_path / "copy"
    with Outbox(path):
        pass
    copy.mkdir()
    for each in (path, tmp_path / f"{name}.outbox.witness"):
        shutil.copy(each, copy / each.name)
    async with serving(party.helper(), party.aggregator(), party.device(name, log, secure=own), *others):
        await log.until(lambda: len(log.of("settled")) >= 2)
    for each in copy.iterdir():
        shutil.copy(each, path.with_name(each.name))
    path.with_name(f"{path.name}-wal").unlink(missing_ok=True)
    again = Log()
    async with serving(party.helper(), party.aggregator(), party.device(name, again, secure=own)):
        await again.until(lambda: again.of("hindered") and "put back" in again.of("hindered")[-1]["why"])
    assert again.of("renewed") and spent(path) == math.inf


def masker_of(party: Party, spent: float, **more: Any) -> Masker:
    return Masker(required(party, **more), "f", NAMES[0], spent=lambda: spent)


def test_the_next_update_is_what_must_be_within_the_budget(tmp_path: Path) -> None:
    party = Party(tmp_path, NAMES, STRATEGY)
    asked: Announcement = _announcement(party).model_copy(update={"plan": STRATEGY.plan})
    rho = cost(masking())
    assert rho == pytest.approx(OWN.rho)
    last = (OWN.contributions - 1) * rho
    assert masker_of(party, last).overspent(asked) is None
    assert f"{OWN.spent(OWN.contributions):.3g}" in (masker_of(party, last + rho).overspent(asked) or "")
    more = masking().model_copy(update={"noise": 4 * masking().noise})
    cheaper = asked.model_copy(update={"plan": STRATEGY.plan.model_copy(update={"masking": more})})
    assert masker_of(party, last + rho).overspent(cheaper) is None, "more noise costs less"
    assert "put back from a copy" in (masker_of(party, math.inf).overspent(cheaper) or "")
    assert masker_of(party, math.inf, epsilon=None).overspent(asked) is None


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"noise": 0.0}, "adds no noise"),
        ({"honest": 4}, "trusts 3 of 3"),
        ({"honest": 0}, "at least one honest device"),
        ({"noise": 0.5}, "too coarse"),
        ({"noise": 1e-300}, "too coarse"),
    ],
)
def test_a_plan_whose_noise_does_not_count_is_refused(tmp_path: Path, changed: dict[str, Any], why: str) -> None:
    party = Party(tmp_path, NAMES, STRATEGY)
    plan = STRATEGY.plan.model_copy(update={"masking": masking().model_copy(update=changed)})
    asked = _announcement(party).model_copy(update={"plan": plan})
    assert why in (masker_of(party, 0.0).objection(asked) or "")


def test_a_budget_is_a_positive_number(tmp_path: Path) -> None:
    party = Party(tmp_path, NAMES, STRATEGY)
    for wrong in ({"epsilon": 0.0}, {"epsilon": math.inf}, {"delta": 0.0}, {"delta": 1.0}):
        with pytest.raises(ValueError, match=f"secure.{next(iter(wrong))} is "):
            required(party, **wrong)


# --------------------------------------------------------------------------------- the count


def store(outbox: Outbox, rho: float = 0.5) -> None:
    outbox.store(made(2000, outbox=outbox.identity, seq=outbox.next_seq), bytes(2000), rho=rho)


def spent(path: Path) -> float:
    with Outbox(path) as outbox:
        return outbox.spent


def test_an_update_is_charged_in_the_transaction_that_stores_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "box"

    def end(name: str) -> None:
        if name == at:
            raise KeyboardInterrupt

    for at, held, counted in (("", 1, 0.5), ("outbox.storing", 1, 0.5), ("outbox.stored", 2, 1.0)):
        monkeypatch.setattr(module, "failpoint", end)
        with Outbox(path) as outbox:
            try:
                store(outbox)
            except KeyboardInterrupt:
                assert at
        monkeypatch.undo()
        with Outbox(path) as outbox:
            assert (len(outbox.held()), outbox.spent) == (held, counted)


@pytest.mark.parametrize("damaged", ["log", "file", "witness"])
def test_the_count_survives_a_repair(tmp_path: Path, damaged: str) -> None:
    """Seen to fail with the count in the database alone: a log that is cut rolls it back."""
    copy = tmp_path.with_name(f"{tmp_path.name}-copy")
    with Outbox(tmp_path / "box") as outbox:
        store(outbox)
        outbox._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        store(outbox)
        shutil.copytree(tmp_path, copy, ignore=shutil.ignore_patterns("*-shm", "*.lock"))
    match damaged:
        case "log":
            (copy / "box-wal").write_bytes((copy / "box-wal").read_bytes()[:5000])
        case "file":
            (copy / "box").unlink()
        case "witness":
            (copy / "box.witness").unlink()
    assert spent(copy / "box") == 1.0


def test_the_count_goes_on_under_another_identity_and_is_unknown_after_a_copy(tmp_path: Path) -> None:
    path = tmp_path / "box"
    with Outbox(path) as outbox:
        store(outbox)
        before = outbox.identity
        outbox.renew(())
        assert outbox.identity != before and outbox.spent == 0.5
        store(outbox)
        outbox.forget(5)
    assert spent(path) == 1.0
    with Outbox(path) as outbox:
        outbox.renew((), unknown=True)
        store(outbox)
    assert spent(path) == math.inf


def test_an_outbox_that_counts_nothing_is_as_it_was_and_one_that_does_has_a_later_format() -> None:
    """An earlier Midge would train on without counting: it refuses the format."""
    plain = OutboxState(7, 5, 2, 4, unsealed=True)
    assert len(plain.pack()) == 65 and OutboxState.unpack(plain.pack()) == plain
    for unsealed in (False, True):
        counted = replace(plain, spent=0.25, unsealed=unsealed)
        assert OutboxState.unpack(counted.pack()) == counted
        assert counted.format == FORMAT + 2 + unsealed
        assert OutboxState.unpack(counted.pack()[:-1]) is None
        assert OutboxState.unpack(bytes([FORMAT + unsealed]) + counted.pack()[1:]) is None


# ------------------------------------------------------------------------------- commands


def options(*given: str) -> argparse.Namespace:
    return command_parser().parse_args(["device", "app:device", *given])


def test_the_command_takes_the_budget_with_a_helpers_key_or_for_the_programs_own(tmp_path: Path) -> None:
    party = Party(tmp_path, NAMES)
    (tmp_path / "helper.pub").write_bytes(party.key.public_pem())
    app = party.device(NAMES[0], secure=None)
    with pytest.raises(Problem, match="give --helper-key"):
        _trust(app, options("--epsilon", "8"), None)
    with pytest.raises(Problem, match="above 0"):
        _trust(app, options("--epsilon", "-1", "--helper-key", str(tmp_path / "helper.pub")), None)
    _trust(app, options("--epsilon", "8", "--k-min", "7", "--helper-key", str(tmp_path / "helper.pub")), None)
    secure = app.config.secure
    assert secure is not None and (secure.epsilon, secure.delta, secure.k_min) == (8.0, 1e-5, 7)
    own = party.device(NAMES[1], secure=required(party, noise=1.0))
    _trust(own, options("--epsilon", "8", "--delta", "1e-6"), None)
    secure = own.config.secure
    assert secure is not None and (secure.epsilon, secure.delta, secure.noise) == (8.0, 1e-6, 1.0)


def test_the_status_shows_what_was_spent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "box"
    with Outbox(path) as outbox:
        store(outbox)
    assert main(["device", "status", str(path)]) == 0
    assert f"spent     ε = {zcdp_epsilon(0.5, 1e-5):.3g} at δ = 1e-05, by its own count" in capsys.readouterr().out
    with Outbox(path) as outbox:
        outbox.renew((), unknown=True)
    assert main(["device", "status", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rho"] is None
