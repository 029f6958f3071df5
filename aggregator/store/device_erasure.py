"""Withdrawing a device from a federation: it is refused from then on, and its data in the store is erased.

A request is a file in the store's directory, so that it can be made beside a running aggregator, and is not lost if
none runs. Withdrawn devices are stored as keyed hashes of their names. An accepted update of the device is applied
first: it has a receipt, and was promised to count once. Then the core forgets the device, a checkpoint without it is
written, older ones are deleted, its records in the journal get another name and lose their bodies, and the database is
rewritten, so that no free page holds erased data.

Its contributions to the published model stay: a sum cannot be unlearned by deleting a summand.
"""

import json
import logging
import sqlite3
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
from midge.aggregator.store.ledger import GONE
from midge.aggregator.store.model_orders import operator_name
from midge.aggregator.store.shard_stores import SHARDS
from midge.aggregator.store.store import Entry, Store, StoreError
from midge.storage.files import atomic_write, make_folder
from midge.wire.pseudonyms import keyed_hash, pseudonym
from midge.wire.topics import check_name

log = logging.getLogger("aggregator")

FOLDER = "forget"
"""Folder in a store: a file for each device to be forgotten, by its name, until that is done."""
RETENTION = 180 * 86_400.0
"""Seconds of silence after which a device's names are erased, if they cannot be needed any more."""

_HASH = 32
"""Bytes of a keyed hash."""
FORGOTTEN = "CREATE TABLE IF NOT EXISTS forgotten (hash BLOB PRIMARY KEY) WITHOUT ROWID"
SEEN = """
CREATE TABLE IF NOT EXISTS seen (device TEXT PRIMARY KEY, at INTEGER NOT NULL, version INTEGER NOT NULL) WITHOUT ROWID
"""

_OfDevice = rec.UpdateRecord | rec.StatisticsRecord | rec.PairRecord | rec.ReadmitRecord
"""Records that name a device."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request to forget a device."""

    device: str
    by: str
    at: float
    """Seconds since 1970."""
    readmit: bool = False
    """Whether to readmit it, and not to forget it."""


def ask(directory: Path, device: str, *, readmit: bool = False) -> Path:
    """Request that a device is forgotten, or readmitted; the returned file is removed once it is done.

    Raises:
        ValueError: that is no valid device name.
        OSError: it cannot be written.
    """
    request = json.dumps({"by": operator_name(), "at": time.time(), "readmit": readmit}).encode()
    for store in (*sorted(directory.glob(f"{SHARDS}/*/")), directory):  # each carries it out on its own
        folder = store / FOLDER
        make_folder(folder, 0o700)
        path = folder / check_name(device, "device name")
        atomic_write(path, request)
    return path


def asked(directory: Path) -> Iterator[Request]:
    """Pending requests."""
    folder = directory / FOLDER
    with suppress(FileNotFoundError):
        for path in sorted(folder.iterdir()):
            with suppress(ValueError, OSError, TypeError, KeyError):
                fields = json.loads(path.read_bytes())
                yield Request(
                    check_name(path.name), str(fields["by"]), float(fields["at"]), fields.get("readmit", False) is True
                )


def done(directory: Path, device: str) -> None:
    """Remove the file of a request that is done."""
    (directory / FOLDER / device).unlink(missing_ok=True)


