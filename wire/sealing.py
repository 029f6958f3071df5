"""Sealing: encryption of bodies to the aggregator. TLS ends at the broker, a seal does not.

HPKE in its base mode (RFC 9180) with DHKEM(X25519, HKDF-SHA256), HKDF-SHA256 and ChaCha20-Poly1305, by the library
`cryptography`: 32 bytes of an encapsulated key, then the ciphertext with its tag of 16. What the body must stay bound
to goes in as HPKE's `info`; `aad` is empty and each message has an encapsulated key of its own, so that the one-shot
function of any HPKE library opens it.

Updates are sealed to a key of the day, which the aggregator's signed status names and which is erased later, so that a
stolen release key does not open them. Devices of earlier versions seal to the announced key, which is derived from the
release key.

A key is either one of X25519 or the hybrid of ML-KEM-768 and X25519 (draft-ietf-hpke-pq, KEM 0x647a), which a quantum
computer does not break. Its length says which.
"""

import hashlib
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

from pydantic import Field

from midge.wire import frames, signing
from midge.wire.errors import WireError
from midge.wire.messages import Hello, Message, Report, Statistics, Surveyed, Update
from midge.wire.messages.fields import U63, Capabilities, Metrics, Sentence
from midge.wire.signing import PrivateKey

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.hpke import Suite

NAME: Final = "hpke"
"""Value of the field `sealed`."""
OVERHEAD: Final = 48
"""Bytes that sealing adds: the encapsulated key of 32 and the tag of 16."""
HYBRID_OVERHEAD: Final = 1136
"""The same for a hybrid key: 1,088 of ML-KEM-768, 32 of X25519, and the tag."""
KEY: Final = 32
"""Bytes of a public key of X25519, and of its private key."""
HYBRID_KEY: Final = 1184 + KEY
"""Bytes of a hybrid public key: that of ML-KEM-768, then that of X25519."""
_SEED: Final = 64
"""Bytes of the seed of a private key of ML-KEM-768, which precede the private key of X25519 in a hybrid one."""
KEY_ID: Final = 8
"""Bytes that identify a public key."""
LONGEST: Final = 16 * 1024
"""Most bytes of `Confided`: 32 metrics with names of 64 characters."""


class Confided(Message):
    """What an update reports of its training, sealed because it reveals something of the rows.

    The body is the delta.
    """

    examples: U63 = 0
    steps: U63 = 0
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    metrics: Metrics = Field(default_factory=dict)


class Details(Message):
    """Fields about the device in messages that the broker reads, which are sealed instead."""

    examples: U63 = 0
    metrics: Metrics = Field(default_factory=dict)
    missing: U63 = 0
    capabilities: Capabilities = Field(default_factory=dict)
    waits: Sentence = ""
    keeps: U63 = 0


_NEEDED: Final = "Sealing needs cryptography 47"
_DETAILS: Final[dict[str, frozenset[str]]] = {
    "hello": frozenset({"capabilities", "waits", "keeps"}),
    "report": frozenset({"examples", "metrics"}),
    "statistics": frozenset({"missing"}),
}
T = TypeVar("T", Hello, Report, Statistics)


def required(*, hybrid: bool = False) -> None:
    """Check that the library is installed and can seal.

    Args:
        hybrid: also to keys of ML-KEM-768 and X25519.

    Raises:
        ModuleNotFoundError: it is not; the message says how to get it.
    """
    _suite(hybrid=hybrid)


def _suite(*, hybrid: bool = False) -> "Suite":
    signing.required()
    import cryptography  # noqa: PLC0415 - devices that do not seal need none of it

    try:
        from cryptography.hazmat.primitives import hpke  # noqa: PLC0415

        kem = hpke.KEM.MLKEM768_X25519 if hybrid else hpke.KEM.X25519
    except (ImportError, AttributeError) as error:
        needed = "Sealing to keys of ML-KEM-768 and X25519 needs cryptography 50" if hybrid else _NEEDED
        raise ModuleNotFoundError(
            f"{needed} or newer, and {cryptography.__version__} is installed here: "
            'pip install --upgrade "midge[security]"',
            name="cryptography.hazmat.primitives.hpke",
        ) from error
    return hpke.Suite(kem, hpke.KDF.HKDF_SHA256, hpke.AEAD.CHACHA20_POLY1305)


def about(federation: str, device: str, message: Update | Statistics | Surveyed) -> bytes:
    """HPKE's `info` for a body.

    That of an update is without its seq, because an outbox with a new identity renumbers its updates.
    """
    match message:
        case Surveyed():
            return b"midge/1 surveyed\0" + frames.pack([federation, device, message.to])
        case Update():
            tensors = None if message.tensors is None else list(message.tensors)
            of = ["update", message.generation, message.base, message.schema_hash, message.codec, tensors]
            of += [True] if message.confided else []
            of += [message.site_size] if message.site_size else []
        case Statistics():
            of = ["statistics", [list(name) for name in message.names]]
    return b"midge/1 sealed\0" + frames.pack([federation, device, message.lineage, *of])


def confide(update: Update, body: frames.Buffer) -> tuple[Update, bytes]:
    """Move what an update reports of its training from the header into the body, to be sealed."""
    revealed = {name: getattr(update, name) for name in Confided.model_fields}
    nothing = Confided().model_dump()
    return update.model_copy(update={**nothing, "confided": True}), frames.encode(Confided(**revealed), body)


