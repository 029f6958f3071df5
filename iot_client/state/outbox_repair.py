"""Repair of an outbox with damaged or restored files, before it is opened, and a report of what is lost.

The loss is reported and the outbox continues: a board in the field that refuses to start would cost more than lost
updates. It refuses if the missing updates may exist elsewhere, in another outbox or a later format, or if their number
is unknown.
"""

import logging
import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

from midge.iot_client.state.outbox_files import (
    INSERT,
    LOST,
    STATE,
    TABLES,
    OutboxError,
    OutboxFiles,
    checksum,
    examine,
    reading,
    rows,
    strangers,
    unusable,
    updates,
    witness_of,
    wrapped,
)
from midge.iot_client.state.outbox_state import FORMAT, Agreed, OutboxState, Strangers
from midge.storage.files import atomic_rename, make_private_file, sync_folder

log = logging.getLogger("iot_client")

DAMAGED, EARLIER = "damaged", "format-1"
"""Suffixes of the files kept beside a rebuilt outbox: because it was damaged, or of an earlier format."""


def repair(path: Path) -> str:
    """Rebuild the outbox from undamaged updates if something is missing; return what was wrong, or nothing.

    Raises:
        OutboxError: it is of a later format, another outbox's, or beyond repair.
        OSError: it cannot be read or written.
        sqlite3.Error: the same.
    """
    take_up(path)
    found = examine(path)
    if found.format not in (1, FORMAT):
        raise OutboxError(
            f"The outbox {path} has format {found.format}, of a newer Midge; this one reads {FORMAT}: install that one."
        )
    try:
        known, damage = found.agreed, found.damage
    except Strangers as error:
        assert found.database is not None and found.witness is not None
        raise strangers(path, found.database, found.witness) from error
    if damage and known is None:
        raise unusable(path, damage)
    if known is None:
        return ""
    if damage:
        lost = found.lost(known)
        rebuild(found, known, DAMAGED)
        damage += f"; {_loss(lost)}"
        log.warning(
            "The outbox %s is damaged or was restored from a copy: %s. It continues with the %s that are "
            "intact; the old files are kept beside it, as .%s.",
            *(path, damage, updates(known.state.waiting - len(lost) - len(found.gone)), DAMAGED),
        )
    elif found.format != FORMAT:
        state = rebuild(found, known, EARLIER)
        with closing(witness_of(path)) as witness:
            witness.write(state.pack())
        log.info("The outbox %s was of format %d; it is kept beside it, as .%s.", path, found.format, EARLIER)
    return damage


def _loss(lost: list[int]) -> str:
    if not lost:
        return "no update is lost"
    which = f"number {lost[0]}" if len(lost) == 1 else f"of numbers {lost[0]} to {lost[-1]}"
    return f"{updates(len(lost))} that waited in it {'is' if len(lost) == 1 else 'are'} lost ({which})"


def accept_loss(path: Path) -> list[Path]:
    """Move an outbox's files aside, so that the next start makes a new one; return their new paths.

    Raises:
        OSError: they cannot be renamed.
    """
    return put_aside(path, DAMAGED, witness_of(path).path)


def rebuild(found: OutboxFiles, known: Agreed, aside: str) -> OutboxState:
    """Make a database from the undamaged updates; the old files are kept beside it with this suffix.

    A power cut leaves the old one, or a finished one that `take_up` puts in its place.

    Raises:
        OSError: it cannot be written.
        sqlite3.Error: the same.
    """
    path, lost = found.path, found.lost(known)
    state = replace(known.state, lost=known.state.lost + len(lost))
    draft, fresh = path.with_name(f".{path.name}.{aside}.tmp"), _fresh(path, aside)
    draft.unlink(missing_ok=True)
    make_private_file(draft)
    with closing(sqlite3.connect(draft, isolation_level="IMMEDIATE")) as db:
        db.executescript(TABLES)
        with db:
            db.executemany("INSERT INTO meta VALUES (?, ?)", [("format", state.format), (STATE, state.pack())])
            if not known.foreign:
                for seq, row in _saved(found):
                    if state.first <= seq < state.next:
                        db.execute(INSERT, (seq, *row))
            if found.there:
                db.executemany("INSERT OR IGNORE INTO meta VALUES (?, ?)", _remembered(found))
            there = {seq for (seq,) in db.execute("SELECT seq FROM updates")}
            db.executemany(INSERT, [(seq, *LOST) for seq in range(state.first, state.next) if seq not in there])
    draft.replace(fresh)
    take_up(path)
    return state


def take_up(path: Path) -> None:
    """Put a rebuilt database in place, and keep the old files beside it. Does nothing if there is none.

    Raises:
        OSError: it cannot be renamed.
    """
    for aside in (DAMAGED, EARLIER):
        if (fresh := _fresh(path, aside)).exists():
            sync_folder(path.parent)
            put_aside(path, aside)
            atomic_rename(fresh, path)


def _fresh(path: Path, aside: str) -> Path:
    return path.with_name(f".{path.name}.{aside}.new")


def put_aside(path: Path, aside: str, *more: Path) -> list[Path]:
    """Rename the database, and the files beside it, with a suffix; earlier files with that suffix are removed."""
    moved, there = [], path.exists()
    for each in (path, path.with_name(f"{path.name}-wal"), *more):
        target = path.with_name(f"{path.name}.{aside}{each.name.removeprefix(path.name)}")
        if each.exists():
            moved.append(each.replace(target))
        elif there:
            target.unlink(missing_ok=True)  # from an earlier repair
    path.with_name(f"{path.name}-shm").unlink(missing_ok=True)
    sync_folder(path.parent)
    return moved


def _saved(found: OutboxFiles) -> Iterator[tuple[int, tuple[bytes, bytes, bytes]]]:
    for seq in sorted(found.whole):
        with reading(found.path) as db:
            _, header, body, _ = db.execute(rows(found.format, "WHERE seq = ?"), (seq,)).fetchone()
            yield seq, (header, body, checksum(header, body))


def _remembered(found: OutboxFiles) -> list[tuple[str, bytes]]:
    """Other stored values; damaged ones are ignored when they are read."""
    kept: list[tuple[str, bytes]] = []
    with suppress(sqlite3.Error), reading(found.path) as db:
        for name, value in db.execute("SELECT name, value FROM meta"):
            if isinstance(value, bytes) and name != STATE:
                kept.append((name, wrapped(value) if found.format == 1 else value))
    return kept
