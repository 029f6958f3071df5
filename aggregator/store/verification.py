"""Verification of every part of a store, without changing a byte of it."""

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from midge.aggregator.store import audit_log
from midge.aggregator.store.consistency import Comparison, examine
from midge.aggregator.store.errors import StoreError
from midge.aggregator.store.evidence import Evidence, gather
from midge.aggregator.store.manifest import MANIFEST, read_backup
from midge.aggregator.store.reading import ReadOnlyStore
from midge.aggregator.store.salvage import Loss, loss_of, note_of
from midge.aggregator.store.shard_stores import shard_stores
from midge.wire.errors import WireError
from midge.wire.plurals import counted

_TIMES = 3
"""Reads of a running store: what is removed between two reads is missing at one of them, and not damaged."""
_SHOWN = 5
SALVAGE = "stop the aggregator, then midge store salvage STORE TARGET; or restore a backup"
LATER = "nothing is lost; see to the disk"


@dataclass(frozen=True, slots=True)
class PartVerdict:
    """Result for one part of a store."""

    name: str
    checked: int
    damaged: int
    at_stake: int | None = 0
    """Lost updates whose devices have receipts; None if their number is unknown."""
    found: tuple[str, ...] = ()
    """The first damaged items, as text."""
    advice: str = ""


def verify(directory: Path) -> list[PartVerdict]:
    """Verify every part, of its shards too, also beside a running aggregator.

    Raises:
        StoreError: there is no store, or a file of it cannot be read at all.
    """
    if not any(directory.glob("store.db*")) and not any(directory.glob("checkpoint-*")):
        raise StoreError(f"{directory} is no store of an aggregator: there is no store.db in it.")
    parts: list[PartVerdict] = []
    for _ in range(_TIMES):
        try:
            evidence = gather(directory, own=True)
        except OSError as error:
            raise StoreError(f"{directory} cannot be read ({error.strerror or error}).") from error
        parts = list(_parts(directory, evidence))
        if not evidence.running or not any(part.damaged for part in parts):
            break
    for store in shard_stores(directory):
        parts += [replace(part, name=f"{store.name}: {part.name}") for part in verify(store)]
    return parts


def _parts(directory: Path, evidence: Evidence) -> Iterator[PartVerdict]:
    loss = loss_of(evidence, note_of(directory, evidence))
    compared = _compared(directory)
    yield _part("database", 1, evidence.unsound, loss.updates, SALVAGE)
    spoilt = [f"frame {number} is not whole" for number, frame in enumerate(evidence.log.frames, 1) if not frame.whole]
    spoilt = spoilt if evidence.log.readable < evidence.log.committed or evidence.log.damaged else []
    if evidence.log.readable < evidence.log.committed and not spoilt:
        spoilt = ["its header is not whole"]
    yield _part("log", evidence.log.committed, spoilt, max(loss.updates, compared.at_stake or 0), SALVAGE)
    yield from _journal(evidence, loss)
    yield _checkpoints(evidence, loss)
    yield _frames(evidence)
    yield _registered(evidence)
    yield _metadata(evidence, loss)
    yield _history(evidence)
    found = [compared.refusal] if compared.refusal else list(compared.warnings)
    yield _part("witness", 1, found, compared.at_stake, SALVAGE if compared.refusal else LATER)
    yield _ledger(directory)
    yield _audit_log(directory)
    if (directory / MANIFEST).exists():
        yield _manifest(directory)


def _part(
    name: str, checked: int, found: list[str] | tuple[str, ...], at_stake: int | None, advice: str
) -> PartVerdict:
    if not found:
        return PartVerdict(name, checked, 0)
    return PartVerdict(name, max(checked, len(found)), len(found), at_stake, tuple(found[:_SHOWN]), advice)


def _compared(directory: Path) -> Comparison:
    try:
        return examine(directory) or Comparison()
    except StoreError as error:
        return Comparison(refusal=str(error).rstrip("."))


