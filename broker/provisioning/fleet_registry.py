"""The register of a fleet: who belongs to it, with which certificates, and which of these are no longer good.

It is the file `fleet.json` in the fleet's directory. What a broker reads (ACL, revocation list, passwords) is always
rewritten from it, so that a command that was interrupted is mended by giving it again.

Each write has a revision, which is noted in a second file beside it as well. So a register that was put back is
refused: whom it lets in may have been shut out since.
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
"""The newest revision of the register, once more."""

Way = Literal["certificates", "passwords", "join"]
"""How participants show who they are: certificates of the fleet's own authority, passwords over TLS, or whatever the
broker asks for that the fleet joins."""

AGGREGATOR, OPERATOR = "aggregator", "operator"
ATTACKER, VICTIM, REVOKED = "midge-check-attacker", "midge-check-victim", "midge-check-revoked"
"""Identities of the doctor's own: where the identity is the client id, it would put real devices off the broker."""
ISSUER = "midge-issuer"
"""Who answers requests for new credentials."""
RESERVED = frozenset({AGGREGATOR, OPERATOR, ISSUER, ATTACKER, VICTIM, REVOKED})


class FleetError(Exception):
    """Something about a fleet's directory that the person can mend; the message says how."""


class Member(BaseModel):
    """One device, or another participant."""

    model_config = ConfigDict(extra="forbid")

    serials: list[str] = []
    """Of its certificates that are not revoked, the newest last; in hexadecimal."""
    ends: datetime | None = None
    """When the newest runs out; None where there is none."""
    revoked: datetime | None = None
    password: str | None = None
    """The hash, as the broker's password file has it."""
    key: str | None = None
    """Of a member with a password: the public key that signs its requests for another, DER in hexadecimal."""
    issued: datetime | None = None
    """When the newest certificate or password was made."""
    authority: str | None = None
    """Which authority signed the certificate that it connects with, as far as is known; `authorities.mark`."""
    renewals: int = 0
    """Certificates before the newest that were renewed over MQTT, and stay good to their end."""
    asked: str | None = None
    """The digest of the request that was answered last: it may come again."""
    trusts: str | None = None
    """The digest of the authorities that it trusts, as it said last."""


class Fleet(BaseModel):
    """All that is known of a fleet."""

    model_config = ConfigDict(extra="forbid")

    revision: int = 0
    """Of the register: it grows with each write."""
    name: str
    """The federation's."""
    root: str = DEFAULT_ROOT
    way: Way = "certificates"
    hosts: list[str] = Field(min_length=1)
    """Under which devices reach the broker; the first is in their bundles."""
    port: int = 8883
    broker: str
    """The broker's address, as in the bundles."""
    broker_directory: str
    """Where the broker's files lie on its machine."""
    broker_user: str
    days: int
    """That a certificate is good for."""
    list_number: int = 0
    list_days: int | None = None
    members: dict[str, Member] = {}
    authorities: int = 0
    """How often the list of trusted authorities has changed."""
    lapsed: dict[str, datetime] = {}
    """Certificates on the revocation list: serial numbers in hexadecimal, and when each was revoked."""

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
    """The register of the fleet in a directory.

    Args:
        directory: the fleet's.
        accept_older: whether one that was put back is taken, to be written as the newest.

    Raises:
        FleetError: there is none, it cannot be read, or it was put back.
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
            f"{path} is an older one that was put back: {behind}. Who was added or revoked since is not in it. Put the "
            "newest back. If there is none, revoke again who is to be, after accepting this one: "
            f"midge device-list --fleet {directory} --renew --accept-older"
        )
    return fleet


def _known_revision(directory: Path) -> int:
    """The newest revision that was noted; 0 if none was."""
    note = CommitWitness(directory / WITNESS).read().note
    return 0 if note is None else int.from_bytes(note)


def _known_list(directory: Path, fleet: Fleet) -> int:
    """The number of the newest revocation list of the broker that can be read; 0 if there is none.

    The one in the fleet's own directory went back with the register if both were; it counts only if nothing was noted.
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
    """Write the register, whole or not at all, as the newest."""
    fleet.revision = max(fleet.revision, _known_revision(directory)) + 1
    write_private(directory / REGISTER, (fleet.model_dump_json(indent=1) + "\n").encode())
    witness = CommitWitness(directory / WITNESS)  # after it: a power cut between the two leaves the register ahead
    witness.write(fleet.revision.to_bytes(8))
    witness.close()


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Have the directory to ourselves: two commands at once would forget one another's devices.

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
    """The time now, to the second, as certificates have it."""
    return datetime.now(UTC).replace(microsecond=0)
