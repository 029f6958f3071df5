"""Credentials that renew while a real Mosquitto runs: devices that ask, an issuer that answers, a new authority."""

import asyncio
import os
from pathlib import Path

import pytest

from midge.broker import BrokerError, connector
from midge.broker.mqtt.endpoint import Endpoint
from midge.broker.provisioning import manage_devices, renewals
from midge.broker.provisioning.bundles import read_bundle
from midge.broker.provisioning.fleet_registry import Way, present, read_fleet
from midge.broker.provisioning.held_credentials import HeldCredentials
from midge.broker.provisioning.issuing import IssuingService
from midge.iot_client.config import DeviceConfig
from midge.iot_client.connection.renewal import connecting
from midge.iot_client.device import Device
from midge.iot_client.training.fit import Fit
from tests.broker.fleets import NAMES, needs_mosquitto, running_fleet
from tests.broker.fleets import serving as serving_broker
from tests.broker.worlds import options
from tests.federation.live import Log, serving

pytestmark = needs_mosquitto

YEARS = 4 * 365 * 86_400


def grow_old(directory: Path, name: str) -> None:
    """Have a device's credentials be four years old."""
    for file in (directory / "devices" / name).iterdir():
        long_ago = present().timestamp() - YEARS
        os.utime(file, (long_ago, long_ago))


def device(directory: Path, name: str, log: Log) -> Device:
    held = HeldCredentials(directory / "devices" / name)
    return Device(
        DeviceConfig(
            connector=connecting(held),
            credentials=held,
            federation="plant",
            name=name,
            train=lambda parameters, _plan: Fit(parameters, examples=1),
            outbox=None,
            on_event=log,
        )
    )


def lets_in(endpoint: Endpoint) -> bool:
    async def enter() -> None:
        async with connector(endpoint)(options()):
            pass

    try:
        asyncio.run(enter())
    except BrokerError:
        return False
    return True


def toml(directory: Path, name: str) -> str:
    return (directory / "devices" / name / "device.toml").read_text()


async def renewed(directory: Path, name: str, before: str, log: Log) -> None:
    """Wait until a device has new credentials and has connected with them."""
    await log.until(lambda: toml(directory, name) != before and len(log.of("connected")) >= 2)


@pytest.mark.parametrize("way", ["certificates", "passwords"])
def test_old_devices_renew_while_the_broker_runs(way: Way, tmp_path: Path) -> None:
    with running_fleet(tmp_path, way) as directory:
        before = {name: toml(directory, name) for name in NAMES}
        for name in NAMES[:2]:
            grow_old(directory, name)

        async def live() -> None:
            logs = {name: Log() for name in NAMES}
            issuer = Log()
            devices = [device(directory, name, log) for name, log in logs.items()]
            async with serving(IssuingService(directory, issuer), *devices):
                for name in NAMES[:2]:
                    await renewed(directory, name, before[name], logs[name])
                await logs[NAMES[2]].until(lambda: logs[NAMES[2]].of("connected"))

        asyncio.run(live())
        assert toml(directory, NAMES[2]) == before[NAMES[2]], "it is young"
        for name in NAMES:
            held = HeldCredentials(directory / "devices" / name)
            assert not held.asked and not held.answered
            assert lets_in(held.bundle.endpoint)
        assert [each.state for each in manage_devices.devices(directory)] == ["active"] * 3
        if way == "passwords":
            old = read_bundle(directory / "operator").endpoint
            assert lets_in(old), "who asked for nothing keeps what they have"


def test_an_issuer_that_comes_later_finds_what_was_asked(tmp_path: Path) -> None:
    with running_fleet(tmp_path) as directory:
        name, before = NAMES[0], toml(tmp_path, NAMES[0])
        grow_old(directory, name)

        async def live() -> None:
            log = Log()
            async with serving(device(directory, name, log)):
                await log.until(lambda: log.of("renewing"))
            issuer, again = Log(), Log()
            async with serving(IssuingService(directory, issuer)):
                await issuer.until(lambda: issuer.of("renewed", granted=1))
            async with serving(device(directory, name, again)):
                await again.until(lambda: toml(directory, name) != before)

        asyncio.run(live())


