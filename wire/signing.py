"""Signatures: Ed25519 (RFC 8032), or P-256 (FIPS 186-5) as in certificates and secure elements.

A signature covers `midge/1 PURPOSE NUL CONTEXT NUL DATA`: the purpose keeps a signature of one kind of message from
being used for another, the context names the federation, and the device if there is one, so that no signature can be
moved.

Announcements and other statements that are kept are signed in envelopes (`wire.envelopes`). Every other message is a
frame: its signature covers the length and the header, which holds the SHA-256 of the body if there is one, and follows
the body as 64 bytes that the header does not account for. So a peer without keys can read a signed frame.
"""

import hashlib
import hmac
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

from midge.wire import frames
from midge.wire.errors import WireError
from midge.wire.messages import SiteValues, Statistics, Surveyed, Update
from midge.wire.moments import BYTES_PER_CHANNEL

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

ED25519: Final = "ed25519"
P256: Final = "p256"
HMAC: Final = "hmac"
SIGNATURE: Final = 64
"""Bytes of a signature: R ‖ S of Ed25519, r ‖ s of P-256, both big-endian in the latter."""
ANNOUNCEMENT: Final = "announcement"
ALIAS: Final = "alias"
SURVEY: Final = "survey"
SUCCESSION: Final = "succession"
RECEIPT: Final = "receipt"
DEVICE: Final = "device"
AGGREGATOR: Final = "aggregator"
OPERATOR: Final = "operator"
RENEWAL: Final = "renewal"
MASKED: Final = "masked"
HELPER: Final = "helper"
DEPOSIT: Final = "deposit"
SITE: Final = "site"
SITE_VALUES: Final = "site_values"
"""The purposes: an aggregator's announcement, a name of a registered version, a survey's request, a key succession, a
message to one device, a message of a device, an aggregator's status, an operator's command, renewal of credentials, a
masked update's entry, a message of the mask helper, an aggregator's message to it, a certificate of a site's
gateway, a gateway's values of the site's tensors."""


class KeyUnusable(ValueError):
    """A key of our user cannot be used; the message says what kind is needed."""


class BadSignature(WireError):
    """A message is not signed by the required key."""


def required() -> None:
    """Check that the library is installed.

    Raises:
        ModuleNotFoundError: it is not; the message names the extra that brings it.
    """
    try:
        import cryptography  # noqa: F401, PLC0415 - devices without keys need none of it
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'Signing and sealing need cryptography, which is not installed here: pip install "midge[security]"',
            name="cryptography",
        ) from error


def signed_bytes(purpose: str, context: str, data: frames.Buffer) -> bytes:
    """The exact bytes that a signature covers."""
    return b"".join((b"midge/1 ", purpose.encode(), b"\0", context.encode(), b"\0", data))


