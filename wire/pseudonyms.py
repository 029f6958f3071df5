"""Pseudonyms for devices: only the holder of a key can relate them to names."""

import base64
import hashlib
import hmac

LENGTH = 20
"""Characters: 100 bits, so that among a million devices no two collide."""


def pseudonym(name: str, key: bytes) -> str:
    """A device's pseudonym on the wire: HMAC-SHA256 of its real name, in base32; the same for the same key.

    The operator keeps the key and the map of names. For new pseudonyms of all devices, use a new key.

    Raises:
        ValueError: the key is shorter than 16 bytes, and could be guessed.
    """
    if len(key) < 16:
        raise ValueError(f"A key of {len(key)} bytes can be guessed: make one with secrets.token_bytes(32).")
    return base64.b32encode(keyed_hash(name, key)).decode().lower()[:LENGTH]


def keyed_hash(name: str, key: bytes) -> bytes:
    """32 bytes that differ between names; without the key, guesses of a name cannot be verified."""
    return hmac.digest(key, name.encode(), hashlib.sha256)