def _journal(evidence: Evidence, loss: Loss) -> Iterator[PartVerdict]:
    """Records, and bodies in segments."""
    rows, needed = evidence.rows, evidence.oldest_needed or 0
    first = min(rows, default=evidence.newest + 1)
    missing = [f"record {lsn} is missing" for lsn in range(first, evidence.newest + 1) if lsn not in rows]
    if not rows and evidence.newest and not evidence.checkpoints:
        missing = ["it cannot be read"]
    records, bodies, stored = list[str](), list[str](), 0
    for lsn, row in rows.items():
        segment = row.columns[5]
        stored += segment is not None and lsn >= needed
        if row.whole or lsn < needed:
            continue
        if segment is not None:
            bodies.append(f"the body of record {lsn} in bodies-{segment:012d} is not what was written, or gone")
        else:
            records.append(f"record {lsn} is not what was written")
    damaged = [*missing, *records]
    at_stake = loss.updates
    yield _part("journal", evidence.newest - first + 1, damaged, at_stake, SALVAGE if at_stake else LATER)
    yield _part("bodies", stored, bodies, at_stake, SALVAGE if at_stake else LATER)


def _checkpoints(evidence: Evidence, loss: Loss) -> PartVerdict:
    whole = {kept.file for kept in evidence.checkpoints if kept.proven}
    found = [f"{file} is not what was written, or gone" for file in evidence.stored if file not in whole]
    advice = SALVAGE if loss.updates or not whole else "nothing is lost: an older one is used; see to the disk"
    return _part("checkpoints", len(evidence.stored), found, loss.updates, advice)


def _frames(evidence: Evidence) -> PartVerdict:
    advice = "nothing is lost: the next start makes them again; see to the disk"
    return _part("frames", evidence.frames, evidence.damaged_frames, 0, advice)


def _registered(evidence: Evidence) -> PartVerdict:
    checked = len(evidence.registered) + len(evidence.damaged_registered)
    advice = "register a version again, or restore a backup: no update is lost, but what this version was"
    return _part("registered versions", checked, evidence.damaged_registered, 0, advice)


def _metadata(evidence: Evidence, loss: Loss) -> PartVerdict:
    found = list(evidence.damaged_meta)
    if evidence.damaged_names:
        found.append(f"entries of withdrawn devices are damaged: {evidence.damaged_names}")
    if evidence.schema is None or not isinstance(evidence.meta.get("lineage"), bytes):
        found.append("the model's description or the lineage cannot be read")
    return _part("metadata", len(evidence.meta), found, loss.updates, SALVAGE)


def _history(evidence: Evidence) -> PartVerdict:
    damaged = evidence.damaged_history
    found = [f"{counted(damaged, 'period')} are damaged" if damaged > 1 else "a period is damaged"] if damaged else []
    checked = damaged + len(evidence.beside.get("history", ()))
    advice = "no update is lost: midge report leaves these periods out"
    return PartVerdict("history", checked, damaged, 0, tuple(found), advice if damaged else "")


def _manifest(directory: Path) -> PartVerdict:
    """The manifest of a backup."""
    try:
        return PartVerdict("manifest", len(read_backup(directory).files), 0)
    except StoreError as error:
        return _part("manifest", 1, [str(error).rstrip(".")], 0, "use another backup")


def _ledger(directory: Path) -> PartVerdict:
    """The log of releases; another part reports a database that cannot be opened."""
    try:
        with ReadOnlyStore(directory) as store:
            checked, damage = store.ledger.kept(), store.ledger.damage()
    except (StoreError, sqlite3.Error, OSError, WireError, TypeError, ValueError):
        return PartVerdict("log of releases", 0, 0)
    return _part(
        "log of releases",
        checked,
        [damage] if damage else [],
        0,
        "midge audit STORE --from V; a backup has an older one",
    )


def _audit_log(directory: Path) -> PartVerdict:
    try:
        verdict = audit_log.verify(directory)
    except (OSError, sqlite3.Error, StoreError) as error:
        return _part("audit log", 0, [f"it cannot be looked at ({error})"], 0, "midge audit verify STORE")
    return _part("audit log", verdict.lines, verdict.wrong, 0, "find out who changed it; a backup has an older one")
