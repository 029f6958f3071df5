"""An outbox in memory, for simulated devices: thousands of them in one process, without durability.

It keeps the promises of `iot_client.state.outbox.Outbox` except for the disk, and holds only waiting updates and the
residual. It survives its device as long as it is referenced.
"""

import math
import secrets
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

from midge.iot_client.state.outbox import Outbox
from midge.wire.messages import Update


class MemoryOutbox:
    """Like `Outbox`. From one thread; a context manager, which may be entered again."""

    __slots__ = (
        "_held",
        "_left",
        "_remembered",
        "identity",
        "lost",
        "next_seq",
        "path",
        "pending",
        "sent",
        "spent",
        "verdicts",
        "written",
    )

    def __init__(self) -> None:
        self.path: Path | None = None
        self.identity = secrets.randbits(63)
        self.next_seq = 1
        self.sent = self.lost = 0
        self.spent = 0.0
        self.pending: dict[str, bytes] = {}
        self.written = 0
        self.verdicts: dict[int, str] = {}
        self._held: dict[int, tuple[Update, bytes]] = {}
        self._left: bytes | None = None
        self._remembered: dict[str, bytes] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Do nothing: nothing is open."""

    def held(self) -> list[Update]:
        """The headers of the waiting updates, in order."""
        return [update for update, _ in self._held.values()]

    def body(self, seq: int) -> bytes:
        """The encoded delta of a waiting update."""
        return self._held[seq][1]

    def piece(self, seq: int, start: int, size: int) -> bytes:
        """A slice of it."""
        return self._held[seq][1][start : start + size]

    @property
    def rotted(self) -> str:
        """Always empty: memory does not rot."""
        return ""

    def store(
        self, update: Update, body: bytes, residual: bytes | None = None, *, sent: int = 0, rho: float = 0.0
    ) -> None:
        """Store an update under its seq, which must be the next, and the residual."""
        self.spent += rho
        self.note_sent(sent)
        assert update.seq == self.next_seq
        self._held[update.seq] = update, body
        self._left = residual
        self.write_pending()
        self.next_seq = update.seq + 1

    def replace(self, update: Update, body: bytes) -> None:
        """Replace a waiting update by its sealed form."""
        self._held[update.seq] = update, body

    def note_sent(self, through: int) -> None:
        """Record that updates up to a seq were sent."""
        self.sent = max(self.sent, through)

    def remembered(self, name: str) -> bytes | None:
        """The value of `pending` under this name at the last write."""
        return self._remembered.get(name)

    def write_pending(self) -> None:
        """Keep what is pending."""
        self._remembered |= self.pending
        self.pending.clear()

    def residual(self) -> bytes | None:
        """The residual of the last stored update."""
        return self._left

    def forget(self, through: int) -> None:
        """Remove every update up to a seq: a receipt settled them."""
        for seq in [seq for seq in self._held if seq <= through]:
            del self._held[seq]
        self.verdicts.clear()

    def renew(self, keep: Iterable[int], *, unknown: bool = False) -> None:
        """Adopt a new identity; only these updates move over, numbered from 1."""
        self.spent = math.inf if unknown else self.spent
        moved = [self._held[seq] for seq in sorted(keep)]
        self.identity, self.next_seq, self.sent = secrets.randbits(63), len(moved) + 1, 0
        self._held = {
            number: (update.model_copy(update={"outbox": self.identity, "seq": number, "first": 1}), body)
            for number, (update, body) in enumerate(moved, start=1)
        }


AnyOutbox = Outbox | MemoryOutbox


def outbox_at(path: str | Path | None) -> AnyOutbox:
    """Make the outbox of a file; one in memory without a path."""
    return MemoryOutbox() if path is None else Outbox(path)
