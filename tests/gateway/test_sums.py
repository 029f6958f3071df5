"""A root of gateways makes the step that it would make of their devices, and a site counts as its devices, or as one.

The values of the exact test are small multiples of a power of two, so that no sum of them is rounded in float32, in
whatever order; then nothing but the rule itself can make a difference.
"""

import tempfile
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from midge.aggregator.core import records as rec
from midge.aggregator.core.presets import fedbuff
from midge.aggregator.core.staleness import Staleness, constant, polynomial
from midge.aggregator.core.strategy import Strategy
from midge.aggregator.core.update_admission import Bounds
from midge.gateway.config import site_strategy
from midge.iot_client.training.update_encoder import encode
from midge.wire.messages import Settled, Verdict
from midge.wire.schema import Schema
from tests.aggregator.rig import Rig, rig

SIZE = 6
PARAMETERS = {"x": np.zeros(SIZE, np.float32)}
SITES = replace(Bounds.of(Schema.of(PARAMETERS)), sites=("site-*",))
Trained = tuple[str, str, int, tuple[int, ...]]
"""Of an update: its site, its device, its rows, and its delta in units of 1/64."""


def follow(site: Rig, root: Rig) -> None:
    """Pass the root's newest version on."""
    core = root.core
    version = rec.FollowRecord(0, core.generation, core.version, core.step, 0.0, root.model.state.digest(), b"envelope")
    site.processor.shell.carry_out(site.core.note(site.core.site.follow(version)), 0.0)


def sums(site: Rig) -> list[rec.SumRecord]:
    """Make all sums that can be made."""
    made: list[rec.SumRecord] = []
    while (record := site.core.site.next(0.0, len(made) + 1)) is not None:
        site.processor.shell.carry_out(site.core.note(record), 0.0)
        made.append(record)
    return made


def rows(*, least: int = 3) -> st.SearchStrategy[list[Trained]]:
    """Updates of one round, each of another device; the rows are equal, so that no claim exceeds the bound."""
    values = st.tuples(*[st.integers(-64, 64)] * SIZE)
    one = st.tuples(st.sampled_from(["north", "south", "east"]), st.sampled_from([8, 16]), values)
    return st.lists(one, min_size=least, max_size=12).map(
        lambda found: [(site, f"{site}-{number}", count, delta) for number, (site, count, delta) in enumerate(found)]
    )


def linear(size: int, staleness: Staleness, *, by_weight: bool, weigh_examples: bool) -> Strategy:
    normalise: Any = "weight" if by_weight else "count"
    return fedbuff(
        size,
        0.5,
        staleness,
        normalise,
        weigh_examples=weigh_examples,
        norm_limit=None,
        release_floor=1,
        bounded=False,
        deadline=None,
    )


def flat_and_summed(
    rounds: Sequence[Sequence[Trained]], strategies: Sequence[Strategy], codec: str = "float32"
) -> tuple[Rig, Rig]:
    """Two roots after the same rounds: one heard the devices, one their gateways. Odd devices train a version late."""
    weigh = strategies[0].weigh_examples
    flat = rig_of("flat", strategies[0])
    top = rig_of("top", strategies[0])
    below = {
        name: rig_of(name, site_strategy(weigh_examples=weigh, robust=False), lineage=top.core.lineage)
        for name in ROUND
    }
    left: dict[str, bytes | None] = defaultdict(lambda: None)
    for number, (trained, strategy) in enumerate(zip(rounds, strategies, strict=True), start=1):
        for root in (flat, top):
            set_size(root, strategy)
        for site in below.values():
            follow(site, top)
        base = flat.core.version
        for index, (place, device, count, delta) in enumerate(trained):
            late = base - 1 if index % 2 and base > 1 else base
            values = [each / 64 for each in delta]
            fields: dict[str, Any] = {"examples": count, "base": late, "outbox": number}
            assert flat.send(device, 1, values, **fields).verdict is Verdict.ACCEPTED
            fields["lineage"] = top.core.lineage
            assert below[place].send(device, 1, values, **fields).verdict is Verdict.ACCEPTED
        for place, site in below.items():
            for record in sums(site):
                total = site.engine.total(record)
                coded, (left[place],) = encode(
                    total[None], codec, b"l" * 16, site.model.schema, feedback=True, left=[left[place]], seeds=[0]
                )
                settled = give(top, f"site-{place}", record, coded.body(0), codec)
                assert settled.verdict is Verdict.ACCEPTED, settled.why
    return flat, top


ROUND = ("north", "south", "east")
_OPEN = ExitStack()
_SEQS: dict[str, int] = defaultdict(int)


@pytest.fixture(autouse=True)
def closed() -> Any:
    yield
    close()


def close() -> None:
    _OPEN.close()
    _SEQS.clear()


def rig_of(name: str, strategy: Strategy, lineage: bytes = b"") -> Rig:
    directory = _OPEN.enter_context(tempfile.TemporaryDirectory(prefix=f"midge-{name}-"))
    made = Rig(Path(directory), strategy, parameters=PARAMETERS, bounds=SITES)
    if lineage:  # a gateway's store continues that of the root
        made.core.lineage = made.store.lineage = lineage
        made.core._admission._lineage = lineage
    _OPEN.callback(made.close)
    return made.start()


def set_size(root: Rig, strategy: Strategy) -> None:
    """Let K be the number of this round's updates, so that both make one step of it."""
    core = root.core
    core.strategy = strategy
    for part in (core._steps, core._admission, core._state, core._releases):
        part._strategy = strategy