def revealed(update: Update, body: memoryview) -> tuple[Update, memoryview]:
    """Undo `confide`; returns the arguments if nothing was confided.

    Raises:
        WireError: it is no such body.
    """
    if not update.confided:
        return update, body
    header, delta = frames.decode(body)
    inside = frames.validate(Confided, header)
    return update.model_copy(update={**inside.model_dump(), "confided": False}), delta


def withheld(message: T) -> T:
    """A copy of a message without its details."""
    nothing = Details().model_dump(include=set(_DETAILS[message.kind]))
    return message.model_copy(update=nothing)


def hide(federation: str, device: str, message: T, to: bytes) -> T:
    """A copy of a message whose details are sealed.

    Raises:
        WireError: the public key is invalid.
    """
    details = Details(**{name: getattr(message, name) for name in _DETAILS[message.kind]})
    sealed = seal(frames.encode(details), to, _info_of_details(federation, device, message))
    return withheld(message).model_copy(update={"hidden": sealed})


def shown(federation: str, device: str, message: T, private: bytes) -> T:
    """The message as it was before `hide`.

    Raises:
        WireError: its details are not sealed to this key, or are not those of such a message.
    """
    header, _ = frames.decode(unseal(message.hidden, private, _info_of_details(federation, device, message)))
    details = frames.validate(Details, header).model_dump(include=set(_DETAILS[message.kind]))
    return message.model_copy(update={**details, "hidden": b""})


def _info_of_details(federation: str, device: str, message: Hello | Report | Statistics) -> bytes:
    """HPKE's `info` for details."""
    of: list[object]
    match message:
        case Hello():
            of = [message.outbox]
        case Report():
            of = [message.version]
        case Statistics():
            of = [[list(name) for name in message.names]]
    return b"midge/1 hidden\0" + frames.pack([federation, device, message.lineage, message.kind, *of])


def derive(key: PrivateKey) -> bytes:
    """The X25519 private key that belongs to a release key: HKDF-SHA256 (RFC 5869) of its seed."""
    from cryptography.hazmat.primitives.hashes import SHA256  # noqa: PLC0415
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF  # noqa: PLC0415

    return HKDF(SHA256(), 32, salt=b"midge/1 sealing", info=b"x25519").derive(key.seed)


def new_key(*, hybrid: bool = False, random: Callable[[int], bytes] = os.urandom) -> bytes:
    """A new private key: 32 bytes, or 96 of a hybrid one."""
    return random(_SEED + KEY if hybrid else KEY)


def key_id(public: bytes) -> bytes:
    """What identifies a public key in messages: the first 8 bytes of its SHA-256."""
    return hashlib.sha256(public).digest()[:KEY_ID]


def is_key(public: bytes) -> bool:
    """Whether these bytes have the length of a public key to seal to."""
    return len(public) in (KEY, HYBRID_KEY)


def overhead(key: bytes) -> int:
    """Bytes that sealing to a public key adds."""
    return HYBRID_OVERHEAD if len(key) == HYBRID_KEY else OVERHEAD


def public(private: bytes) -> bytes:
    """The public part of a private key: 32 bytes, or 1,216 of a hybrid one.

    Raises:
        ModuleNotFoundError: the installed library cannot use it.
    """
    required(hybrid=len(private) != KEY)
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey  # noqa: PLC0415

    classical = X25519PrivateKey.from_private_bytes(private[-KEY:]).public_key().public_bytes_raw()
    if len(private) == KEY:
        return classical
    from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey  # noqa: PLC0415

    return MLKEM768PrivateKey.from_seed_bytes(private[:_SEED]).public_key().public_bytes_raw() + classical


def seal(body: frames.Buffer, to: bytes, info: bytes) -> bytes:
    """Seal to a public key, each time with a new ephemeral key.

    Raises:
        WireError: the public key is invalid.
        ModuleNotFoundError: it is a hybrid one, and the installed library has none.
    """
    suite = _suite(hybrid=len(to) == HYBRID_KEY)
    try:
        return suite.encrypt(body, _read_public(to), info)
    except ValueError as error:  # of the wrong length, or a point of small order
        raise WireError("the key to seal to is invalid") from error


def _read_public(to: bytes) -> Any:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey  # noqa: PLC0415

    if len(to) != HYBRID_KEY:
        return X25519PublicKey.from_public_bytes(to)
    from cryptography.hazmat.primitives import hpke  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PublicKey  # noqa: PLC0415

    classical = X25519PublicKey.from_public_bytes(to[-KEY:])
    return hpke.MLKEM768X25519PublicKey(MLKEM768PublicKey.from_public_bytes(to[:-KEY]), classical)


def unseal(data: frames.Buffer, private: bytes, info: bytes) -> bytes:
    """Open what was sealed to our public key with the same `info`.

    Raises:
        WireError: it was sealed otherwise, or was changed.
    """
    hybrid = len(private) != KEY
    suite, least = _suite(hybrid=hybrid), HYBRID_OVERHEAD if hybrid else OVERHEAD
    from cryptography.exceptions import InvalidTag  # noqa: PLC0415

    if len(data) < least:
        raise WireError(f"a sealed body has at least {least} bytes")
    try:
        return suite.decrypt(data, _read_private(private), info)
    except (ValueError, InvalidTag) as error:
        raise WireError("it is not sealed to this aggregator, or its header was changed") from error


def _read_private(private: bytes) -> Any:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey  # noqa: PLC0415

    classical = X25519PrivateKey.from_private_bytes(private[-KEY:])
    if len(private) == KEY:
        return classical
    from cryptography.hazmat.primitives import hpke  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey  # noqa: PLC0415

    return hpke.MLKEM768X25519PrivateKey(MLKEM768PrivateKey.from_seed_bytes(private[:_SEED]), classical)
