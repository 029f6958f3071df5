"""The keys of the day: what devices seal to, so that a stolen release key does not open recorded updates.

They are drawn by the operating system, kept in a file of the store that no backup has, and erased a day after another
one took over. Nothing is lost by that: an update that is sealed to a key that is no longer here stays with its device,
which seals it again to the newest one.
"""

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from midge.storage.files import replace_secret
from midge.wire import frames, sealing
from midge.wire.errors import WireError

log = logging.getLogger("aggregator")

KEYS = "sealing.keys"
"""Their file in a store."""
DAY = 86_400.0
"""Seconds after which another key takes over."""
KEEP = DAY
"""Seconds for which a key is kept after that, for updates that are on their way."""
_AHEAD = 3600.0
"""Seconds by which a key may be newer than the clock shows: beyond, the clock was wrong when it was made."""


@dataclass(frozen=True, slots=True)
class DailyKey:
    """One key pair."""

    private: bytes
    since: float
    """Seconds since 1970."""


class SealingKeys:
    """The keys in a file.

    Args:
        path: the file. One that cannot be read is replaced: devices then seal to a new key.
        clock: seconds since 1970; it may jump.
        hybrid: whether new keys are of ML-KEM-768 and X25519.

    Raises:
        ModuleNotFoundError: the installed library has no such keys.
    """

    def __init__(self, path: Path, clock: Callable[[], float], *, hybrid: bool = False) -> None:
        sealing.required(hybrid=hybrid)
        self._path, self._clock, self._hybrid = path, clock, hybrid
        self._keys: list[DailyKey] = []
        self.number = 0
        """Counts the keys that were made in this file."""
        self._failed = False
        if path.exists():
            self._read()
        self.roll()

    def _read(self) -> None:
        try:
            fields = frames.unpack(self._path.read_bytes())
            keys = [DailyKey(bytes(private), float(since)) for private, since in fields["keys"]]
            for key in keys:
                sealing.public(key.private)
            self._keys, self.number = keys, int(fields["number"])
        except (OSError, WireError, KeyError, TypeError, ValueError) as error:
            log.warning("%s cannot be read (%s): devices seal to a new key.", self._path, error)

    @property
    def public(self) -> bytes:
        """The key that devices seal to; empty while none could be written."""
        return sealing.public(self._keys[-1].private) if self._keys else b""

    @property
    def private(self) -> tuple[bytes, ...]:
        """The private keys, the newest first."""
        return tuple(key.private for key in reversed(self._keys))

    def of(self, name: bytes) -> bytes | None:
        """The private key of this id; None if it was erased or was never here."""
        return next((key for key in self.private if sealing.key_id(sealing.public(key)) == name), None)

    def roll(self) -> None:
        """Make the key of the day and erase old ones, if that is due. A full disk delays both."""
        now = self._clock()
        # A key from the future was made by a wrong clock, or this one is: counted from now, it ends in any case.
        keys = [replace(key, since=now) if key.since > now + _AHEAD else key for key in self._keys]
        fresh = not keys or now >= keys[-1].since + DAY or self._hybrid != (len(keys[-1].private) != sealing.KEY)
        if fresh:
            keys.append(DailyKey(sealing.new_key(hybrid=self._hybrid), now))
        ended = [after.since for after in keys[1:]]
        kept = [key for key, end in zip(keys, [*ended, now], strict=True) if now < end + KEEP]
        if kept != self._keys:
            self._write(kept, self.number + fresh)

    def _follow(self) -> None:
        """Read the file again, which another process writes."""
        if self._path.exists():
            self._read()

    def _write(self, keys: list[DailyKey], number: int) -> None:
        try:
            replace_secret(
                self._path, frames.pack({"number": number, "keys": [[key.private, key.since] for key in keys]})
            )
        except OSError as error:
            if not self._failed:
                log.warning("%s cannot be written (%s): the key stays in force until it can.", self._path, error)
            self._failed = True
            return
        self._keys, self.number, self._failed = keys, number, False


class FollowedSealingKeys(SealingKeys):
    """The keys of another process, which makes and erases them: of a federation's aggregator, for its shards."""

    _stamp = 0

    def of(self, name: bytes) -> bytes | None:
        found = super().of(name)
        if found is None:
            self.roll()
            found = super().of(name)
        return found

    def roll(self) -> None:
        """Follow the file."""
        with suppress(FileNotFoundError):
            stamp = self._path.stat().st_mtime_ns
            if stamp != self._stamp:
                self._stamp = stamp
                self._follow()
