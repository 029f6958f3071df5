"""A participant's own credentials on its disk, and their renewal, which survives power cuts at any point.

The bundle's TOML file names the files in use, and is replaced atomically: that is the moment at which the new
credentials take over. Until then everything new lies beside the old, in `next.*`, and the files show the progress:

    next.key                 the new key was made
    next.request             the request, signed with the old key, is complete: it may be sent, and sent again
    next.crt                 the authority has answered (for a password: next.answered)

A new password is made here, and only its hash is sent; so from the request on the broker may require either password,
and both are kept until the new one has been accepted.
"""

import secrets
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from midge.broker.local.mosquitto import password_hash
from midge.broker.mqtt.endpoint import Endpoint, Tls
from midge.broker.provisioning.bundles import as_toml, bundle_file, read_bundle, write_private
from midge.broker.provisioning.certificates import LEAF_DAYS, make_request, signed_by
from midge.storage.files import sync_folder
from midge.wire import renewal, signing
from midge.wire.clocks import SANE
from midge.wire.errors import WireError

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

SIGNING = "signing.key"
"""The key that signs what a device sends. The aggregator knows it, so it stays while the connection's key changes."""
_WHEN, _SPREAD = 2 / 3, 1 / 12
"""Fraction of their validity after which credentials are renewed, and the spread of that time over a fleet."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """An endpoint with credentials to try."""

    endpoint: Endpoint
    new: bool
    """Whether these are the next ones: once the broker accepts them, they are adopted."""


class HeldCredentials:
    """The credentials of one bundle.

    Args:
        path: the bundle's TOML file, or its folder.
        broker: an address that replaces the bundle's.

    Raises:
        BundleError: it cannot be used.
    """

    def __init__(self, path: Path, *, broker: str | None = None) -> None:
        self.path, self._broker = bundle_file(path), broker
        self._folder = self.path.parent
        self._read()
        self._tidy()

    def _read(self) -> None:
        self.bundle = read_bundle(self.path, broker=self._broker)
        self._fields: dict[str, Any] = tomllib.loads(self.path.read_text())
        self.context = signing.of_device(self.bundle.topics.federation, self.bundle.name)
        self._secret = self._fields.get("password_file")
        self._pair = (self._fields.get("certfile"), self._fields.get("keyfile"))
        self.__dict__.pop("_certificate", None)

    def _next(self, what: str) -> Path:
        return self._folder / f"next.{what}"

    # ------------------------------------------------------------------- when

    @property
    def renewable(self) -> bool:
        """Whether there is a key to sign requests, and an authority to verify answers."""
        return self._key_file.is_file() and "cafile" in self._fields

    @property
    def _key_file(self) -> Path:
        """The key by which the authority knows us."""
        return self._folder / (f"{self._secret}.key" if self._secret else str(self._pair[1]))

    @cached_property
    def _certificate(self) -> "Certificate | None":
        from cryptography.x509 import load_pem_x509_certificate  # noqa: PLC0415

        return None if self._secret else load_pem_x509_certificate((self._folder / str(self._pair[0])).read_bytes())

    def due(self) -> float:
        """When to renew, seconds since 1970: after two thirds of their validity, spread over participants.

        Certificates begin in 1970, so the age of ours is that of its file, as far as known.
        """
        made = datetime.fromtimestamp((self._folder / str(self._secret or self._pair[0])).stat().st_mtime, UTC)
        life = timedelta(days=LEAF_DAYS)
        end = made + life if self._certificate is None else self._certificate.not_valid_after_utc
        begun = min(max(made, end - life), end) if made.timestamp() >= SANE else end - life
        return (begun + (end - begun) * (_WHEN + _SPREAD * self.place)).timestamp()

    @cached_property
    def place(self) -> float:
        """This participant's own position in the spread, from 0 up to 1."""
        return int.from_bytes(sha256(self.context.encode()).digest()[:8]) / 2**64

    @property
    def asked(self) -> bytes:
        """The pending request, to be sent; empty if there is none, or a certificate has arrived.

        A request for a password is sent until the password is in use, because the authority must update the broker.
        """
        request = self._next("request")
        return request.read_bytes() if request.is_file() and (self._secret or not self.answered) else b""

    @property
    def answered(self) -> bool:
        """Whether the authority has granted the request, and the result is not in use yet."""
        return self._next("answered" if self._secret else "crt").is_file()

    @property
    def trusts(self) -> bytes:
        """The digest of the authorities that we trust."""
        return renewal.digest(self._authorities())

    @property
    def files(self) -> list[Path]:
        """Files that expire: the certificate in use and the authorities."""
        return [self._folder / str(self._fields[name]) for name in ("certfile", "cafile") if name in self._fields]

    def forget_unused(self, before: float) -> None:
        """Drop a certificate granted before a time and never accepted by the broker; a new one is requested."""
        granted = self._next("crt")
        if granted.is_file() and granted.stat().st_mtime < before:
            self.give_up()

    def give_up(self) -> None:
        """Drop a request that was refused: it has changed nothing at the authority."""
        for what in ("request", "answered", "crt", "key", "password"):
            self._next(what).unlink(missing_ok=True)

    def _authorities(self) -> bytes:
        return (self._folder / str(self._fields["cafile"])).read_bytes()

    def _certificates(self) -> "list[Certificate]":
        from cryptography.x509 import load_pem_x509_certificates  # noqa: PLC0415

        return load_pem_x509_certificates(self._authorities())

    # ----------------------------------------------------------------- asking

    def ask(self) -> bytes:
        """Begin a request, or continue a pending one; it is on the disk when this returns.

        Raises:
            OSError: it cannot be written.
        """
        if asked := self.asked:
            return asked
        made, request = make_request(self.bundle.name, der=True)
        password = ""
        if self._secret:
            secret = secrets.token_urlsafe(24)
            write_private(self._next("password"), f"{secret}\n".encode())
            password = password_hash(secret)
        write_private(self._next("key"), made)
        message = renewal.RenewalRequest(csr=request, certificate=self._der(), password=password, trusts=self.trusts)
        asked = self._signed(message)
        write_private(self._next("request"), asked)
        return asked

    def says(self) -> bytes:
        """A message that reports whom we trust, without a request."""
        return self._signed(renewal.RenewalRequest(certificate=self._der(), trusts=self.trusts))

    def _der(self) -> bytes:
        from cryptography.hazmat.primitives.serialization import Encoding  # noqa: PLC0415

        return b"" if self._certificate is None else self._certificate.public_bytes(Encoding.DER)

    def _signed(self, message: renewal.RenewalRequest) -> bytes:
        key = signing.read_private(self._key_file.read_bytes(), str(self._key_file))
        return renewal.signed(key, self.context, message)

    # --------------------------------------------------------------- answers

    def take(self, payload: bytes) -> str:
        """Process an answer; it is on the disk when this returns. Returns why we were refused, or nothing.

        Raises:
            WireError: it is not for us, not signed by a trusted authority, or answers no request of ours.
        """
        if not (asked := self.asked):
            return ""
        answer = renewal.read(renewal.RenewalAnswer, payload)
        renewal.verify(payload, self.context, self._keys())
        if answer.request != renewal.digest(asked):
            return ""  # an answer to an earlier request
        if answer.why:
            return answer.why
        if self._secret:
            write_private(self._next("answered"), b"")
            return ""
        write_private(self._next("crt"), self._checked(answer.certificate))
        return ""

    def _checked(self, der: bytes) -> bytes:
        """An issued certificate as PEM, checked for our name, our new key and a trusted authority."""
        from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key  # noqa: PLC0415
        from cryptography.x509 import load_der_x509_certificate  # noqa: PLC0415
        from cryptography.x509.oid import NameOID  # noqa: PLC0415

        try:
            certificate = load_der_x509_certificate(der)
            key = load_pem_private_key(self._next("key").read_bytes(), None)
            names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        except (OSError, ValueError, TypeError) as error:
            raise WireError("a certificate that cannot be read") from error
        if certificate.public_key() != key.public_key() or [each.value for each in names] != [self.bundle.name]:
            raise WireError("a certificate for another key or name")
        if not signed_by(certificate, self._certificates()):
            raise WireError("a certificate of an authority that we do not trust")
        return certificate.public_bytes(Encoding.PEM)

    def trust(self, payload: bytes) -> bool:
        """Process a list of authorities; return whether ours has changed.

        Raises:
            WireError: it is none, or not signed by a trusted authority.
        """
        message = renewal.read(renewal.Authorities, payload)
        renewal.verify(payload, self.bundle.topics.federation, self._keys())
        if message.number <= self._number:
            return False
        new = message.authorities
        if not _are_authorities(new):
            raise WireError("a list of authorities that is none")
        changed = new != self._authorities()
        if changed:
            write_private(self._folder / self._fields["cafile"], new)
        # Written last: after a power cut between the two, the same list is processed again.
        write_private(self._folder / "authorities.number", str(message.number).encode())
        return changed

    def outdated(self, payload: bytes) -> bool:
        """Whether a list that we trust says that another authority than our certificate's signs now."""
        message = renewal.read(renewal.Authorities, payload)
        signers = [each for each in _split(self._authorities()) if renewal.digest(each) == message.signer]
        if self._certificate is None or not signers:
            return False
        from cryptography.x509 import load_pem_x509_certificate  # noqa: PLC0415

        return not signed_by(self._certificate, [load_pem_x509_certificate(signers[0])])

    @property
    def _number(self) -> int:
        try:
            return int((self._folder / "authorities.number").read_text())
        except (OSError, ValueError):
            return -1

    def _keys(self) -> Iterator[signing.PublicKey]:
        for each in _split(self._authorities()):
            yield signing.read_public(each)

    # --------------------------------------------------------------- changing over

    def candidates(self) -> list[Candidate]:
        """Credentials to connect with, in the order in which to try them."""
        present = Candidate(self.bundle.endpoint, new=False)
        if not self._next("request").is_file() or not (self._secret or self.answered):
            return [present]
        endpoint = self.bundle.endpoint
        if self._secret:
            endpoint = replace(endpoint, password=self._next("password").read_text().strip())
        elif endpoint.tls is not None:
            tls = Tls(endpoint.tls.cafile, self._next("crt"), self._next("key"), endpoint.tls.insecure)
            endpoint = replace(endpoint, tls=tls)
        following = Candidate(endpoint, new=True)
        return [following, present] if self.answered else [present, following]

    def adopt(self) -> None:
        """Adopt the next credentials, which the broker has accepted: first copy them, then replace the TOML file.

        Raises:
            OSError: it cannot be written; the old ones stay in use, and the next ones are tried again.
        """
        mark = renewal.digest(self._next("request").read_bytes()).hex()[:8]
        if not self._secret and not (self._folder / SIGNING).exists():
            write_private(self._folder / SIGNING, self._key_file.read_bytes())
        fields = dict(self._fields)
        if self._secret:
            fields["password_file"] = f"password-{mark}"
            write_private(self._folder / f"password-{mark}.key", self._next("key").read_bytes())
            write_private(self._folder / f"password-{mark}", self._next("password").read_bytes())
        else:
            kind = self.path.stem
            fields |= {"certfile": f"{kind}-{mark}.crt", "keyfile": f"{kind}-{mark}.key"}
            write_private(self._folder / fields["keyfile"], self._next("key").read_bytes())
            write_private(self._folder / fields["certfile"], self._next("crt").read_bytes())
        write_private(self.path, as_toml(fields, "Renewed over MQTT; files are beside this one.").encode())
        self._read()
        self._tidy()

    def _tidy(self) -> None:
        """Remove the files that the credentials in use have replaced."""
        used = {str(value) for value in self._fields.values()} | {self._key_file.name}
        request = self._next("request")
        mark = renewal.digest(request.read_bytes()).hex()[:8] if request.is_file() else ""
        if not mark or not any(f"-{mark}" in name for name in used):
            return  # the next ones are not in use yet
        # The request last: while it exists, this is repeated.
        old = [*self._folder.glob(f"{self.path.stem}*.crt"), *self._folder.glob(f"{self.path.stem}*.key")]
        old += [*self._folder.glob("password*")] if self._secret else []
        staged = [self._next(what) for what in ("crt", "answered", "key", "password", "request")]
        for file in [each for each in old if each.name not in used] + staged:
            file.unlink(missing_ok=True)
        sync_folder(self._folder)


def _split(pem: bytes) -> list[bytes]:
    """The certificates of a list, each exactly as the authority wrote it."""
    end = b"-----END CERTIFICATE-----\n"
    return [part + end for part in pem.split(end)[:-1]]


def _are_authorities(pem: bytes) -> bool:
    from cryptography.x509 import load_pem_x509_certificates  # noqa: PLC0415

    try:
        return bool(load_pem_x509_certificates(pem)) and b"".join(_split(pem)) == pem
    except ValueError:
        return False
