"""The files of a store that a standby copies, and the mark of a store that follows another one."""

import re
import sqlite3
from contextlib import closing
from pathlib import Path

from midge.aggregator.store import audit_log, device_erasure, model_orders
from midge.aggregator.store.consistency import DATABASE, FOLLOWS, WITNESS
from midge.storage.files import atomic_write, sync_folder

_BESIDE = (
    rf"{re.escape(WITNESS)}|bodies-\d{{12}}(?:\.kept-\d+)?|checkpoint-\d{{12}}\.safetensors|"
    rf"{re.escape(audit_log.AUDIT)}|{re.escape(audit_log.KEY)}|paused|"
    rf"(?:{device_erasure.FOLDER}|{model_orders.FOLDER})/[A-Za-z0-9][A-Za-z0-9._-]*"
)
BESIDE = re.compile(_BESIDE)
"""Files beside the database. Not the lock and the reserved space, which are each host's own, nor exported models, nor
the sealing keys of the day: a copy opens with the release key, and with them yesterday's updates would too."""
ALL = re.compile(rf"{re.escape(DATABASE)}|{_BESIDE}")
PROMOTE = "promote"
"""An operator's order to serve (`midge store promote`)."""
ALONE = "alone"
"""A mark that this store has taken over, and that no standby has followed it since: receipts do not wait for one."""
_BEGUN, _COMPLETE = b"begun", b"complete"


def follows(directory: Path) -> bool:
    """Whether the store follows another one."""
    return (directory / FOLLOWS).exists()


def has_copy(directory: Path) -> bool:
    """Whether there is a whole store, if perhaps an old one."""
    if follows(directory):
        return (directory / FOLLOWS).read_bytes() == _COMPLETE
    return (directory / DATABASE).is_file() and (directory / DATABASE).stat().st_size > 0


def mark_following(directory: Path, *, complete: bool) -> None:
    """Let no aggregator open the store, durably.

    Raises:
        OSError: it cannot be written.
    """
    atomic_write(directory / FOLLOWS, _COMPLETE if complete else _BEGUN)


def take_over(directory: Path) -> None:
    """Let the store be opened again, to serve alone until another one follows it, durably.

    Raises:
        OSError: it cannot be written.
    """
    (directory / PROMOTE).unlink(missing_ok=True)
    atomic_write(directory / ALONE, b"")
    (directory / FOLLOWS).unlink(missing_ok=True)
    sync_folder(directory)


def fold_log(directory: Path) -> None:
    """Write SQLite's log into the database, so that its file alone is the database. The store is locked.

    Raises:
        sqlite3.Error: it cannot be read or written.
    """
    path = directory / DATABASE
    if path.with_name(f"{DATABASE}-wal").exists() and path.exists():
        with closing(sqlite3.connect(path, isolation_level=None)) as db:
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def promote(directory: Path) -> None:
    """Order the standby of this store to serve.

    Raises:
        OSError: it cannot be written.
    """
    atomic_write(directory / PROMOTE, b"")
