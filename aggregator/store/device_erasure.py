"""Withdrawing a device from a federation: it is refused from then on, and what the store has of it is erased.

What is asked for is a file in the store's directory, so that it can be asked for beside a running aggregator, and is
not lost where there is none. The refused are kept as keyed hashes of their names. An update of the device that was
accepted is applied first: it had its receipt, and what was promised to count once must count. Then the core forgets the
device, a checkpoint is written that does not know it, older ones are deleted, its records in the journal get another
name and lose their bodies, and the database is rewritten, so that no freed page holds what was erased.

What it has contributed to the published model stays in it: a sum cannot be unlearned by deleting a summand.
"""

import getpass
import json
import logging
import os
import time
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from midge.aggregator.core import records as rec
from midge.aggregator.core.core import AggregatorCore
from midge.aggregator.core.presets import fedasync
from midge.aggregator.engine import Engine
from midge.aggregator.store.audit_log import AUDIT, append, load_key, verify
from midge.aggregator.store.errors import StoreDamaged, what_to_do
from midge.aggregator.store.store import Entry, Store, StoreError
from midge.storage.files import atomic_write, make_folder
from midge.wire.pseudonyms import keyed_hash, pseudonym
from midge.wire.topics import check_name

log = logging.getLogger("aggregator")

FOLDER = "forget"
"""Of a store: a file for each device that is to be forgotten, by its name, until it is."""
RETENTION = 180 * 86_400.0
"""Seconds without a word after which what names a device is erased, where it cannot be needed any more."""

_HASH = 32
"""Bytes of a keyed hash."""
FORGOTTEN = "CREATE TABLE IF NOT EXISTS forgotten (hash BLOB PRIMARY KEY) WITHOUT ROWID"
SEEN = """
CREATE TABLE IF NOT EXISTS seen (device TEXT PRIMARY KEY, at INTEGER NOT NULL, version INTEGER NOT NULL) WITHOUT ROWID
"""


@dataclass(frozen=True, slots=True)
class Request:
    """A request to forget a device."""

    device: str
    by: str
    at: float
    """Seconds since 1970."""
    readmit: bool = False
    """Whether it is to be let in again, and not to be forgotten."""


def ask(directory: Path, device: str, *, readmit: bool = False) -> Path:
    """Ask for a device to be forgotten, or let in again; the file that says so is gone once it is done.

    Raises:
        ValueError: that can be no device's name.
        OSError: it cannot be written.
    """
    folder = directory / FOLDER
    make_folder(folder, 0o700)
    path = folder / check_name(device, "device name")
    atomic_write(path, json.dumps({"by": _user(), "at": time.time(), "readmit": readmit}).encode())
    return path


def asked(directory: Path) -> Iterator[Request]:
    """What was asked for and not yet done."""
    folder = directory / FOLDER
    with suppress(FileNotFoundError):
        for path in sorted(folder.iterdir()):
            with suppress(ValueError, OSError, TypeError, KeyError):
                said = json.loads(path.read_bytes())
                yield Request(
                    check_name(path.name), str(said["by"]), float(said["at"]), said.get("readmit", False) is True
                )


def done(directory: Path, device: str) -> None:
    """It was done: the file that asked for it goes."""
    (directory / FOLDER / device).unlink(missing_ok=True)


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return f"uid {os.getuid()}"


