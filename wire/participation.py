"""Whether a device trains from a version: decided by a hash, without communication."""

import hashlib


def takes_part(device: str, lineage: bytes, generation: int, version: int, share: float) -> bool:
    """Deterministic sampling: true for about this share of all devices, a different subset for each version.

    The first 8 bytes of SHA-256 over `{lineage in hex}/{generation}/{version}/{device}`, as a big-endian fraction of
    2^64, are below the share. So raising the share for a version adds devices and removes none.
    """
    if share >= 1:
        return True
    name = f"{lineage.hex()}/{generation}/{version}/{device}".encode()
    return int.from_bytes(hashlib.sha256(name).digest()[:8]) < share * 2.0**64
