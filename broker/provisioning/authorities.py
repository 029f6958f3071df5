"""Certificate authorities of a fleet during a succession: which sign, and which are trusted.

    ca       signs certificates
    next     is trusted already, and signs nothing yet: devices learn of it from the current one
    before   signed until the switch: still trusted, for its certificates that are not renewed yet

Each is a key and a certificate in `authority/`. An authority signs nothing before all devices know it.
"""

from datetime import datetime
from pathlib import Path
from typing import Literal

from midge.broker.provisioning.bundles import write_private
from midge.broker.provisioning.certificates import Authority, make_authority
from midge.broker.provisioning.fleet_registry import Fleet, FleetError
from midge.storage.files import atomic_rename, sync_folder
from midge.wire import renewal

Place = Literal["before", "ca", "next"]
_PLACES: tuple[Place, ...] = ("before", "ca", "next")


def authority(directory: Path, place: Place = "ca") -> Authority | None:
    """The authority at a place of a fleet; None if there is none."""
    key, certificate = (directory / "authority" / f"{place}.{kind}" for kind in ("key", "crt"))
    if place != "ca" and not (key.is_file() and certificate.is_file()):
        return None
    return Authority(key.read_bytes(), certificate.read_bytes())


def authorities(directory: Path) -> list[Authority]:
    """All trusted authorities, the oldest first, which every device trusts."""
    found = [each for place in _PLACES if (each := authority(directory, place)) is not None]
    return list({each.certificate: each for each in found}.values())  # the same one twice, half-way through a switch


def repair(directory: Path) -> None:
    """Complete a switch that a power cut interrupted between the key and its certificate."""
    home = directory / "authority"
    if (home / "next.crt").is_file() and not (home / "next.key").is_file():
        (home / "next.crt").replace(home / "ca.crt")
        sync_folder(home)


def trusted(directory: Path) -> bytes:
    """Their certificates, PEM."""
    return b"".join(each.certificate for each in authorities(directory))


def succeed(directory: Path, fleet: Fleet, now: datetime) -> None:
    """Make the next authority; if there is one already, do nothing.

    Raises:
        FleetError: the previous succession is not finished.
    """
    if authority(directory, "before") is not None:
        raise FleetError("The authority before this one is still trusted: end that with --finish first.")
    if authority(directory, "next") is None:
        made = make_authority(f"{fleet.name} {now:%Y-%m-%d}", now)
        home = directory / "authority"
        write_private(home / "next.crt.new", made.certificate)
        write_private(home / "next.key", made.key)
        atomic_rename(home / "next.crt.new", home / "next.crt")


def switch(directory: Path, fleet: Fleet, *, force: bool = False) -> None:
    """Let the next authority sign from now on.

    Raises:
        FleetError: there is none, or some devices do not know it yet.
    """
    home = directory / "authority"
    if authority(directory, "next") is None:
        if authority(directory, "before") is not None:
            return  # switched already
        raise FleetError("There is no next authority: `midge broker authority succeed` makes one.")
    _see_all("do not know the next authority yet", unaware(directory, fleet), force=force)
    for kind in ("key", "crt"):
        write_private(home / f"before.{kind}", (home / f"ca.{kind}").read_bytes())
    atomic_rename(home / "next.key", home / "ca.key")
    repair(directory)


def finish(directory: Path, fleet: Fleet, *, force: bool = False) -> None:
    """Stop trusting the previous authority.

    Raises:
        FleetError: devices still have certificates of it.
    """
    home = directory / "authority"
    if authority(directory, "before") is None:
        return
    current, members = mark(directory), fleet.devices.items() if fleet.way == "certificates" else ()
    old = [name for name, member in members if not member.revoked and member.authority != current]
    _see_all("have certificates of the authority before", old, force=force)
    for kind in ("key", "crt"):
        (home / f"before.{kind}").unlink(missing_ok=True)
    sync_folder(home)


def mark(directory: Path) -> str:
    """Identifies the signing authority in the register."""
    return renewal.digest((directory / "authority" / "ca.crt").read_bytes()).hex()


def unaware(directory: Path, fleet: Fleet) -> list[str]:
    """Devices that have not confirmed that they trust all current authorities."""
    all_of_them = renewal.digest(trusted(directory)).hex()
    return [name for name, member in fleet.devices.items() if not member.revoked and member.trusts != all_of_them]


def _see_all(what: str, names: list[str], *, force: bool) -> None:
    if names and not force:
        shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        raise FleetError(
            f"{len(names)} devices {what}: {shown}. They are cut off if it is done now: let `midge broker renewals` "
            "run until they have been there, or say --force."
        )