class PublicKey:
    """Verifies signatures of an Ed25519 or P-256 key."""

    def __init__(self, key: "Ed25519PublicKey | EllipticCurvePublicKey") -> None:
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat  # noqa: PLC0415

        self._key = key
        self.encoded = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        """As X.509's SubjectPublicKeyInfo, DER (RFC 5280, RFC 8410)."""
        self.id = hashlib.sha256(self.encoded).digest()[:8]
        """Identifies the key among several."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PublicKey) and other.encoded == self.encoded

    def __hash__(self) -> int:
        return hash(self.encoded)

    @property
    def raw(self) -> bytes:
        """What `read_public` reads: the 32 bytes of an Ed25519 key, or the SubjectPublicKeyInfo of a P-256 key."""
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey  # noqa: PLC0415

        return self._key.public_bytes_raw() if isinstance(self._key, Ed25519PublicKey) else self.encoded

    @property
    def kind(self) -> str:
        """`ed25519` or `p256`."""
        return ED25519 if len(self.raw) == 32 else P256

    def verifies(self, signature: frames.Buffer, purpose: str, context: str, data: frames.Buffer) -> bool:
        """Whether the signature is valid for this key, purpose, context and data."""
        from cryptography.exceptions import InvalidSignature  # noqa: PLC0415
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey  # noqa: PLC0415

        if len(signature) != SIGNATURE:
            return False
        covered, bare = signed_bytes(purpose, context, data), bytes(signature)
        try:
            if isinstance(self._key, Ed25519PublicKey):
                self._key.verify(bare, covered)
            else:
                self._key.verify(_der(bare), covered, _ecdsa())
        except InvalidSignature:
            return False
        return True


class PrivateKey:
    """Signs with an Ed25519 or P-256 key."""

    def __init__(self, key: "Ed25519PrivateKey | EllipticCurvePrivateKey") -> None:
        self._key = key
        self.public = PublicKey(key.public_key())

    def sign(self, purpose: str, context: str, data: frames.Buffer) -> bytes:
        """Sign, in 64 bytes."""
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: PLC0415
        from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature  # noqa: PLC0415

        covered = signed_bytes(purpose, context, data)
        if isinstance(self._key, Ed25519PrivateKey):
            return self._key.sign(covered)
        r, s = decode_dss_signature(self._key.sign(covered, _ecdsa()))
        return r.to_bytes(32, "big") + s.to_bytes(32, "big")

    @property
    def seed(self) -> bytes:
        """The 32 secret bytes, from which the key that updates are sealed to is derived."""
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: PLC0415

        if isinstance(self._key, Ed25519PrivateKey):
            return self._key.private_bytes_raw()
        return self._key.private_numbers().private_value.to_bytes(32, "big")

    def pem(self) -> bytes:
        """PKCS #8, PEM, without a password."""
        from cryptography.hazmat.primitives.serialization import (  # noqa: PLC0415
            Encoding,
            NoEncryption,
            PrivateFormat,
        )

        return self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    def public_pem(self) -> bytes:
        """The public part: SubjectPublicKeyInfo, PEM."""
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat  # noqa: PLC0415

        return self._key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


class MacKey:
    """A secret that a device and its aggregator share, for boards without elliptic curves.

    HMAC with SHA-256 (RFC 2104). Either side can sign as the other, so each device has its own. A signature is the 32
    bytes, padded to 64 with zeros.
    """

    def __init__(self, secret: bytes) -> None:
        if len(secret) < 32:
            raise KeyUnusable(f"A secret of {len(secret)} bytes is no key for HMAC: 32 are wanted.")
        self._secret = secret

    @classmethod
    def read(cls, text: bytes, name: str = "the key") -> "MacKey":
        """Read a line of `hmac-sha256` and the secret in hexadecimal digits.

        Raises:
            KeyUnusable: it is none.
        """
        kind, _, digits = text.decode(errors="replace").strip().partition(" ")
        try:
            secret = bytes.fromhex(digits) if kind == "hmac-sha256" else b""
        except ValueError:
            secret = b""
        if not secret:
            raise KeyUnusable(f"{name} is no secret for HMAC: make one with midge release-key new FILE --type hmac.")
        return cls(secret)

    def text(self) -> bytes:
        """The line that `read` reads."""
        return f"hmac-sha256 {self._secret.hex()}\n".encode()

    def sign(self, purpose: str, context: str, data: frames.Buffer) -> bytes:
        """Sign, in 64 bytes."""
        return hmac.digest(self._secret, signed_bytes(purpose, context, data), "sha256") + bytes(32)

    def verifies(self, signature: frames.Buffer, purpose: str, context: str, data: frames.Buffer) -> bool:
        """Whether the signature was made with this secret, for this purpose, context and data."""
        return hmac.compare_digest(bytes(signature), self.sign(purpose, context, data))


def new_key(kind: str = "ed25519") -> PrivateKey:
    """Make a new key: `ed25519` or `p256`."""
    required()
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: PLC0415

    return PrivateKey(ec.generate_private_key(ec.SECP256R1()) if kind == P256 else Ed25519PrivateKey.generate())


