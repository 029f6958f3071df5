"""Credentials that renew over MQTT: through a power cut at each step, for the right device only, and for years."""

import hashlib
import os
import shutil
import ssl
from base64 import b64decode, b64encode
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from midge.broker.mqtt.endpoint import Endpoint
from midge.broker.provisioning import authorities, bundles, manage_devices, renewals
from midge.broker.provisioning.certificates import make_request
from midge.broker.provisioning.fleet_registry import FleetError, Way, present, read_fleet
from midge.broker.provisioning.held_credentials import HeldCredentials
from midge.storage.files import atomic_rename, atomic_write
from midge.wire import renewal, signing
from midge.wire.errors import WireError
from tests.broker.fleets import make_fleet

NAME = "dev0001"
WAYS: list[Way] = ["certificates", "passwords"]


class PowerCut(BaseException):
    """The power is gone: nothing that follows happens."""


class Power:
    """Cuts the power at the n-th thing that becomes durable: before it, or right behind it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left = 10**9
        self.behind = False
        write, unlink = atomic_write, Path.unlink

        def cut_write(path: Path, data: Any, **arguments: Any) -> None:
            self.step(lambda: write(path, data, **arguments))

        def cut_unlink(path: Path, missing_ok: bool = False) -> None:
            if path.exists():
                self.step(lambda: unlink(path, missing_ok=missing_ok))

        monkeypatch.setattr(bundles, "atomic_write", cut_write)
        monkeypatch.setattr(Path, "unlink", cut_unlink)

    def step(self, do: Any) -> None:
        self.left -= 1
        if self.left == 0 and not self.behind:
            raise PowerCut
        do()
        if self.left == 0:
            raise PowerCut


class Broker:
    """What a Mosquitto does with a fleet's files, as far as it concerns renewing: whom it lets in, what it retains."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.requests: dict[str, bytes] = {}
        self.replies: dict[str, bytes] = {}
        self.authorities = b""

    def lets_in(self, name: str, endpoint: Endpoint) -> bool:
        broker = self.directory / "broker"
        assert endpoint.tls is not None
        if endpoint.password is not None:
            lines = dict(line.split(":", 1) for line in (broker / "passwords").read_text().splitlines())
            _, _, iterations, salt, digest = lines[name].split("$")
            made = hashlib.pbkdf2_hmac("sha512", endpoint.password.encode(), b64decode(salt), int(iterations))
            return b64encode(made).decode() == digest
        from cryptography.x509 import load_pem_x509_certificate, load_pem_x509_certificates, load_pem_x509_crl

        from midge.broker.provisioning.certificates import signed_by

        assert endpoint.tls.certfile is not None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_cert_chain(endpoint.tls.certfile, endpoint.tls.keyfile)  # raises if they are no pair
        certificate = load_pem_x509_certificate(endpoint.tls.certfile.read_bytes())
        end = b"-----END X509 CRL-----\n"
        lists = [load_pem_x509_crl(part + end) for part in (broker / "crl.pem").read_bytes().split(end)[:-1]]
        revoked = any(each.get_revoked_certificate_by_serial_number(certificate.serial_number) for each in lists)
        return not revoked and signed_by(certificate, load_pem_x509_certificates((broker / "ca.crt").read_bytes()))

    def issue(self) -> None:
        """A life of the issuer, from what is retained."""
        asked = {name: payload for name, payload in self.requests.items() if payload}
        self.replies |= renewals.answer(self.directory, asked).replies
        self.authorities = renewals.whom_to_trust(self.directory)


def bundle(directory: Path, name: str = NAME) -> Path:
    return directory / "devices" / name


def life(broker: Broker, path: Path) -> str:
    """A device from its start: it connects, asks, takes the answer. What it came to; it must always be let in."""
    held = HeldCredentials(path)
    name = held.bundle.name
    for candidate in held.candidates():
        if broker.lets_in(name, candidate.endpoint):
            if candidate.new:
                held.adopt()
                return "renewed"
            break
    else:
        raise AssertionError("the device is lost: nothing that it has lets it in")
    if broker.authorities:
        held.trust(broker.authorities)
    if held.answered:
        return "answered"
    broker.requests[name] = held.ask()
    if name in broker.replies and not held.take(broker.replies[name]):
        return "answered"
    return "asked"


