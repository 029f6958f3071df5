"""Backups: consistent copies of a running store.

Copying the files of a running store does not work: SQLite's log, the database and the files beside them are of
different moments. Here SQLite copies the database within one transaction, and the files that this copy refers to are
copied after it: checkpoints, bodies of updates, the audit log up to its recorded end. These files only grow, or are
deleted whole: they are opened before the database is copied, so that one that is deleted meanwhile can still be read.

The stores of shards are copied after the aggregator's. So no sum that the copy has applied is of updates that the copy
of its shard does not have, and no update counts twice after a restore.

A backup is a folder with a manifest that has the SHA-256 of each file. It is made and checked under another name.
"""

import fcntl
import hashlib
import os
import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from midge.aggregator.core import records as rec
from midge.aggregator.store import audit_log
from midge.aggregator.store.consistency import WITNESSED
from midge.aggregator.store.device_erasure import FOLDER
from midge.aggregator.store.errors import StoreDamaged, StoreError, making
from midge.aggregator.store.manifest import MANIFEST, Manifest, digest_of
from midge.aggregator.store.put_back import private
from midge.aggregator.store.reading import ReadOnlyStore, reading
from midge.aggregator.store.segments import segment_file
from midge.aggregator.store.shard_stores import shard_stores
from midge.storage.files import PRIVATE, atomic_write, copy_file, make_folder, sync_folder

_TRIES = 4
"""Attempts to make a backup while files are deleted, or devices erased, during the copy."""


class _GoneMeanwhileError(Exception):
    """A file was deleted, or a body erased, during the copy."""


def backup(directory: Path, target: Path) -> Manifest:
    """Copy a store, also beside a running aggregator. When this returns, the copy is checked and durable.

    Args:
        directory: the store's.
        target: the folder to make; it must not exist, or be empty.

    Raises:
        StoreFull: there is no room; nothing is left of the attempt.
        StoreError: the store is damaged or cannot be read, or the target is taken or cannot be written.
    """
    if not (directory / "store.db").is_file():
        raise StoreError(f"{directory} is no store of an aggregator: there is no store.db in it.")
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise StoreError(f"{target} is there already: name a folder that is not.")
    if target.is_mount():
        raise StoreError(f"{target} is where a disk is mounted: name a folder on it that is not there.")
    partial = target.with_name(f".{target.name}.partial")
    with making(f"The backup {target}"):
        make_folder(target.parent)
        with _locked_folder(partial):
            manifest = _with_shards(_copied_with_retries(directory, partial), directory, partial)
            atomic_write(partial / MANIFEST, manifest.packed())
            partial.rename(target)
        sync_folder(target.parent)
    return manifest


