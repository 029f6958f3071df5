"""A federation with a mask helper, over the broker in memory: real aggregator, helper and devices."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from midge.aggregator.core.participation_controller import Pace
from midge.aggregator.core.presets import secure
from midge.aggregator.service import Aggregator
from midge.broker.embedded.in_memory import Twin
from midge.iot_client.device import Device
from midge.iot_client.masking_requirement import RequireSecure
from midge.mask_helper.config import HelperConfig
from midge.mask_helper.service import HelperService
from midge.wire import chunks, codecs, frames, masking, messages, signing
from midge.wire.errors import WireError
from midge.wire.messages import Announcement, Plan, Update
from midge.wire.schema import Schema
from tests.announced import announced
from tests.federation.live import Log, aggregator, device, distance, overheard, serving
from tests.waiting import LAST_RESORT

STRATEGY = secure(
    k_min=3,
    buffer_size=4,
    clip=20.0,
    scale=0.25,
    levels=60,
    server_rate=0.5,
    deadline=1.0,
    pace=Pace(rest=0.0),
    plan=Plan(),
)


class Party:
    """Keys of all parties, and their processes on one broker."""

    def __init__(self, folder: Path, names: list[str], strategy: Any = STRATEGY) -> None:
        self.twin, self.log, self._folder, self._strategy = Twin(), Log(), folder, strategy
        self.release, self.key = signing.new_key(), signing.new_key()
        (folder / "release.key").write_bytes(self.release.pem())
        self.keys = {name: signing.new_key() for name in names}

    def aggregator(self, **more: Any) -> Aggregator:
        return aggregator(
            self.twin,
            self._folder / "store",
            self.log,
            strategy=self._strategy,
            release_key=self._folder / "release.key",
            helper_key=self.key.public_pem(),
            require_sealed=True,
            **more,
        )

    def helper(self, least: int = 3) -> HelperService:
        return HelperService(
            HelperConfig(
                connector=self.twin.connect,
                federation="f",
                directory=self._folder / "helper",
                key=self.key,
                release_keys=[self.release.public],
                roster={name: key.public for name, key in self.keys.items()},
                least=least,
            )
        )

    def device(self, name: str, log: Log | None = None, **arguments: Any) -> Device:
        required = RequireSecure(helper_key=self.key.public_pem(), k_min=3)
        return device(
            self.twin,
            name,
            log or Log(),
            self._folder / f"{name}.outbox",
            release_key=self.release.public_pem(),
            signing_key=self.keys[name].pem(),
            **{"secure": required, **arguments},
        )

    def devices(self) -> list[Device]:
        return [self.device(name) for name in self.keys]


NAMES = [f"pump-{number}" for number in range(6)]


async def test_masked_updates_train_a_model_and_no_update_is_readable(tmp_path: Path) -> None:
    party = Party(tmp_path, NAMES)
    server, seen = party.aggregator(), overheard(party.twin)
    async with serving(party.helper(), server, *party.devices()):
        await party.log.until(lambda: server.open_now and distance(server.model.parameters()) < 0.3)
        core = server.core
        assert core.counts["accepted"] == core.applied + core.buffered + core.counts["unsummed"]
    updates = [messages.decode_update(each.payload)[0] for each in seen if "/update/" in each.topic]
    masked = [update for update in updates if isinstance(update, Update)]
    assert masked
    for update in masked:
        assert masking.is_masked(update.codec) and update.sealed
        with pytest.raises(WireError):
            codecs.parse(update.codec)
        assert (update.examples, update.steps, update.seconds, dict(update.metrics)) == (0, 0, 0.0, {})


async def test_a_helper_that_is_away_delays_and_loses_nothing(tmp_path: Path) -> None:
    # All devices are in each sum: with fewer, the last ones of a version would be too few for another.
    party = Party(tmp_path, NAMES, replace(STRATEGY, buffer_size=len(NAMES), deadline=LAST_RESORT))
    server = party.aggregator()
    async with serving(server, *party.devices()):
        async with serving(party.helper()):
            await party.log.until(lambda: server.open_now and server.core.step >= 2)
        accepted = server.core.counts["accepted"]
        # What is under way is still accepted, with a receipt, and waits.
        await party.log.until(lambda: server.core.counts["accepted"] > accepted)
        step = server.core.step
        async with serving(party.helper()):
            await party.log.until(lambda: server.core.step > step + 1)
        core = server.core
        assert core.counts["unsummed"] == 0
        assert core.counts["accepted"] == core.applied + core.buffered


async def test_each_update_counts_once_across_restarts_of_all_parties(tmp_path: Path) -> None:
    party = Party(tmp_path, NAMES)
    steps = applied = accepted = 0
    for _ in range(3):
        server = party.aggregator()
        async with serving(party.helper(), server, *party.devices()):
            await party.log.until(lambda: server.open_now and server.core.step >= steps + 2)  # noqa: B023
        core = server.core
        assert core.counts["accepted"] == core.applied + core.buffered + core.counts["unsummed"]
        assert core.step > steps and core.applied > applied and core.counts["accepted"] > accepted
        steps, applied, accepted = core.step, core.applied, core.counts["accepted"]
    assert distance(server.model.parameters()) < 3.0


async def test_a_device_that_requires_secure_beats_any_plan(tmp_path: Path) -> None:
    """A plan without masking, with too small a ring, or for fewer devices gets nothing from it."""
    party = Party(tmp_path, NAMES)
    masker = party.device(NAMES[0])._parts.masker
    assert masker is not None
    asked = _announcement(party)
    assert masker.objection(asked) is None
    plain = asked.model_copy(update={"plan": Plan()})
    assert "only masked updates" in (masker.objection(plain) or "")
    assert asked.plan.masking is not None
    small = asked.plan.masking.model_copy(update={"ring": 7})
    assert "7 bits" in (masker.objection(asked.model_copy(update={"plan": Plan(masking=small)})) or "")
    assert "not stated" in (masker.objection(asked.model_copy(update={"helper": b""})) or "")
    other = _announcement(Party(_folder(tmp_path / "other"), NAMES)).helper
    assert "not signed" in (masker.objection(asked.model_copy(update={"helper": other})) or "")
    pinned = RequireSecure(helper_key=party.key.public_pem(), roster=bytes(16))
    strict = party.device(NAMES[1], secure=pinned)._parts.masker
    assert strict is not None and "roster" in (strict.objection(asked) or "")
    many = RequireSecure(helper_key=party.key.public_pem(), k_min=7)
    shy = party.device(NAMES[1], secure=many)._parts.masker
    assert shy is not None and "needs 7" in (shy.objection(asked) or "")
    tiny = asked.plan.masking.model_copy(update={"scale": 1e-320, "noise": 60.0, "honest": 3})
    assert "levels of" in (masker.objection(asked.model_copy(update={"plan": Plan(masking=tiny)})) or "")
    full = asked.plan.masking.model_copy(update={"ring": 8})
    assert "room for 2" in (masker.objection(asked.model_copy(update={"plan": Plan(masking=full)})) or "")


async def test_an_update_is_in_no_smaller_sum_than_the_helper_stated(tmp_path: Path) -> None:
    """Noise is shared among as many devices. After a restart with a lower k_min, sums had too little of it."""
    party = Party(tmp_path, NAMES)
    masker = party.device(NAMES[0])._parts.masker
    assert masker is not None
    made = masker.mask(np.zeros(SIZE, np.float32), _header(), _announcement(party, least=5), SCHEMA, None)
    assert masking.parse_entry(made.update.entry + bytes(64)).least == 5


async def test_a_masked_update_states_its_model(tmp_path: Path) -> None:
    """One without a digest was accepted, and the helper took it for a statement about its version."""
    party = Party(tmp_path, NAMES)
    server, devices = party.aggregator(), party.devices()
    masker = devices[0]._parts.masker
    assert masker is not None
    honest = masker.mask

    def silent(delta: Any, update: Update, *rest: Any) -> Any:
        return honest(delta, update.model_copy(update={"base_digest": b""}), *rest)

    masker.mask = silent  # type: ignore[method-assign,assignment]
    async with serving(party.helper(), server, *devices):
        await party.log.until(lambda: server.open_now and server.core.step >= 4)
        assert server.core.counts["bad_encoding"] >= 1
        assert all("another model" not in each["why"] for each in party.log.of("unsummed"))


def test_an_entry_is_as_the_plan_says(tmp_path: Path) -> None:
    """One with another scale, or that asks for more devices than fit the ring, would only wait."""
    party = Party(tmp_path, NAMES)
    asked = _announcement(party)
    masker, plan = party.device(NAMES[0])._parts.masker, asked.plan.masking
    assert masker is not None and plan is not None
    made = masker.mask(np.zeros(SIZE, np.float32), _header(), asked, SCHEMA, None)
    signed = made.update.model_copy(update={"entry": made.update.entry + bytes(64)})
    masking.covered(signed, made.body, SIZE, plan)
    with pytest.raises(WireError, match="scale"):
        masking.covered(signed, made.body, SIZE, plan.model_copy(update={"scale": 0.5}))
    entry = masking.parse_entry(signed.entry).model_copy(update={"least": 80})
    many = signed.model_copy(update={"entry": frames.encode(entry) + bytes(64)})
    with pytest.raises(WireError, match="80 devices in a sum, and the plan's ring has room for"):
        masking.covered(many, made.body, SIZE, plan)


async def test_a_restarted_aggregator_goes_on_from_the_helpers_turn(tmp_path: Path) -> None:
    """The helper takes no deposit that may be an old one: a process that counts from one again learns of its number."""
    party = Party(tmp_path, NAMES)
    for step in (3, 6):
        server = party.aggregator()
        async with serving(party.helper(), server, *party.devices()):
            await party.log.until(lambda: server.open_now and server.core.step >= step)  # noqa: B023
            federation = server._federation
            assert federation is not None and federation.helper is not None
            turns = federation.helper._turn
    assert turns > 3


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


SIZE = 50
SCHEMA = Schema.of({"w": np.zeros(SIZE, np.float32)})


def _header() -> Update:
    """The header of an update before it is masked."""
    of = {"outbox": 1, "first": 1, "seq": 1, "lineage": bytes(16), "generation": 0, "base": 1}
    return Update(**of, base_digest=b"12345678", codec="", size=0, sha256=chunks.checksum(b""))  # type: ignore[arg-type]


def _announcement(party: Party, least: int = 3) -> Announcement:
    from midge.mask_helper.helper import MaskHelper

    helper = MaskHelper(party.helper(least)._config)
    try:
        statement = helper.statement()
    finally:
        helper.close()
    return announced(plan=STRATEGY.plan, seal_key=bytes(range(32)), helper=statement)


async def test_a_sum_that_is_too_long_is_scaled_down(tmp_path: Path) -> None:
    """A device may put anything into the ring. The sum shows that somebody did, and its length is bounded."""
    strategy = secure(
        k_min=3, buffer_size=4, clip=1.0, scale=0.25, levels=60, server_rate=1.0, deadline=1.0, plan=Plan()
    )
    party = Party(tmp_path, NAMES, strategy)
    server, devices = party.aggregator(), party.devices()
    masker = devices[0]._parts.masker
    assert masker is not None
    honest = masker.mask

    def shouting(delta: Any, update: Update, announcement: Announcement, *rest: Any) -> Any:
        loud = announcement.plan.masking
        assert loud is not None
        plan = announcement.plan.model_copy(update={"masking": loud.model_copy(update={"clip": 1e9})})
        made = honest(np.full_like(delta, 15.0), update, announcement.model_copy(update={"plan": plan}), *rest)
        entry = masking.parse_entry(made.update.entry + bytes(signing.SIGNATURE))
        stated = entry.model_copy(update={"terms": masking.terms(announcement)})
        return replace(made, update=made.update.model_copy(update={"entry": frames.encode(stated)}))

    masker.mask = shouting  # type: ignore[method-assign,assignment]
    async with serving(party.helper(), server, *devices):
        await party.log.until(lambda: party.log.of("sum_too_long"))
        assert all(0 < each["factor"] < 1 for each in party.log.of("sum_too_long"))
