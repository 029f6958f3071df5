"""What `midge broker init` writes: an authority, the broker's files, and a bundle for every participant.

    fleet.json      the register
    authority/      the key that signs certificates: not for the broker's machine
    broker/         the broker's files
    aggregator/     the aggregator's bundle, with the key that signs releases
    operator/       a bundle with read rights
    issuer/         a bundle that answers requests for new credentials
    granted/        the newest certificate granted to each device
    probes/         bundles with which `midge broker check` tries the attacks
    devices/        a bundle for each device, and each as a tar archive

Files that change later (`broker.provisioning.manage_devices`) are rewritten from the register by `publish`.
"""

import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from midge.broker.local.mosquitto import password_hash
from midge.broker.provisioning.authorities import authorities, mark, trusted
from midge.broker.provisioning.bundles import make_private, pack, write_bundle, write_private
from midge.broker.provisioning.certificates import (
    LEAF_DAYS,
    Authority,
    issue,
    make_authority,
    make_release_key,
    make_request,
    renewal_key,
    require_cryptography,
    revocation_list,
)
from midge.broker.provisioning.expiry import ENDS
from midge.broker.provisioning.fleet_readme import guide, joining_guide
from midge.broker.provisioning.fleet_registry import (
    AGGREGATOR,
    ATTACKER,
    ISSUER,
    OPERATOR,
    REGISTER,
    REVOKED,
    VICTIM,
    Fleet,
    FleetError,
    Member,
    write_fleet,
)
from midge.broker.provisioning.mosquitto_config import access, configuration, passwords
from midge.wire.topics import check_name

NEAR = ("localhost", "127.0.0.1", "::1")
"""Names in every broker's certificate, so that it can be checked on its own machine."""
PROBES = {ATTACKER: "attacker", VICTIM: "victim", REVOKED: "revoked"}
"""The identities of `midge broker check`, and their folders below `probes/`."""


@dataclass(frozen=True, slots=True)
class Signing:
    """Keys and certificates that go into bundles."""

    directory: Path
    fleet: Fleet
    authority: Authority | None
    """None if the broker has another authority."""
    trust: bytes | None
    """Certificates of the authority that signed the broker's own, PEM; None for those of the system."""
    release: bytes
    """The public key that signs releases, PEM."""
    now: datetime


def device_names(count: int) -> list[str]:
    """Names for a number of devices: dev0001 and so on."""
    width = max(4, len(str(count)))
    return [f"dev{number:0{width}}" for number in range(1, count + 1)]


def initialise(directory: Path, fleet: Fleet, names: list[str], now: datetime, *, trust: bytes | None = None) -> None:
    """Write everything into a new directory.

    Args:
        directory: must not exist, or be empty.
        fleet: its register, without members.
        names: the devices.
        now: the present.
        trust: the authority of an existing broker that the fleet joins, PEM.

    Raises:
        SecurityMissing: the library for certificates is not installed.
        FleetError: the directory holds something, or cannot be written.
    """
    require_cryptography()
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        what = "a fleet: add to it with `midge device add`" if (directory / REGISTER).exists() else "something"
        raise FleetError(f"{directory} holds {what}, or name another directory with --out.")
    try:
        _write_everything(directory, fleet, names, now, trust)
    except OSError as error:
        raise FleetError(f"{error.filename or directory} cannot be written ({error.strerror or error}).") from error


def _write_everything(directory: Path, fleet: Fleet, names: list[str], now: datetime, trust: bytes | None) -> None:
    make_private(directory)
    private, public = make_release_key()
    authority = None
    if fleet.way != "join":
        authority = make_authority(fleet.name, now)
        make_private(directory / "authority")
        write_private(directory / "authority" / "ca.key", authority.key)
        write_private(directory / "authority" / "ca.crt", authority.certificate)
        trust = authority.certificate
    make_private(directory / "aggregator")
    write_private(directory / "aggregator" / "release.key", private)
    due = now + timedelta(days=LEAF_DAYS)
    write_private(directory / "aggregator" / f"release.key{ENDS}", f"{due.isoformat()}\n".encode())
    signing = Signing(directory, fleet, authority, trust, public, now)
    enrol(signing, AGGREGATOR, directory / "aggregator")
    enrol(signing, OPERATOR, directory / "operator")
    if authority is not None:
        enrol(signing, ISSUER, directory / "issuer")
    for name, folder in PROBES.items():
        if name == REVOKED and authority is None:
            continue  # another authority would have to revoke its certificate
        enrol(signing, name, directory / "probes" / folder)
    for name in names:
        enrol(signing, check_name(name, "device name"), directory / "devices" / name)
        pack(directory / "devices" / name)
    if authority is not None:
        revoked = fleet.members[REVOKED]
        revoked.revoked = now
        fleet.lapse(revoked.serials, now)
    write_fleet(directory, fleet)
    if authority is not None:
        _equip_broker(directory, fleet, authority, now)
    publish(directory, fleet, authority, now)
    text = joining_guide(fleet) if authority is None else guide(fleet, directory)
    write_private(directory / "README.md", text.encode())


