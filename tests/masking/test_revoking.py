"""Sums that were opened and wait: what they cost is charged, and a revoked device takes its sum with it."""

from collections import Counter
from pathlib import Path

import pytest

from midge.aggregator.core import events as ev
from midge.aggregator.core import records as rec
from midge.aggregator.core.core import AggregatorCore
from midge.aggregator.core.masked_sums import SumName
from midge.aggregator.core.presets import secure
from midge.aggregator.core.privacy import Privacy
from midge.mask_helper.helper import MaskHelper
from tests.federation.live import overheard, serving
from tests.masking.test_federation import Party

PRIVACY = Privacy(clip=2.0, noise=4.0, epsilon=8.0)
STRATEGY = secure(k_min=3, groups=5, privacy=PRIVACY, server_rate=0.5, deadline=1.0)
NAMES = [f"pump-{number}" for number in range(15)]
OUTBOX = 2**40


def core_of(state: dict[str, object] | None = None) -> AggregatorCore:
    core = AggregatorCore(STRATEGY, lineage=bytes(16), schema_hash=bytes(16))
    if state is not None:
        core.load(state)
    return core


def opened(core: AggregatorCore, *, charged: bool = True) -> list[rec.OpenedSumRecord]:
    """Accept an update of each device, and open five sums of three; `charged` is False for an earlier Midge."""
    lsns = []
    for number, name in enumerate(NAMES):
        lsns.append(core.dump()["lsn"] + 1)
        core.replay(
            rec.UpdateRecord(
                lsn=lsns[-1],
                device=name,
                outbox=OUTBOX + number,
                seq=1,
                verdict="accepted",
                base=0,
                staleness=0,
                weight=1.0,
                scale=1.0,
                norm=0.0,
                codec="masked:12",
                examples=0,
                size=10,
                ticket=b"of the device",
            )
        )
    found = []
    for number in range(5):
        weights = dict.fromkeys(lsns[3 * number : 3 * number + 3], 1)
        record = core.sums.group(SumName(b"h" * 16, number + 1), weights, 0, 1.0)
        if not charged:
            record = rec.OpenedSumRecord(record.lsn, record.updates, record.helper, record.dealt)
        found.append(record)
        core.replay(record)
    return found


def spent(core: AggregatorCore) -> list[float | None]:
    return [core.spent_of(name) for name in NAMES]


ONCE = STRATEGY.privacy.spent(1) if STRATEGY.privacy is not None else 0.0


def test_a_sum_is_charged_when_it_is_opened_and_once() -> None:
    """The aggregator has read it: seen to fail on a charge by the step, which a dropped sum never has."""
    core = core_of()
    opened(core)
    assert spent(core) == pytest.approx([ONCE] * 15)
    core = core_of(core.dump())
    core.replay(core.sums.group_step(core.sums.complete(0.0), []))
    assert spent(core) == pytest.approx([ONCE] * 15)


def test_a_sum_that_an_earlier_midge_has_opened_is_charged_with_its_step() -> None:
    core = core_of()
    opened(core, charged=False)
    core = core_of(core.dump())
    assert spent(core) == [0.0] * 15
    core.replay(core.sums.group_step(core.sums.complete(0.0), []))
    assert spent(core) == pytest.approx([ONCE] * 15)


def test_a_revoked_device_takes_its_opened_sum_with_it() -> None:
    """Seen to fail: the sum went into the model, with the update of the revoked device in it."""
    core = core_of()
    sums = opened(core)
    core.handle(ev.Revoked(NAMES[0]), 0.0)
    waiting = core.dump()["groups"][0]
    assert [lsn for lsn, *_ in waiting] == [each.lsn for each in sums[1:]]
    assert core.buffered == 12 and core.counts["revoked"] == 3
    assert core.sums.complete(0.0) == (), "four sums are too few"
    assert spent(core) == pytest.approx([ONCE] * 15), "it was read all the same"


async def test_a_sum_that_the_helper_has_dealt_with_a_revoked_device_is_dropped_with_the_reason(tmp_path: Path) -> None:
    """It cannot be opened without that update, and nothing of a revoked device may be in the model."""
    party = Party(tmp_path, NAMES[:6])
    server, seen = party.aggregator(), overheard(party.twin)
    async with serving(server, *party.devices()):
        async with serving(party.helper()):
            await party.log.until(lambda: server.open_now and server.core.step >= 1)
        core = server.core
        await party.log.until(lambda: 6 in Counter(item.base for item in core.sums.waiting.values()).values())
        seen.clear()
        await party.log.until(lambda: any(each.topic.endswith("/deposit") for each in seen))
        deposit = next(each.payload for each in seen if each.topic.endswith("/deposit"))
        helper = MaskHelper(party.helper()._config)
        helper.take(deposit)
        newest = "SELECT device FROM entries WHERE dealt = (SELECT value FROM meta WHERE name = 'dealt')"
        members = [device for (device,) in helper._ledger._database.connection.execute(newest)]
        helper.close()
        server.federation.processor.shell.handle(ev.Revoked(members[0]), 1.0)
        revoked = core.counts["revoked"]
        async with serving(party.helper()):
            await party.log.until(lambda: party.log.of("unsummed"))
    (told,) = party.log.of("unsummed")
    assert "revoked" in told["why"] and told["dropped"] == core.counts["unsummed"] == len(members) - 1 >= 2
    assert core.counts["accepted"] == core.applied + core.buffered + revoked + len(members) - 1
