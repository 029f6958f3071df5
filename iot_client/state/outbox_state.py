"""The state of an outbox, in its database and in the witness beside it, and which of the two is right.

SQLite reads its log up to the first damaged frame, so a flipped bit rolls an outbox back. The witness does not follow:
it records how far the outbox had come, what of it was ever sent and what was settled. Missing updates are then known by
number, and the outbox continues after them under the same identity. So a used number is never used again, and what the
aggregator has settled stays settled.
"""

import struct
import zlib
from dataclasses import dataclass, replace
from typing import Self

FORMAT = 2
UNSEALED = 3
"""The format while an update waits that must be sealed before it is sent: an earlier Midge would send it as it is."""
_COUNTED = 2
"""Added to the format of an outbox that counts spent privacy: an earlier Midge would not."""
FORMATS = (FORMAT, UNSEALED, FORMAT + _COUNTED, UNSEALED + _COUNTED)
_LAYOUT = struct.Struct("<B7QI")
_SPENT = struct.Struct("<d")
_CRC = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class OutboxState:
    """The state at the last transaction, or record in the witness."""

    identity: int
    next: int = 1
    """The number of the next update."""
    first: int = 1
    """All below it are settled."""
    sent: int = 0
    """The highest seq that was ever sent."""
    residual: int = 0
    """Number of the valid residual file; 0 is none."""
    residual_crc: int = 0
    """CRC-32 of that file."""
    before: int = 0
    """The identity that this one replaced; 0 if it is the first."""
    lost: int = 0
    """Updates lost to damage before they were settled, of all identities."""
    unsealed: bool = False
    """Whether an update may wait that must be sealed before it is sent."""
    spent: float = 0.0
    """ρ of all updates with noise that were ever stored, under any identity; infinite if it is not known."""

    @property
    def format(self) -> int:
        """The format of an outbox in this state."""
        return (UNSEALED if self.unsealed else FORMAT) + (_COUNTED if self.spent else 0)

    def pack(self) -> bytes:
        """Encode for the database and the witness."""
        counters = self.identity, self.next, self.first, self.sent, self.residual, self.before, self.lost
        data = _LAYOUT.pack(self.format, *counters, self.residual_crc)
        data += _SPENT.pack(self.spent) if self.spent else b""
        return data + _CRC.pack(zlib.crc32(data))

    @classmethod
    def unpack(cls, data: object) -> Self | None:
        """Read what `pack` wrote; None if it is not."""
        if not isinstance(data, bytes) or len(data) < _LAYOUT.size + _CRC.size:
            return None
        form, identity, following, first, sent, residual, before, lost, crc = _LAYOUT.unpack_from(data)
        counted = form >= FORMAT + _COUNTED
        size = _LAYOUT.size + (_SPENT.size if counted else 0)
        if form not in FORMATS or len(data) != size + _CRC.size:
            return None
        if _CRC.unpack_from(data, size)[0] != zlib.crc32(data[:size]):
            return None
        (spent,) = _SPENT.unpack_from(data, _LAYOUT.size) if counted else (0.0,)
        unsealed = form in {UNSEALED, UNSEALED + _COUNTED}
        return cls(identity, following, first, sent, residual, crc, before, lost, unsealed, spent)

    @property
    def waiting(self) -> int:
        """Most updates that may wait in it."""
        return self.next - self.first


class Strangers(Exception):
    """The database and the witness are of different outboxes."""


@dataclass(frozen=True, slots=True)
class Agreed:
    """The agreed state of an outbox."""

    state: OutboxState
    foreign: bool = False
    """Whether the rows of the database belong to an earlier identity, and are obsolete."""
    behind: bool = False
    """Whether the database is older than the witness."""


def agreed(database: OutboxState | None, witness: OutboxState | None, *, doubtful: bool = False) -> Agreed | None:
    """The state that follows from both; None if there is neither.

    Args:
        database: its state; None if it is damaged or lost.
        witness: the newest note; None if it is damaged or lost.
        doubtful: whether that may be the note before the newest.

    Raises:
        Strangers: neither followed from the other.
    """
    if database is None or witness is None:
        if (known := database or witness) is None:
            return None
        # Without a note, all may have been sent.
        return Agreed(replace(known, sent=known.next - 1) if witness is None else known, behind=database is None)
    if database.identity != witness.identity:
        if database.before == witness.identity:
            return Agreed(database)  # a power cut between a renewal and its note
        if witness.before == database.identity:
            return Agreed(witness, foreign=True, behind=True)
        raise Strangers
    newer = database if database.next >= witness.next else witness
    # The note of the newest commit may be missing; then nothing of that commit was sent. An older note shows a copy.
    current = database.next <= witness.next + 1 and not doubtful
    sent = max(database.sent, witness.sent) if current else newer.next - 1
    state = replace(
        newer,
        first=max(database.first, witness.first),
        sent=sent,
        lost=max(database.lost, witness.lost),
        unsealed=database.unsealed or witness.unsealed,
        spent=max(database.spent, witness.spent),
    )
    return Agreed(state, behind=newer is witness)
