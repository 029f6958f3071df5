"""The commands of docs/key-loss.md do what the page says, on a Mosquitto that runs."""

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from midge.aggregator.publish.announcement_signer import load_release_keys
from midge.broker.provisioning.bundles import read_bundle
from midge.broker.provisioning.fleet_registry import Way, read_fleet
from midge.broker.provisioning.held_credentials import HeldCredentials
from midge.broker.provisioning.renewals import answer, whom_to_trust
from midge.wire import envelopes, signing
from tests.broker.fleets import needs_mosquitto, running_fleet, serving
from tests.broker.test_renewing import lets_in
from tests.docs.scripts import ROOT
from tests.waiting import until

pytestmark = needs_mosquitto

PAGE = ROOT / "docs" / "key-loss.md"
SECTIONS = re.findall(r"^## (.*)$", PAGE.read_text(), re.MULTILINE)
NAMES = ["dev0001", "dev0002"]


def commands(section: str) -> list[str]:
    """The lines of a section that are code; those of the page's head for an empty name."""
    text = PAGE.read_text()
    text = text.split("\n## ")[0] if not section else text.split(f"\n## {section}\n")[1].split("\n## ")[0]
    return re.findall(r"^    (\S.*)$", text, re.MULTILINE)


class Plant:
    """A fleet whose broker runs, in the directory that the page's commands are given in."""

    def __init__(self, home: Path) -> None:
        self.home, self.fleet = home, home / "fleet"
        (home / "midge").write_text(f'#!/bin/sh\nexec {sys.executable} -m midge "$@"\n')
        (home / "midge").chmod(0o755)

    def run(self, command: str, code: int = 0) -> str:
        command = re.sub(r"^midge ", f"{self.home}/midge ", command)
        done = subprocess.run(["sh", "-ec", command], cwd=self.home, check=False, capture_output=True, text=True)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    def drill(self, section: str) -> list[str]:
        return [self.run(command) for command in commands(section)]

    def lets_in(self, name: str) -> bool:
        return lets_in(HeldCredentials(self.fleet / "devices" / name).bundle.endpoint)


def keep(bundle: Path) -> Callable[[], bool]:
    """What a thief has: a copy of a bundle, and whether the broker lets it in."""
    endpoint = read_bundle(bundle).endpoint
    assert endpoint.tls is not None
    files = {file: file.read_bytes() for file in bundle.iterdir() if file.is_file()}

    def works() -> bool:
        now = {file: file.read_bytes() for file in files if file.is_file()}
        for file, content in files.items():
            file.write_bytes(content)
        try:
            return lets_in(endpoint)
        finally:
            for file, content in now.items():
                file.write_bytes(content)

    return works


@pytest.fixture
def plant(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Plant]:
    way: Way = getattr(request, "param", "certificates")
    with running_fleet(tmp_path / "fleet", way):
        yield Plant(tmp_path)


def refused(thief: Callable[[], bool]) -> None:
    until("the broker knows", lambda: not thief())


def test_every_section_has_a_drill() -> None:
    source = Path(__file__).read_text()
    assert [name for name in SECTIONS if source.count(f'"{name}"') < 1] == []
    assert all(commands(section) for section in SECTIONS)


def test_a_devices_key(plant: Plant) -> None:
    thief, finder = (keep(plant.fleet / "devices" / name) for name in NAMES)
    assert thief() and finder()
    plant.drill("A device's key or certificate")
    refused(thief)
    refused(finder)
    until("they are let in", lambda: plant.lets_in("pump-17") and plant.lets_in("dev0002"))


@pytest.mark.parametrize("plant", ["passwords"], indirect=True)
def test_a_devices_password(plant: Plant) -> None:
    thief = keep(plant.fleet / "devices" / "dev0002")
    assert thief()
    plant.drill("A device's password")
    refused(thief)
    until("it is let in", lambda: plant.lets_in("dev0002"))