def test_the_broker_follows_a_new_authority_without_a_restart(tmp_path: Path) -> None:
    """And its own certificate with it: devices that trust both never notice."""
    with running_fleet(tmp_path) as directory:
        name = NAMES[0]
        old = HeldCredentials(directory / "devices" / name).bundle.endpoint
        assert manage_devices.succeed_authority(directory).broker

        async def live() -> None:
            logs = {name: Log() for name in NAMES}
            issuer = Log()
            devices = [device(directory, each, log) for each, log in logs.items()]
            async with serving(IssuingService(directory, issuer), *devices):
                await issuer.until(lambda: not unready(directory))
                manage_devices.switch_authority(directory)
                service = IssuingService(directory, issuer)
                await asyncio.to_thread(service.tend)
                assert issuer.of("renewed_here", whose="the broker")

        asyncio.run(live())
        assert lets_in(HeldCredentials(directory / "devices" / name).bundle.endpoint), (
            "its certificate is the old one's"
        )
        manage_devices.add(directory, ["new"])
        assert lets_in(HeldCredentials(directory / "devices" / "new").bundle.endpoint)
        told = manage_devices.finish_authority(directory, force=True)
        assert any("restart" in each for each in told.todo), "a Mosquitto only learns to trust more by SIGHUP"
        port = read_fleet(directory).port
    held = HeldCredentials(directory / "devices" / "new")
    assert held.trust(renewals.whom_to_trust(directory)) and held.files[1].read_bytes().count(b"BEGIN") == 1
    with serving_broker(directory / "broker" / "mosquitto.conf", port):
        assert lets_in(HeldCredentials(directory / "devices" / "new").bundle.endpoint), "which trusts the new one only"
        assert not lets_in(old), "its certificate is of an authority that is trusted no more"


def unready(directory: Path) -> list[str]:
    from midge.broker.provisioning.authorities import unaware

    return unaware(directory, read_fleet(directory))


@pytest.mark.parametrize("way", ["certificates", "passwords"])
def test_the_rights_to_renew_are_each_ones_own(way: Way, tmp_path: Path) -> None:
    """A device writes its own request and reads its own answer; the issuer writes no model and no receipt."""
    with running_fleet(tmp_path, way) as directory:
        mine, other = (read_bundle(directory / "devices" / name) for name in NAMES[:2])
        issuer = read_bundle(directory / "issuer")
        topics = mine.topics

        async def live() -> set[str]:
            heard: set[str] = set()
            async with (
                connector(issuer.endpoint)(options()) as all_seeing,
                connector(mine.endpoint)(options()) as one,
                connector(other.endpoint)(options()) as two,
            ):
                await all_seeing.subscribe(topics.renewals)
                await two.subscribe(topics.renewed(NAMES[0]), topics.renewed(NAMES[1]), topics.aggregator)
                for connection, topic in (
                    (one, topics.renew(NAMES[1])),
                    (one, topics.renewed(NAMES[0])),
                    (one, topics.authorities),
                    (one, topics.renew(NAMES[0])),
                    (all_seeing, topics.aggregator),
                    (all_seeing, topics.renewed(NAMES[0])),
                    (all_seeing, topics.renewed(NAMES[1])),
                ):
                    try:
                        await connection.publish(topic, topic.encode())
                    except BrokerError:
                        continue
                for connection in (all_seeing, two):
                    async with asyncio.timeout(5):
                        async for delivery in connection.messages():
                            heard.add(f"{'issuer' if connection is all_seeing else 'two'} {delivery.topic}")
                            if delivery.topic in (topics.renew(NAMES[0]), topics.renewed(NAMES[1])):
                                break
            return heard

        assert asyncio.run(live()) == {f"issuer {topics.renew(NAMES[0])}", f"two {topics.renewed(NAMES[1])}"}
