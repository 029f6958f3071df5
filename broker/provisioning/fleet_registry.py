"""The register of a fleet: who belongs to it, with which certificates, and which of these are no longer good.

It is the file `fleet.json` in the fleet's directory. What a broker reads (ACL, revocation list, passwords) is always
rewritten from it, so that a command that was interrupted is mended by giving it again.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from midge.broker.provisioning.bundles import write_private
from midge.wire.topics import DEFAULT_ROOT, Topics

REGISTER = "fleet.json"

Way = Literal["certificates", "passwords", "join"]
"""How participants show who they are: certificates of the fleet's own authority, passwords over TLS, or whatever the
broker asks for that the fleet joins."""

AGGREGATOR, OPERATOR = "aggregator", "operator"
ATTACKER, VICTIM, REVOKED = "midge-check-attacker", "midge-check-victim", "midge-check-revoked"
"""Identities of the doctor's own: where the identity is the client id, it would put real devices off the broker."""
RESERVED = frozenset({AGGREGATOR, OPERATOR, ATTACKER, VICTIM, REVOKED})


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


class Fleet(BaseModel):
    """All that is known of a fleet."""

    model_config = ConfigDict(extra="forbid")

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


def read_fleet(directory: Path) -> Fleet:
    """The register of the fleet in a directory.

    Raises:
        FleetError: there is none, or it cannot be read.
    """
    path = directory / REGISTER
    try:
        return Fleet.model_validate_json(path.read_text())
    except FileNotFoundError:
        raise FleetError(
            f"{directory} holds no {REGISTER}: name the directory that `midge broker init --out` made."
        ) from None
    except OSError as error:
        raise FleetError(f"{path} cannot be read ({error.strerror or error}).") from error
    except ValidationError as error:
        raise FleetError(f"{path} is no register of this version of Midge.") from error


def write_fleet(directory: Path, fleet: Fleet) -> None:
    """Write the register, whole or not at all."""
    write_private(directory / REGISTER, (fleet.model_dump_json(indent=1) + "\n").encode())


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Have the directory to ourselves: two commands at once would forget one another's devices.

    Raises:
        FleetError: there is no such directory.
    """
    try:
        descriptor = os.open(directory, os.O_RDONLY)
    except OSError as error:
        raise FleetError(f"{directory} cannot be opened ({error.strerror or error}).") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def present() -> datetime:
    """The time now, to the second, as certificates have it."""
    return datetime.now(UTC).replace(microsecond=0)