def test_the_key_of_the_aggregator_and_others(plant: Plant) -> None:
    folders = [plant.fleet / name for name in ("aggregator", "operator", "issuer")]
    thieves = [keep(folder) for folder in folders]
    assert all(thief() for thief in thieves)
    plant.drill("The aggregator's, the operator's or the issuer's key")
    for thief, folder in zip(thieves, folders, strict=True):
        refused(thief)
        assert lets_in(read_bundle(folder).endpoint)


def test_the_brokers_key(plant: Plant) -> None:
    before = (plant.fleet / "broker" / "broker.key").read_bytes()
    (told,) = plant.drill("The broker's key")
    assert "was notified" in told and (plant.fleet / "broker" / "broker.key").read_bytes() != before
    until("it serves with it", lambda: plant.lets_in("dev0001"))


def test_the_key_of_the_authority_stolen(plant: Plant) -> None:
    thief = keep(plant.fleet / "devices" / "dev0003")  # any certificate of the authority before
    devices = [HeldCredentials(plant.fleet / "devices" / name) for name in (*NAMES, "dev0003")]
    succeed, switch, finish = commands("The authority's key, stolen")
    plant.run(succeed)
    plant.run(switch, code=2)  # devices do not know it yet
    for held in devices:
        held.trust(whom_to_trust(plant.fleet))
        answer(plant.fleet, {held.bundle.name: held.says()})
    plant.run(switch)
    plant.run(finish, code=2)  # nor have they certificates of it
    for held in devices:
        held.trust(whom_to_trust(plant.fleet))
        assert held.take(answer(plant.fleet, {held.bundle.name: held.ask()}).replies[held.bundle.name]) == ""
        assert [each.new for each in held.candidates()] == [True, False]
        assert lets_in(held.candidates()[0].endpoint)
        held.adopt()
        answer(plant.fleet, {held.bundle.name: held.says()})
    assert "restart" in plant.run(finish)
    port = read_fleet(plant.fleet).port
    pid = int((plant.fleet / "broker" / "mosquitto.pid").read_text())
    subprocess.run(["kill", str(pid)], check=True)
    until("the broker has ended", lambda: not plant.lets_in("dev0001"))
    with serving(plant.fleet / "broker" / "mosquitto.conf", port):
        assert all(plant.lets_in(name) for name in (*NAMES, "dev0003"))
        assert not thief()


def test_the_key_of_the_authority_destroyed(plant: Plant) -> None:
    plant.drill("")
    for file in (plant.fleet / "authority").iterdir():
        file.unlink()
    assert plant.lets_in("dev0001")
    plant.run("midge device-add --fleet fleet other", code=2)
    plant.drill("The authority's key, destroyed")
    plant.run("midge device-add --fleet fleet other")
    until("it is let in", lambda: plant.lets_in("other"))


def test_the_release_key(plant: Plant) -> None:
    path = plant.fleet / "aggregator" / "release.key"
    old = signing.read_private(path.read_bytes()).public
    succeed, restore = commands("The release key")
    plant.run(succeed)
    keys = load_release_keys(path)
    assert envelopes.read_succession(keys.chain[0], "plant", [old]).key == keys.keys[-1][1].public.raw
    plant.drill("")
    for file in path.parent.glob("release.key*"):
        file.unlink()
    plant.run(restore)
    assert load_release_keys(path).chain == keys.chain


def test_the_register(plant: Plant) -> None:
    plant.drill("")
    thief = keep(plant.fleet / "devices" / "dev0001")
    plant.run("midge device-revoke --fleet fleet dev0001")
    restore, accept, again = commands("The registry")
    plant.run(restore)
    plant.run("midge device-list --fleet fleet --renew", code=2)  # or the revoked one would be let in
    assert not thief()
    plant.run(accept)
    plant.run(again)
    refused(thief)
    assert plant.lets_in("dev0002")
