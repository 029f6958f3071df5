"""The authority's side of renewal: requests of devices in, answers out, the register in between.

A request is granted to a member that is not revoked, for its own name, signed with the key that it is known by until
then: that of a certificate in the register or, for a member with a password, the one given with it. A grant is in the
register before it is answered; so a lost answer is sent again.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from pathlib import Path
from ssl import PEM_cert_to_DER_cert

from midge.broker.local.mosquitto import ITERATIONS
from midge.broker.provisioning.authorities import authorities, authority, mark, trusted
from midge.broker.provisioning.bundles import make_private, write_private
from midge.broker.provisioning.certificates import AuthorityError, certify, read_request, signed_by, spki
from midge.broker.provisioning.create_fleet import Signing
from midge.broker.provisioning.fleet_registry import RESERVED, Fleet, Member, present, read_fleet, write_fleet
from midge.broker.provisioning.manage_devices import Applied, changed, changing
from midge.wire import renewal, signing
from midge.wire.errors import WireError
from midge.wire.signing import PublicKey

_AT_MOST = timedelta(days=1)
"""One grant per member in this time: each takes a signature, and a permanent line in the register."""
_HASH = re.compile(rf"\$7\${ITERATIONS}\$[A-Za-z0-9+/]{{16}}\$[A-Za-z0-9+/]{{86}}==")
"""A password's hash as we make them: it becomes a line of the broker's file, and its iterations are work for the
broker."""


@dataclass(slots=True)
class Answers:
    """Results of a batch of requests."""

    replies: dict[str, bytes]
    """Answers by device, to be retained."""
    told: Applied | None = None
    """Whether the broker was notified, if needed."""
    granted: int = 0


def answer(directory: Path, requests: Mapping[str, bytes], now: datetime | None = None) -> Answers:
    """Answer requests, by names that the broker has authenticated; members without the right to ask get no answer.

    Raises:
        FleetError: the register or the authority cannot be read.
    """
    with changing(directory) as (fleet, about):
        desk = _AnswerBatch(directory, fleet, about, now or present())
        for name, payload in requests.items():
            desk.take(name, payload)
        if desk.passwords:
            desk.answers.told = changed(about)
        elif desk.heard:
            write_fleet(directory, fleet)
        return desk.answers


class _AnswerBatch:
    """One batch in progress."""

    def __init__(self, directory: Path, fleet: Fleet, about: Signing, now: datetime) -> None:
        from cryptography.x509 import load_pem_x509_certificate  # noqa: PLC0415

        assert about.authority is not None
        self._directory = directory
        make_private(directory / "granted")
        self._fleet, self._authority, self._now = fleet, about.authority, now
        known, self._mark = authorities(directory), mark(directory)
        self._trusted = [load_pem_x509_certificate(each.certificate) for each in known]
        # The oldest: every device trusts it, including those that have been away.
        self._signer = signing.read_private(known[0].key)
        self.answers = Answers({})
        self.heard = self.passwords = False

    def take(self, name: str, payload: bytes) -> None:
        """Answer one request."""
        member = self._fleet.members.get(name)
        if member is None or name in RESERVED or member.revoked is not None:
            return
        asked = renewal.digest(payload)
        try:
            request = renewal.read(renewal.RenewalRequest, payload)
            if member.asked == asked.hex() and self._fleet.way == "passwords":
                self.passwords = True  # a power cut may have come before the broker was notified
                self._reply(name, renewal.RenewalAnswer(request=asked))
                return
            renewal.verify(payload, signing.of_device(self._fleet.name, name), [self._key(member, request)])
            if request.trusts:
                member.trusts, self.heard = request.trusts.hex(), True
            # The certificate it connects with, not the newest granted: one that is still on its way is not in use.
            if request.certificate and self._is_current(request.certificate):
                member.authority = self._mark
            if request.csr:
                self._reply(name, self._granted(name, member, request, asked))
        except (WireError, AuthorityError) as error:
            self._reply(name, renewal.RenewalAnswer(request=asked, why=str(error)[:400]))

    def _reply(self, name: str, message: renewal.RenewalAnswer) -> None:
        self.answers.replies[name] = renewal.signed(self._signer, signing.of_device(self._fleet.name, name), message)

    def _is_current(self, certificate: bytes) -> bool:
        """Whether the authority that signs today has signed a certificate, which is one of ours."""
        from cryptography.x509 import load_der_x509_certificate, load_pem_x509_certificate  # noqa: PLC0415

        current = load_pem_x509_certificate(self._authority.certificate)
        return signed_by(load_der_x509_certificate(certificate), [current])

    def _key(self, member: Member, request: renewal.RenewalRequest) -> PublicKey:
        """The key by which a member is known."""
        from cryptography.x509 import load_der_x509_certificate  # noqa: PLC0415

        if self._fleet.way == "passwords":
            if member.key is None:
                raise AuthorityError("its bundle is of an earlier Midge: device rotate makes one that can ask")
            return signing.read_public(bytes.fromhex(member.key))
        try:
            certificate = load_der_x509_certificate(request.certificate)
        except ValueError as error:
            raise AuthorityError("the certificate cannot be read") from error
        if f"{certificate.serial_number:x}" not in member.serials or not signed_by(certificate, self._trusted):
            raise AuthorityError("the certificate is not this device's, or no longer good")
        return PublicKey(certificate.public_key())  # type: ignore[arg-type]  # ours are of P-256

    def _granted_before(self, name: str) -> Path:
        return self._directory / "granted" / name

    def _kept(self, name: str, asked: bytes) -> bytes:
        path = self._granted_before(name)
        content = path.read_bytes() if path.is_file() else b""
        return content.removeprefix(asked) if content.startswith(asked) else b""

    def _granted(
        self, name: str, member: Member, request: renewal.RenewalRequest, asked: bytes
    ) -> renewal.RenewalAnswer:
        # A request stays retained until the device has connected: each start of the issuer finds it again.
        if member.asked == asked.hex() and (kept := self._kept(name, asked)):
            return renewal.RenewalAnswer(request=asked, certificate=kept)
        if member.asked != asked.hex() and member.asked and member.issued and self._now < member.issued + _AT_MOST:
            raise AuthorityError("it was given new ones less than a day ago")
        named, key = read_request(request.csr)
        if named != name:
            raise AuthorityError("the request is for another name")
        certificate = b""
        if self._fleet.way == "passwords":
            if not _HASH.fullmatch(request.password):
                raise AuthorityError("that is no hash of a password")
            member.password, member.key, self.passwords = request.password, spki(key).hex(), True
        else:
            issued = certify(self._authority, name, self._now, key, use="client", days=self._fleet.days)
            member.serials.append(f"{issued.serial:x}")
            member.ends, member.renewals = issued.not_after, member.renewals + 1
            certificate = PEM_cert_to_DER_cert(issued.certificate.decode())
            write_private(self._granted_before(name), asked + certificate)
        member.asked, member.issued, self.heard = asked.hex(), self._now, True
        self.answers.granted += 1
        return renewal.RenewalAnswer(request=asked, certificate=certificate)


def whom_to_trust(directory: Path) -> bytes:
    """The list of authorities, as retained for all. The same bytes as long as nothing changes.

    Raises:
        FleetError: the register cannot be read.
    """
    fleet, known, current = read_fleet(directory), authorities(directory), authority(directory)
    assert current is not None
    message = renewal.Authorities(
        number=fleet.authorities, authorities=trusted(directory), signer=renewal.digest(current.certificate)
    )
    # ECDSA signatures differ each time, so the signed content is compared.
    return _signed_once(known[0].key, fleet.name, message)


@lru_cache(maxsize=4)
def _signed_once(key: bytes, federation: str, message: renewal.Authorities) -> bytes:
    return renewal.signed(signing.read_private(key), federation, message)
