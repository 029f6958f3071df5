"""A certificate authority for one fleet: functions over the `cryptography` package, which is imported lazily.

Keys are on the curve P-256, which every TLS library of the last ten years supports and which costs less than a tenth of
a second for a hundred devices. A device's certificate is valid for clients only and the broker's for servers only (RFC
5280, section 4.2.1.12), so that no device can pose as the broker.
"""

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

NOT_BEFORE = datetime(1970, 1, 1, tzinfo=UTC)
"""Certificates begin at Unix time 0: a small computer without a clock starts there, and must be able to connect to
learn the time."""
AUTHORITY_DAYS = 20 * 365
LEAF_DAYS = 5 * 365
"""Validity of the broker's and the devices' certificates. Long, because a revocation takes effect at once."""

Use = Literal["client", "server"]


class SecurityMissing(Exception):
    """The library for certificates is not installed; the message names the extra."""


class AuthorityError(Exception):
    """A key, a certificate or a list is invalid."""


@dataclass(frozen=True)
class Authority:
    """An authority: a key and its certificate, both PEM."""

    key: bytes
    certificate: bytes

    @cached_property
    def _key(self) -> "EllipticCurvePrivateKey":
        from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey  # noqa: PLC0415
        from cryptography.hazmat.primitives.serialization import load_pem_private_key  # noqa: PLC0415

        key = load_pem_private_key(self.key, None)
        if not isinstance(key, EllipticCurvePrivateKey):
            raise AuthorityError("The authority's key is not one of an elliptic curve: it was not made by Midge.")
        return key

    @cached_property
    def _certificate(self) -> "x509.Certificate":
        from cryptography.x509 import load_pem_x509_certificate  # noqa: PLC0415

        return load_pem_x509_certificate(self.certificate)


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate and its key."""

    key: bytes
    """Empty if the private key is elsewhere."""
    certificate: bytes
    serial: int
    not_after: datetime


def require_cryptography() -> None:
    """Check that the library is installed.

    Raises:
        SecurityMissing: it is not.
    """
    try:
        import cryptography.x509  # noqa: F401, PLC0415
    except ModuleNotFoundError as error:
        raise SecurityMissing(
            'Certificates need the cryptography package, which is not installed here: pip install "midge[security]"'
        ) from error


def make_authority(name: str, now: datetime, *, days: int = AUTHORITY_DAYS) -> Authority:
    """Make an authority with a self-signed certificate; RFC 5280, section 4.2.

    Args:
        name: its name, for people.
        now: the present.
        days: its validity, which limits that of the certificates it signs.
    """
    from cryptography import x509  # noqa: PLC0415
    from cryptography.hazmat.primitives import hashes  # noqa: PLC0415

    key, subject = _new_key(), _name(f"Midge {name}")
    built = _begin(subject, subject, key.public_key(), now + timedelta(days=days))
    built = built.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    built = built.add_extension(_usage(signs_others=True), critical=True)
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key())
    built = built.add_extension(identifier, critical=False)
    return Authority(_pem_of(key), _certificate_pem(built.sign(key, hashes.SHA256())))


def issue(
    authority: Authority, name: str, now: datetime, *, use: Use, hosts: Sequence[str] = (), days: int = LEAF_DAYS
) -> Issued:
    """Make a key, and a certificate over it with `name` as its common name.

    Args:
        authority: the signer.
        name: the common name, which a broker takes for the user's name.
        now: the present.
        use: whether it is for a client or a server.
        hosts: the host names and addresses of a server.
        days: its validity, at most as long as the authority's.
    """
    key = _new_key()
    return replace(certify(authority, name, now, key.public_key(), use=use, hosts=hosts, days=days), key=_pem_of(key))


def certify(
    authority: Authority,
    name: str,
    now: datetime,
    key: "EllipticCurvePublicKey",
    *,
    use: Use,
    hosts: Sequence[str] = (),
    days: int = LEAF_DAYS,
) -> Issued:
    """Make a certificate over a key whose private part is elsewhere; arguments as for `issue`."""
    from cryptography import x509  # noqa: PLC0415
    from cryptography.hazmat.primitives import hashes  # noqa: PLC0415
    from cryptography.x509.oid import ExtendedKeyUsageOID  # noqa: PLC0415

    issuer = authority._certificate  # noqa: SLF001
    ends = min(now + timedelta(days=days), issuer.not_valid_after_utc)
    built = _begin(_name(name), issuer.subject, key, ends)
    built = built.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    built = built.add_extension(_usage(signs_others=False), critical=True)
    purpose = ExtendedKeyUsageOID.SERVER_AUTH if use == "server" else ExtendedKeyUsageOID.CLIENT_AUTH
    built = built.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority._key.public_key())  # noqa: SLF001
    built = built.add_extension(identifier, critical=False)
    if hosts:
        built = built.add_extension(x509.SubjectAlternativeName([_host(each) for each in hosts]), critical=False)
    certificate = built.sign(authority._key, hashes.SHA256())  # noqa: SLF001
    return Issued(b"", _certificate_pem(certificate), certificate.serial_number, ends.replace(microsecond=0))


def renewal_key() -> tuple[bytes, str]:
    """A key that signs a member's requests for new passwords: PEM, and its public part, DER in hexadecimal."""
    key = _new_key()
    return _pem_of(key), spki(key.public_key()).hex()


