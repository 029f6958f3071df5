"""Backups: a running store copied as of one moment, and put back so that a new generation begins.

A copy of the files of a running store is none of the store: SQLite's log, the database and the files beside them are of
different moments. Here the database is copied by SQLite within one transaction, and what that copy speaks of is copied
after it: checkpoints, bodies of updates, the audit log as far as it went. These files only grow, or are deleted whole:
they are opened before the database is copied, so that one that goes meanwhile can still be read.

A backup is a folder with a manifest that has the SHA-256 of each file. It is made and checked under another name.
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from midge.aggregator.core import records as rec
from midge.aggregator.store import audit_log
from midge.aggregator.store.consistency import UNFINISHED, WITNESS, WITNESSED
from midge.aggregator.store.device_erasure import FOLDER
from midge.aggregator.store.errors import StoreDamaged, StoreError, StoreFull, StoreInUse
from midge.aggregator.store.put_back import mark
from midge.aggregator.store.reading import ReadOnlyStore, reading
from midge.aggregator.store.segments import segment_file
from midge.aggregator.store.store import Store
from midge.storage.database import no_room
from midge.storage.files import PRIVATE, atomic_write, copy_file, make_folder, sync_folder

FORMAT = 1
MANIFEST = "manifest.json"
_TRIES = 4
"""Times that a backup is begun because files went, or devices were erased, while they were copied."""
_NAME = re.compile(rf"[A-Za-z0-9_.-]+|{FOLDER}/[^/]+")
"""What a file of a store is called."""
_OURS = ("lock", "lost+found", UNFINISHED)
"""What may lie where a store is put back."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a backup holds."""

    format: int
    made: int
    """Seconds since 1970."""
    lineage: str
    generation: int
    version: int
    """The newest one that was released."""
    lsn: int
    """Of the newest record."""
    files: dict[str, tuple[int, str]]
    """By name, the size and the SHA-256 of each."""

    @property
    def size(self) -> int:
        return sum(size for size, _ in self.files.values())

    def packed(self) -> bytes:
        said = asdict(self)
        return json.dumps({**said, "sha256": _digest(said)}, indent=1).encode() + b"\n"

    @classmethod
    def unpacked(cls, data: bytes) -> "Manifest":
        """Read it.

        Raises:
            ValueError: it is not as it was written.
            _TooNewError: it is of a later format.
        """
        said: dict[str, Any] = json.loads(data)
        digest = said.pop("sha256")
        if digest != _digest(said) or not all(_NAME.fullmatch(name) for name in said["files"]):
            raise ValueError("it is not as it was written")
        if said["format"] > FORMAT:
            raise _TooNewError(f"it has format {said['format']}, and this version of Midge reads {FORMAT}")
        return cls(**{**said, "files": {name: (size, sha256) for name, (size, sha256) in said["files"].items()}})


