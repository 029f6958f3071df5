"""The manifest of a backup, with the SHA-256 of each file, and of itself."""

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from midge.aggregator.store.device_erasure import FOLDER
from midge.aggregator.store.errors import StoreDamaged, StoreError
from midge.aggregator.store.shard_stores import SHARDS

FORMAT = 2
"""1: the files of one store. 2: also those of its shards."""
MANIFEST = "manifest.json"
_NAME = re.compile(rf"(?:{SHARDS}/shard-[0-9]+/)?(?:[A-Za-z0-9_.-]+|{FOLDER}/[^/]+)")
"""Valid names of the files of a store and of its shards."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """The content of a backup."""

    format: int
    made: int
    """Seconds since 1970."""
    lineage: str
    generation: int
    version: int
    """The newest released version."""
    lsn: int
    """The newest record."""
    private: bool
    """Whether its devices spend a budget of differential privacy."""
    files: dict[str, tuple[int, str]]
    """By name, the size and the SHA-256 of each."""

    @property
    def shards(self) -> list[str]:
        """The names of the shards whose stores are in it."""
        return sorted({name.split("/")[1] for name in self.files if name.startswith(f"{SHARDS}/")})

    @property
    def size(self) -> int:
        return sum(size for size, _ in self.files.values())

    def packed(self) -> bytes:
        fields = asdict(self)
        return json.dumps({**fields, "sha256": _digest(fields)}, indent=1).encode() + b"\n"

    @classmethod
    def unpacked(cls, data: bytes) -> "Manifest":
        """Read a manifest.

        Raises:
            ValueError: it is damaged.
            _TooNewError: it is of a later format.
        """
        fields: dict[str, Any] = json.loads(data)
        digest = fields.pop("sha256")
        if isinstance(fields["format"], int) and fields["format"] > FORMAT and digest == _digest(fields):
            raise _TooNewError(f"it has format {fields['format']}, and this version of Midge reads {FORMAT}")
        if digest != _digest(fields) or not all(_NAME.fullmatch(name) for name in fields["files"]):
            raise ValueError("it is not as it was written")
        return cls(**{**fields, "files": {name: (size, sha256) for name, (size, sha256) in fields["files"].items()}})


def _digest(fields: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


class _TooNewError(Exception):
    """Of a later version of Midge."""


def read_backup(directory: Path) -> Manifest:
    """Read and verify a backup; return its manifest.

    Raises:
        StoreDamaged: it is damaged.
        StoreError: it is no backup, or is of a later version of Midge.
    """
    try:
        manifest = Manifest.unpacked((directory / MANIFEST).read_bytes())
    except FileNotFoundError:
        raise StoreError(f"{directory} is no backup of a store: there is no {MANIFEST} in it.") from None
    except OSError as error:
        raise StoreError(f"{directory / MANIFEST} cannot be read ({error.strerror}).") from error
    except _TooNewError as error:
        raise StoreError(f"The backup {directory} is of a later version of Midge: {error}.") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreDamaged(f"The backup {directory} is damaged: {MANIFEST} cannot be read ({error}).") from error
    for name, described in manifest.files.items():
        try:
            found = digest_of(directory / name)
        except OSError as error:
            raise StoreDamaged(
                f"The backup {directory} is damaged: {name} cannot be read ({error.strerror}). Use another one."
            ) from error
        if found != described:
            raise StoreDamaged(f"The backup {directory} is damaged: {name} is not as it was written. Use another one.")
    return manifest


def digest_of(path: Path) -> tuple[int, str]:
    """A file's size, and its SHA-256 in hexadecimal."""
    with path.open("rb") as file:
        return path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()
