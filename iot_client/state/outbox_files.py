"""The files of an outbox, read without changing anything."""

import glob
import hashlib
import logging
import sqlite3
import zlib
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from midge.iot_client.state.given import TABLE as GIVEN
from midge.iot_client.state.outbox_state import FORMAT, FORMATS, Agreed, OutboxState, Strangers, agreed
from midge.storage.database import MODES
from midge.storage.witness import CommitWitness
from midge.wire import chunks, frames
from midge.wire.errors import WireError
from midge.wire.messages import Update

log = logging.getLogger("iot_client")

TABLES = (
    """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS updates (
    seq INTEGER PRIMARY KEY, header BLOB NOT NULL, body BLOB NOT NULL, checked BLOB NOT NULL DEFAULT x''
);
"""
    + GIVEN
)
STATE = "state"
"""The row of `meta` that holds the packed `OutboxState`."""
INSERT = "INSERT INTO updates VALUES (?, ?, ?, ?)"
LOST = (b"", b"", b"")
"""Header, body and checksum of a lost update."""
_CHECK = 8
_NO_ROT = (
    *(sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PERM),
    *(sqlite3.SQLITE_READONLY, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_FULL),
)
"""Errors that do not depend on the file's content."""


def unusable(path: Path, error: object) -> "OutboxError":
    """The error for an outbox whose state cannot be determined."""
    return OutboxError(
        f"The outbox {path} cannot be used ({error}), and nothing says how many updates wait in it. Move the file away "
        f"to begin a new one, as by midge device verify --accept-loss {path}; updates that it holds and that were not "
        "yet sent are lost with it."
    )


def strangers(path: Path, database: OutboxState, witness: OutboxState) -> "OutboxError":
    """The error for a database and a witness of different outboxes."""
    return OutboxError(
        f"The outbox {path}, in which {updates(database.waiting)} may wait, is not the one that its witness knows, in "
        f"which {updates(witness.waiting)} may wait: one of the two was put here from elsewhere. Put the right one "
        f"back, or give these updates up with midge device verify --accept-loss {path}."
    )


class OutboxError(Exception):
    """The outbox cannot be used; the message says why and what to do."""


def checksum(*parts: bytes) -> bytes:
    """Checksum of some fields."""
    return hashlib.sha256(b"".join(parts)).digest()[:_CHECK]


def wrapped(value: bytes) -> bytes:
    """A value of `meta` with its checksum."""
    return checksum(value) + value


def unwrapped(value: object) -> bytes | None:
    """The value without its checksum; None if it is damaged."""
    if not isinstance(value, bytes) or checksum(value[_CHECK:]) != value[:_CHECK]:
        return None
    return value[_CHECK:]


def updates(count: int) -> str:
    """A number of updates, as text."""
    return f"{count} update{'' if count == 1 else 's'}"


def witness_of(path: Path) -> CommitWitness:
    """The witness of an outbox."""
    return CommitWitness(path.with_name(f"{path.name}.witness"))


@dataclass(slots=True)
class OutboxFiles:
    """Content of an outbox's files."""

    path: Path
    there: bool = False
    """Whether there is a database."""
    format: int = FORMAT
    database: OutboxState | None = None
    witness: OutboxState | None = None
    doubtful: bool = False
    """Whether a slot of the witness is damaged."""
    whole: set[int] = field(default_factory=set)
    """Numbers of undamaged updates."""
    gone: set[int] = field(default_factory=set)
    """Numbers of updates that are known to be lost."""
    damaged: set[int] = field(default_factory=set)
    """Numbers of damaged updates."""
    error: str = ""
    """SQLite's error for an unreadable database."""

    @property
    def new(self) -> bool:
        """Whether there are no files yet."""
        return not (self.there or self.error) and self.witness is None

    @property
    def agreed(self) -> Agreed | None:
        """The state on which database and witness agree; None if it cannot be determined.

        Raises:
            Strangers: the database and the witness are of different outboxes.
        """
        return agreed(self.database, self.witness, doubtful=self.doubtful)

    def lost(self, known: Agreed) -> list[int]:
        """Waiting updates that are missing."""
        first, whole = known.state.first, set() if known.foreign else self.whole
        if self.doubtful and not known.behind:  # an older note lists updates as waiting that were settled since
            first = max(first, min(whole | self.damaged, default=known.state.next))
        gone = set() if known.foreign else self.gone
        return [seq for seq in range(first, known.state.next) if seq not in whole and seq not in gone]

    @property
    def damage(self) -> str:
        """What is damaged, as text; empty if nothing. An outbox of an earlier format has no witness.

        Raises:
            Strangers: the database and the witness are of different outboxes.
        """
        known = self.agreed
        if self.error:
            return f"the file is damaged: {self.error}"
        if self.new:
            return ""
        if not self.there:
            return "its file is gone"
        if known is None or self.database is None:
            return "its file is damaged, or part of its log is gone"
        if known.behind:
            return "its file is an older copy, or a part of its log is gone"
        if self.damaged or self.lost(known):
            return "updates in it are damaged"
        return ""


def examine(path: Path) -> OutboxFiles:
    """Read all files of an outbox without changing any, also beside a running device.

    Raises:
        OSError: one of them exists and cannot be read.
        OutboxError: the same.
    """
    found = OutboxFiles(path)
    noted = witness_of(path).read()  # first, because the database is never behind the witness
    found.witness, found.doubtful = OutboxState.unpack(noted.note), noted.damaged and noted.note is not None
    if not path.exists():
        return found
    try:
        with reading(path) as db:
            _examine(db, found)
    except sqlite3.Error as error:
        if (getattr(error, "sqlite_errorcode", 0) & 0xFF) in _NO_ROT:
            raise OutboxError(f"The outbox {path} cannot be read ({error}).") from error
        found.error = str(error)
        _probe(found)
    return found


