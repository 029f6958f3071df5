"""Every masked update counts once, whoever is killed: the helper between any two of its actions, and all by SIGKILL."""

import asyncio
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from midge.aggregator.core.records import DropRecord, StepRecord, UpdateRecord
from midge.aggregator.store.store import Store
from midge.mask_helper import helper as deciding
from midge.mask_helper import ledger as recording
from midge.sensor_fleet.demo import Demo
from midge.sensor_fleet.setting import Setting
from midge.sensor_fleet.world import World
from tests import needs
from tests.masking.party import Asker, delta, helper_of, senders
from tests.waiting import LAST_RESORT


class Killed(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("point", ["helper.writing", "helper.written", "helper.answered"])
def test_a_helper_that_is_killed_deals_each_seed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    devices = senders(6)
    asker = Asker(helper_of(tmp_path, devices, least=3))
    held = [asker.hold(each, each.send(asker.helper, delta(n))) for n, each in enumerate(devices)]

    def kill(name: str) -> None:
        if name == point:
            raise Killed

    for module in (deciding, recording):
        monkeypatch.setattr(module, "failpoint", kill)
    with pytest.raises(Killed):
        asker.ask(held[:4], size=3)
    monkeypatch.undo()
    asker.helper.close()

    asker.helper = helper_of(tmp_path, devices, least=3)
    first = asker.ask(held, size=3)
    store = first[0][0].store
    second = asker.ask([], size=3, after=first[-1][0].number, store=store)
    third = asker.ask([], size=3, after=second[-1][0].number, store=store)
    members = [each.device for answers in (first, second) for dealt, _ in answers for each in dealt.members]
    assert sorted(members) == sorted(each.name for each in devices)
    assert asker.sums(third) == []
    for answers in (first, second):
        (total,) = asker.sums(answers)
        names = [each.device for dealt, _ in answers for each in dealt.members]
        assert total.tolist() == sum((delta(int(name[-1])) for name in names), start=0 * delta(0)).tolist()


class Broken:
    """A demo with a helper, on Mosquitto, whose parties are killed and restarted."""

    def __init__(self, tmp_path: Path) -> None:
        setting = Setting(secure=True, devices=8, k_min=4, world=World(median=0.1, spread=0.3))
        self.demo = Demo(setting, tmp_path, seconds=10 * LAST_RESORT, broker="mosquitto", on_event=self._news)
        self._event = asyncio.Event()

    def _news(self, _: dict[str, Any]) -> None:
        self._event.set()

    async def until(self, done: Callable[[], object]) -> None:
        async with asyncio.timeout(LAST_RESORT):
            while not done():
                self._event.clear()
                if not done():
                    await self._event.wait()

    async def more(self, steps: int = 3) -> None:
        """Wait for a few steps more."""
        wanted = self.demo.progress.step + steps
        await self.until(lambda: self.demo.progress.step >= wanted)


@pytest.mark.slow
@needs.mosquitto
@pytest.mark.alone
@pytest.mark.mosquitto
async def test_nothing_is_lost_or_doubled_when_all_parties_are_killed(tmp_path: Path) -> None:
    it = Broken(tmp_path)
    demo = it.demo
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(demo.run())
        await it.more()
        helper = demo._federation.helper
        assert helper is not None

        helper.kill()
        assert demo.kill_aggregator()
        await helper.start()
        assert await demo.restart_aggregator()
        await it.more()

        killed = demo.kill_device()
        helper.kill()
        settled = demo.progress.settled
        await it.until(lambda: demo.progress.settled > settled)  # updates are accepted while the helper is away
        assert demo.kill_broker()
        assert await demo.restart_broker()
        assert killed is not None and demo.restart_device(killed) == killed
        await helper.start()
        await it.more()
        demo.stop()
        assert await running == "interrupted"
    check_journal(tmp_path / "store")


def check_journal(directory: Path) -> None:
    """Each accepted update is in one sum, or waits; sums have at least k_min devices, one update of each.

    One whose version has too few devices left is refused by the helper; none is dropped because its sum is incomplete.
    """
    devices: dict[int, str] = {}
    applied: Counter[int] = Counter()
    numbers, keys, refused = [], set(), set[int]()
    with Store(directory) as store:
        for entry in store.entries(after=0):
            match entry.record:
                case UpdateRecord(verdict="accepted") as record:
                    key = record.device, record.outbox, record.seq
                    assert key not in keys
                    keys.add(key)
                    devices[record.lsn] = record.device
                case StepRecord() as step:
                    assert step.combine == "masked"
                    lsns = [lsn for lsn, _ in step.updates]
                    assert len({devices[lsn] for lsn in lsns}) == len(lsns) >= 4
                    applied.update(lsns)
                    numbers.append(step.dealt)
                case DropRecord() as dropped:
                    assert dropped.why == "unsummed" and not dropped.dealt, f"updates were lost: {dropped}"
                    refused.update(dropped.dropped)
    assert not refused & applied.keys()
    assert set(applied.values()) == {1}
    assert numbers == list(range(1, len(numbers) + 1))
    waiting = devices.keys() - applied.keys() - refused
    assert len(waiting) <= 8 * 4  # a few trainings of each device
