"""Alarms for the aggregator's own credentials that expire soon, checked once an hour."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from midge.broker.provisioning.expiry import End, ends

_LOOK = 3600.0
"""Seconds between two checks: the first alarm comes 60 days before the end."""


class CredentialAlarms:
    """The alarms of one aggregator.

    Args:
        files: certificates, authorities, and the release key.
        wall: seconds since 1970, of a trusted clock.
    """

    def __init__(self, files: Sequence[Path], wall: Callable[[], float]) -> None:
        self._files, self._wall = tuple(files), wall
        self._looked = float("-inf")
        self.ends: tuple[End, ...] = ()
        """The credentials and when they expire, as last checked."""
        self._found: tuple[str, ...] = ()

    def now(self) -> tuple[str, ...]:
        """Current alarms, as text."""
        wall = self._wall()
        if self._files and not 0 <= wall - self._looked < _LOOK:
            self._looked, present = wall, datetime.fromtimestamp(wall, UTC)
            self.ends = tuple(end for file in self._files for end in ends(file))
            self._found = tuple(alarm for end in self.ends if (alarm := end.alarm(present)))
        return self._found
