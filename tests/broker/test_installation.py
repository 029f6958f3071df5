"""What init writes, and the devices that come, go and change their keys, on a real Mosquitto."""

import asyncio
import shutil
import signal
import stat
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from midge.broker import (
    BrokerRefused,
    BrokerUnreachable,
    Connection,
    ConnectionLost,
    Delivery,
    PublishRefused,
    connector,
)
from midge.broker.provisioning.bundles import Bundle, BundleError, read_bundle
from midge.broker.provisioning.fleet_registry import ATTACKER, FleetError, Way, present, read_fleet, write_fleet
from midge.broker.provisioning.manage_devices import add, devices, renew, revoke, rotate, warnings
from tests.broker.fleets import device, make_fleet, needs_mosquitto, openssl, running_fleet
from tests.broker.worlds import options, take
from tests.waiting import LAST_RESORT

OUT = (BrokerRefused, BrokerUnreachable)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("written") / "fleet"
    make_fleet(directory)
    return directory


@pytest.fixture(scope="module", params=["certificates", "passwords"])
def fleet(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    way: Way = request.param
    with running_fleet(tmp_path_factory.mktemp(way) / "fleet", way) as directory:
        yield directory


async def eventually(bundle: Bundle, *, wanted: bool = True) -> bool:
    """Whether the broker comes to let somebody in, or no longer does: it hears a signal when it next looks up."""
    async with asyncio.timeout(LAST_RESORT):
        while await lets_in(bundle) is not wanted:  # noqa: ASYNC110 - the broker tells nobody
            await asyncio.sleep(0.01)
    return True


async def refused(connection: Connection, topic: str) -> bool:
    """Whether the broker comes to refuse messages of somebody who is connected."""
    with suppress(PublishRefused, ConnectionLost):
        async with asyncio.timeout(LAST_RESORT):
            while True:
                await connection.publish(topic, b"")
    return True


def kept(fleet: Path, name: str, directory: Path) -> Bundle:
    """A device's bundle as it is now, put aside."""
    return read_bundle(shutil.copytree(fleet / "devices" / name, directory))


async def lets_in(bundle: Bundle, *, name: str | None = None) -> bool:
    try:
        async with connector(bundle.endpoint)(options()) as connection:
            await connection.publish(bundle.topics.report(name or bundle.name), b"")
    except OUT:
        return False
    return True


# ------------------------------------------------------------------------------- what is written


def test_nobody_else_reads_keys(written: Path) -> None:
    for path in written.rglob("*"):
        if path.is_file():
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    assert stat.S_IMODE(written.stat().st_mode) == 0o700


def test_a_bundle_is_all_that_a_device_needs_and_no_more(written: Path, tmp_path: Path) -> None:
    folder = written / "devices" / "dev0001"
    names = {path.name for path in folder.iterdir()}
    assert names == {"device.toml", "device.key", "device.crt", "ca.crt", "release.pub"}
    with tarfile.open(written / "devices" / "dev0001.tar") as archive:
        assert all(member.mode == 0o600 for member in archive)
        archive.extractall(tmp_path, filter="data")
    bundle = read_bundle(tmp_path / "dev0001")  # wherever it is carried to
    assert (bundle.name, bundle.topics.federation) == ("dev0001", "plant")
    assert bundle.release_key is not None and "PUBLIC KEY" in bundle.release_key.read_text()
    assert bundle.release_private_key is None
    ours = read_bundle(written / "aggregator" / "aggregator.toml")
    assert ours.release_private_key is not None
    made = openssl("pkey", "-in", ours.release_private_key, "-pubout")
    assert made.stdout == bundle.release_key.read_text()
    keys = [path.read_bytes() for path in written.rglob("*.key")]
    assert len(set(keys)) == len(keys)


def test_a_bundle_that_cannot_be_used(written: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="No such file"):
        read_bundle(tmp_path / "device.toml")
    (tmp_path / "device.toml").write_bytes((written / "devices" / "dev0001" / "device.toml").read_bytes())
    with pytest.raises(BundleError, match="not beside it: carry the whole folder"):
        read_bundle(tmp_path)
    (tmp_path / "device.toml").write_text("federation = [")
    with pytest.raises(BundleError, match="no bundle"):
        read_bundle(tmp_path)
    (tmp_path / "device.toml").write_text('federation = "plant"\nbroker = "mqtt://b"\nname = "a/b"\n')
    with pytest.raises(BundleError, match="'a/b' cannot be"):
        read_bundle(tmp_path)
    (tmp_path / "device.toml").write_text('federation = "plant"\nbroker = "mqtt://b"\n')
    with pytest.raises(BundleError, match="name: field required"):
        read_bundle(tmp_path)


def test_a_directory_that_holds_something(written: Path, tmp_path: Path) -> None:
    with pytest.raises(FleetError, match="device add"):
        make_fleet(written)
    (tmp_path / "mine").touch()
    with pytest.raises(FleetError, match="another directory"):
        make_fleet(tmp_path)


def test_joining_asks_another_authority(tmp_path: Path) -> None:
    make_fleet(tmp_path / "fleet", way="join")
    folder = tmp_path / "fleet" / "devices" / "dev0001"
    names = {path.name for path in folder.iterdir()}
    assert names == {"device.toml", "device.key", "device.csr", "release.pub"}
    assert "CN = dev0001" in openssl("req", "-in", folder / "device.csr", "-noout", "-subject").stdout
    with pytest.raises(BundleError, match=r"device\.crt"):  # until it is signed
        read_bundle(folder)
    assert not (tmp_path / "fleet" / "authority").exists()
    assert {path.name for path in (tmp_path / "fleet" / "broker").iterdir()} == {"acl-to-add"}
    assert "telemetry" in (tmp_path / "fleet" / "README.md").read_text()


# ------------------------------------------------------------------------------- devices


class TestOnMosquitto:
    pytestmark = needs_mosquitto

    async def test_everybody_gets_in_as_oneself(self, fleet: Path) -> None:
        first = device(fleet, "dev0001")
        assert await lets_in(first) and await lets_in(read_bundle(fleet / "aggregator"), name="dev0001")
        with pytest.raises(PublishRefused):
            await lets_in(first, name="dev0002")
        assert first.endpoint.tls is not None
        bare = replace(first.endpoint.tls, certfile=None, keyfile=None)
        assert not await lets_in(replace(first, endpoint=replace(first.endpoint, user="dev0002", tls=bare)))

    async def test_the_log_holds_no_address(self, fleet: Path) -> None:
        await lets_in(device(fleet, "dev0001"))
        assert "127.0.0.1" not in (fleet / "broker" / "log").read_text()

    async def test_a_device_that_is_added(self, fleet: Path) -> None:
        told = add(fleet, ["pump-17"])
        assert not told.todo
        assert await eventually(device(fleet, "pump-17"))
        for name, words in (("pump-17", "is there already"), ("aggregator", "Midge's own"), (ATTACKER, "Midge's own")):
            with pytest.raises(FleetError, match=words):
                add(fleet, ["pump-18", name])
        with pytest.raises(ValueError, match="cannot be a device name"):
            add(fleet, ["a/b"])
        assert not (fleet / "devices" / "pump-18").exists()

    async def test_a_revoked_device_stops_though_connected(self, fleet: Path) -> None:
        add(fleet, ["gone", "stays"])
        gone, stays = device(fleet, "gone"), device(fleet, "stays")
        assert await eventually(gone) and await eventually(stays)
        async with AsyncExitStack() as stack:
            connection = await stack.enter_async_context(connector(gone.endpoint)(options()))
            await connection.publish(gone.topics.report("gone"), b"")
            assert revoke(fleet, ["gone"]).broker
            assert await refused(connection, gone.topics.report("gone"))
        assert not await lets_in(gone)
        assert await lets_in(stays)
        assert [each.state for each in devices(fleet) if each.name == "gone"] == ["revoked"]
        with pytest.raises(FleetError, match="was revoked: choose another name"):
            add(fleet, ["gone"])
        with pytest.raises(FleetError, match="is revoked"):
            rotate(fleet, ["gone"])
        with pytest.raises(FleetError, match="no device 'nobody'"):
            revoke(fleet, ["nobody"])

    async def test_what_others_send_no_longer_reaches_a_revoked_device(self, fleet: Path) -> None:
        add(fleet, ["deaf"])
        deaf, ours = device(fleet, "deaf"), read_bundle(fleet / "aggregator")
        assert await eventually(deaf)
        async with connector(deaf.endpoint)(options()) as ear, connector(ours.endpoint)(options()) as mouth:
            await ear.subscribe(deaf.topics.announcement())
            await mouth.publish(deaf.topics.announcement(), b"1")
            await take(ear, 1)
            revoke(fleet, ["deaf"])
            await refused(ear, deaf.topics.report("deaf"))
            await mouth.publish(deaf.topics.announcement(), b"2")
            heard: list[Delivery] = []
            try:
                await ear.unsubscribe("settled")
                heard = list(ear.waiting())
            except ConnectionLost:
                pass  # a broker with passwords ends the connection
            assert not heard

    async def test_keys_change_while_the_old_ones_are_good(self, fleet: Path, tmp_path: Path) -> None:
        way = read_fleet(fleet).way
        add(fleet, ["turning"])
        assert await eventually(before := kept(fleet, "turning", tmp_path / "1"))
        rotate(fleet, ["turning"])
        after = kept(fleet, "turning", tmp_path / "2")
        assert await eventually(after)
        assert await lets_in(before) is (way == "certificates")
        if way == "certificates":
            assert [each.state for each in devices(fleet) if each.name == "turning"] == ["rotating"]
            rotate(fleet, ["turning"], finish=True)
            assert await eventually(before, wanted=False)
        assert await lets_in(after)
        rotate(fleet, ["turning"], now=True)
        assert await eventually(device(fleet, "turning"))
        assert await eventually(after, wanted=False)

    async def test_a_broker_that_is_elsewhere_is_told_by_hand(self, fleet: Path) -> None:
        known = read_fleet(fleet)
        try:
            write_fleet(fleet, known.model_copy(update={"broker_directory": "/etc/mosquitto/plant"}))
            told = renew(fleet)
            assert not told.broker and len(told.todo) == 2
            assert told.todo[0].startswith("scp ") and told.todo[0].endswith(":/etc/mosquitto/plant/")
            assert "kill -HUP $(cat /etc/mosquitto/plant/mosquitto.pid)" in told.todo[1]
        finally:
            write_fleet(fleet, known)

    def test_another_program_under_the_old_number_is_left_alone(self, tmp_path: Path) -> None:
        make_fleet(tmp_path / "fleet")
        with subprocess.Popen(["sleep", "60"]) as other:
            (tmp_path / "fleet" / "broker" / "mosquitto.pid").write_text(f"{other.pid}\n")
            told = revoke(tmp_path / "fleet", ["dev0001"])
            assert not told.broker and told.todo
            other.terminate()
            assert other.wait() == -signal.SIGTERM, "of two signals that wait, the lower number ends it: SIGHUP"


def test_what_runs_out_is_told(written: Path, tmp_path: Path) -> None:
    assert warnings(written, present()) == []
    late = warnings(written, present() + timedelta(days=320))
    assert any("certificate of dev0001" in each and "device rotate dev0001" in each for each in late)
    fleet = make_fleet(tmp_path / "fleet")
    write_fleet(tmp_path / "fleet", fleet.model_copy(update={"list_days": 30}))
    renew(tmp_path / "fleet")
    (soon,) = warnings(tmp_path / "fleet", present())
    assert "revocation list runs out in" in soon and "--renew" in soon
