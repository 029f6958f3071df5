"""The ledger of releases: entries of a Merkle log (`wire.merkle`), its head, and what proves an update to be in it.

A release adds an entry for each update that it took, in the order of the steps, and then one for itself. An update's
entry has no name of its device, and begins with a random-looking salt: whoever sees its hash beside another's cannot
find out of whom it is, or when it was sent.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from midge.wire import frames, merkle
from midge.wire.errors import WireError

if TYPE_CHECKING:
    from midge.wire.messages.proofs import Proof

SALT = 16
"""Bytes of a salt."""
_SIZE = 8


@dataclass(frozen=True, slots=True)
class Head:
    """The state of a log: its number of entries, and the root over them."""

    size: int
    root: bytes

    def packed(self) -> bytes:
        """As announced: the size in 8 bytes, little-endian, and the root."""
        return self.size.to_bytes(_SIZE, "little") + self.root

    @classmethod
    def unpacked(cls, data: bytes) -> "Head | None":
        """The head in an announcement; None if it has none.

        Raises:
            WireError: it is no head.
        """
        if not data:
            return None
        if len(data) != _SIZE + merkle.HASH:
            raise WireError("the head of a ledger has a size and a root")
        return cls(int.from_bytes(data[:_SIZE], "little"), bytes(data[_SIZE:]))

    def __str__(self) -> str:
        return f"{self.size}:{self.root.hex()}"


@dataclass(frozen=True, slots=True)
class TakenUpdate:
    """An update in a release."""

    outbox: int
    seq: int
    body: bytes
    """The first 8 bytes of the SHA-256 of its body as it travelled; empty in an older store."""
    generation: int
    base: int
    version: int
    """The release."""
    weight: float
    """In its step."""

    def entry(self, salt: bytes) -> bytes:
        """Its entry in the log."""
        said = [self.outbox, self.seq, self.body, self.generation, self.base, self.version, float(self.weight)]
        return frames.pack(["update", salt, *said])


@dataclass(frozen=True, slots=True)
class LoggedRelease:
    """A release in the log."""

    generation: int
    version: int
    step: int
    digest: bytes
    """Of the published state, as announced."""
    updates: int
    """How many it took: their entries are those before its own."""

    def entry(self) -> bytes:
        """Its entry in the log."""
        return frames.pack(["release", self.generation, self.version, self.step, self.digest, self.updates])


class Unproven(WireError):
    """A proof does not prove what it should."""


def check(proof: "Proof", head: Head, taken: TakenUpdate, earlier: Head | None = None) -> LoggedRelease:
    """The release that has an update, as a proof shows.

    Args:
        proof: the aggregator's answer.
        head: of the log, as verified in an announcement.
        taken: the update, as the device knows it, with what the answer says of it.
        earlier: a head of the same log that was verified before; None if there is none.

    Raises:
        Unproven: it does not show it.
    """
    leaf = merkle.leaf_hash(taken.entry(proof.salt))
    if not merkle.includes(head.root, head.size, proof.place, leaf, proof.path):
        raise Unproven("the update is not in the log that was announced")
    released = LoggedRelease(proof.generation, proof.version, proof.step, proof.digest, proof.updates)
    if not proof.release - proof.updates <= proof.place < proof.release:
        raise Unproven("the update is not among those of the release that is named")
    own = merkle.leaf_hash(released.entry())
    if not merkle.includes(head.root, head.size, proof.release, own, proof.release_path):
        raise Unproven("the release is not in the log that was announced")
    if earlier is not None and not follows(head, earlier, proof.since):
        raise Unproven(
            "the log does not go on from the one that this device verified before: its history was changed, or its "
            "store was restored from a copy"
        )
    return released


def follows(head: Head, earlier: Head, path: Sequence[bytes]) -> bool:
    """Whether a log is an earlier one with entries appended."""
    return merkle.extends(earlier.size, earlier.root, head.size, head.root, path)
