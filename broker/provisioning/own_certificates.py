"""Renewal in place of certificates beside the authority's key: the broker's, the operator's and similar.

Their keys stay, so that only one file is replaced, atomically. A bundle whose working copy is elsewhere, such as an
aggregator's on another machine, is carried there as `device rotate` says.
"""

from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from midge.broker.provisioning.authorities import trusted
from midge.broker.provisioning.bundles import write_private
from midge.broker.provisioning.certificates import LEAF_DAYS, AuthorityError, certify, issue, signed_by
from midge.broker.provisioning.create_fleet import NEAR, PROBES
from midge.broker.provisioning.fleet_registry import AGGREGATOR, ISSUER, OPERATOR, REVOKED, FleetError
from midge.broker.provisioning.manage_devices import Applied, changed, changing

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
    from cryptography.x509 import Certificate

_LEFT = 1 / 3
"""Remaining fraction of a certificate's validity from which on it is renewed."""


def renew_own(directory: Path, now: datetime) -> list[str]:
    """Renew the certificates here that are due, and notify the broker; return whose were renewed."""
    from cryptography.x509 import load_pem_x509_certificate  # noqa: PLC0415

    renewed = []
    with changing(directory) as (fleet, about):
        authority = about.authority
        if authority is None:
            return []
        signer = load_pem_x509_certificate(authority.certificate)
        folders = {AGGREGATOR: "aggregator", OPERATOR: "operator", ISSUER: "issuer"}
        folders |= {name: f"probes/{folder}" for name, folder in PROBES.items() if name != REVOKED}
        for name, folder in folders.items() if fleet.way == "certificates" else ():
            path = next((each for each in (directory / folder).glob("*.crt") if each.name != "ca.crt"), None)
            if path is None or name not in fleet.members:
                continue
            old = load_pem_x509_certificate(path.read_bytes())
            if _due(old, signer, now, fleet.days):
                issued = certify(authority, name, now, _key(old), use="client", days=fleet.days)
                member = fleet.members[name]
                member.serials.append(f"{issued.serial:x}")
                member.ends, member.issued, member.renewals = issued.not_after, now, member.renewals + 1
                renewed.append((path, issued.certificate, name))
        broker = directory / "broker" / "broker.crt"
        old = load_pem_x509_certificate(broker.read_bytes())
        if _due(old, signer, now, LEAF_DAYS):
            hosts = list(dict.fromkeys([*fleet.hosts, *NEAR]))
            issued = certify(
                authority,
                fleet.hosts[0][:64],
                now,
                _key(old),
                use="server",
                hosts=hosts,
            )
            renewed.append((broker, issued.certificate, "the broker"))
        if renewed:
            changed(about)  # the register first
            for path, certificate, _ in renewed:
                write_private(path, certificate)
            changed(about)
        for folder in [*folders.values()]:
            if (file := directory / folder / "ca.crt").is_file() and file.read_bytes() != trusted(directory):
                write_private(file, trusted(directory))
    return [name for _, _, name in renewed]


def replace_broker_key(directory: Path) -> Applied:
    """Give the broker a new key and certificate, and notify it: the old key was lost or seen by others.

    Raises:
        FleetError: the broker has another authority.
    """
    with changing(directory) as (fleet, about):
        if about.authority is None:
            raise FleetError("This fleet's broker has a certificate of another team's authority.")
        hosts = list(dict.fromkeys([*fleet.hosts, *NEAR]))
        issued = issue(about.authority, fleet.hosts[0][:64], about.now, use="server", hosts=hosts)
        # The broker reads both files on notice or at start. After a power cut between the two, repeat the command.
        write_private(directory / "broker" / "broker.key", issued.key)
        write_private(directory / "broker" / "broker.crt", issued.certificate)
        told = changed(about)
        files = ("broker.crt", "broker.key")
        return replace(
            told,
            todo=tuple(
                each.replace("scp ", f"scp {' '.join(str(directory / 'broker' / file) for file in files)} ", 1)
                for each in told.todo
            ),
        )


def _key(certificate: "Certificate") -> "EllipticCurvePublicKey":
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey  # noqa: PLC0415

    key = certificate.public_key()
    if not isinstance(key, EllipticCurvePublicKey):
        raise AuthorityError("A certificate here was not made by Midge.")
    return key


def _due(certificate: "Certificate", signer: "Certificate", now: datetime, days: int) -> bool:
    left = certificate.not_valid_after_utc - now
    ends_with_it = (
        certificate.not_valid_after_utc == signer.not_valid_after_utc
    )  # a renewal cannot last longer than the authority
    return (left < timedelta(days=days) * _LEFT and not ends_with_it) or not signed_by(certificate, [signer])