@contextmanager
def _locked_folder(partial: Path) -> Iterator[None]:
    """An empty folder, locked against other processes. It is removed if the block fails."""
    make_folder(partial)
    descriptor = os.open(partial, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _clear(partial)  # left by a killed process
        yield
    except BlockingIOError as error:
        raise StoreError(f"Another backup is being made in {partial}.") from error
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    finally:
        os.close(descriptor)


def _clear(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _with_shards(manifest: Manifest, directory: Path, partial: Path) -> Manifest:
    """Copy the stores of the shards as well; return the manifest of all."""
    files = dict(manifest.files)
    for store in shard_stores(directory):
        place = store.relative_to(directory)
        make_folder(partial / place)
        copied = _copied_with_retries(store, partial / place)
        sync_folder(partial / place)
        files |= {f"{place}/{name}": described for name, described in copied.files.items()}
    return replace(manifest, format=2 if len(files) > len(manifest.files) else 1, files=files)


def _copied_with_retries(directory: Path, partial: Path) -> Manifest:
    """A copy of a store that may be changed meanwhile.

    Raises:
        StoreError: it is damaged.
    """
    before = ""
    for _ in range(_TRIES):
        try:
            return _copied(directory, partial)
        except _GoneMeanwhileError as error:
            if str(error) == before:
                break
            before = str(error)
            _clear(partial)
    raise StoreDamaged(
        f"The store {directory} is damaged, and no backup was made: {before}. See `midge store verify {directory}`."
    )


def _copied(directory: Path, partial: Path) -> Manifest:
    """A copy of a store, checked, with its manifest.

    Raises:
        _GoneMeanwhileError: some of it was deleted, or is damaged.
    """
    files: dict[str, tuple[int, str]] = {}
    with ExitStack() as stack:
        found = [*directory.glob("checkpoint-*.safetensors"), *directory.glob("bodies-*")]
        opened: dict[str, BinaryIO] = {}
        for path in found:
            with suppress(FileNotFoundError):
                opened[path.name] = stack.enter_context(path.open("rb"))
        _copy_database(directory, partial)
        files["store.db"] = digest_of(partial / "store.db")
        with reading(partial) as db:
            needed, audited = _needed(db), audit_log.noted(db)
            referenced = _referenced_files(db, needed)
        for name, size in referenced.items():
            if name not in opened:
                try:
                    opened[name] = stack.enter_context((directory / name).open("rb"))
                except FileNotFoundError as error:
                    raise _GoneMeanwhileError(f"{name} is gone") from error
            files[name] = copy_file(opened[name], partial / name, size)
    for name, data in beside(directory, audited):
        make_folder((partial / name).parent)
        atomic_write(partial / name, data)
        files[name] = len(data), hashlib.sha256(data).hexdigest()
    return _checked(partial, files, needed)


def _copy_database(directory: Path, partial: Path) -> None:
    """A consistent copy of the database, as a single file."""
    path = partial / "store.db"
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY, PRIVATE))
    with reading(directory) as db, closing(sqlite3.connect(path, isolation_level=None)) as copy:
        for pragma in ("journal_mode=OFF", "synchronous=OFF"):
            copy.execute(f"PRAGMA {pragma}").fetchall()
        db.backup(copy)
        tables = {name for (name,) in copy.execute("SELECT name FROM sqlite_schema")}
        if "checkpoints" not in tables or not copy.execute("SELECT count(*) FROM checkpoints").fetchone()[0]:
            raise StoreError(f"The store {directory} is empty: there is nothing in it to keep.")
        copy.execute("DELETE FROM meta WHERE name = ?", (WITNESSED,))  # the copy gets a record of its own
        if "sums" in tables:
            copy.execute("DELETE FROM sums WHERE name = ?", (WITNESSED,))
        copy.execute("PRAGMA journal_mode=DELETE").fetchall()
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _referenced_files(db: sqlite3.Connection, needed: int) -> dict[str, int | None]:
    """Files that a database refers to, each with the number of bytes it needs; None for all."""
    referenced: dict[str, int | None] = dict.fromkeys(file for (file,) in db.execute("SELECT file FROM checkpoints"))
    if not any(name == "segment" for _, name, *_ in db.execute("PRAGMA table_info(journal)")):
        return referenced  # a store of an earlier Midge has none
    ends = "SELECT segment, max(place + size) FROM journal WHERE segment IS NOT NULL AND lsn >= ? GROUP BY segment"
    referenced |= {segment_file(segment): end for segment, end in db.execute(ends, (needed,))}
    return referenced


def _needed(db: sqlite3.Connection) -> int:
    """The lsn from which on some checkpoint needs bodies."""
    return min((min(lsn + 1, body) for lsn, body in db.execute("SELECT lsn, oldest_body FROM checkpoints")), default=1)


def beside(directory: Path, audited: int | None = None) -> Iterator[tuple[str, bytes]]:
    """Small files of a store: its audit log, or its first lines, its key, and the operator's requests."""
    for path in (directory / audit_log.KEY, directory / "paused", *sorted(directory.glob(f"{FOLDER}/*"))):
        with suppress(FileNotFoundError):
            yield str(path.relative_to(directory)), path.read_bytes()
    with suppress(FileNotFoundError):
        lines = (directory / audit_log.AUDIT).read_bytes().split(b"\n")[:-1][:audited]
        yield audit_log.AUDIT, b"".join(line + b"\n" for line in lines)


def _checked(partial: Path, files: dict[str, tuple[int, str]], needed: int) -> Manifest:
    """The content of a finished copy, read again and verified.

    Raises:
        _GoneMeanwhileError: it is incomplete.
    """
    for name, described in files.items():
        if digest_of(partial / name) != described:
            raise _GoneMeanwhileError(f"{name} was not written as it was read")
    try:
        with ReadOnlyStore(partial) as store:
            for file, sha256 in store.query("SELECT file, sha256 FROM checkpoints"):
                if files[file][1] != sha256.hex():
                    raise _GoneMeanwhileError(f"{file} is not as it was written")
            ((whole,),) = store.query("PRAGMA integrity_check(1)")
            if whole != "ok":
                raise _GoneMeanwhileError(f"the database is not whole ({whole})")
            newest = store.newest_checkpoint()
            generation, version, lsn = newest.core["generation"], newest.core["version"], newest.lsn
            for entry in store.entries(after=needed - 1):
                record = entry.record
                if record.lsn > newest.lsn:
                    lsn = record.lsn
                    generation = getattr(record, "generation", generation)
                    version = record.version if isinstance(record, rec.ReleaseRecord) else version
            return Manifest(
                1, int(time.time()), store.lineage.hex(), generation, version, lsn, private(store.query), files
            )
    except StoreError as error:
        raise _GoneMeanwhileError(str(error).rstrip(".")) from error
