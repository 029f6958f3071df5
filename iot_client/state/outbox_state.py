"""What an outbox says of itself, in its database and in the witness beside it, and which of the two is right.

SQLite believes its log up to the first frame that is not whole, so a flipped bit rolls an outbox back. The witness does
not follow: it says how far the outbox had come, what of it was ever sent and what was settled. What is missing in the
database is then known by number, and the outbox goes on behind it under the same identity. So a number that was used
is never used again, and what the aggregator has settled stays settled.
"""

import struct
import zlib
from dataclasses import dataclass, replace
from typing import Self

FORMAT = 2
_LAYOUT = struct.Struct("<B7QI")
_CRC = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class OutboxState:
    """As of the last transaction, or note."""

    identity: int
    next: int = 1
    """What the next update will be numbered."""
    first: int = 1
    """All below it are settled."""
    sent: int = 0
    """The highest that was ever sent."""
    residual: int = 0
    """Which file of what is left to say counts; 0 is none."""
    residual_crc: int = 0
    """CRC-32 of that file."""
    before: int = 0
    """The identity that this one took the place of; 0 if it is the first."""
    lost: int = 0
    """Updates that rotted before they were settled, of all identities."""

    def pack(self) -> bytes:
        """For the database and the witness."""
        counters = self.identity, self.next, self.first, self.sent, self.residual, self.before, self.lost
        data = _LAYOUT.pack(FORMAT, *counters, self.residual_crc)
        return data + _CRC.pack(zlib.crc32(data))

    @classmethod
    def unpack(cls, data: object) -> Self | None:
        """Read what `pack` wrote; None if that is not what this is."""
        if not isinstance(data, bytes) or len(data) != _LAYOUT.size + _CRC.size:
            return None
        form, identity, following, first, sent, residual, before, lost, crc = _LAYOUT.unpack_from(data)
        if form != FORMAT or _CRC.unpack_from(data, _LAYOUT.size)[0] != zlib.crc32(data[: _LAYOUT.size]):
            return None
        return cls(identity, following, first, sent, residual, crc, before, lost)

    @property
    def waiting(self) -> int:
        """How many updates may wait in it."""
        return self.next - self.first


class Strangers(Exception):
    """The database and the witness are of different outboxes."""


@dataclass(frozen=True, slots=True)
class Agreed:
    """What holds of an outbox."""

    state: OutboxState
    foreign: bool = False
    """Whether the rows of the database are of an earlier identity, and count no more."""
    behind: bool = False
    """Whether the database is older than the witness."""


def agreed(database: OutboxState | None, witness: OutboxState | None, *, doubtful: bool = False) -> Agreed | None:
    """What the two say together; None if there is neither.

    Args:
        database: what it holds; None if it is rotten or gone.
        witness: the newest note; None if it is rotten or gone.
        doubtful: whether that may be the note before the newest.

    Raises:
        Strangers: neither followed on the other.
    """
    if database is None or witness is None:
        if (known := database or witness) is None:
            return None
        # Without a note, all may have been sent.
        return Agreed(replace(known, sent=known.next - 1) if witness is None else known, behind=database is None)
    if database.identity != witness.identity:
        if database.before == witness.identity:
            return Agreed(database)  # the power went between a renewal and its note
        if witness.before == database.identity:
            return Agreed(witness, foreign=True, behind=True)
        raise Strangers
    newer = database if database.next >= witness.next else witness
    # The note of the newest commit may be missing, and then nothing of it was sent. One that is older still is a copy.
    current = database.next <= witness.next + 1 and not doubtful
    sent = max(database.sent, witness.sent) if current else newer.next - 1
    state = replace(newer, first=max(database.first, witness.first), sent=sent, lost=max(database.lost, witness.lost))
    return Agreed(state, behind=newer is witness)
