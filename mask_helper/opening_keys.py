"""The helper's opening keys: one a day, erased some days later, after which nothing sealed to it can be opened.

They are in a file of their own, beside the ledger, with the number of the newest sum. If the ledger is behind that
number, it was restored from a copy, and might give a second answer for the same seeds: then all keys are erased.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from midge.storage.files import replace_secret
from midge.wire import frames, sealing
from midge.wire.messages.masking import SealingKey

DAY = 86_400.0
VALID = 2 * DAY
"""Seconds for which devices may seal to a key; a newer one is there after half of them."""
KEEP = DAY
"""Seconds for which a key is kept beyond that, for updates that are on their way."""


@dataclass(frozen=True, slots=True)
class OpeningKey:
    """One day's key pair."""

    private: bytes
    since: float
    """Seconds since 1970."""

    @property
    def stated(self) -> SealingKey:
        """Its public part."""
        return SealingKey(key=sealing.public(self.private), since=self.since, until=self.since + VALID)


class OpeningKeys:
    """The keys in a file.

    Args:
        path: the file.
        clock: seconds since 1970.
        keep: see `KEEP`.
        hybrid: whether new keys are of ML-KEM-768 and X25519.

    Raises:
        ModuleNotFoundError: the installed library has no such keys.
    """

    def __init__(self, path: Path, clock: Callable[[], float], keep: float = KEEP, *, hybrid: bool = False) -> None:
        sealing.required(hybrid=hybrid)
        self._path, self._clock, self._keep, self._hybrid = path, clock, keep, hybrid
        self._keys: list[OpeningKey] = []
        self.dealt = 0
        """Number of the newest sum that was answered."""
        if path.exists():
            fields = frames.unpack(path.read_bytes())
            self._keys = [OpeningKey(private, since) for private, since in fields["keys"]]
            self.dealt = fields["dealt"]

    def roll(self) -> bool:
        """Make today's key and erase old ones, if that is due. Returns whether something changed."""
        now = self._clock()
        kept = [key for key in self._keys if now < key.since + VALID + self._keep]
        # A clock that was set back keeps its keys.
        due = not kept or now >= max(key.since for key in kept) + DAY
        if due or self._hybrid != (len(kept[-1].private) != sealing.KEY):
            kept.append(OpeningKey(sealing.new_key(hybrid=self._hybrid), now))
        if kept == self._keys:
            return False
        self._keys = kept
        self._write()
        return True

    def erase(self) -> None:
        """Erase all keys: nothing that was sealed before can be opened any more."""
        self._keys, self.dealt = [], 0
        self.roll()

    def answered(self, number: int) -> None:
        """Record the newest sum, before it is sent."""
        if number > self.dealt:
            self.dealt = number
            self._write()

    def _write(self) -> None:
        keys = [[key.private, key.since] for key in self._keys]
        replace_secret(self._path, frames.pack({"dealt": self.dealt, "keys": keys}))

    def private(self, name: bytes) -> bytes | None:
        """The private key with this id; None if it was erased or never existed."""
        for key in self._keys:
            if sealing.key_id(key.stated.key) == name:
                return key.private
        return None

    @property
    def stated(self) -> tuple[SealingKey, ...]:
        """The keys that devices may seal to, the newest first."""
        now = self._clock()
        stated = [key.stated for key in reversed(self._keys) if now < key.since + VALID]
        return tuple(stated[: 2 if self._hybrid else 4])  # the announcement has room for two long ones
