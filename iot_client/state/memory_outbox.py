"""An outbox in memory, for simulated devices: thousands of them in one process, where nothing needs to survive it.

It keeps what `iot_client.state.outbox.Outbox` promises but for the disk, and holds nothing but the updates that wait
and what was left to say. It survives the device that used it for as long as it is referenced.
"""

import secrets
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

from midge.iot_client.state.outbox import Outbox
from midge.wire.messages import Update


class MemoryOutbox:
    """As an `Outbox`. From one thread; a context manager, which may be entered again."""

    __slots__ = ("_held", "_left", "_remembered", "identity", "lost", "next_seq", "path", "pending", "sent", "written")

    def __init__(self) -> None:
        self.path: Path | None = None
        self.identity = secrets.randbits(63)
        self.next_seq = 1
        self.sent = self.lost = 0
        self.pending: dict[str, bytes] = {}
        self.written = 0
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
        """Nothing is open."""

    def held(self) -> list[Update]:
        """The headers of what waits, in order."""
        return [update for update, _ in self._held.values()]

    def body(self, seq: int) -> bytes:
        """The encoded delta of an update that waits."""
        return self._held[seq][1]

    def piece(self, seq: int, start: int, size: int) -> bytes:
        """Some bytes of it."""
        return self._held[seq][1][start : start + size]

    @property
    def rotted(self) -> str:
        """Nothing rots in it."""
        return ""

    def store(self, update: Update, body: bytes, residual: bytes | None = None, *, sent: int = 0) -> None:
        """Keep an update under its seq, which must be the next, and what it leaves to say."""
        self.note_sent(sent)
        assert update.seq == self.next_seq
        self._held[update.seq] = update, body
        self._left = residual
        self.write_pending()
        self.next_seq = update.seq + 1

    def note_sent(self, through: int) -> None:
        """Remember that updates up to a seq were sent."""
        self.sent = max(self.sent, through)

    def remembered(self, name: str) -> bytes | None:
        """What was `pending` under this name when something was last written."""
        return self._remembered.get(name)

    def write_pending(self) -> None:
        """Remember what is pending."""
        self._remembered |= self.pending
        self.pending.clear()

    def residual(self) -> bytes | None:
        """What the last update that was stored left to say."""
        return self._left

    def forget(self, through: int) -> None:
        """Remove every update up to a seq: a receipt settled them."""
        for seq in [seq for seq in self._held if seq <= through]:
            del self._held[seq]

    def renew(self, keep: Iterable[int]) -> None:
        """Take a new identity; only these updates move over, numbered from 1."""
        moved = [self._held[seq] for seq in sorted(keep)]
        self.identity, self.next_seq, self.sent = secrets.randbits(63), len(moved) + 1, 0
        self._held = {
            number: (update.model_copy(update={"outbox": self.identity, "seq": number, "first": 1}), body)
            for number, (update, body) in enumerate(moved, start=1)
        }


AnyOutbox = Outbox | MemoryOutbox


def outbox_at(path: str | Path | None) -> AnyOutbox:
    """The outbox of a file; one in memory where there is none."""
    return MemoryOutbox() if path is None else Outbox(path)
