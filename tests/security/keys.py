"""Keys and announcements for tests."""

from pathlib import Path

from midge.aggregator.publish.announcement_signer import AnnouncementSigner, ReleaseKeys
from midge.wire import signing
from midge.wire.messages import Announcement
from midge.wire.topics import Topics

ID, SCHEMA = bytes(range(16)), bytes(range(50, 66))


def announced(version: int = 1, **fields: object) -> Announcement:
    """What an aggregator at a version announces."""
    return Announcement(
        **{  # type: ignore[arg-type]
            "federation": "f",
            "lineage": ID,
            "generation": 0,
            "version": version,
            "step": version,
            "phase": "training",
            "schema_hash": SCHEMA,
            "digest": version.to_bytes(16, "big"),
            **fields,
        }
    )


class Clock:
    """Seconds since 1970 that a test sets."""

    def __init__(self, now: float = 1_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def issuer(key: signing.PrivateKey, clock: Clock, *, epoch: int = 5, lifetime: float = 1000.0) -> AnnouncementSigner:
    """Who signs with one key."""
    made = AnnouncementSigner(Topics("f"), ReleaseKeys(((0.0, key),)), lifetime=lifetime, clock=clock)
    made.epoch = epoch
    return made


def write_keys(folder: Path, name: str = "release.key") -> tuple[Path, Path]:
    """A new private key and its public part, as files."""
    key = signing.new_key()
    private, public = folder / name, folder / f"{name}.pub"
    private.write_bytes(key.pem())
    public.write_bytes(key.public_pem())
    return private, public
