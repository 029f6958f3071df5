"""The register of a fleet: its members, their certificates, and which of these are revoked.

It is the file `fleet.json` in the fleet's directory. The broker's files (ACL, revocation list, passwords) are always
rewritten from it, so that an interrupted command is completed by repeating it.

Each write has a revision, which is recorded in a second file too. So a register that was restored from a backup is
refused: it may let in devices that were revoked since.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from midge.broker.provisioning.bundles import write_private
from midge.storage.witness import CommitWitness
from midge.wire.topics import DEFAULT_ROOT, Topics

REGISTER = "fleet.json"
WITNESS = "fleet.witness"
"""The newest revision of the register, recorded a second time."""

Way = Literal["certificates", "passwords", "join"]
"""How participants authenticate: certificates of the fleet's own authority, passwords over TLS, or the scheme of an
existing broker that the fleet joins."""

AGGREGATOR, OPERATOR = "aggregator", "operator"
ATTACKER, VICTIM, REVOKED = "midge-check-attacker", "midge-check-victim", "midge-check-revoked"
"""Identities of `midge broker check`: if the identity is the client id, using a real device's would disconnect it."""
ISSUER = "midge-issuer"
"""The service that answers requests for new credentials."""
HOME_ASSISTANT = "home-assistant"
"""A member of this name is no device: it reads what `midge aggregate --home-assistant` publishes, and may pause."""
MASK_HELPER = "mask-helper"
"""A member of this name is no device: it has the rights of the mask helper of secure aggregation, another party's."""
RESERVED = frozenset({AGGREGATOR, OPERATOR, ISSUER, ATTACKER, VICTIM, REVOKED})


class FleetError(Exception):
    """An error in a fleet's directory that the user can fix; the message says how."""


class Member(BaseModel):
    """One device, or another participant."""

    model_config = ConfigDict(extra="forbid")

    serials: list[str] = []
    """Serial numbers of its certificates that are not revoked, the newest last; in hexadecimal."""
    ends: datetime | None = None
    """When the newest expires; None if there is none."""
    revoked: datetime | None = None
    password: str | None = None
    """The hash, as in the broker's password file."""
    key: str | None = None
    """The public key that signs a member's requests for new passwords, DER in hexadecimal."""
    issued: datetime | None = None
    """When the newest certificate or password was made."""
    authority: str | None = None
    """The authority that signed its current certificate, as far as known; `authorities.mark`."""
    renewals: int = 0
    """Older certificates that were renewed over MQTT, and stay valid until they expire."""
    asked: str | None = None
    """Digest of the request that was answered last: it may be repeated."""
    trusts: str | None = None
    """Digest of the authorities that it trusts, as it last reported."""


class Fleet(BaseModel):
    """Everything known about a fleet."""

    model_config = ConfigDict(extra="forbid")

    revision: int = 0
    """Revision of the register: it grows with each write."""
    name: str
    """The federation's name."""
    root: str = DEFAULT_ROOT
    way: Way = "certificates"
    hosts: list[str] = Field(min_length=1)
    """Names or addresses at which devices reach the broker; the first is in their bundles."""
    port: int = 8883
    broker: str
    """The broker's address, as in the bundles."""
    broker_directory: str
    """Folder of the broker's files on its machine."""
    broker_user: str
    days: int
    """Validity of new certificates."""
    list_number: int = 0
    list_days: int | None = None
    members: dict[str, Member] = {}
    authorities: int = 0
    """How often the list of trusted authorities has changed."""
    lapsed: dict[str, datetime] = {}
    """Revoked certificates: serial numbers in hexadecimal, and when each was revoked."""

    @property
    def topics(self) -> Topics:
        return Topics(self.name, self.root)

    @property
    def devices(self) -> dict[str, Member]:
        return {name: member for name, member in self.members.items() if name not in RESERVED}

    def lapse(self, serials: list[str], now: datetime) -> None:
        """Put certificates on the revocation list."""
        for serial in serials:
            self.lapsed.setdefault(serial, now)


def read_fleet(directory: Path, *, accept_older: bool = False) -> Fleet:
    """Read the register of the fleet in a directory.

    Args:
        directory: the fleet's.
        accept_older: whether to accept a register that was restored from a backup, to be written as the newest.

    Raises:
        FleetError: there is none, it cannot be read, or it is older than recorded.
    """
    path = directory / REGISTER
    try:
        fleet = Fleet.model_validate_json(path.read_text())
        known, listed = _known_revision(directory), _known_list(directory, fleet)
    except FileNotFoundError:
        raise FleetError(
            f"{directory} holds no {REGISTER}: name the directory that `midge broker init --out` made."
        ) from None
    except OSError as error:
        raise FleetError(f"{path} cannot be read ({error.strerror or error}).") from error
    except ValidationError as error:
        raise FleetError(f"{path} is no register of this version of Midge.") from error
    if accept_older:
        fleet.list_number = max(fleet.list_number, listed)
    elif known > fleet.revision or listed > fleet.list_number:
        behind = (
            f"it has revision {fleet.revision}, and {known} was written"
            if known > fleet.revision
            else f"it knows revocation list {fleet.list_number}, and the broker has list {listed}"
        )
        raise FleetError(
            f"{path} is an older copy: {behind}. Devices added or revoked since are not in it. Restore the "
            "newest one. If there is none, accept this one and repeat the revocations since: "
            f"midge device list --fleet {directory} --renew --accept-older"
        )
    return fleet


def _known_revision(directory: Path) -> int:
    """The newest recorded revision; 0 if there is none."""
    note = CommitWitness(directory / WITNESS).read().note
    return 0 if note is None else int.from_bytes(note)


def _known_list(directory: Path, fleet: Fleet) -> int:
    """The number of the broker's newest readable revocation list; 0 if there is none.

    A backup may have restored the list in the fleet's own directory together with the register; it counts only if no
    revision is recorded.
    """
    elsewhere = Path(fleet.broker_directory)
    places = [elsewhere] if elsewhere.resolve() != (directory / "broker").resolve() else []
    if not _known_revision(directory):
        places.append(directory / "broker")
    return max((_list_number(place / "crl.pem") for place in places), default=0)


def _list_number(path: Path) -> int:
    with suppress(ImportError, OSError, ValueError):
        from cryptography import x509  # noqa: PLC0415 - an extra

        found = x509.load_pem_x509_crl(path.read_bytes()).extensions.get_extension_for_class(x509.CRLNumber)
        return found.value.crl_number
    return 0


def write_fleet(directory: Path, fleet: Fleet) -> None:
    """Write the register, atomically, as the newest."""
    fleet.revision = max(fleet.revision, _known_revision(directory)) + 1
    write_private(directory / REGISTER, (fleet.model_dump_json(indent=1) + "\n").encode())
    witness = CommitWitness(directory / WITNESS)  # after it: a power cut between the two leaves the register ahead
    witness.write(fleet.revision.to_bytes(8))
    witness.close()


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Lock the directory: two commands at once would overwrite each other's devices.

    Raises:
        FleetError: there is no such directory.
    """
    try:
        descriptor = os.open(directory, os.O_RDONLY)
    except OSError as error:
        raise FleetError(
            f"{directory} cannot be opened ({error.strerror or error}): name the directory that "
            "`midge broker init --out` made."
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def present() -> datetime:
    """The time now, in whole seconds, as in certificates."""
    return datetime.now(UTC).replace(microsecond=0)
