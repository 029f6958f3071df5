"""The life of one update, read from a store beside a running aggregator or on a read-only mount."""

import sqlite3
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, TypeVar

from midge.aggregator.core import records as rec
from midge.aggregator.store.errors import StoreError
from midge.aggregator.store.reading import reading
from midge.aggregator.store.what_if import Change
from midge.wire.messages import Verdict

Ending = rec.DropRecord | rec.RollbackRecord | rec.SumRecord
"""What ends the wait of an accepted update without a step."""
_HOW: Final = {rec.DropRecord: "drop", rec.RollbackRecord: "rollback", rec.SumRecord: "sum"}


@dataclass(frozen=True, slots=True)
class Life:
    """What happened to one update."""

    update: rec.UpdateRecord
    step: rec.StepRecord | None = None
    """The step that applied it; None if there is none, or none yet."""
    weight: float | None = None
    """Its weight in that step, or in the sum that a gateway sent on."""
    release: rec.ReleaseRecord | None = None
    """The first release that included it."""
    ended: Ending | None = None
    """What took it out of the buffer before any step."""
    undone: rec.RollbackRecord | None = None
    """The return to a registered version that does not contain it, if no later return brought it back."""

    @property
    def waits(self) -> bool:
        """Whether it waits in the buffer for its step."""
        return self.update.verdict == Verdict.ACCEPTED and self.step is None and self.ended is None

    def packed(self) -> dict[str, Any]:
        """As plain values."""
        update = asdict(self.update)
        update["outbox"] = f"{self.update.outbox:016x}"
        update |= {name: update[name].hex() for name in ("body", "ticket", "who")}
        ended, undone = self.ended, self.undone
        return {
            **update,
            "step": None if self.step is None else self.step.step,
            "applied_weight": self.weight,
            "version": None if self.release is None else self.release.version,
            "waits": self.waits,
            "ended": None
            if ended is None
            else {"record": ended.lsn, "how": _HOW[type(ended)], "why": getattr(ended, "why", "")},
            "undone": None
            if undone is None
            else {"record": undone.lsn, "to": undone.to, "since": undone.version + 1, "why": undone.why},
        }


def explain(directory: Path, device: str, seq: int, outbox: int | None = None) -> list[Life]:
    """The life of a device's update of that seq; several if the device has had several outboxes.

    Raises:
        StoreError: there is no such store, or no such update in its journal.
    """
    with reading(directory) as db:
        rows = db.execute("SELECT kind, record FROM journal WHERE kind = 'update' ORDER BY lsn")
        updates = [record for record in _records(rows) if isinstance(record, rec.UpdateRecord)]
        found = [
            record
            for record in updates
            if (record.device, record.seq) == (device, seq) and outbox in (None, record.outbox)
        ]
        if not found:
            known = [record.seq for record in updates if record.device == device]
            about = f"it has {min(known)} to {max(known)} of {device}" if known else f"it has nothing of {device}"
            raise StoreError(f"The journal in {directory} has no update {device}/{seq}: {about}.")
        return [_life(db, record) for record in found]


def _life(db: sqlite3.Connection, update: rec.UpdateRecord) -> Life:
    following = _Following(update, {record.version for record in _of(db, 0, "release", kind=rec.ReleaseRecord)})
    for record in _of(db, update.lsn, "step", "release", "register", "rollback", "drop", "sum", kind=object):
        following.take(record)
    return following.life


class _Following:
    """The records behind an update, and what the model contains of it.

    Args:
        update: the update.
        released: the versions that are releases; another one that training goes back to is a promoted what-if.
    """

    def __init__(self, update: rec.UpdateRecord, released: Collection[int]) -> None:
        self.life = Life(update)
        self._released = released
        self._held = False
        """Whether the model contains it now."""
        self._since: list[tuple[int, bool]] = []
        """From which versions on they contain it, or do not."""
        self._registered: rec.RegisterRecord | None = None

    def take(self, record: object) -> None:
        """Follow a record."""
        life, lsn = self.life, self.life.update.lsn
        match record:
            case rec.RegisterRecord():
                self._registered = record
            case rec.DropRecord() | rec.RollbackRecord() if life.waits and lsn in record.dropped:
                self.life = replace(life, ended=record)
            case rec.SumRecord() if life.waits and lsn in (weights := dict(record.updates)):
                self.life = replace(life, ended=record, weight=weights[lsn])
            case rec.StepRecord() if life.waits and lsn in (weights := dict(record.updates)):
                self.life = replace(life, step=record, weight=weights[lsn])
                self._held = True
            case rec.RollbackRecord() if life.step is not None:
                self._go_back(record)
            case rec.ReleaseRecord() if self._held and life.release is None:
                # One without devices' work publishes the same model again, but for that after a promotion.
                if record.devices or self._since:
                    self.life = replace(life, release=record)
                    self._since.append((record.version, True))
            case _:
                pass

    def _go_back(self, record: rec.RollbackRecord) -> None:
        made, device = self._registered, self.life.update.device
        if made is not None and made.lsn == record.lsn - 1 and record.to not in self._released:
            # A promotion: the what-if executed all steps again, also those that no release had.
            change = Change.read(made.strategy)
            self._held = self._held and change is not None and device not in change.without
        else:
            self._held = next((held for since, held in reversed(self._since) if since <= record.to), False)
        self._since += [(record.to, self._held)] if record.to not in self._released else []
        self._since.append((record.version + 1, self._held))
        if self._held:
            self.life = replace(self.life, undone=None)
        elif self.life.undone is None:
            self.life = replace(self.life, undone=record)


_Record = TypeVar("_Record")


def _of(db: sqlite3.Connection, after: int, *kinds: str, kind: type[_Record]) -> Iterator[_Record]:
    marks = ",".join("?" * len(kinds))
    query = f"SELECT kind, record FROM journal WHERE kind IN ({marks}) AND lsn > ? ORDER BY lsn"  # noqa: S608 - marks
    yield from (record for record in _records(db.execute(query, (*kinds, after))) if isinstance(record, kind))


def _records(rows: Iterator[tuple[str, bytes]]) -> Iterator[rec.Record]:
    for kind, record in rows:
        yield rec.unpack(kind, record)
