"""HPKE in base mode, written out from RFC 9180: what devices and aggregators of earlier versions seal and open with.

It shares no code with the library's HPKE, only X25519 and ChaCha20-Poly1305.
"""

import hmac

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

_KEM = b"KEM\x00\x20"
_SUITE = b"HPKE\x00\x20\x00\x01\x00\x03"


def seal(body: bytes, to: bytes, info: bytes, ephemeral: bytes) -> bytes:
    own = X25519PrivateKey.from_private_bytes(ephemeral)
    enc = own.public_key().public_bytes_raw()
    key, nonce = _schedule(own.exchange(X25519PublicKey.from_public_bytes(to)), enc + to, info)
    return enc + ChaCha20Poly1305(key).encrypt(nonce, body, None)


def unseal(data: bytes, private: bytes, info: bytes) -> bytes:
    own = X25519PrivateKey.from_private_bytes(private)
    shared = own.exchange(X25519PublicKey.from_public_bytes(data[:32]))
    key, nonce = _schedule(shared, data[:32] + own.public_key().public_bytes_raw(), info)
    return ChaCha20Poly1305(key).decrypt(nonce, data[32:], None)


def _schedule(shared: bytes, context: bytes, info: bytes) -> tuple[bytes, bytes]:
    """Key and nonce: sections 4.1 and 5.1."""
    secret = _labeled_expand(_labeled_extract(b"", _KEM, b"eae_prk", shared), _KEM, b"shared_secret", context, 32)
    bound = (
        b"\0" + _labeled_extract(b"", _SUITE, b"psk_id_hash", b"") + _labeled_extract(b"", _SUITE, b"info_hash", info)
    )
    prk = _labeled_extract(secret, _SUITE, b"secret", b"")
    return _labeled_expand(prk, _SUITE, b"key", bound, 32), _labeled_expand(prk, _SUITE, b"base_nonce", bound, 12)


def _labeled_extract(salt: bytes, suite: bytes, label: bytes, ikm: bytes) -> bytes:
    return hmac.digest(salt, b"HPKE-v1" + suite + label + ikm, "sha256")


def _labeled_expand(prk: bytes, suite: bytes, label: bytes, info: bytes, length: int) -> bytes:
    """HKDF-Expand of one block."""
    labeled = length.to_bytes(2, "big") + b"HPKE-v1" + suite + label + info
    return hmac.digest(prk, labeled + b"\x01", "sha256")[:length]
