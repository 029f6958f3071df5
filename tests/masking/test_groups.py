"""Sums of groups: dealt at random, combined by a robust rule, and devices that send noise are held back."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from midge.aggregator import helper_link
from midge.aggregator.core import records as rec
from midge.aggregator.core.buffered import Buffered
from midge.aggregator.core.groups import SUSPECT, OpenedGroups
from midge.aggregator.core.participation_controller import Pace
from midge.aggregator.core.presets import secure
from midge.aggregator.core.strategy import Strategy
from midge.aggregator.model.group_means import outlying
from midge.aggregator.store.store import Store
from midge.iot_client.device import Device
from midge.iot_client.training.update_encoder import EncodedUpdate
from midge.wire import chunks, masking
from midge.wire.messages import Announcement, Plan, Update
from tests.federation.live import distance, serving
from tests.masking.party import Asker, delta, helper_of, senders
from tests.masking.test_federation import Party

NAMES = [f"pump-{number}" for number in range(15)]


def strategy(groups: int = 5, **others: Any) -> Strategy:
    return secure(
        k_min=3,
        groups=groups,
        clip=20.0,
        scale=0.25,
        levels=60,
        server_rate=0.5,
        deadline=1.0,
        pace=Pace(rest=0.0),
        plan=Plan(),
        **others,
    )


# ------------------------------------------------------------------------------ dealing


def groups_of(asker: Asker, held: list[Any], groups: int) -> list[list[str]]:
    """The devices of each set that is dealt."""
    answers, found = asker.ask(held, size=3, groups=groups), []
    while answers[-1][0].number:
        dealt, _ = answers[-1]
        found.append([each.device for each in dealt.members])
        answers = asker.ask([], size=3, groups=groups, after=dealt.number, store=dealt.store)
    return found


def test_groups_are_dealt_together_and_share_no_device(tmp_path: Path) -> None:
    devices = senders(9)
    asker = Asker(helper_of(tmp_path, devices))
    held = [asker.hold(each, each.send(asker.helper, delta(n))) for n, each in enumerate(devices)]
    assert groups_of(asker, held[:8], 3) == []
    found = groups_of(asker, held[8:], 3)
    assert [len(set(each)) for each in found] == [3, 3, 3]
    assert len({name for each in found for name in each}) == 9


def test_the_helper_deals_groups_at_random(tmp_path: Path) -> None:
    """In the order of arrival, devices of one speed would share their group with a sender of noise for ever."""
    devices = senders(9)
    asker = Asker(helper_of(tmp_path, devices))
    company: Counter[str] = Counter()
    for _ in range(8):
        held = [asker.hold(each, each.send(asker.helper, delta(1))) for each in devices]
        (mine,) = [each for each in groups_of(asker, held, 3) if "pump-0" in each]
        company.update(mine)
    assert len(company) > 4  # with fixed groups it is 3; at random, fewer than 5 have a probability of 2e-6


# ------------------------------------------------------------------------------ finding


RNG = np.random.default_rng(3)


def judged(groups: OpenedGroups, names: list[str], count: int, liars: set[str], steps: int = 1) -> None:
    """Steps of random groups in which exactly those with a liar are out of line."""
    for step in range(1, steps + 1):
        dealt = [each.tolist() for each in np.array_split(RNG.permutation(names)[: 5 * count], count)]
        items = [Buffered(name, 0, 1.0, group=number + 1) for number, each in enumerate(dealt) for name in each]
        lsns = tuple(range(1, len(dealt) + 1))
        far = tuple(number for number, each in zip(lsns, dealt, strict=True) if liars & set(each))
        groups.step(
            rec.StepRecord(step, step, (), 1.0, "delta", "weight", combine="groups", groups=lsns, outliers=far), items
        )


def test_regrouping_finds_who_sends_noise_and_blames_few_others() -> None:
    """Two bad groups are no proof: with a first rate of 2 %, they were, and honest devices were held back."""
    names = [f"d{number}" for number in range(50)]
    liars, blamed = set(names[:5]), set[str]()
    groups = OpenedGroups()
    for _ in range(100):
        left = [name for name in names if not groups.suspect(name)]
        judged(groups, left, 5, liars)
        blamed |= set(groups.suspects)
    assert liars <= blamed
    assert len(blamed - liars) <= 1
    assert len(set(groups.suspects) & liars) >= 3  # the others are being tried again


def test_a_suspect_is_tried_again_and_an_honest_one_recovers() -> None:
    groups = OpenedGroups()
    names = [f"d{number}" for number in range(25)]
    judged(groups, names, 5, {"d0"}, 12)
    assert groups.suspects == ["d0"]
    others = names[1:]
    judged(groups, others, 4, set(), 40)
    assert not groups.suspect("d0")
    judged(groups, names, 5, set(), 5)
    assert groups._scores["d0"] < SUSPECT / 2
    again = OpenedGroups()
    again.load(groups.dump())
    assert again.dump() == groups.dump()


def test_a_mean_far_from_the_others_is_out_of_line() -> None:
    rng = np.random.default_rng(1)
    honest = [rng.normal(1, 0.2, 500).astype(np.float32) for _ in range(4)]
    assert outlying(honest) == ()
    assert outlying([*honest, -honest[0]]) == (4,)


def test_groups_are_at_least_five_and_masked() -> None:
    with pytest.raises(ValueError, match="at least 5"):
        strategy(4)
    with pytest.raises(ValueError, match="below 5 times"):
        secure(k_min=5, groups=5, buffer_size=24)


# ---------------------------------------------------------------------------- federation


def shouting(device: Device) -> Device:
    """A device that puts random elements into the ring, whatever its clip norm."""
    masker, rng = device._parts.masker, np.random.default_rng(1)
    assert masker is not None
    honest = masker.mask

    def mask(delta: Any, update: Update, announcement: Announcement, *rest: Any) -> EncodedUpdate:
        made, plan = honest(delta, update, announcement, *rest), announcement.plan.masking
        assert plan is not None
        body = masking.pack(rng.integers(0, 2**plan.ring, delta.size).astype(np.uint32), plan.ring)
        return EncodedUpdate(made.update.model_copy(update={"sha256": chunks.checksum(body)}), body, made.residual)

    masker.mask = mask  # type: ignore[method-assign,assignment]
    return device


async def test_the_median_of_the_groups_bears_a_sender_of_noise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the mean of the groups in place of their median, the model never comes near. Nothing is held back here."""
    monkeypatch.setattr("midge.aggregator.core.groups.SUSPECT", 1e9)
    party = Party(tmp_path, NAMES, strategy())
    server = party.aggregator()
    first, *others = party.devices()
    async with serving(party.helper(), server, shouting(first), *others):
        await party.log.until(lambda: server.open_now and distance(server.model.parameters()) < 0.3)
    assert not party.log.of("suspected")