def _equip_broker(directory: Path, fleet: Fleet, authority: Authority, now: datetime) -> None:
    """Write the broker's files that do not change with the fleet."""
    broker = directory / "broker"
    make_private(broker)
    hosts = list(dict.fromkeys([*fleet.hosts, *NEAR]))
    own = issue(authority, fleet.hosts[0][:64], now, use="server", hosts=hosts, days=LEAF_DAYS)
    write_private(broker / "broker.key", own.key)
    write_private(broker / "broker.crt", own.certificate)
    write_private(broker / "mosquitto.conf", configuration(fleet).encode())


def enrol(signing: Signing, name: str, folder: Path) -> None:
    """Make new credentials for a member, and write them as a bundle; the caller writes the register."""
    fleet = signing.fleet
    member = fleet.members.setdefault(name, Member())
    member.issued = signing.now
    kind = {AGGREGATOR: "aggregator", OPERATOR: "operator", ISSUER: "issuer"}.get(name, "device")
    files: dict[str, bytes] = {"release.pub": signing.release}
    fields: dict[str, str | None] = {
        "federation": fleet.name,
        "root": fleet.root,
        "broker": fleet.broker,
        "name": name,
        "release_key": "release.pub",
        "release_private_key": "release.key" if name == AGGREGATOR else None,
    }
    if signing.trust is not None:
        files["ca.crt"] = signing.trust
        fields["cafile"] = "ca.crt"
    if fleet.way == "passwords":
        secret = secrets.token_urlsafe(24)
        member.password = password_hash(secret)
        files["password"] = f"{secret}\n".encode()
        files["password.key"], member.key = renewal_key()
        fields |= {"user": name, "password_file": "password"}
    else:
        fields |= {"certfile": f"{kind}.crt", "keyfile": f"{kind}.key"}
        if signing.authority is not None:
            issued = issue(signing.authority, name, signing.now, use="client", days=fleet.days)
            if not member.serials:  # otherwise it may keep its credentials until it reports
                member.authority = mark(signing.directory)
            member.serials.append(f"{issued.serial:x}")
            member.ends = issued.not_after
            files |= {f"{kind}.crt": issued.certificate, f"{kind}.key": issued.key}
        else:
            key, request = make_request(name)
            files |= {f"{kind}.key": key, f"{kind}.csr": request}
    why = "What `midge --config` needs to take part; files are beside this one. Keep the folder to this participant."
    write_bundle(folder, f"{kind}.toml", fields, files, why=why)


def publish(directory: Path, fleet: Fleet, authority: Authority | None, now: datetime) -> None:
    """Write the broker's files that follow from the register: the ACL, and who is revoked."""
    broker = directory / "broker"
    make_private(broker)
    if authority is None:
        write_private(broker / "acl-to-add", access(fleet).encode())
        return
    write_private(broker / "acl", access(fleet).encode())
    write_private(broker / "ca.crt", trusted(directory))
    if fleet.way == "passwords":
        write_private(broker / "passwords", passwords(fleet).encode())
        return
    fleet.list_number += 1
    write_fleet(directory, fleet)
    lapsed = {int(serial, 16): when for serial, when in fleet.lapsed.items()}
    # One of each authority: without its own authority's list, a broker refuses a certificate.
    lists = [
        revocation_list(each, lapsed, fleet.list_number, now, days=fleet.list_days) for each in authorities(directory)
    ]
    write_private(broker / "crl.pem", b"".join(lists))