def give(top: Rig, device: str, record: rec.SumRecord, body: bytes, codec: str) -> Settled:
    _SEQS[device] += 1
    return top.send(
        device,
        _SEQS[device],
        (),
        body=body,
        codec=codec,
        base=record.base,
        base_digest=record.base_digest,
        accepted=len(record.updates),
        devices=record.devices,
        weight=record.mass,
    )


@given(
    st.lists(rows(), min_size=1, max_size=4),
    st.booleans(),
    st.booleans(),
    st.sampled_from([constant(), polynomial(1.0)]),
)
@settings(max_examples=25, deadline=None)
def test_two_levels_make_the_steps_of_one(
    rounds: list[list[Trained]], by_weight: bool, weigh_examples: bool, staleness: Staleness
) -> None:
    """Seen to fail: with sums weighed as one update each, or with the staleness of the gateway."""
    strategies = [
        linear(len(trained), staleness, by_weight=by_weight, weigh_examples=weigh_examples) for trained in rounds
    ]
    try:
        flat, top = flat_and_summed(rounds, strategies)
        assert (
            (flat.core.step, flat.core.version) == (top.core.step, top.core.version) == (len(rounds), len(rounds) + 1)
        )
        np.testing.assert_array_equal(flat.model.x, top.model.x)
        assert flat.core.applied == top.core.applied == sum(map(len, rounds))
    finally:
        close()


def test_a_site_sends_two_sums_of_two_bases_into_one_step() -> None:
    """Seen to fail: with the sums of one site sharing the weight of one device."""
    one = [("north", f"north-{number}", 8, (8, 0, 0, 0, 0, 0)) for number in range(4)]
    strategies = [linear(4, polynomial(1.0), by_weight=True, weigh_examples=False)] * 2
    flat, top = flat_and_summed([one, one], strategies)
    np.testing.assert_array_equal(flat.model.x, top.model.x)
    assert len([entry for entry in top.store.entries(after=0) if isinstance(entry.record, rec.UpdateRecord)]) == 3


def test_with_the_default_codec_two_levels_are_within_a_hundredth() -> None:
    """The codec's error goes into the next sum, so it does not add up."""
    random = np.random.default_rng(5)
    rounds = []
    for _ in range(40):
        drift = random.integers(-20, 20, SIZE)
        rounds.append(
            [
                (ROUND[number % 3], f"{ROUND[number % 3]}-{number}", 8, tuple(map(int, 200 + drift)))
                for number in range(12)
            ]
        )
    strategies = [linear(12, constant(), by_weight=False, weigh_examples=False)] * len(rounds)
    flat, top = flat_and_summed(rounds, strategies, "uq:4|rice")
    apart = np.linalg.norm(flat.model.x - top.model.x) / np.linalg.norm(flat.model.x)
    assert 0 < apart < 0.01


def test_only_a_site_may_send_sums(tmp_path: Path) -> None:
    """Seen to fail: without the check, a device counts as many times as it says."""
    with rig(tmp_path, linear(2, constant(), by_weight=False, weigh_examples=False), bounds=SITES) as root:
        told = {"accepted": 1000, "devices": 1000, "weight": 1000.0}
        refused = root.start().send("pump", 1, [1] * 4, **told)
        assert refused.verdict is Verdict.BAD_ENCODING
        assert "no site" in refused.why
        heavy = root.send("site-1", 1, [1] * 4, accepted=2, devices=2, weight=1000.0)
        assert heavy.verdict is Verdict.BAD_ENCODING
        assert "cannot weigh" in heavy.why


def test_a_bad_site_counts_as_one_under_a_rule_that_knows_devices(tmp_path: Path) -> None:
    """A trimmed mean takes a site's mean as one device's, however many devices it says that it has."""
    strategy = replace(
        linear(5, constant(), by_weight=True, weigh_examples=False), combine="trimmed", trim=0.2, rate=1.0
    )
    bounds = replace(SITES, sites=("site-*",))
    with rig(tmp_path, strategy, bounds=bounds) as root:
        root.start()
        for number in range(4):
            root.send(f"site-{number}", 1, [10.0] * 4, accepted=10, devices=10, weight=10.0)
        root.send("site-bad", 1, [-1e6] * 4, accepted=1000, devices=1000, weight=1000.0)
        root.tick(1000.0)
        assert root.core.step == 1
        np.testing.assert_allclose(root.model.x, 1.0)


def test_a_bad_device_harms_the_sum_of_its_site_at_most_by_a_bound(tmp_path: Path) -> None:
    """Seen to fail: with `robust=False`, its update is the sum."""
    random = np.random.default_rng(1)
    with rig(tmp_path, site_strategy(), parameters=PARAMETERS) as site:
        core = site.start().core
        version = rec.FollowRecord(0, 0, 1, 0, 0.0, bytes(16), b"envelope")
        site.processor.shell.carry_out(core.note(core.site.follow(version)), 0.0)
        for turn in range(1, 4):
            for number in range(8):
                honest = 1 + random.normal(0, 0.1, SIZE).astype(np.float32)
                site.send(f"pump-{number}", turn, honest, now=float(turn), base=1)
            site.send("bad", turn, np.full(SIZE, -1e6, np.float32), now=float(turn), base=1)
            record = core.site.next(float(turn), turn)
            assert record is not None
            total = site.engine.total(record)
            site.processor.shell.carry_out(core.note(record), float(turn))
            assert record.devices == 9
        # Eight of about 1, and one that is held to a few times the usual length, or less since it opposes.
        assert 8 - 10 <= total.min() <= total.max() <= 8.5
        assert total.mean() > 0
