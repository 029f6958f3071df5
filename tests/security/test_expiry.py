"""What runs out is told 60 days before: for the fleet, the aggregator and a device; what lies here is renewed."""

from argparse import Namespace
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from midge.aggregator.metrics.credential_alarms import CredentialAlarms
from midge.aggregator.metrics.device_activity import DeviceActivity
from midge.aggregator.metrics.watchdog import FleetSituation, Watchdog
from midge.broker.provisioning import manage_devices
from midge.broker.provisioning.bundles import read_bundle
from midge.broker.provisioning.expiry import NEAR, alarms, ends
from midge.broker.provisioning.fleet_registry import present, read_fleet
from midge.broker.provisioning.own_certificates import renew_own
from midge.commands import device_status, doctor
from tests.broker.fleets import make_fleet

DAY = 86_400.0


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("expiry") / "fleet"
    make_fleet(directory)
    return directory


def files(fleet: Path) -> dict[str, Path]:
    return {
        "certificate": fleet / "devices" / "dev0001" / "device.crt",
        "authority": fleet / "broker" / "ca.crt",
        "revocation list": fleet / "broker" / "crl.pem",
        "release key": fleet / "aggregator" / "release.key",
    }


@pytest.mark.parametrize("what", ["certificate", "authority", "revocation list", "release key"])
def test_an_alarm_comes_sixty_days_before_and_none_before_that(what: str, fleet: Path) -> None:
    file = files(fleet)[what]
    (end,) = ends(file)
    at = end.at.timestamp()
    assert alarms([file], at - (NEAR + 1) * DAY) == ()
    (said,) = alarms([file], at - (NEAR - 1) * DAY)
    assert what in said and "runs out in 5" in said
    (late,) = alarms([file], at + 3 * DAY)
    assert what in late and "ran out 3 days ago" in late


@pytest.mark.parametrize(
    "content", [b"", b"\xff" * 100, b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
)
def test_a_file_that_cannot_be_read_says_nothing(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(content)
    assert list(ends(tmp_path / "x")) == [] and list(ends(tmp_path / "none")) == []


def test_the_aggregators_health_has_it(fleet: Path) -> None:
    (end,) = ends(files(fleet)["certificate"])
    clock = [end.at.timestamp() - 61 * DAY]
    watched = CredentialAlarms([files(fleet)["certificate"]], lambda: clock[0])
    watchdog = Watchdog(DeviceActivity(10), 0.0)
    assert watchdog.look(0.0, FleetSituation(own=watched.now())).alarms == ()
    clock[0] += 2 * DAY
    (alarm,) = watchdog.look(1.0, FleetSituation(own=watched.now())).alarms
    assert "runs out in 59 days" in alarm


def test_the_fleets_owner_sees_it(fleet: Path) -> None:
    assert manage_devices.warnings(fleet, present()) == []
    late = manage_devices.warnings(fleet, present() + timedelta(days=5 * 365 - 30))
    assert any("release key" in each and "release-key succeed" in each for each in late)
    assert any("broker.crt" in each for each in late)
    late = manage_devices.warnings(fleet, present() + timedelta(days=20 * 365 - 30))
    assert any("authority" in each and "authority succeed" in each for each in late)


def test_a_device_sees_it(fleet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = fleet / "devices" / "dev0001"
    endpoint = read_bundle(bundle).endpoint
    (end,) = ends(files(fleet)["certificate"])
    levels = {
        days: [each.level for each in doctor.credentials(endpoint, now=end.at.timestamp() - days * DAY)]
        for days in (100, 30, -3)
    }
    assert levels == {100: ["ok", "ok"], 30: ["warning", "ok"], -3: ["problem", "ok"]}
    monkeypatch.setattr("midge.commands.device_status.time.time", lambda: end.at.timestamp() - 30 * DAY)
    (said,) = device_status.ending(Namespace(config=str(bundle)))
    assert "runs out in 30 days" in said


def test_what_lies_beside_the_authority_is_renewed_in_place(tmp_path: Path) -> None:
    make_fleet(tmp_path / "fleet")
    fleet = tmp_path / "fleet"
    assert renew_own(fleet, present()) == []
    late = present() + timedelta(days=365 - 100)

    def until(file: Path) -> datetime:
        (end,) = ends(file)
        return end.at

    before = {name: until(fleet / name / f"{name}.crt") for name in ("aggregator", "operator", "issuer")}
    renewed = renew_own(fleet, late)
    assert {"aggregator", "operator", "midge-issuer"} <= set(renewed) and "the broker" not in renewed
    for name, end in before.items():
        assert until(fleet / name / f"{name}.crt") > end + timedelta(days=200)
        read_bundle(fleet / name)
    assert "the broker" in renew_own(fleet, present() + timedelta(days=4 * 365))
    assert [each.state for each in manage_devices.devices(fleet)] == ["active"] * 3
    members = read_fleet(fleet).members
    assert len(members["aggregator"].serials) >= 2, "a copy elsewhere goes on with the one before"
