"""Secure aggregation where it is run: rights on a broker, keys in files, real kills by name, and what is erased."""

import asyncio
import os
from contextlib import suppress
from pathlib import Path

import pytest

from midge.__main__ import main
from midge.aggregator.core import records as rec
from midge.aggregator.store.store import Store
from midge.broker import connector
from midge.broker.mqtt.connection import Options, PublishRefused, SubscribeRefused
from midge.broker.provisioning.bundles import read_bundle
from midge.broker.provisioning.fleet_registry import MASK_HELPER
from midge.iot_client.masking_requirement import RequireSecure
from midge.sensor_fleet.demo import Demo
from midge.sensor_fleet.setting import Setting
from midge.sensor_fleet.world import World
from midge.wire import frames, masking, signing
from midge.wire.messages.masking import Ticket
from tests import needs
from tests.broker.fleets import device as fleet_device
from tests.broker.fleets import make_fleet
from tests.broker.fleets import serving as serving_broker
from tests.federation.live import serving
from tests.masking.test_federation import NAMES, Party
from tests.masking.test_kills import Broken
from tests.ports import free_port
from tests.waiting import LAST_RESORT


def test_a_missing_key_of_the_helper_is_named(tmp_path: Path) -> None:
    """It was an OSError, with a traceback."""
    missing = tmp_path / "helper.key.pub"
    with pytest.raises(signing.KeyUnusable, match="cannot be read: No such file"):
        RequireSecure(helper_key=missing).read_key()
    party = Party(tmp_path, NAMES)
    party.key = type("Missing", (), {"public_pem": lambda _: str(missing)})()
    with pytest.raises(signing.KeyUnusable, match=r"helper\.key\.pub cannot be read"):
        asyncio.run(party.aggregator().serve())


# ------------------------------------------------------------------------------ erasure


async def test_a_forgotten_devices_tickets_are_erased(tmp_path: Path) -> None:
    """A ticket has a device's signature and its outbox: who knows its key would recognise it."""
    party = Party(tmp_path, NAMES)
    server = party.aggregator()
    gone, outboxes = NAMES[0], set()
    leaving, *others = party.devices()
    async with serving(party.helper(), server, *others):
        async with serving(leaving):
            await party.log.until(lambda: server.open_now and server.core.step >= 3)
        # Its last update may be one of too few of its version: it is refused, and does not wait for ever.
        await party.log.until(lambda: not any(name == gone for name, _ in server.core.sums.waiting))
    key = party.keys[gone].public
    with Store(tmp_path / "store") as store:
        for entry in store.entries(after=0):
            match entry.record:
                case rec.UpdateRecord(device=device) as record if device == gone:
                    outboxes.add(record.outbox)
                    assert _signed_by(record, gone, key, store.lineage)
    assert outboxes
    assert main(["device-forget", gone, "--store", str(tmp_path / "store")]) == 0
    with Store(tmp_path / "store") as store:
        for entry in store.entries(after=0):
            if isinstance(entry.record, rec.UpdateRecord):
                assert entry.record.device != gone and entry.record.outbox not in outboxes
                assert not _signed_by(entry.record, gone, key, store.lineage)


def _signed_by(record: rec.UpdateRecord, name: str, key: signing.PublicKey, lineage: bytes) -> bool:
    if not record.ticket:
        return False
    header, _ = frames.decode(record.ticket)
    ticket = frames.validate(Ticket, header).model_copy(update={"device": name})
    with suppress(signing.BadSignature):
        masking.read_entry(ticket, "f", lineage, key)
        return True
    return False


# -------------------------------------------------------------------------------- kills


@pytest.mark.slow
@needs.mosquitto
@pytest.mark.alone
@pytest.mark.mosquitto
@pytest.mark.parametrize(("point", "groups"), [("sum.opened", 1), ("sum.combined", 5)])
async def test_an_aggregator_that_is_killed_at_a_sum_counts_each_update_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str, groups: int
) -> None:
    """A real process ends by SIGKILL at that place, twice."""
    it = Broken(tmp_path)
    setting = Setting(secure=True, devices=12, k_min=2, groups=groups, world=World(median=0.1, spread=0.3))
    it.demo = demo = Demo(setting, tmp_path, seconds=10 * LAST_RESORT, broker="mosquitto", on_event=it._news)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(demo.run())
        await it.more()
        for _ in range(2):
            assert demo.kill_aggregator()
            with monkeypatch.context() as within:
                within.setitem(os.environ, "MIDGE_CRASH_AT", f"{point}:2")
                assert await demo.restart_aggregator()
            process = demo._federation.aggregator
            assert process is not None and process._process is not None
            process._wanted = False  # its end is no failure of the demo
            assert await asyncio.wait_for(process._process.wait(), LAST_RESORT) == -9
            await process.start()
            await it.more()
        demo.stop()
        assert await running == "interrupted"
    applied: list[int] = []
    with Store(tmp_path / "store") as store:
        for entry in store.entries(after=0):
            match entry.record:
                case rec.StepRecord() as step:
                    applied += [lsn for lsn, _ in step.updates]
                case rec.DropRecord() as dropped:
                    assert dropped.why == "unsummed" and not dropped.dealt, f"updates were lost: {dropped}"
    assert applied and len(applied) == len(set(applied))


# ------------------------------------------------------------------------------- rights


@needs.mosquitto
@pytest.mark.mosquitto
def test_a_broker_of_ours_gives_the_mask_helper_its_topics_and_no_update(tmp_path: Path) -> None:
    """Without its own lines in the ACL, a member of that name had a device's rights."""
    port, directory = free_port(), tmp_path / "fleet"
    make_fleet(directory, port=port, names=["dev0001", MASK_HELPER])
    bundle = read_bundle(directory / "aggregator" / "aggregator.toml")
    topics = bundle.topics
    aggregator = connector(bundle.endpoint)
    device, helper = (connector(fleet_device(directory, name).endpoint) for name in ("dev0001", MASK_HELPER))

    async def look() -> None:
        async with (
            aggregator(Options("ignored")) as ours,
            helper(Options("ignored")) as theirs,
            device(Options("ignored")) as other,
        ):
            await ours.subscribe(topics.helper, topics.dealt)
            await theirs.subscribe(topics.deposit)
            for everything in ("midge/#", topics.update("dev0001")):
                with suppress(SubscribeRefused):
                    await theirs.subscribe(everything)
            with suppress(PublishRefused):
                await other.publish(topics.dealt, b"forged")
            await other.publish(topics.update("dev0001"), b"secret")
            await theirs.publish(topics.helper, b"statement", retain=True)
            await theirs.publish(topics.dealt, b"answer")
            await ours.publish(topics.deposit, b"deposit")
            heard = [bytes((await anext(aiter(ours.messages()))).payload) for _ in range(2)]
            assert heard == [b"statement", b"answer"]
            async for delivery in theirs.messages():
                assert delivery.topic != topics.update("dev0001")
                if delivery.topic == topics.deposit:
                    break

    with serving_broker(directory / "broker" / "mosquitto.conf", port), asyncio.Runner() as runner:
        runner.run(look())