async def test_a_sender_of_noise_is_held_back_and_the_others_go_on(tmp_path: Path) -> None:
    """Fourteen devices are too few for five groups: without steps of fewer after a deadline, they waited for ever."""
    party = Party(tmp_path, NAMES, strategy())
    server = party.aggregator()
    first, *others = party.devices()
    async with serving(party.helper(), server, shouting(first), *others):
        await party.log.until(lambda: party.log.of("suspected"))
        assert {each["device"] for each in party.log.of("suspected")} == {NAMES[0]}
        step = server.core.step
        await party.log.until(lambda: server.core.step > step + 2)
        await party.log.until(lambda: server.core.counts["quarantined"])
        core = server.core
        assert core.counts["accepted"] == core.applied + core.buffered + core.counts["unsummed"]


class Ended(Exception):
    """The aggregator ends here."""


@pytest.mark.parametrize("point", ["sum.opened", "sum.combined"])
async def test_each_update_counts_once_if_the_aggregator_ends_between_sums(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    """A checkpoint between two sums must leave the bodies of those that wait."""
    party = Party(tmp_path, NAMES, strategy())

    def end(name: str) -> None:
        if name == point:
            raise Ended

    monkeypatch.setattr(helper_link, "failpoint", end)
    with pytest.raises(ExceptionGroup) as ended:
        async with serving(party.helper(), party.aggregator(checkpoint_records=1), *party.devices()):
            await party.log.until(lambda: False)
    assert ended.group_contains(Ended)
    monkeypatch.undo()
    server = party.aggregator()
    async with serving(party.helper(), server, *party.devices()):
        await party.log.until(lambda: server.open_now and server.core.step >= 2)
    check_journal(tmp_path / "store")


def check_journal(directory: Path) -> None:
    """Each accepted update is in one sum, each sum in one step, and a step has five sums."""
    summed: Counter[int] = Counter()
    stepped: Counter[int] = Counter()
    sums: dict[int, tuple[int, ...]] = {}
    numbers = []
    with Store(directory) as store:
        for entry in store.entries(after=0):
            match entry.record:
                case rec.OpenedSumRecord() as record:
                    sums[record.lsn] = tuple(lsn for lsn, _ in record.updates)
                    summed.update(sums[record.lsn])
                    numbers.append(record.dealt)
                case rec.StepRecord() as step:
                    assert len(step.groups) >= 3
                    assert {lsn for lsn, _ in step.updates} == {lsn for each in step.groups for lsn in sums[each]}
                    stepped.update(step.groups)
                case rec.DropRecord() as dropped:
                    assert dropped.why == "unsummed" and not dropped.dealt, f"updates were lost: {dropped}"
    assert stepped
    assert set(summed.values()) == set(stepped.values()) == {1}
    assert numbers == list(range(1, len(numbers) + 1))
