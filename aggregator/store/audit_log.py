"""Tamper-evident audit log of what was done to devices, when and by whom.

Each line holds the hash of the line before and a MAC over itself (HMAC-SHA256, RFC 2104) with a key that is in neither
the log nor the database; the number of lines and the last one's hash are in the store's metadata, with a MAC too.
Without the key, write access to the log and the database is not enough to make a valid line or end. Lines of earlier
versions, which had no MAC, are only chained.
"""

import hashlib
import hmac
import json
import os
import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path

from midge.aggregator.store.store import Store, StoreError
from midge.storage.files import PRIVATE, atomic_write, sync_folder
from midge.storage.read_only import read_only

AUDIT = "audit.log"
KEY = "names.key"
"""File in a store: 32 random bytes for the keyed hashes of erased names and the MACs of the log, then the number of
lines that had no MAC when it was made. A backup must include it to recognise erased devices."""
_SECRET = 32
_END = "audit_end"
"""Name of the log's end in the metadata."""
_CODE = b', "code": "'


class KeyLost(StoreError):
    """The key file is lost or another store's, and names were erased under it."""


@dataclass(frozen=True, slots=True)
class AuditVerdict:
    """Result of a verification of the log."""

    lines: int
    older: int
    """Lines written before lines had a MAC."""
    wrong: tuple[str, ...]
    """What is not as written, as text; empty if everything is."""


def load_key(store: Store) -> bytes:
    """Read the key of a store; made at the first use, and moved out of the database of an earlier version.

    Raises:
        KeyLost: it is missing, and names were erased under it.
        StoreError: it cannot be written.
    """
    path = store.directory / KEY
    check, older = _constant(store, "name_key_check"), _constant(store, "name_key")
    lines = _lines(store.directory / AUDIT)
    try:
        if older is not None or (check is None and not path.exists()):
            atomic_write(path, (older or os.urandom(_SECRET)) + len(lines).to_bytes(8), mode=PRIVATE)
        key = path.read_bytes()[:_SECRET]
    except FileNotFoundError:
        raise KeyLost(f"{path} is gone: without it devices that were forgotten would be taken for new ones.") from None
    except OSError as error:
        raise StoreError(f"{path} cannot be read or written ({error.strerror}).") from error
    if check is None:
        store.set_constant("name_key_check", _code(key, b"check"))
        _note_end(store, key, lines)
    elif not hmac.compare_digest(check, _code(key, b"check")):
        raise KeyLost(f"{path} belongs to another store: restore the one of this store.db.")
    if older is not None:
        store.remove_constant("name_key")
        store.vacuum()
    return key


def append(store: Store, key: bytes, fields: dict[str, object]) -> None:
    """Add a line, durably, and then record it as the last."""
    path = store.directory / AUDIT
    before = _lines(path)
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    line = _coded({"time": now, **fields, "before": hashlib.sha256(before[-1]).hexdigest() if before else ""}, key)
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, PRIVATE)
    try:
        os.ftruncate(file, sum(len(each) + 1 for each in before))  # a power cut may have left a partial line
        os.write(file, line + b"\n")
        os.fsync(file)
    finally:
        os.close(file)
    if not before:
        sync_folder(path.parent)
    _note_end(store, key, [*before, line])


def _note_end(store: Store, key: bytes, lines: list[bytes]) -> None:
    end = f"{len(lines)} {hashlib.sha256(lines[-1]).hexdigest() if lines else ''}"
    store.set_constant(_END, f"{end} {_code(key, end.encode()).hex()}")


def is_key(path: Path, check: bytes) -> bool:
    """Whether a file is the key with this check value in the store's metadata."""
    try:
        return hmac.compare_digest(check, _code(path.read_bytes()[:_SECRET], b"check"))
    except (OSError, TypeError):
        return False


def noted(db: sqlite3.Connection) -> int:
    """Number of lines in the log when a database, or a copy of it, was written."""
    found = db.execute("SELECT value FROM meta WHERE name = ?", (_END,)).fetchone()
    return 0 if found is None else int(found[0].split()[0])


def verify(directory: Path) -> AuditVerdict:
    """Verify the log of a store, also beside a running aggregator.

    Raises:
        OSError: the key or the log cannot be read.
        sqlite3.Error: the database cannot.
    """
    with read_only(directory / "store.db", lock=directory / "lock") as db:
        found = db.execute("SELECT value FROM meta WHERE name = ?", (_END,)).fetchone()
    path = directory / AUDIT
    lines = _lines(path)
    if found is None and not lines and not (directory / KEY).exists():
        return AuditVerdict(0, 0, ())  # of a store that no aggregator of this version has opened
    kept = (directory / KEY).read_bytes()
    key, allowed = kept[:_SECRET], int.from_bytes(kept[_SECRET:])
    wrong, older, before = [], 0, b""
    for number, line in enumerate(lines, 1):
        if not _chained(line, before):
            wrong.append(f"line {number} does not follow on the one before: one was taken out, put in or changed")
        if _CODE in line:
            if not hmac.compare_digest(_coded_again(line, key), line):
                wrong.append(f"line {number} is not as it was written")
        elif number > allowed:
            wrong.append(f"line {number} has no code, and was written when lines had one")
        else:
            older += 1
        before = line
    return AuditVerdict(len(lines), older, (*wrong, *_end_of(lines, found, key)))


def _end_of(lines: list[bytes], found: tuple[str] | None, key: bytes) -> list[str]:
    """Compare the metadata with the log's end. One line more than recorded is a power cut between the two writes."""
    if found is None:
        return ["the store's metadata do not tell the log's end"]
    recorded, _, code = found[0].rpartition(" ")
    if not hmac.compare_digest(_code(key, recorded.encode()).hex(), code):
        return ["the log's end in the store's metadata is not as it was written"]
    number, _, last = recorded.partition(" ")
    count = int(number)
    if len(lines) < count:
        return [f"{count - len(lines)} lines were cut off: there were {count}"]
    if len(lines) > count + 1 or (count and hashlib.sha256(lines[count - 1]).hexdigest() != last):
        return [f"line {count} is not the one that was the last"]
    return []


def _lines(path: Path) -> list[bytes]:
    """Complete lines."""
    return path.read_bytes().split(b"\n")[:-1] if path.exists() else []


def _constant(store: Store, name: str) -> bytes | None:
    rows = store.query("SELECT value FROM meta WHERE name = ?", (name,))
    return rows[0][0] if rows else None


def _code(key: bytes, data: bytes) -> bytes:
    """Separate from the keyed hashes of names by its prefix."""
    return hmac.digest(key, b"midge audit\0" + data, hashlib.sha256)


def _coded(fields: dict[str, object], key: bytes) -> bytes:
    line = json.dumps(fields).encode()
    return line[:-1] + _CODE + _code(key, line).hex().encode() + b'"}'


def _coded_again(line: bytes, key: bytes) -> bytes:
    plain = line[: line.rindex(_CODE)] + b"}"
    return plain[:-1] + _CODE + _code(key, plain).hex().encode() + b'"}'


def _chained(line: bytes, before: bytes) -> bool:
    try:
        return bool(json.loads(line)["before"] == (hashlib.sha256(before).hexdigest() if before else ""))
    except (ValueError, KeyError, TypeError):
        return False