def read_private(data: bytes, name: str = "the key") -> PrivateKey:
    """Read a private key, PEM: Ed25519 or P-256.

    Raises:
        KeyUnusable: it is none of these.
        ModuleNotFoundError: `cryptography` is not installed.
    """
    required()
    from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: PLC0415
    from cryptography.hazmat.primitives.serialization import load_pem_private_key  # noqa: PLC0415

    try:
        key: Any = load_pem_private_key(data, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise KeyUnusable(f"{name} is no private key in PEM without a password ({error}).") from error
    if not isinstance(key, Ed25519PrivateKey) and not _is_p256(key):
        raise KeyUnusable(f"{name} is a {type(key).__name__}; an Ed25519 or a P-256 key is wanted.")
    return PrivateKey(key)


def read_public(data: bytes, name: str = "the key") -> PublicKey:
    """Read a public key: PEM, or its PEM certificate, or SubjectPublicKeyInfo in DER, or Ed25519's 32 bytes.

    Raises:
        KeyUnusable: it is none of these.
        ModuleNotFoundError: `cryptography` is not installed.
    """
    required()
    from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey  # noqa: PLC0415
    from cryptography.hazmat.primitives.serialization import (  # noqa: PLC0415
        load_der_public_key,
        load_pem_public_key,
    )
    from cryptography.x509 import load_pem_x509_certificate  # noqa: PLC0415

    try:
        if len(data) == 32:
            key: Any = Ed25519PublicKey.from_public_bytes(data)
        elif b"BEGIN CERTIFICATE" in data:
            key = load_pem_x509_certificate(data).public_key()
        elif b"-----BEGIN" in data:
            key = load_pem_public_key(data)
        else:
            key = load_der_public_key(data)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise KeyUnusable(f"{name} is no public key and no certificate ({error}).") from error
    if not isinstance(key, Ed25519PublicKey) and not _is_p256(key):
        raise KeyUnusable(f"{name} is a {type(key).__name__}; an Ed25519 or a P-256 key is wanted.")
    return PublicKey(key)


def _is_p256(key: object) -> bool:
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415

    return isinstance(key, ec.EllipticCurvePrivateKey | ec.EllipticCurvePublicKey) and isinstance(
        key.curve, ec.SECP256R1
    )


def _ecdsa() -> Any:
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415
    from cryptography.hazmat.primitives.hashes import SHA256  # noqa: PLC0415

    return ec.ECDSA(SHA256())


def _der(signature: bytes) -> bytes:
    from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature  # noqa: PLC0415

    return encode_dss_signature(int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big"))


# ---------------------------------------------------------------------- frames


def of_device(federation: str, device: str) -> str:
    """The context of messages between the aggregator and one device."""
    return f"{federation}/{device}"


def sign_frame(key: PrivateKey | MacKey, purpose: str, context: str, head: bytes, body: frames.Buffer = b"") -> bytes:
    """Sign a frame, given as the bytes of its header and its body; the signature follows the body."""
    return b"".join((head, body, key.sign(purpose, context, head)))


def split(message: object, body: memoryview) -> tuple[memoryview, memoryview]:
    """Split a body from the signature behind it; the signature is empty if there is none."""
    match message:
        case Update(kind="update", size=size) | Surveyed(size=size) | SiteValues(size=size):
            own = size
        case Statistics(names=names, sealed=sealed):
            own = sum(channels for _, channels in names) * BYTES_PER_CHANNEL + (48 if sealed else 0)
        case _:
            own = 0
    return (body[:own], body[own:]) if len(body) == own + SIGNATURE else (body, body[:0])


def signs_for_federation(
    keys: Iterable[PublicKey], federation: str, payload: frames.Buffer, purpose: str = AGGREGATOR
) -> bool:
    """Whether one of the keys signed a message of a federation's aggregator or operator.

    Raises:
        WireError: it is no frame.
    """
    _, signature = frames.decode(payload)
    head = head_of(payload, signature)
    return any(key.verifies(signature, purpose, federation, head) for key in keys)


def head_of(payload: frames.Buffer, body: memoryview) -> memoryview:
    """The length and the header of a payload, given its body and all that follows it."""
    view = memoryview(payload)
    return view[: len(view) - len(body)]