class Names:
    """What a store remembers of devices besides the core's own: who was withdrawn, and who was last heard when."""

    def __init__(self, store: Store) -> None:
        """Read it from an open store.

        Raises:
            StoreError: it cannot be.
        """
        self._store = store
        with store.transaction() as db:
            db.execute(FORGOTTEN)
            db.execute(SEEN)
        self._key = load_key(store)
        with store.transaction() as db:
            self._hashes = {self._proven(entry) for (entry,) in db.execute("SELECT hash FROM forgotten")}
        self._heard: set[str] = set()
        for wrong in verify(store.directory).wrong:
            log.warning("The log %s is not what was written: %s.", store.directory / AUDIT, wrong)

    # ----------------------------------------------------------------- withdrawals

    def withdrawn(self, device: str) -> bool:
        """Whether a device was withdrawn from the federation."""
        return bool(self._hashes) and keyed_hash(device, self._key) in self._hashes

    def alias(self, device: str) -> str:
        """What stands where a count needs the device and its name is gone."""
        return "gone-" + pseudonym(device, self._key)

    def _other_number(self, outbox: int) -> int:
        """What stands for an outbox's identity, which its broker and its card know: the same for the same."""
        return int.from_bytes(keyed_hash(str(outbox), self._key)[:8]) >> 1

    def _proven(self, entry: bytes) -> bytes:
        """The hash of an entry, whose last four bytes are its checksum; those of earlier versions have none.

        Raises:
            StoreDamaged: it is not what was written.
        """
        if not intact(entry):
            raise StoreDamaged(
                f"The entry of a device that was withdrawn has rotted in {self._store.directory}: it would be let in "
                f"again. {what_to_do(self._store.directory, 0)}"
            )
        return bytes(entry[:_HASH])

    def withdraw(self, device: str) -> bool:
        """Refuse a device from now on, durably; whether that is new."""
        if self.withdrawn(device):
            return False
        name = keyed_hash(device, self._key)
        with self._store.transaction() as db:
            db.execute("INSERT OR IGNORE INTO forgotten VALUES (?)", (_checked(name),))
        self._hashes.add(name)
        return True

    def readmit(self, device: str) -> bool:
        """Let a device that was withdrawn take part again, durably; whether it was withdrawn."""
        if not self.withdrawn(device):
            return False
        name = keyed_hash(device, self._key)
        with self._store.transaction() as db:
            db.execute("DELETE FROM forgotten WHERE hash IN (?, ?)", (name, _checked(name)))
        self._hashes.discard(name)
        return True

    def erase(self, devices: Sequence[str]) -> Counter[str]:
        """Take devices' names and bodies out of the journal, and every checkpoint but the newest with them.

        The newest must not know the devices any more, and no record behind it may.
        """
        counted: Counter[str] = Counter()
        for device in devices:
            alias = self.alias(device)
            with self._store.transaction() as db:
                rows = db.execute(
                    "SELECT kind, record FROM journal WHERE instr(record, ?)", (device.encode(),)
                ).fetchall()
                for kind, packed in rows:
                    record = rec.unpack(kind, packed)
                    if isinstance(record, rec.UpdateRecord | rec.StatisticsRecord) and record.device == device:
                        counted["records"] += 1
                        other: rec.UpdateRecord | rec.StatisticsRecord = replace(record, device=alias)
                        if isinstance(other, rec.UpdateRecord):
                            other = replace(other, outbox=self._other_number(other.outbox))
                        counted["bodies"] += self._store.rewrite(db, other)
                db.execute("DELETE FROM seen WHERE device = ?", (device,))
            self._heard.discard(device)
        counted["checkpoints"] = self._store.keep_newest_checkpoint()
        self._store.vacuum()
        return counted

    def audit(self, what: str, device: str, by: str, **about: object) -> None:
        """Add a line to the audit log."""
        append(self._store, self._key, {"what": what, "device": pseudonym(device, self._key), "by": by, **about})

    # ------------------------------------------------------------------- retention

    def heard(self, device: str) -> None:
        """A device has said something."""
        self._heard.add(device)

    def write_heard(self, now: float, version: int) -> None:
        """Write down who was heard since the last time.

        Args:
            now: seconds since 1970.
            version: the newest one now.
        """
        if self._heard:
            with self._store.transaction() as db:
                db.executemany(
                    "INSERT OR REPLACE INTO seen VALUES (?, ?, ?)",
                    [(device, int(now), version) for device in self._heard],
                )
            self._heard.clear()

    def silent(self, before: float, oldest_base: int) -> list[str]:
        """Devices that were last heard before a time, and of which nothing could be counted twice if they came again.

        What such a device had sent was trained from versions up to the one of then. Where all of these are too old by
        now to train from, it would be refused as stale, even if it were not known any more that it had come.
        """
        rows = self._store.query("SELECT device FROM seen WHERE at < ? AND version < ?", (int(before), oldest_base))
        return [device for (device,) in rows if device not in self._heard]


def intact(entry: object) -> bool:
    """Whether the entry of a withdrawn device is what was written, as far as it has a checksum."""
    return isinstance(entry, bytes) and len(entry) >= _HASH and entry in {entry[:_HASH], _checked(entry[:_HASH])}


def _checked(name: bytes) -> bytes:
    """A hash as it is kept: with its CRC-32, for a bit of it that rots would let a device in again."""
    return name + zlib.crc32(name).to_bytes(4)


def forget_in_stopped(store: Store, device: str, by: str) -> Counter[str] | None:
    """Forget a device in a store that no aggregator has open, and that was closed in order.

    Returns None where it was not, or an update of the device still waits for its step: the aggregator's next start
    does the rest.

    Raises:
        StoreError: the store cannot be used.
    """
    if store.schema is None or store.empty:
        raise StoreError(f"The store {store.directory} is empty: it knows no device.")
    names = Names(store)
    if names.withdraw(device):
        names.audit("withdrawn", device, by)
    checkpoint = store.newest_checkpoint()
    if checkpoint.lsn != store.newest_lsn():
        return None
    core = AggregatorCore(fedasync(), lineage=store.lineage, schema_hash=store.schema.hash)
    core.load(checkpoint.core)
    if core.waits(device):
        return None
    engine = Engine.of(checkpoint, store.schema, store)
    counted = forget(engine, core, names, [device])
    names.audit("erased", device, by, **counted)
    return counted


def readmit_in_stopped(store: Store, device: str, by: str) -> bool:
    """Let a device that was withdrawn take part again, in a store that no aggregator has open; whether it was.

    Raises:
        StoreError: the store cannot be used.
    """
    if store.schema is None:
        raise StoreError(f"The store {store.directory} is empty: it knows no device.")
    names = Names(store)
    if not names.readmit(device):
        return False
    names.audit("readmitted", device, by)
    return True


def forget(engine: Engine, core: AggregatorCore, names: Names, devices: Sequence[str]) -> Counter[str]:
    """Erase what is known of devices of which no update waits for a step.

    Raises:
        StoreFull: there is no room; what the core still knows then is in the journal, and it can be asked for again.
    """
    actions = [core.forget(device, names.alias(device)) for device in devices]
    engine.store.commit([Entry(action.record, None) for action in actions])
    for device in devices:
        engine.forget(device)
    engine.checkpoint(core)
    return names.erase(devices)
