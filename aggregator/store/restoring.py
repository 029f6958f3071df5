"""Restoring a store from a backup: atomically, and with a new generation."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from midge.aggregator.store import audit_log
from midge.aggregator.store.consistency import UNFINISHED, WITNESS
from midge.aggregator.store.device_erasure import FOLDER
from midge.aggregator.store.errors import StoreError, StoreInUse, making
from midge.aggregator.store.manifest import Manifest, read_backup
from midge.aggregator.store.put_back import mark
from midge.aggregator.store.shard_stores import SHARDS
from midge.aggregator.store.store import Store
from midge.storage.files import PRIVATE, copy_file, make_folder, sync_folder

_OURS = ("lock", "lost+found", UNFINISHED)
"""Files that may exist where a store is restored."""


def restore(source: Path, directory: Path, by: str, *, accept_spent: bool = False) -> Manifest:
    """Restore a backup as a store that begins a new generation at its next start.

    Args:
        source: the backup.
        directory: the store to make; it must not exist, or be empty.
        by: the operator, for the audit log.
        accept_spent: whether devices may spend privacy budget again that the backup does not know to be spent.

    Raises:
        StoreFull: there is no room; nothing is left of the attempt.
        StoreError: the backup is damaged, or there is a store already, or privacy budget would be spent again.
    """
    manifest = read_backup(source)
    if manifest.private and not accept_spent:
        raise StoreError(
            f"The federation is private, and {source} does not know what its devices have spent of their budget since: "
            "they could spend it again. Begin a new federation; or lower `epsilon` by what was released since, and say "
            "--accept-spent."
        )
    with making(f"The store {directory}"), new_store(directory) as unfinished:
        for name, described in manifest.files.items():
            make_folder((unfinished / name).parent)
            with (source / name).open("rb") as file:
                if copy_file(file, unfinished / name) != described:
                    raise StoreError(f"The backup {source} changed while it was read. Use another one.")
        for folder in {(unfinished / name).parent for name in manifest.files}:
            sync_folder(folder)
        begin_behind(unfinished, manifest.generation, "restored", by, backup=manifest.made, record=manifest.lsn)
    return manifest


@contextmanager
def new_store(directory: Path) -> Iterator[Path]:
    """A folder to make a store in, which is moved into place if the block succeeds and removed otherwise.

    Raises:
        StoreError: an aggregator uses the place, or it is not empty.
    """
    made = not directory.exists()
    make_folder(directory)
    lock = os.open(directory / "lock", os.O_CREAT | os.O_RDWR, PRIVATE)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StoreInUse(f"The store {directory} is in use by an aggregator: stop it, or name another.") from error
        unfinished = directory / UNFINISHED
        if unfinished.exists() and not (directory / "store.db").exists():
            _clear_unfinished(directory)
        taken = sorted(path.name for path in directory.iterdir() if path.name not in _OURS)
        if taken:
            raise StoreError(
                f"{directory} is not empty ({taken[0]} is there): rename it, for example to {directory}.old, or name "
                "another folder. Nothing was changed."
            )
        make_folder(unfinished)
        try:
            yield unfinished
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
        _put_in_place(unfinished, directory)
        made = False
    finally:
        if made:
            with suppress(OSError):
                (directory / "lock").unlink()
                directory.rmdir()
        os.close(lock)


def _clear_unfinished(directory: Path) -> None:
    """Remove the rest of a killed restore: it has no database yet."""
    left = (
        UNFINISHED,
        "checkpoint-*.safetensors",
        "bodies-*",
        audit_log.AUDIT,
        audit_log.KEY,
        WITNESS,
        "paused",
        FOLDER,
        SHARDS,
    )
    for path in [path for name in left for path in directory.glob(name)]:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _put_in_place(unfinished: Path, directory: Path) -> None:
    """Move the database last: without it there is no store, and an aggregator refuses to begin one there."""
    sync_folder(unfinished)
    for path in sorted(unfinished.iterdir(), key=lambda path: path.name == "store.db"):
        if path.name == "store.db":
            sync_folder(directory)
        if path.name != "lock":
            path.rename(directory / path.name)
    sync_folder(directory)
    shutil.rmtree(unfinished)


def begin_behind(directory: Path, generation: int, what: str, by: str, **about: object) -> None:
    """Let a store begin a generation above this one at its next start, with a line in its audit log if it has one.

    Devices may know versions, and hold receipts, that this store does not have.

    Raises:
        StoreError: the store cannot be used.
    """
    with Store(directory) as store:
        mark(store, generation)
        if (directory / audit_log.KEY).exists():
            audit_log.append(store, audit_log.load_key(store), {"what": what, "by": by, **about})