def spki(key: "EllipticCurvePublicKey") -> bytes:
    """A public key as X.509's SubjectPublicKeyInfo, DER."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat  # noqa: PLC0415

    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def read_request(csr: bytes) -> "tuple[str, EllipticCurvePublicKey]":
    """The common name and the key of a PKCS #10 request, DER, that this key has signed.

    Raises:
        AuthorityError: it is invalid, or of another kind of key.
    """
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415
    from cryptography.x509 import load_der_x509_csr  # noqa: PLC0415
    from cryptography.x509.oid import NameOID  # noqa: PLC0415

    try:
        request = load_der_x509_csr(csr)
        key, names = request.public_key(), request.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        good = request.is_signature_valid
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm) as error:
        raise AuthorityError("the request cannot be read") from error
    if not good or not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise AuthorityError("the request is not signed by a key of P-256")
    if len(names) != 1:
        raise AuthorityError("the request has no common name, or several")
    return str(names[0].value), key


def signed_by(certificate: "x509.Certificate", authorities: "Sequence[x509.Certificate]") -> bool:
    """Whether one of these authorities signed a certificate."""
    from cryptography.exceptions import InvalidSignature  # noqa: PLC0415

    for authority in authorities:
        try:
            certificate.verify_directly_issued_by(authority)
        except (ValueError, TypeError, InvalidSignature):
            continue
        return True
    return False


def make_request(name: str, *, der: bool = False) -> tuple[bytes, bytes]:
    """Make a key, PEM, and a PKCS #10 request (RFC 2986) for an authority, PEM too, or DER."""
    from cryptography import x509  # noqa: PLC0415
    from cryptography.hazmat.primitives import hashes  # noqa: PLC0415
    from cryptography.hazmat.primitives.serialization import Encoding  # noqa: PLC0415
    from cryptography.x509.oid import ExtendedKeyUsageOID  # noqa: PLC0415

    key = _new_key()
    built = x509.CertificateSigningRequestBuilder().subject_name(_name(name))
    built = built.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
    return _pem_of(key), built.sign(key, hashes.SHA256()).public_bytes(Encoding.DER if der else Encoding.PEM)


def revocation_list(
    authority: Authority, revoked: Mapping[int, datetime], number: int, now: datetime, *, days: int | None = None
) -> bytes:
    """The certificate revocation list; RFC 5280, section 5. PEM.

    It is valid as long as the authority unless `days` says less: with an expired list a broker refuses everyone, and
    others cannot withhold a list on the broker's own disk.

    Args:
        authority: the signer.
        revoked: serial numbers, and when each was revoked.
        number: of the list; it grows.
        now: the present.
        days: its validity.
    """
    from cryptography import x509  # noqa: PLC0415
    from cryptography.hazmat.primitives import hashes  # noqa: PLC0415
    from cryptography.hazmat.primitives.serialization import Encoding  # noqa: PLC0415

    issuer = authority._certificate  # noqa: SLF001
    ends = issuer.not_valid_after_utc if days is None else now + timedelta(days=days)
    built = x509.CertificateRevocationListBuilder().issuer_name(issuer.subject)
    built = built.last_update(NOT_BEFORE).next_update(ends)
    built = built.add_extension(x509.CRLNumber(number), critical=False)
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority._key.public_key())  # noqa: SLF001
    built = built.add_extension(identifier, critical=False)
    for serial, when in sorted(revoked.items()):
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(when)
        built = built.add_revoked_certificate(entry.build())
    return built.sign(authority._key, hashes.SHA256()).public_bytes(Encoding.PEM)  # noqa: SLF001


def make_release_key() -> tuple[bytes, bytes]:
    """Make an Ed25519 pair (RFC 8032) that signs announcements: private and public key, PEM."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: PLC0415
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat  # noqa: PLC0415

    key = Ed25519PrivateKey.generate()
    return _pem_of(key), key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def _new_key() -> "EllipticCurvePrivateKey":
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415

    return ec.generate_private_key(ec.SECP256R1())


def _pem_of(key: "EllipticCurvePrivateKey | Ed25519PrivateKey") -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat  # noqa: PLC0415

    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _certificate_pem(certificate: "x509.Certificate") -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding  # noqa: PLC0415

    return certificate.public_bytes(Encoding.PEM)


def _name(name: str) -> "x509.Name":
    from cryptography import x509  # noqa: PLC0415
    from cryptography.x509.oid import NameOID  # noqa: PLC0415

    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _host(host: str) -> "x509.GeneralName":
    from cryptography import x509  # noqa: PLC0415

    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _begin(
    subject: "x509.Name", issuer: "x509.Name", key: "EllipticCurvePublicKey", ends: datetime
) -> "x509.CertificateBuilder":
    from cryptography import x509  # noqa: PLC0415

    built = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key)
    built = built.serial_number(x509.random_serial_number()).not_valid_before(NOT_BEFORE).not_valid_after(ends)
    return built.add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)


def _usage(*, signs_others: bool) -> "x509.KeyUsage":
    from cryptography import x509  # noqa: PLC0415

    return x509.KeyUsage(
        digital_signature=not signs_others,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_others,
        crl_sign=signs_others,
        encipher_only=False,
        decipher_only=False,
    )
