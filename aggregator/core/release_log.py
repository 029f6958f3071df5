"""The log of releases: a hash chain, and the digests of recent models, to detect two models under one number.

The announcement carries a hash over all releases, so a device that follows from version to version detects a different
history. An update carries the digest of the model that it was trained from, so the aggregator detects that the store or
the broker was restored from a copy, or that a device received another model.
"""

from typing import Any

from midge.wire.lineage import logged

SAID = 8
"""Bytes of a digest that are kept, and sent in updates: enough against accidents and against a search."""
_MOST = 1024
"""Digests that are kept beyond those needed: removing some visits all."""


class ReleaseLog:
    """The releases of one lineage. It is rebuilt with the model, and part of checkpoints."""

    def __init__(self) -> None:
        self.head = b""
        """The hash over all releases; empty before the first."""
        self._digests: dict[int, bytes] = {}

    def add(self, generation: int, version: int, digest: bytes) -> None:
        """Record a release and the digest of its model."""
        self.head = logged(self.head, generation, version, digest)
        self._digests[version] = digest[:SAID]

    def digest(self, version: int) -> bytes:
        """The first bytes of the digest of a version's model; empty if unknown."""
        return self._digests.get(version, b"")

    def differs(self, version: int, digest: bytes) -> bool:
        """Whether a model of another digest was released as a version; False if either digest is unknown."""
        known = self._digests.get(version, b"")
        size = min(len(known), len(digest))
        return size > 0 and known[:size] != digest[:size]

    def forget_before(self, version: int) -> None:
        """Remove digests of versions that are no longer a base of updates."""
        if len(self._digests) > 2 * _MOST or min(self._digests, default=version) < version - _MOST:
            self._digests = {number: digest for number, digest in self._digests.items() if number >= version}

    def clear(self) -> None:
        """Start a new generation: earlier versions are no longer a base of updates."""
        self._digests.clear()

    def dump(self) -> list[Any]:
        """Plain values for `load`."""
        return [self.head, list(self._digests.items())]

    def load(self, state: list[Any]) -> None:
        """Restore from the result of `dump`."""
        self.head, self._digests = state[0], dict(state[1])
