"""Distributed noise: devices add shares of it before their masks, so that sums are private against everyone."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.privacy_noise import shared_audit
from midge.aggregator.core import records as rec
from midge.aggregator.core.participation_controller import Pace
from midge.aggregator.core.presets import private, secure
from midge.aggregator.core.privacy import Privacy
from midge.aggregator.core.strategy import Strategy
from midge.aggregator.store.store import Store
from midge.aggregator.store.summary import summarise
from midge.configuration.strategies import strategy_of
from midge.iot_client.masking_requirement import RequireSecure
from midge.iot_client.training.update_encoder import Unfit, update_of
from midge.sensor_fleet.report.store_sections import packed, store_page
from midge.wire import frames, masking
from midge.wire.masking import parse_entry
from midge.wire.messages import Plan
from midge.wire.messages.masking import Ticket
from midge.wire.noise import gaussian_epsilon
from midge.wire.schema import Schema
from tests.federation.live import serving
from tests.masking.party import Asker, delta, helper_of, senders
from tests.masking.test_federation import NAMES, STRATEGY, Party, _announcement

PRIVACY = Privacy(clip=2.0, noise=1.0, epsilon=20.0)


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=60), st.floats(1e-4, 10))
@settings(deadline=None)
def test_integers_are_never_longer_than_what_the_noise_hides(values: list[float], scale: float) -> None:
    found = masking.shortened(np.array(values, np.float32), scale, 1024)
    assert int(np.sum(found**2)) <= 1024**2


def test_integers_are_the_values_cut_towards_zero() -> None:
    found = masking.shortened(np.array([0.5, -0.25, 0.0999], np.float32), 0.1, 1024)
    assert found.tolist() == [5, -2, 0]


def test_each_device_adds_its_share_and_the_honest_ones_have_the_whole(tmp_path: Path) -> None:
    """Without the shares, the sums are exact."""
    devices = senders(4)
    asker = Asker(helper_of(tmp_path, devices, least=4))
    noise, honest, found = 50.0, 3, []
    for _ in range(20):
        held = [asker.hold(each, each.send(asker.helper, 0 * delta(1), noise=noise, honest=honest)) for each in devices]
        answers = asker.ask(held, size=4)
        found += [each / 1 for each in asker.sums(answers)]
        asker.ask([], size=4, after=answers[-1][0].number, store=answers[-1][0].store)
    drawn = np.concatenate(found)
    assert drawn.size == 20 * 64
    expected = noise * (4 / honest) ** 0.5
    assert abs(drawn.std() / expected - 1) < 5 / (2 * drawn.size) ** 0.5  # five standard errors


def test_weights_are_equal_with_noise(tmp_path: Path) -> None:
    """At weights 4, 4, 4, 2, 2, 2 a heavy update is twice as long, and hidden less than accounted for."""
    devices = senders(6)
    asker = Asker(helper_of(tmp_path, devices, least=3))
    held = [
        asker.hold(each, each.send(asker.helper, delta(n), base=9 if n < 3 else 6, noise=8.0, honest=3))
        for n, each in enumerate(devices)
    ]
    (dealt, _) = asker.ask(held, size=6)[-1]
    assert [each.weight for each in dealt.members] == [1] * 6


def test_updates_without_the_noise_of_the_others_are_in_no_set_with_them(tmp_path: Path) -> None:
    devices = senders(4)
    asker = Asker(helper_of(tmp_path, devices, least=4))
    held = [
        asker.hold(each, each.send(asker.helper, delta(n), noise=8.0 if n else 0.0, honest=3))
        for n, each in enumerate(devices)
    ]
    assert asker.sums(asker.ask(held, size=4)) == []


def test_the_strategy_accounts_for_the_honest_devices() -> None:
    strategy = secure(5, 10, privacy=PRIVACY, colluding=2)
    privacy, plan = strategy.privacy, strategy.plan.masking
    assert privacy is not None and plan is not None
    assert privacy.honest == plan.honest == 3
    assert plan.noise == plan.levels * PRIVACY.noise
    assert plan.scale * plan.levels == PRIVACY.clip
    assert masking.reach(10, plan.levels, plan.noise, 3) < 2 ** (plan.ring - 1)
    assert privacy.spent(3) > gaussian_epsilon(3 * privacy.rho, privacy.delta)  # of sums of discrete noise: more
    assert not strategy.plan.feedback
    with pytest.raises(ValueError, match=r"secure needs 0\.5"):
        secure(5, privacy=replace(PRIVACY, noise=0.4, epsilon=1e9))
    with pytest.raises(ValueError, match="colluding"):
        secure(5, privacy=PRIVACY, colluding=5)
    with pytest.raises(ValueError, match="honest"):
        private(replace(PRIVACY, honest=3))
    with pytest.raises(ValueError, match="too coarse"):
        replace(PRIVACY, noise=0.002, honest=100, epsilon=1e9)


@pytest.mark.parametrize(("k_min", "colluding"), [(3, 0), (5, 2)])
def test_an_audit_finds_less_than_is_accounted_for_and_more_without_noise(k_min: int, colluding: int) -> None:
    found = shared_audit(0.6, k_min, colluding)
    assert 0.5 < found.lower <= found.accounted
    assert shared_audit(0.6, k_min, colluding, shares=False).lower > 0
    assert shared_audit(4.0, k_min, colluding, shares=False).lower > shared_audit(4.0, k_min, colluding).accounted


async def test_a_budget_ends_what_a_device_gives_and_its_spending_is_reported(tmp_path: Path) -> None:
    strategy = secure(
        3,
        4,
        server_rate=0.5,
        deadline=1.0,
        pace=Pace(rest=0.0),
        plan=Plan(),
        privacy=replace(PRIVACY, epsilon=12.0),
        colluding=1,
    )
    privacy = strategy.privacy
    assert privacy is not None
    most = privacy.contributions
    assert 2 <= most <= 4
    party = Party(tmp_path, NAMES, strategy)
    server = party.aggregator()
    async with serving(party.helper(), server, *party.devices()):
        await party.log.until(lambda: server.open_now and server.core.counts["quota"])
        spent = server.core.spent
        assert spent is not None
        assert spent.worst == pytest.approx(privacy.spent(most)) and spent.worst <= 12.0
        assert spent.bare == 0
    again = party.aggregator()
    async with serving(party.helper(), again):
        await party.log.until(lambda: again.open_now)
        assert again.core.spent == server.core.spent
    # δ and the number of honest devices are of the journal: the report of a store has no configuration.
    found = summarise(tmp_path / "store")
    assert found.privacy == server.core.spent
    page = store_page(found)
    assert "Privacy spent" in page and f"{spent.worst:.3g}" in page
    assert packed(found)["privacy"]["worst"] == spent.worst


def noisy(noise: float, epsilon: float) -> Strategy:
    privacy = Privacy(clip=2.0, noise=noise, epsilon=epsilon)
    return secure(3, 4, privacy=privacy, server_rate=0.5, deadline=1.0, pace=Pace(rest=0.0), plan=Plan())


@pytest.mark.parametrize("before", [STRATEGY, noisy(0.5, 500.0)], ids=["without noise", "with less"])
async def test_what_waited_under_less_noise_is_in_no_step_that_is_charged_for_more(
    tmp_path: Path, before: Strategy
) -> None:
    """Seen to fail: the exact sum of updates without noise was charged as one at z = 8."""
    party = Party(tmp_path, NAMES, before)
    server = party.aggregator()
    async with serving(server, *party.devices()):
        async with serving(party.helper()):
            await party.log.until(lambda: server.open_now and server.core.step >= 1)
        await party.log.until(lambda: len(server.core.sums.waiting) >= 4)
    made, waiting = server.core.step, set(server.core.sums.waiting)
    party._strategy = noisy(8.0, 20.0)
    server = party.aggregator()
    async with serving(party.helper(), server, *party.devices()):
        await party.log.until(lambda: server.open_now and server.core.step > made)
    assert server.core.counts["strategy"] == len(waiting)
    noises, rhos = set(), set()
    with Store(tmp_path / "store") as store:
        for entry in store.entries(after=0):
            step = entry.record
            if isinstance(step, rec.StepRecord) and step.step > made:
                noises |= {parse_entry(ticket_of(store, lsn)).noise for lsn, _ in step.updates}
                rhos.add(step.noise / step.clip)
    assert (noises, rhos) == ({8.0 * 1024}, {8.0})


def ticket_of(store: Store, lsn: int) -> bytes:
    """The signed entry of a masked update."""
    record = store.record(lsn)
    assert isinstance(record, rec.UpdateRecord)
    return frames.validate(Ticket, frames.decode(record.ticket)[0]).entry


def test_a_device_that_requires_noise_beats_any_plan(tmp_path: Path) -> None:
    party = Party(tmp_path, NAMES, secure(3, 4, privacy=PRIVACY, colluding=1, plan=Plan()))
    asked = _announcement(party).model_copy(update={"plan": party._strategy.plan})

    def objection(**required: float) -> str:
        masker = party.device(
            NAMES[0],
            secure=RequireSecure(helper_key=party.key.public_pem(), k_min=3, **required),  # type: ignore[arg-type]
        )._parts.masker
        assert masker is not None
        return masker.objection(asked) or ""

    assert objection(noise=1.0, colluding=1) == ""
    assert "requires 1.5" in objection(noise=1.5)
    assert "trusts 1 of 3" in objection(noise=1.0, colluding=2)


def test_a_device_adds_no_noise_that_its_next_update_takes_back(tmp_path: Path) -> None:
    """With error feedback, an update carries the noise of the one before it, negated: their sum has that of one."""
    party = Party(tmp_path, NAMES, secure(3, 4, privacy=PRIVACY, colluding=1, plan=Plan()))
    plan = party._strategy.plan
    masker = party.device(NAMES[0])._parts.masker
    assert masker is not None and not plan.feedback
    assert masker.objection(_announcement(party).model_copy(update={"plan": plan})) is None
    carried = plan.model_copy(update={"feedback": True})
    asked = _announcement(party).model_copy(update={"plan": carried})
    assert "feedback" in (masker.objection(asked) or "")
    with pytest.raises(Unfit, match="feedback"):
        masker.mask(np.zeros(4, np.float32), update_of(asked, "", b""), asked, Schema.of({"w": np.zeros(4)}), None)


def test_a_settings_file_has_a_budget_for_secure_too() -> None:
    given = {"preset": "secure", "k_min": 4, "colluding": 1, "privacy": {"clip": 2.0, "noise": 1.5, "epsilon": 8.0}}
    made = strategy_of(given, {})
    assert made.privacy is not None and made.privacy.honest == 3
    assert made.plan.masking is not None and made.plan.masking.noise == 1.5 * made.plan.masking.levels
