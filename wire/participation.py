"""Whether a device trains from a version: decided by a hash, without communication."""

import hashlib
from collections.abc import Mapping
from typing import Any

MOST_WHERE = 4
"""Capabilities by which devices are chosen at most."""
_LONGEST = 64
"""Characters of a name and of a value."""


def takes_part(device: str, lineage: bytes, generation: int, version: int, share: float) -> bool:
    """Deterministic sampling: true for about this share of all devices, a different subset for each version.

    The first 8 bytes of SHA-256 over `{lineage in hex}/{generation}/{version}/{device}`, as a big-endian fraction of
    2^64, are below the share. So raising the share for a version adds devices and removes none.
    """
    if share >= 1:
        return True
    name = f"{lineage.hex()}/{generation}/{version}/{device}".encode()
    return int.from_bytes(hashlib.sha256(name).digest()[:8]) < share * 2.0**64


def check_where(where: Any) -> None:
    """Check the capabilities by which devices are chosen.

    Raises:
        ValueError: they are none, too many, or one is longer than a message can hold.
    """
    if not isinstance(where, Mapping):
        raise ValueError(f"where is {where!r}: it must name capabilities, each with its value.")  # noqa: TRY004
    if len(where) > MOST_WHERE:
        raise ValueError(f"where names {len(where)} capabilities: at most {MOST_WHERE} can be compared.")
    for name, value in where.items():
        fits = isinstance(name, str) and isinstance(value, str) and 0 < len(name) <= _LONGEST and len(value) <= _LONGEST
        if not fits:
            raise ValueError(f"where says {name!r}={value!r}: both must be texts of at most {_LONGEST} characters.")


def matches(capabilities: Mapping[str, str | int | float | bool], where: Mapping[str, str]) -> bool:
    """Whether a device has all of these capabilities.

    The text of an integer is decimal, that of a truth value `true` or `false`. Other numbers are measurements, which
    change, and match nothing.
    """
    return all(_text(capabilities.get(name)) == value for name, value in where.items())


def _text(value: str | float | bool | None) -> str | None:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, str | int) else None