def used(path: Path) -> tuple[str, ...]:
    """What is in use, by content."""
    endpoint = HeldCredentials(path).bundle.endpoint
    assert endpoint.tls is not None
    certificate = endpoint.tls.certfile
    return (str(endpoint.password), "" if certificate is None else certificate.read_text())


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("behind", [False, True], ids=["before", "behind"])
def test_a_power_cut_at_each_step_loses_no_device(
    way: Way, behind: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen to fail on a password that was granted in the register, and not yet in the broker's file."""
    make_fleet(tmp_path / "fresh", way=way, names=[NAME])
    power = Power(monkeypatch)
    cuts = 0
    for step in range(1, 100):
        directory = tmp_path / f"{step}"
        shutil.copytree(tmp_path / "fresh", directory)
        broker, before = Broker(directory), used(bundle(directory))
        power.left, power.behind = step, behind
        cut = False
        for _ in range(12):
            try:
                if used(bundle(directory)) != before:
                    break
                life(broker, bundle(directory))
                broker.issue()
            except PowerCut:
                cut = True
        else:
            raise AssertionError(f"cut at {step}: it never came to an end")
        power.left = 10**9
        after = used(bundle(directory))
        assert after != before
        assert broker.lets_in(NAME, HeldCredentials(bundle(directory)).bundle.endpoint)
        left = sorted(file.name for file in bundle(directory).iterdir() if file.name.startswith("next."))
        assert left == [], "nothing of the way there is left"
        if not cut:
            break
        cuts += 1
    assert cuts >= 8


@pytest.mark.parametrize("way", WAYS)
def test_it_renews_again_and_again(way: Way, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_fleet(tmp_path, way=way, names=[NAME])
    monkeypatch.setattr(renewals, "_AT_MOST", timedelta(0))
    broker, seen = Broker(tmp_path), set()
    for _ in range(5):
        while life(broker, bundle(tmp_path)) != "renewed":
            broker.issue()
        seen.add(used(bundle(tmp_path)))
    assert len(seen) == 5
    files = sorted(file.name for file in bundle(tmp_path).iterdir())
    assert len(files) <= 8, files
    assert manage_devices.devices(tmp_path)[0].state == "active"


def test_the_key_that_signs_what_is_sent_stays(tmp_path: Path) -> None:
    make_fleet(tmp_path, names=[NAME])
    first = (bundle(tmp_path) / "device.key").read_bytes()
    broker = Broker(tmp_path)
    while life(broker, bundle(tmp_path)) != "renewed":
        broker.issue()
    assert (bundle(tmp_path) / "signing.key").read_bytes() == first
    endpoint = HeldCredentials(bundle(tmp_path)).bundle.endpoint
    assert endpoint.tls is not None and endpoint.tls.keyfile is not None
    assert endpoint.tls.keyfile.read_bytes() != first


class TestWhoMayAsk:
    @pytest.fixture
    def fleet(self, tmp_path: Path) -> Path:
        make_fleet(tmp_path)
        return tmp_path

    def refused(self, fleet: Path, name: str, payload: bytes) -> str:
        before = read_fleet(fleet).members.get(name)
        found = renewals.answer(fleet, {name: payload})
        assert found.granted == 0 and read_fleet(fleet).members.get(name) == before
        return renewal.read(renewal.RenewalAnswer, found.replies[name]).why if name in found.replies else "silence"

    def test_a_device_that_is_not_known_or_revoked_gets_no_answer(self, fleet: Path) -> None:
        asked = HeldCredentials(bundle(fleet)).ask()
        assert self.refused(fleet, "stranger", asked) == "silence"
        assert self.refused(fleet, "aggregator", asked) == "silence"
        manage_devices.revoke(fleet, [NAME])
        assert self.refused(fleet, NAME, asked) == "silence"

    def test_no_device_gets_anothers_name(self, fleet: Path) -> None:
        held = HeldCredentials(bundle(fleet))
        assert "not this device's" in self.refused(fleet, "dev0002", held.ask())
        key = signing.read_private((bundle(fleet) / "device.key").read_bytes())
        _, csr = make_request("dev0002", der=True)
        message = renewal.RenewalRequest(csr=csr, certificate=held._der())
        assert "another name" in self.refused(fleet, NAME, renewal.signed(key, held.context, message))
        context = signing.of_device("plant", "dev0002")
        assert "not this device's" in self.refused(fleet, "dev0002", renewal.signed(key, context, message))

    def test_another_key_than_the_one_it_is_known_by_signs_nothing(self, fleet: Path) -> None:
        held = HeldCredentials(bundle(fleet))
        made, csr = make_request(NAME, der=True)
        message = renewal.RenewalRequest(csr=csr, certificate=held._der())
        assert "not signed" in self.refused(
            fleet, NAME, renewal.signed(signing.read_private(made), held.context, message)
        )

    def test_one_device_is_given_new_ones_once_a_day(self, fleet: Path) -> None:
        held = HeldCredentials(bundle(fleet))
        first = held.ask()
        assert renewals.answer(fleet, {NAME: first}).granted == 1
        known = read_fleet(fleet).members[NAME].serials
        again = renewals.answer(fleet, {NAME: first})
        assert again.granted == 0 and held.take(again.replies[NAME]) == "" and held.answered, "it is answered again"
        assert read_fleet(fleet).members[NAME].serials == known, "with the same certificate"
        held.give_up()
        assert "less than a day" in self.refused(fleet, NAME, held.ask())

    @pytest.mark.parametrize("junk", [b"", b"\0", b"\xff" * 300, b"\x82\xa4kind\xa5renew"])
    def test_junk_is_refused(self, fleet: Path, junk: bytes) -> None:
        self.refused(fleet, NAME, junk)

    @pytest.mark.parametrize(
        "word", ["", "x", "$7$101$AAAA$BBBB", "$7$9999999$" + "A" * 16 + "$" + "A" * 86 + "==", "$7$101$\nroot:x"]
    )
    def test_only_a_hash_as_ours_becomes_a_line_of_the_brokers_file(self, word: str, tmp_path: Path) -> None:
        make_fleet(tmp_path, way="passwords")
        held = HeldCredentials(bundle(tmp_path))
        key = signing.read_private((bundle(tmp_path) / "password.key").read_bytes())
        _, csr = make_request(NAME, der=True)
        before = (tmp_path / "broker" / "passwords").read_bytes()
        payload = renewal.signed(key, held.context, renewal.RenewalRequest(csr=csr, password=word))
        assert "no hash" in self.refused(tmp_path, NAME, payload)
        assert (tmp_path / "broker" / "passwords").read_bytes() == before


class TestWhatADeviceTakes:
    def test_an_answer_of_another_authority_is_not_taken(self, tmp_path: Path) -> None:
        make_fleet(tmp_path / "ours", names=[NAME])
        make_fleet(tmp_path / "theirs", names=[NAME])
        held = HeldCredentials(bundle(tmp_path / "ours"))
        held.ask()
        theirs = HeldCredentials(bundle(tmp_path / "theirs"))
        reply = renewals.answer(tmp_path / "theirs", {NAME: theirs.ask()}).replies[NAME]
        with pytest.raises(WireError):
            held.take(reply)
        with pytest.raises(WireError):
            held.trust(renewals.whom_to_trust(tmp_path / "theirs"))
        assert not held.answered

    def test_an_answer_to_an_earlier_request_is_passed_over(self, tmp_path: Path) -> None:
        make_fleet(tmp_path, names=[NAME])
        held = HeldCredentials(bundle(tmp_path))
        reply = renewals.answer(tmp_path, {NAME: held.ask()}).replies[NAME]
        held.give_up()
        held.ask()
        assert held.take(reply) == "" and not held.answered


# ------------------------------------------------------------------- the authority


def renew_all(broker: Broker, names: list[str]) -> None:
    for name in names:
        while life(broker, bundle(broker.directory, name)) != "renewed":
            broker.issue()


def say(broker: Broker, name: str) -> None:
    """A device comes by, takes the list of authorities in, and says so."""
    held = HeldCredentials(bundle(broker.directory, name))
    assert broker.lets_in(name, held.bundle.endpoint)
    held.trust(broker.authorities)
    renewals.answer(broker.directory, {name: held.says()})


def test_an_authority_follows_another_and_no_device_is_cut_off(tmp_path: Path) -> None:
    names = ["dev0001", "dev0002", "dev0003"]
    make_fleet(tmp_path, names=names)
    broker = Broker(tmp_path)
    first = (tmp_path / "authority" / "ca.crt").read_bytes()
    manage_devices.succeed_authority(tmp_path)
    broker.issue()
    with pytest.raises(FleetError, match="3 devices do not know"):
        manage_devices.switch_authority(tmp_path)
    for name in names:
        say(broker, name)
    manage_devices.switch_authority(tmp_path)
    broker.issue()
    assert (tmp_path / "authority" / "ca.crt").read_bytes() != first
    with pytest.raises(FleetError, match="3 devices have certificates of the authority before"):
        manage_devices.finish_authority(tmp_path)
    for name in names:
        held = HeldCredentials(bundle(tmp_path, name))
        held.trust(broker.authorities)
        assert held.outdated(broker.authorities), "it asks at once, not after two thirds of its life"
    renew_all(broker, names)
    with pytest.raises(FleetError, match="3 devices have certificates of the authority before"):
        manage_devices.finish_authority(tmp_path)  # as far as is known: they have not connected with the new ones yet
    for name in names:
        say(broker, name)
        assert not HeldCredentials(bundle(tmp_path, name)).outdated(broker.authorities)
    manage_devices.finish_authority(tmp_path)
    broker.issue()
    assert first not in (tmp_path / "broker" / "ca.crt").read_bytes()
    for name in names:
        say(broker, name)
        held = HeldCredentials(bundle(tmp_path, name))
        assert first not in held.files[1].read_bytes() and broker.lets_in(name, held.bundle.endpoint)


def cut_at(step: int, change: Any, power: Power) -> bool:
    """Give a command until it is done, with the power cut at its n-th step; whether it was."""
    power.left = step
    try:
        change()
    except PowerCut:
        power.left = 10**9
        change()
        return True
    return False


@pytest.mark.parametrize("behind", [False, True], ids=["before", "behind"])
def test_a_power_cut_at_each_step_of_a_succession_leaves_an_authority(
    behind: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen to fail on a switch that ends between the next one's key and its certificate, without `repair`."""
    make_fleet(tmp_path / "fresh", names=[NAME])
    power = Power(monkeypatch)
    power.behind, rename = behind, atomic_rename
    monkeypatch.setattr(authorities, "atomic_rename", lambda *paths: power.step(lambda: rename(*paths)))
    for step in range(1, 100):
        directory = tmp_path / f"{step}"
        shutil.copytree(tmp_path / "fresh", directory)
        broker = Broker(directory)
        cut = [cut_at(step, lambda where=directory: manage_devices.succeed_authority(where), power)]
        assert broker.lets_in(NAME, HeldCredentials(bundle(directory)).bundle.endpoint)
        cut.append(cut_at(step, lambda where=directory: manage_devices.switch_authority(where, force=True), power))
        power.left = 10**9
        manage_devices.add(directory, ["new"])
        for name in (NAME, "new"):
            assert broker.lets_in(name, HeldCredentials(bundle(directory, name)).bundle.endpoint), (step, name)
        cut.append(cut_at(step, lambda where=directory: manage_devices.finish_authority(where, force=True), power))
        power.left = 10**9
        assert len(authorities.authorities(directory)) == 1
        assert broker.lets_in("new", HeldCredentials(bundle(directory, "new")).bundle.endpoint), step
        assert not broker.lets_in(NAME, HeldCredentials(bundle(directory)).bundle.endpoint)
        if not any(cut):
            break
    assert step > 6


def test_an_older_list_of_authorities_is_not_followed(tmp_path: Path) -> None:
    make_fleet(tmp_path, names=[NAME])
    older = renewals.whom_to_trust(tmp_path)
    manage_devices.succeed_authority(tmp_path)
    held = HeldCredentials(bundle(tmp_path))
    assert held.trust(renewals.whom_to_trust(tmp_path)) and not held.trust(older)
    assert held.files[1].read_bytes() == authorities.trusted(tmp_path)


# ---------------------------------------------------------------------------- when


def test_a_fleet_that_was_made_at_once_does_not_come_at_once(tmp_path: Path) -> None:
    names = [f"dev{number:04}" for number in range(1, 41)]
    make_fleet(tmp_path, names=names)
    made = present().timestamp()
    dues = sorted((HeldCredentials(bundle(tmp_path, name)).due() - made) / 86_400 for name in names)
    assert dues[0] > 365 * 2 / 3 - 2 and dues[-1] < 365 * 3 / 4 + 2
    assert dues[-1] - dues[0] > 20


def test_a_bundle_whose_files_lost_their_time_is_renewed_before_its_end(tmp_path: Path) -> None:
    make_fleet(tmp_path, names=[NAME])
    for stamp in (0, present().timestamp() + 100 * 86_400):
        os.utime(bundle(tmp_path) / "device.crt", (stamp, stamp))
        assert HeldCredentials(bundle(tmp_path)).due() < present().timestamp() + 300 * 86_400
