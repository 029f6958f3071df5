"""The register of a fleet that was put back is refused: whom it lets in may have been shut out since."""

import shutil
from pathlib import Path

import pytest

from midge.__main__ import main
from midge.broker.provisioning.fleet_registry import REGISTER, WITNESS, FleetError, read_fleet, write_fleet
from midge.broker.provisioning.manage_devices import add, devices, renew, revoke
from tests.broker.fleets import make_fleet


@pytest.fixture
def fleet(tmp_path: Path) -> Path:
    """A fleet whose register was put back behind a revocation; nothing else was."""
    make_fleet(tmp_path / "fleet")
    shutil.copy(tmp_path / "fleet" / REGISTER, tmp_path)
    revoke(tmp_path / "fleet", ["dev0001"])
    shutil.copy(tmp_path / REGISTER, tmp_path / "fleet")
    return tmp_path / "fleet"


def test_a_register_that_was_put_back_is_refused_by_every_command(
    fleet: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`dev0001` was let in again, and the next command wrote that into the broker's list."""
    before = (fleet / "broker" / "crl.pem").read_bytes()
    for command in (["device-list"], ["device-list", "--renew"], ["device-add", "new"], ["device-rotate", "dev0001"]):
        assert main([*command, "--fleet", str(fleet)]) == 2
        assert "is an older copy" in capsys.readouterr().err
    assert (fleet / "broker" / "crl.pem").read_bytes() == before


def test_its_operator_may_accept_it(fleet: Path, capsys: pytest.CaptureFixture[str]) -> None:
    number = read_fleet(fleet, accept_older=True).list_number
    assert main(["device-list", "--fleet", str(fleet), "--accept-older"]) == 2
    assert main(["device-list", "--fleet", str(fleet), "--renew", "--accept-older"]) == 0
    assert "dev0001" in capsys.readouterr().out
    assert read_fleet(fleet).list_number > number
    revoke(fleet, ["dev0001"])
    assert [each.name for each in devices(fleet) if each.since] == ["dev0001"]


def test_without_the_note_the_revocation_list_tells(fleet: Path) -> None:
    (fleet / WITNESS).unlink()
    with pytest.raises(FleetError, match="revocation list"):
        devices(fleet)


def test_a_folder_that_was_put_back_as_a_whole_is_told_by_the_brokers_list(tmp_path: Path) -> None:
    make_fleet(tmp_path / "fleet")
    known = read_fleet(tmp_path / "fleet")
    write_fleet(tmp_path / "fleet", known.model_copy(update={"broker_directory": str(tmp_path / "mosquitto")}))
    shutil.copytree(tmp_path / "fleet", tmp_path / "old")
    revoke(tmp_path / "fleet", ["dev0001"])
    shutil.copytree(tmp_path / "fleet" / "broker", tmp_path / "mosquitto")
    with pytest.raises(FleetError, match="the broker has list"):
        devices(tmp_path / "old")
    devices(tmp_path / "fleet")


def test_a_register_of_an_earlier_midge_and_one_ahead_of_its_note_are_read(tmp_path: Path) -> None:
    make_fleet(tmp_path / "fleet")
    (tmp_path / "fleet" / WITNESS).unlink()
    text = (tmp_path / "fleet" / REGISTER).read_text().replace('"revision"', '"list_days": null, "revision"', 1)
    earlier = "\n".join(line for line in text.splitlines() if '"revision"' not in line)
    (tmp_path / "fleet" / REGISTER).write_text(earlier)
    assert read_fleet(tmp_path / "fleet").revision == 0
    renew(tmp_path / "fleet")
    note = (tmp_path / "fleet" / WITNESS).read_bytes()
    add(tmp_path / "fleet", ["new"])
    (tmp_path / "fleet" / WITNESS).write_bytes(note)  # the power went between the two
    assert "new" in {each.name for each in devices(tmp_path / "fleet")}
