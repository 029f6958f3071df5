"""The life of one update, read from a store beside a running aggregator or on a read-only mount."""

import sqlite3
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from midge.aggregator.core import records as rec
from midge.aggregator.store.errors import StoreError
from midge.aggregator.store.reading import reading


@dataclass(frozen=True, slots=True)
class Life:
    """What happened to one update."""

    update: rec.UpdateRecord
    step: rec.StepRecord | None
    """The step that applied it; None if it was refused or still waits in the buffer."""
    weight: float | None
    """Its weight in that step."""
    release: rec.ReleaseRecord | None
    """The first release that included it."""

    def packed(self) -> dict[str, Any]:
        """As plain values."""
        update = asdict(self.update)
        update["outbox"] = f"{self.update.outbox:016x}"
        update |= {"body": self.update.body.hex(), "ticket": self.update.ticket.hex()}
        return {
            **update,
            "step": None if self.step is None else self.step.step,
            "applied_weight": self.weight,
            "version": None if self.release is None else self.release.version,
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
    step = release = weight = None
    behind = "SELECT kind, record FROM journal WHERE kind = ? AND lsn > ? ORDER BY lsn"
    for record in _records(db.execute(behind, ("step", update.lsn))):
        weights = dict(record.updates) if isinstance(record, rec.StepRecord) else {}
        if update.lsn in weights:
            step, weight = record, weights[update.lsn]
            release = next(_records(db.execute(behind, ("release", record.lsn))), None)
            break
    assert step is None or isinstance(step, rec.StepRecord)
    assert release is None or isinstance(release, rec.ReleaseRecord)
    return Life(update, step, weight, release)


def _records(rows: Iterator[tuple[str, bytes]]) -> Iterator[rec.Record]:
    for kind, record in rows:
        yield rec.unpack(kind, record)
