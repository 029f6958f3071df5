"""Devices that know versions which the store does not: it was put back, and the broker forgot what was announced.

A new generation begins above what they know, or other models would be released under numbers that devices hold. A
greeting is a device's word, so one device alone is believed once in a start, and no further than a store that was put
back can be behind.
"""

_GENERATIONS, _VERSIONS = 1024, 2**32
"""How far ahead of the store a device's word is followed."""
_CLAIMS = 64
_REST = 600.0
"""Seconds between two generations that devices' words begin: each has all of them train again."""


class PutBack:
    """What devices have said since the start. It is of the process, and nothing of it is durable."""

    def __init__(self) -> None:
        self.claims: dict[str, tuple[int, int]] = {}
        """By device, the generation and version that it says it knows; looked at by the next `proven`."""
        self._needed = 1
        """Devices that must say so: one at first, two from then on."""
        self._from = float("-inf")

    def heard(self, device: str, generation: int, version: int) -> None:
        """A device of our lineage greets with the model that it knows."""
        if len(self.claims) < _CLAIMS:
            self.claims[device] = generation, version

    def proven(self, generation: int, version: int, now: float) -> tuple[int, int] | None:
        """The generation and version to go on behind; None while nothing shows that the store is behind."""
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
