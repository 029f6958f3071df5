"""Detection of a rollback of the store: devices know versions that it does not.

The store was restored from a copy, and the broker has lost the announcement. A new generation then begins above what
devices know, or other models would be released under version numbers that they hold. A greeting proves nothing, so a
single device is believed only once in the life of a process, and only within a range that a restored store can be
behind.
"""

_GENERATIONS, _VERSIONS = 1024, 2**32
"""How far ahead of the store a claim is believed."""
_CLAIMS = 64
_REST = 600.0
"""Least seconds between two generations that claims begin: each makes all devices train again."""


class PutBack:
    """The devices' claims since the start of the process. Not durable."""

    def __init__(self) -> None:
        self.claims: dict[str, tuple[int, int]] = {}
        """By device, the generation and version that it claims to know; checked by the next `proven`."""
        self._needed = 1
        """Number of devices that must agree: one for the first rollback, two after it."""
        self._from = float("-inf")

    def heard(self, device: str, generation: int, version: int) -> None:
        """Record the model that a device of our lineage knows, from its greeting."""
        if len(self.claims) < _CLAIMS:
            self.claims[device] = generation, version

    def proven(self, generation: int, version: int, now: float) -> tuple[int, int] | None:
        """The generation and version to continue above; None if nothing shows that the store is behind."""
        self.claims = {
            device: claim
            for device, claim in self.claims.items()
            if (generation, version) < claim <= (generation + _GENERATIONS, version + _VERSIONS)
            and claim[1] <= version + _VERSIONS
        }
        if len(self.claims) < self._needed or now < self._from:
            return None
        found = sorted(self.claims.values(), reverse=True)[self._needed - 1]
        self.claims.clear()
        self._needed, self._from = 2, now + _REST
        return found
