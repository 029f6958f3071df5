"""What was released under which number: two models of one number are found by whoever sees both.

Each release goes into a hash over all before it, which the announcement carries: a device that follows from version to
version sees that no other history is put before it. An update says the digest of the model that it was trained from, so
an aggregator sees if a store or a broker was put back, or a device was shown another model.
"""

from typing import Any

from midge.wire.lineage import logged

SAID = 8
"""Bytes of a digest that are kept and said in updates: enough against chance and against a search."""


class ReleaseLog:
    """Of one lineage. It is rebuilt with the model, and stands in checkpoints."""

    def __init__(self) -> None:
        self.head = b""
        """The hash over all releases; empty before the first."""
        self._digests: dict[int, bytes] = {}

    def add(self, generation: int, version: int, digest: bytes) -> None:
        """Note a release and the digest of its model."""
        self.head = logged(self.head, generation, version, digest)
        self._digests[version] = digest[:SAID]

    def differs(self, version: int, digest: bytes) -> bool:
        """Whether another model than this digest's was released as a version; False if either is not known."""
        known = self._digests.get(version, b"")
        size = min(len(known), len(digest))
        return size > 0 and known[:size] != digest[:size]

    def forget_before(self, version: int) -> None:
        """Forget digests of versions that nothing can be trained from any more."""
        if len(self._digests) > 2 * _MOST or min(self._digests, default=version) < version - _MOST:
            self._digests = {number: digest for number, digest in self._digests.items() if number >= version}

    def clear(self) -> None:
        """A new generation begins: earlier numbers are not trained from."""
        self._digests.clear()

    def dump(self) -> list[Any]:
        """Return what `load` takes."""
        return [self.head, list(self._digests.items())]

    def load(self, state: list[Any]) -> None:
        """Take up what `dump` returned."""
        self.head, self._digests = state[0], dict(state[1])


_MOST = 1024
"""Digests that are kept beyond those needed: forgetting takes a pass over all."""