class Names:
    """What a store remembers of devices beside the core: which were withdrawn, and when each was last active."""

    def __init__(self, store: Store) -> None:
        """Read it from an open store.

        Raises:
            StoreError: it cannot be read.
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

    @property
    def directory(self) -> Path:
        """The store's."""
        return self._store.directory

    # ----------------------------------------------------------------- withdrawals

    def withdrawn(self, device: str) -> bool:
        """Whether a device was withdrawn from the federation."""
        return bool(self._hashes) and keyed_hash(device, self._key) in self._hashes

    def alias(self, device: str) -> str:
        """Replaces an erased name where counts need distinct devices."""
        return GONE + pseudonym(device, self._key)

    def _other_number(self, outbox: int) -> int:
        """Replaces an outbox's identity, which its broker and its card know; the same for the same identity."""
        return int.from_bytes(keyed_hash(str(outbox), self._key)[:8]) >> 1

    def _proven(self, entry: bytes) -> bytes:
        """The hash of an entry, whose last four bytes are its checksum; entries of earlier versions have none.

        Raises:
            StoreDamaged: it is damaged.
        """
        if not intact(entry):
            raise StoreDamaged(
                f"The entry of a device that was withdrawn is damaged in {self._store.directory}: it would be let in "
                f"again. {what_to_do(self._store.directory, 0)}"
            )
        return bytes(entry[:_HASH])

    def withdraw(self, device: str) -> bool:
        """Refuse a device from now on, durably; return whether that is new."""
        if self.withdrawn(device):
            return False
        name = keyed_hash(device, self._key)
        with self._store.transaction() as db:
            db.execute("INSERT OR IGNORE INTO forgotten VALUES (?)", (_checked(name),))
            self._store.site.remove(db, (device,))
        self._hashes.add(name)
        return True

    def readmit(self, device: str) -> bool:
        """Readmit a withdrawn device, durably; return whether it was withdrawn."""
        if not self.withdrawn(device):
            return False
        name = keyed_hash(device, self._key)
        with self._store.transaction() as db:
            db.execute("DELETE FROM forgotten WHERE hash IN (?, ?)", (name, _checked(name)))
        self._hashes.discard(name)
        return True

    def erase(self, devices: Sequence[str]) -> Counter[str]:
        """Remove devices' names and bodies from the journal, and every checkpoint but the newest.

        The newest must not contain the devices any more, nor may a record after it.
        """
        counted: Counter[str] = Counter()
        with self._store.transaction() as db:  # one for all: each is synced to the disk
            for record in self._records_of(db, devices):
                counted["records"] += 1
                other: _OfDevice = replace(record, device=self.alias(record.device))
                if isinstance(other, rec.UpdateRecord):
                    other = replace(other, outbox=self._other_number(other.outbox), ticket=b"")
                counted["bodies"] += self._store.rewrite(db, other)
            db.executemany("DELETE FROM seen WHERE device = ?", [(device,) for device in devices])
            self._store.site.remove(db, devices)
        self._heard.difference_update(devices)
        counted["checkpoints"] = self._store.keep_newest_checkpoint()
        self._store.vacuum()
        return counted

    @staticmethod
    def _records_of(db: sqlite3.Connection, devices: Sequence[str]) -> list[_OfDevice]:
        """The journal's records of these devices."""
        # A filter only: a name may also be part of another one.
        which = ("WHERE instr(record, ?)", (devices[0].encode(),)) if len(devices) == 1 else ("", ())
        rows = db.execute(f"SELECT kind, record FROM journal {which[0]}", which[1])  # noqa: S608 - a constant
        records = (rec.unpack(kind, packed) for kind, packed in rows)
        wanted = set(devices)
        return [record for record in records if isinstance(record, _OfDevice) and record.device in wanted]

    def audit(self, what: str, device: str, by: str, **about: object) -> None:
        """Add a line about a device to the audit log."""
        append(self._store, self._key, {"what": what, "device": pseudonym(device, self._key), "by": by, **about})

    def audit_all(self, what: str, devices: Sequence[str], by: str) -> None:
        """Add one line about several devices to the audit log."""
        append(
            self._store,
            self._key,
            {"what": what, "devices": [pseudonym(each, self._key) for each in devices], "by": by},
        )

    # ------------------------------------------------------------------- retention

    def heard(self, device: str) -> None:
        """Record activity of a device."""
        self._heard.add(device)

    def write_heard(self, now: float, version: int) -> None:
        """Write the activity since the last call.

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

    def silent(self, before: float, newest: int) -> dict[str, int]:
        """Devices inactive since `before`, each with the newest version at its last activity, if it was not `newest`.

        Their updates were trained from that version or earlier ones.
        """
        rows = self._store.query("SELECT device, version FROM seen WHERE at < ? AND version < ?", (int(before), newest))
        return {device: version for device, version in rows if device not in self._heard}


def intact(entry: object) -> bool:
    """Whether the entry of a withdrawn device is undamaged, as far as it has a checksum."""
    return isinstance(entry, bytes) and len(entry) >= _HASH and entry in {entry[:_HASH], _checked(entry[:_HASH])}


def _checked(name: bytes) -> bytes:
    """A hash with its CRC-32, because a flipped bit would readmit a device."""
    return name + zlib.crc32(name).to_bytes(4)


def forget_in_stopped(store: Store, device: str, by: str) -> Counter[str] | None:
    """Forget a device in a store that no aggregator has open, and that was closed cleanly.

    Returns None if it was not, or an update of the device still waits for its step: then the aggregator's next start
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
    if checkpoint.lsn != store.newest_lsn() or "ledger" not in checkpoint.core:
        return None  # a strategy is needed to know what an earlier Midge's devices have spent
    core = AggregatorCore(fedasync(), lineage=store.lineage, schema_hash=store.schema.hash)
    core.load(checkpoint.core)
    if core.waits(device):
        return None
    engine = Engine.of(checkpoint, store.schema, store)
    counted = forget(engine, core, names, [device])
    names.audit("erased", device, by, **counted)
    return counted


def give_back_account(store: Store, core: AggregatorCore, names: Names, device: str) -> None:
    """Give a device back what it has spent of its privacy budget, before it is readmitted and could spend it again."""
    alias = names.alias(device)
    if core.charged(alias):
        record = rec.ReadmitRecord(core.lsn + 1, device, alias)
        core.note(record)
        store.commit([Entry(record, None)])


def readmit_in_stopped(store: Store, device: str, by: str) -> bool:
    """Readmit a withdrawn device in a store that no aggregator has open; return whether it was withdrawn.

    Raises:
        StoreError: the store cannot be used.
    """
    if store.schema is None:
        raise StoreError(f"The store {store.directory} is empty: it knows no device.")
    names = Names(store)
    core = AggregatorCore(fedasync(), lineage=store.lineage, schema_hash=store.schema.hash)
    checkpoint = store.newest_checkpoint()
    core.load({**checkpoint.core, "lsn": store.newest_lsn()})
    give_back_account(store, core, names, device)
    if not names.readmit(device):
        return False
    names.audit("readmitted", device, by)
    return True


def forget(engine: Engine, core: AggregatorCore, names: Names, devices: Sequence[str], before: int = 0) -> Counter[str]:
    """Erase devices of which no update waits for a step.

    Args:
        engine: the model and its store.
        core: of the same store.
        names: of the same store.
        devices: to erase.
        before: updates of versions before this one are refused as stale from now on.

    Raises:
        StoreFull: there is no room; the journal still holds the rest, and the request can be repeated.
    """
    actions = [core.forget(device, names.alias(device), before) for device in devices]
    engine.store.commit([Entry(action.record, None) for action in actions])
    for device in devices:
        engine.forget(device)
    engine.checkpoint(core)
    return names.erase(devices)