def _digest(said: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


class _TooNewError(Exception):
    """Of a later version of Midge."""


class _GoneMeanwhileError(Exception):
    """A file was deleted, or a body erased, between two looks."""


# ------------------------------------------------------------------------- making one


def backup(directory: Path, target: Path) -> Manifest:
    """Copy a store, beside a running aggregator or not. When this returns, the copy is checked and durable.

    Args:
        directory: the store's.
        target: the folder to make; it is not there, or is empty.

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
        with _to_ourselves(partial):
            manifest = _copied_in_peace(directory, partial)
            partial.rename(target)
        sync_folder(target.parent)
    return manifest


@contextmanager
def making(what: str) -> Iterator[None]:
    """Errors of a block that makes something on a disk are sentences.

    Raises:
        StoreFull: there is no room.
        StoreError: it cannot be made.
    """
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        if no_room(error):
            raise StoreFull(f"{what} cannot be made: there is no room on the disk. Nothing is left of it.") from error
        why = getattr(error, "strerror", None) or error
        raise StoreError(f"{what} cannot be made ({why}).") from error


@contextmanager
def _to_ourselves(partial: Path) -> Iterator[None]:
    """An empty folder that no other process works in. Nothing is left of it if the block fails."""
    make_folder(partial)
    descriptor = os.open(partial, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _clear(partial)  # what a kill has left
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


def _copied_in_peace(directory: Path, partial: Path) -> Manifest:
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
        _GoneMeanwhileError: some of it went, or is damaged.
    """
    files: dict[str, tuple[int, str]] = {}
    with ExitStack() as stack:
        found = [*directory.glob("checkpoint-*.safetensors"), *directory.glob("bodies-*")]
        opened: dict[str, BinaryIO] = {}
        for path in found:
            with suppress(FileNotFoundError):
                opened[path.name] = stack.enter_context(path.open("rb"))
        _copy_database(directory, partial)
        files["store.db"] = _described(partial / "store.db")
        with reading(partial) as db:
            needed, audited = _needed(db), audit_log.noted(db)
            spoken = _spoken_of(db, needed)
        for name, size in spoken.items():
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
    manifest = _checked(partial, files, needed)
    atomic_write(partial / MANIFEST, manifest.packed())
    return manifest


def _copy_database(directory: Path, partial: Path) -> None:
    """The database as of one moment, as a single file."""
    path = partial / "store.db"
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY, PRIVATE))
    with reading(directory) as db, closing(sqlite3.connect(path, isolation_level=None)) as copy:
        for pragma in ("journal_mode=OFF", "synchronous=OFF"):
            copy.execute(f"PRAGMA {pragma}").fetchall()
        db.backup(copy)
        tables = {name for (name,) in copy.execute("SELECT name FROM sqlite_schema")}
        if "checkpoints" not in tables or not copy.execute("SELECT count(*) FROM checkpoints").fetchone()[0]:
            raise StoreError(f"The store {directory} is empty: there is nothing in it to keep.")
        copy.execute("DELETE FROM meta WHERE name = ?", (WITNESSED,))  # it gets a note of where it stands itself
        if "sums" in tables:
            copy.execute("DELETE FROM sums WHERE name = ?", (WITNESSED,))
        copy.execute("PRAGMA journal_mode=DELETE").fetchall()
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _spoken_of(db: sqlite3.Connection, needed: int) -> dict[str, int | None]:
    """The files that a database needs, each with how much of it; None for all."""
    spoken: dict[str, int | None] = dict.fromkeys(file for (file,) in db.execute("SELECT file FROM checkpoints"))
    if not any(name == "segment" for _, name, *_ in db.execute("PRAGMA table_info(journal)")):
        return spoken  # a store of an earlier Midge has none
    ends = "SELECT segment, max(place + size) FROM journal WHERE segment IS NOT NULL AND lsn >= ? GROUP BY segment"
    spoken |= {segment_file(segment): end for segment, end in db.execute(ends, (needed,))}
    return spoken


def _needed(db: sqlite3.Connection) -> int:
    """From which lsn on bodies are needed by some checkpoint."""
    return min((min(lsn + 1, body) for lsn, body in db.execute("SELECT lsn, oldest_body FROM checkpoints")), default=1)


def _described(path: Path) -> tuple[int, str]:
    with path.open("rb") as file:
        return path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()


def beside(directory: Path, audited: int | None = None) -> Iterator[tuple[str, bytes]]:
    """Small files of a store: its audit log, or the first lines of it, its key, and what its operator asked for."""
    for path in (directory / audit_log.KEY, directory / "paused", *sorted(directory.glob(f"{FOLDER}/*"))):
        with suppress(FileNotFoundError):
            yield str(path.relative_to(directory)), path.read_bytes()
    with suppress(FileNotFoundError):
        lines = (directory / audit_log.AUDIT).read_bytes().split(b"\n")[:-1][:audited]
        yield audit_log.AUDIT, b"".join(line + b"\n" for line in lines)