@contextmanager
def reading(path: Path) -> Iterator[sqlite3.Connection]:
    """A read-only connection to the database."""
    with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True, timeout=5.0)) as db:
        db.text_factory = lambda text: text.decode(errors="replace")
        yield db


def _examine(db: sqlite3.Connection, found: OutboxFiles) -> None:
    tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master")}
    if "meta" not in tables:
        return
    with found.path.open("rb") as file:
        if file.read(20)[18:] not in MODES:
            raise sqlite3.DatabaseError("its header is damaged")
    if (checked := db.execute("PRAGMA quick_check(1)").fetchone()) != ("ok",):
        raise sqlite3.DatabaseError(str(checked[0]))
    meta: dict[str, Any] = dict(db.execute("SELECT name, value FROM meta"))
    if not meta:
        return
    found.there = True
    found.database = OutboxState.unpack(meta.get(STATE))
    form = meta.get("format")
    if found.database is None and isinstance(form, int) and form not in FORMATS:
        found.format = form
        if form != 1 or not all(isinstance(meta.get(name), int) for name in ("identity", "next")):
            return
        found.database = _first_format(found.path, db, meta)
    for seq, header, body, checked in db.execute(rows(found.format)):
        if found.format == FORMAT and (header, body) == (b"", b""):
            found.gone.add(seq)
        elif intact(found.format, seq, header, body, checked):
            found.whole.add(seq)
        else:
            found.damaged.add(seq)


def _probe(found: OutboxFiles) -> None:
    """Check updates one by one: a damaged page costs those that lie in it, and no others."""
    with suppress(Strangers):
        known = found.agreed
        found.whole, found.damaged = set(), set()
        for seq in () if known is None else range(known.state.first, known.state.next):
            with suppress(sqlite3.Error), reading(found.path) as db:
                row = db.execute(rows(found.format, "WHERE seq = ?"), (seq,)).fetchone()
                if row is not None and intact(found.format, *row):
                    found.whole.add(seq)


def rows(form: int, where: str = "") -> str:
    """A query for the updates, by the database's format."""
    checked = "checked" if form == FORMAT else "NULL"
    return f"SELECT seq, header, body, {checked} FROM updates {where}"  # noqa: S608 - of our own words


def _first_format(path: Path, db: sqlite3.Connection, meta: dict[str, Any]) -> OutboxState:
    """The state of an outbox of format 1: all that it holds may have been sent."""
    following = meta["next"]
    (first,) = db.execute("SELECT min(seq) FROM updates").fetchone()
    residual = meta.get("residual", 0)
    first = following if first is None else min(first, following)
    crc = 0
    with suppress(OSError):
        crc = zlib.crc32(residual_path(path, residual).read_bytes())
    return OutboxState(meta["identity"], following, first, following - 1, residual, crc)


def residual_path(path: Path, number: int) -> Path:
    """The residual's file."""
    return path.with_name(f"{path.name}.residual-{number}")


def intact(form: int, seq: int, header: object, body: object, checked: object) -> bool:
    """Whether a row is undamaged."""
    if not isinstance(header, bytes) or not isinstance(body, bytes):
        return False
    if form == FORMAT:
        return checked == checksum(header, body)
    try:
        update = frames.validate(Update, frames.unpack(header))
    except WireError:
        return False
    return update.seq == seq and chunks.fits(body, update.sha256)


def read_residual(path: Path, state: OutboxState) -> bytes | None:
    """The residual of a state; None if there is none, or its file is lost or damaged."""
    if not state.residual:
        return None
    file = residual_path(path, state.residual)
    try:
        residual = file.read_bytes()
    except OSError as error:
        log.warning("The residual cannot be read from %s (%s): it is ignored.", file, error.strerror)
        return None
    if zlib.crc32(residual) != state.residual_crc:
        log.warning("The residual in %s is damaged: it is ignored.", file)
        return None
    return residual


def enter(db: sqlite3.Connection, state: OutboxState) -> None:
    """Write a state, and the format that follows from it."""
    db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", [("format", state.format), (STATE, state.pack())])


def renumber(db: sqlite3.Connection, updates: Iterable[tuple[Update, bytes]], identity: int) -> None:
    """Replace all updates by these, numbered from 1 under an identity."""
    db.execute("DELETE FROM updates")
    for number, (update, body) in enumerate(updates, start=1):
        header = packed(update.model_copy(update={"outbox": identity, "seq": number, "first": 1}))
        db.execute(INSERT, (number, header, body, checksum(header, body)))


def packed(update: Update) -> bytes:
    """A header as it is stored."""
    return frames.pack(update.model_dump())


def rewrite(db: sqlite3.Connection, seq: int, header: bytes, body: bytes) -> None:
    """Replace header and body of a waiting update."""
    row = header, body, checksum(header, body), seq
    db.execute("UPDATE updates SET header = ?, body = ?, checked = ? WHERE seq = ?", row)


def clear_strays(path: Path, residual: int) -> None:
    """Remove files that a kill left behind: incomplete or obsolete ones."""
    name = glob.escape(path.name)
    for pattern in (f"{name}.residual-*", f".{name}.residual-*.tmp"):
        for stray in path.parent.glob(pattern):
            if stray != residual_path(path, residual):
                stray.unlink(missing_ok=True)
