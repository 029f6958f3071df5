"""Adding, revoking and re-keying devices while the broker runs.

A certificate is checked only at connect, so a revocation list alone does not stop a connected device. So a revocation
also adds an ACL line that removes every right; SIGHUP makes Mosquitto read both.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Literal

from midge.broker.provisioning import authorities
from midge.broker.provisioning.bundles import pack
from midge.broker.provisioning.certificates import Authority, require_cryptography
from midge.broker.provisioning.create_fleet import Signing, enrol, publish
from midge.broker.provisioning.expiry import NEAR, ends
from midge.broker.provisioning.fleet_registry import (
    AGGREGATOR,
    ISSUER,
    OPERATOR,
    RESERVED,
    Fleet,
    FleetError,
    Member,
    locked,
    present,
    read_fleet,
    write_fleet,
)
from midge.broker.provisioning.mosquitto_config import PID_FILE
from midge.wire.topics import check_name

State = Literal["active", "rotating", "revoked"]
_FOLDERS = {AGGREGATOR: "aggregator", OPERATOR: "operator", ISSUER: "issuer"}
"""Folders of members that get new keys and are no devices."""


@dataclass(frozen=True, slots=True)
class Applied:
    """Whether the broker was notified of a change."""

    broker: bool
    """True if a broker on this machine was sent SIGHUP."""
    todo: tuple[str, ...]
    """Commands to run on the broker's machine; empty if none."""


@dataclass(frozen=True, slots=True)
class Listed:
    """One device, as a row of a table."""

    name: str
    state: State
    ends: datetime | None
    """When its newest certificate expires; None for passwords."""
    since: datetime | None
    """When it was revoked."""


def add(directory: Path, names: list[str]) -> Applied:
    """Add devices, each with a bundle.

    Raises:
        FleetError: one of the names is taken.
        ValueError: one of them cannot be a device's.
    """
    with changing(directory) as (fleet, signing):
        for name in names:
            check_name(name, "device name")
            if name in RESERVED:
                raise FleetError(f"{name!r} is a name of Midge's own: choose another for the device.")
            if (member := fleet.members.get(name)) is not None:
                what = "was revoked: choose another name" if member.revoked else "is there already"
                raise FleetError(f"The device {name!r} {what}.")
        for name in names:
            enrol(signing, name, directory / "devices" / name)
            pack(directory / "devices" / name)
        return changed(signing)


def add_issuer(directory: Path) -> Applied:
    """Add the issuer of new credentials to a fleet of an earlier version."""
    with changing(directory) as (_, signing):
        enrol(signing, ISSUER, directory / "issuer")
        return changed(signing)


def revoke(directory: Path, names: list[str]) -> Applied:
    """Revoke devices, connected or not.

    Raises:
        FleetError: there is no such device.
    """
    with changing(directory) as (fleet, signing):
        members = [_member(fleet, name) for name in names]
        for member in members:
            member.revoked = member.revoked or signing.now
            fleet.lapse(member.serials, signing.now)
            member.serials, member.renewals = [], 0
        return changed(signing)


def rotate(directory: Path, names: list[str], *, now: bool = False, finish: bool = False) -> Applied:
    """Make new keys for devices.

    The earlier certificates stay valid until `finish`, so that a device takes part until its new bundle has reached it.
    A password changes at once.

    Args:
        directory: the fleet's.
        names: the devices.
        now: revoke earlier certificates at once.
        finish: make nothing new, only revoke earlier certificates.

    Raises:
        FleetError: there is no such device, or it is revoked.
    """
    with changing(directory) as (fleet, signing):
        for name in names:
            member = _member(fleet, name, reserved=True)
            if member.revoked is not None:
                raise FleetError(f"The device {name!r} is revoked: add a device of another name.")
        for name in names:
            if not finish:
                folder = directory / _FOLDERS.get(name, f"devices/{name}")
                enrol(signing, name, folder)
                if name not in _FOLDERS:
                    pack(folder)
            member = fleet.members[name]
            if now or finish:
                if fleet.way == "certificates":
                    member.authority = authorities.mark(directory)
                fleet.lapse(member.serials[:-1], signing.now)
                member.serials, member.renewals = member.serials[-1:], 0
        if fleet.way == "certificates" and not (now or finish):
            write_fleet(directory, fleet)
            return Applied(broker=False, todo=())
        return changed(signing)


def devices(directory: Path) -> list[Listed]:
    """All devices, including revoked ones."""
    listed = []
    for name, member in sorted(read_fleet(directory).devices.items()):
        state: State = "active" if len(member.serials) < 2 + member.renewals else "rotating"
        listed.append(Listed(name, "revoked" if member.revoked else state, member.ends, member.revoked))
    return listed


def warnings(directory: Path, now: datetime) -> list[str]:
    """Credentials that expire soon, and what to do."""
    fleet, broker = read_fleet(directory), directory / "broker"
    if fleet.way != "join":
        require_cryptography()
    own = (broker / "crl.pem", broker / "ca.crt", broker / "broker.crt", directory / AGGREGATOR / "release.key")
    said = [alarm for file in own for end in ends(file) if (alarm := end.alarm(now))]
    for name, member in fleet.members.items():
        if member.ends is not None and member.revoked is None and (left := (member.ends - now).days) < NEAR:
            how = (
                f"midge device rotate {name}" if name not in RESERVED or name == AGGREGATOR else "midge broker renewals"
            )
            said.append(f"The certificate of {name} runs out in {left} days: {how}.")
    return said