def _checked(partial: Path, files: dict[str, tuple[int, str]], needed: int) -> Manifest:
    """What a finished copy holds, once it was read again.

    Raises:
        _GoneMeanwhileError: it is not whole.
    """
    for name, described in files.items():
        if _described(partial / name) != described:
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
            return Manifest(FORMAT, int(time.time()), store.lineage.hex(), generation, version, lsn, files)
    except StoreError as error:
        raise _GoneMeanwhileError(str(error).rstrip(".")) from error


# -------------------------------------------------------------------- putting one back


def read_backup(directory: Path) -> Manifest:
    """What a backup holds, if each file of it is what was written.

    Raises:
        StoreDamaged: it is not what was written.
        StoreError: it is no backup, or is of a later version of Midge.
    """
    try:
        manifest = Manifest.unpacked((directory / MANIFEST).read_bytes())
    except FileNotFoundError:
        raise StoreError(f"{directory} is no backup of a store: there is no {MANIFEST} in it.") from None
    except OSError as error:
        raise StoreError(f"{directory / MANIFEST} cannot be read ({error.strerror}).") from error
    except _TooNewError as error:
        raise StoreError(f"The backup {directory} is of a later version of Midge: {error}.") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreDamaged(f"The backup {directory} is damaged: {MANIFEST} cannot be read ({error}).") from error
    for name, described in manifest.files.items():
        try:
            found = _described(directory / name)
        except OSError as error:
            raise StoreDamaged(
                f"The backup {directory} is damaged: {name} cannot be read ({error.strerror}). Use another one."
            ) from error
        if found != described:
            raise StoreDamaged(f"The backup {directory} is damaged: {name} is not as it was written. Use another one.")
    return manifest


def restore(source: Path, directory: Path, by: str) -> Manifest:
    """Put a backup back as a store that begins a new generation with its next start.

    Args:
        source: the backup.
        directory: the store to make; it is not there, or is empty.
        by: who does it, for the audit log.

    Raises:
        StoreFull: there is no room; nothing is left of the attempt.
        StoreError: the backup is damaged, or there is a store already.
    """
    manifest = read_backup(source)
    with making(f"The store {directory}"), new_store(directory) as unfinished:
        for name, described in manifest.files.items():
            make_folder((unfinished / name).parent)
            with (source / name).open("rb") as file:
                if copy_file(file, unfinished / name) != described:
                    raise StoreError(f"The backup {source} changed while it was read. Use another one.")
        begin_behind(unfinished, manifest.generation, "restored", by, backup=manifest.made, record=manifest.lsn)
    return manifest


@contextmanager
def new_store(directory: Path) -> Iterator[Path]:
    """A folder to make a store in, which gets into its place if the block succeeds; otherwise nothing is left of it.

    Raises:
        StoreError: an aggregator uses the place, or something lies there.
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
    """Remove what a kill has left of a store that was being put back: it has no database yet."""
    left = (
        UNFINISHED,
        "checkpoint-*.safetensors",
        "bodies-*",
        audit_log.AUDIT,
        audit_log.KEY,
        WITNESS,
        "paused",
        FOLDER,
    )
    for path in [path for name in left for path in directory.glob(name)]:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _put_in_place(unfinished: Path, directory: Path) -> None:
    """The database last: without it there is no store, and an aggregator refuses to begin one there."""
    sync_folder(unfinished)
    for path in sorted(unfinished.iterdir(), key=lambda path: path.name == "store.db"):
        if path.name == "store.db":
            sync_folder(directory)
        if path.name != "lock":
            path.rename(directory / path.name)
    sync_folder(directory)
    shutil.rmtree(unfinished)


def begin_behind(directory: Path, generation: int, what: str, by: str, **about: object) -> None:
    """Have a store begin a generation above this one with its next start, and say so in its audit log if there is one.

    Devices may know versions, and hold receipts, of which this store has nothing.

    Raises:
        StoreError: the store cannot be used.
    """
    with Store(directory) as store:
        mark(store, generation)
        if (directory / audit_log.KEY).exists():
            audit_log.append(store, audit_log.load_key(store), {"what": what, "by": by, **about})