def succeed_authority(directory: Path) -> Applied:
    """Make the next authority, and have the broker trust it."""
    return _authority(directory, lambda fleet, now: authorities.succeed(directory, fleet, now))


def switch_authority(directory: Path, *, force: bool = False) -> Applied:
    """Let the next authority sign from now on.

    Raises:
        FleetError: devices do not know it yet.
    """
    return _authority(directory, lambda fleet, _: authorities.switch(directory, fleet, force=force))


def finish_authority(directory: Path, *, force: bool = False) -> Applied:
    """Stop trusting the previous authority.

    Raises:
        FleetError: devices still have certificates of it.
    """
    told = _authority(directory, lambda fleet, _: authorities.finish(directory, fleet, force=force))
    # On SIGHUP Mosquitto adds trusted authorities and removes none: a removed one stays trusted until it ends.
    return replace(told, todo=(*told.todo, "restart the broker, which trusts the one before until then"))


def _authority(directory: Path, change: Callable[[Fleet, datetime], None]) -> Applied:
    with changing(directory) as (fleet, signing):
        if signing.authority is None:
            raise FleetError("This fleet's authority is another team's.")
        change(fleet, signing.now)
        fleet.authorities += 1
        return changed(replace(signing, authority=authorities.authority(directory)))


def renew(directory: Path, *, accept_older: bool = False) -> Applied:
    """Rewrite the broker's files and notify the broker; from an older register only if that is accepted."""
    with changing(directory, accept_older=accept_older) as (_, signing):
        return changed(signing)


class changing:  # noqa: N801 - read as a verb
    """A locked fleet, and the keys that its bundles are made with."""

    def __init__(self, directory: Path, *, accept_older: bool = False) -> None:
        self._directory, self._accept_older = directory, accept_older
        self._lock = locked(directory)

    def __enter__(self) -> tuple[Fleet, Signing]:
        require_cryptography()
        self._lock.__enter__()
        try:
            fleet = read_fleet(self._directory, accept_older=self._accept_older)
            return fleet, _signing(self._directory, fleet)
        except BaseException:
            self._lock.__exit__(*sys.exc_info())
            raise

    def __exit__(self, *problem: object) -> None:
        self._lock.__exit__(None, None, None)


def _signing(directory: Path, fleet: Fleet) -> Signing:
    authority, trust = None, None
    try:
        if fleet.way != "join":
            authorities.repair(directory)
            home = directory / "authority"
            authority = Authority((home / "ca.key").read_bytes(), (home / "ca.crt").read_bytes())
            trust = authorities.trusted(directory)
        elif (own := directory / AGGREGATOR / "ca.crt").is_file():
            trust = own.read_bytes()
        release = (directory / AGGREGATOR / "release.pub").read_bytes()
    except OSError as error:
        raise FleetError(
            f"{error.filename} cannot be read ({error.strerror}): devices are managed where the fleet's authority is."
        ) from error
    return Signing(directory, fleet, authority, trust, release, present())


def _member(fleet: Fleet, name: str, *, reserved: bool = False) -> Member:
    others = {each: fleet.members[each] for each in _FOLDERS if each in fleet.members} if reserved else {}
    known = {**fleet.devices, **others}
    if name not in known:
        raise FleetError(f"There is no device {name!r} in this fleet: `midge device list` names them.")
    return known[name]


def changed(signing: Signing) -> Applied:
    """Write the register, then the broker's files, then notify the broker."""
    fleet, directory = signing.fleet, signing.directory
    write_fleet(directory, fleet)
    publish(directory, fleet, signing.authority, signing.now)
    if fleet.way == "join":
        lines = directory / "broker" / "acl-to-add"
        return Applied(
            broker=False, todo=(f"bring {lines} into the broker's ACL", "ask its authority to revoke or sign")
        )
    here = directory / "broker"
    if here.resolve() == Path(fleet.broker_directory) and _hang_up(here / PID_FILE):
        return Applied(broker=True, todo=())
    files = " ".join(str(here / name) for name in ("acl", "crl.pem", "passwords") if (here / name).exists())
    copy = () if here.resolve() == Path(fleet.broker_directory) else (f"scp {files} BROKER:{fleet.broker_directory}/",)
    pid = f"{fleet.broker_directory}/{PID_FILE}"
    return Applied(broker=False, todo=(*copy, f"kill -HUP $(cat {pid})    # on the broker's machine, where it runs"))


def _hang_up(pid_file: Path) -> bool:
    """Send SIGHUP to the Mosquitto that wrote this file; False if it does not run."""
    with suppress(OSError, ValueError):
        pid = int(pid_file.read_text())
        if pid > 1 and "mosquitto" in _program(pid):  # the process id may be another program's by now
            os.kill(pid, signal.SIGHUP)
            return True
    return False


def _program(pid: int) -> str:
    """The program that a process runs; empty if there is no such process."""
    if (proc := Path("/proc")).is_dir() and (proc / "self").exists():  # without /proc, as on macOS, ask ps
        return (proc / str(pid) / "comm").read_text()
    asked = ["ps", "-o", "comm=", "-p", str(pid)]
    return subprocess.run(asked, capture_output=True, text=True, check=False).stdout  # noqa: S603
