"""The ledger of releases: a Merkle log over the releases, and the updates that each took, in the store.

It follows from the journal: a release's entries are written in the transaction of its frames, before it is published,
and written again by the replay after a power cut. Kept are the hashes of complete subtrees, and for as long as the
journal has an update, where its entry is. A store of an earlier Midge begins its log with its next release.
"""

import hmac
import logging
import secrets
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from midge.aggregator.core import records as rec
from midge.aggregator.store import meta_table
from midge.aggregator.store.meta_table import Query
from midge.wire import frames, merkle
from midge.wire.errors import WireError
from midge.wire.ledger import SALT, Head, LoggedRelease, TakenUpdate
from midge.wire.messages.proofs import Proof, Prove
from midge.wire.plurals import counted

log = logging.getLogger("aggregator")

TABLE = """
CREATE TABLE IF NOT EXISTS ledger_nodes (
    level INTEGER, place INTEGER, hash BLOB NOT NULL, PRIMARY KEY (level, place)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS ledger (
    place INTEGER PRIMARY KEY, lsn INTEGER NOT NULL, tag BLOB NOT NULL, weight REAL NOT NULL, about BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS ledger_tags ON ledger (tag);
"""
KEY = "ledger"
"""The name of the constant in the store that salts come from."""
_TAG = 8
GONE = "gone-"
"""How the names begin that erased devices have in the journal."""
RESTORED = "restored"
"""The name of what marks a restored or salvaged store in its metadata until its next start."""
_AT_ONCE = 500
_WINDOW = "SELECT lsn, kind, record FROM journal WHERE lsn < ? AND kind IN ('step', 'release', 'rollback') "


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """One entry of a release, before it has a place."""

    lsn: int
    entry: bytes
    tag: bytes = b""
    weight: float = 0.0
    erased: bool = False
    """Whether the device was erased: its record is no longer what the entry was made from."""


class LedgerTable:
    """The log of one open store.

    Args:
        query: reads rows.
        constant: a value of the store that is made once (`Store.constant`).
    """

    def __init__(self, query: Query, constant: Callable[[str, Callable[[], Any]], Any]) -> None:
        self._query, self._constant = query, constant
        self.head = Head(0, merkle.EMPTY)
        """Of what is written."""
        self._released = 0
        """The lsn of the newest release in it."""
        self._pending: list[tuple[rec.ReleaseRecord, LoggedRelease]] = []
        self._waiting: tuple[Head, int] | None = None
        """Head and release of what was put into the open transaction."""

    def load(self) -> None:
        """Continue the log. One whose nodes do not have the root that was announced is damaged, and begins again."""
        newest = self._newest()
        self._damaged = self.damage()
        if newest is not None:
            place, self._released, root = newest
            if root and self._has_root(place + 1, root):
                self.head = Head(place + 1, root)
        if self._damaged:
            log.error(
                "The ledger of releases is damaged (%s), and %s: a device that verified more of it sees with its next "
                "proof that it does not go on from there. `midge audit` of a backup says what it was.",
                self._damaged,
                f"goes on with {self.head.size} entries" if self.head.size else "begins again",
            )

    _damaged = ""

    def damage(self) -> str:
        """What is wrong with the log as a whole; empty if nothing is, or if the store never had one."""
        newest = self._newest()
        if cut := self._cut(None if newest is None else newest[0]):
            return cut
        if newest is None:
            return ""
        place, _, root = newest
        if not self._has_root(place + 1, root):
            return "its hashes do not give the root that was announced"
        ((count, first, named),) = self._query("SELECT count(*), min(place), max(tag != x'') FROM ledger")
        if gone := place + 1 - first - count:
            return f"{counted(gone, 'entry is', 'entries are')} gone from within it"
        return "" if self.keyed or not named else "the key of its entries is gone"

    @property
    def keyed(self) -> bool:
        """Whether the store has the key of the log's entries."""
        return bool(self._query("SELECT 1 FROM meta WHERE name = ?", (KEY,)))

    def _newest(self) -> tuple[int, int, bytes] | None:
        """Place, record and root of the newest release in the log; None if there is none."""
        if not self.present:
            return None
        rows = self._query("SELECT place, lsn, about FROM ledger WHERE tag = x'' ORDER BY place DESC LIMIT 1")
        return next(((int(place), int(lsn), _root_in(about)) for place, lsn, about in rows), None)

    def _has_root(self, size: int, root: bytes) -> bool:
        try:
            return merkle.root(self.node, size) == root
        except (LookupError, TypeError):
            return False

    def _cut(self, last: int | None) -> str:
        """What shows that the log went on after its last release, or that there was one; empty if nothing does."""
        if self.present:
            # Hashes are written with the entries, and removed from the front only.
            ((newest,),) = self._query("SELECT max(place) FROM ledger_nodes WHERE level = 0")
            if newest is not None and newest > (-1 if last is None else last):
                return f"it had at least {newest + 1} entries, and has {0 if last is None else last + 1}"
        # The key is written with the first release. A salvaged store has no log, and until its next start a mark.
        salvaged = self._query("SELECT 1 FROM meta WHERE name = ?", (RESTORED,))
        return "all of its entries are gone" if last is None and self.keyed and not salvaged else ""

    def lost(self, lsn: int) -> bool:
        """Whether the log had a release that it has no longer; one from before the log began it never had.

        Nor one that is not in it yet: after a promotion or a power cut, the next start enters it.
        """
        last: int | None = None
        if self.present:
            ((last,),) = self._query("SELECT max(place) FROM ledger WHERE tag = x'' AND lsn < ?", (lsn,))
            query = "SELECT place, about FROM ledger WHERE tag = x'' AND lsn > ? ORDER BY place LIMIT 1"
            for place, about in self._query(query, (lsn,)):
                # An earlier Midge that was at work in between left no places for its releases.
                return int(place) - _updates_in(about) > (0 if last is None else last + 1)
        return bool(self._cut(last))

    def node(self, level: int, place: int) -> bytes:
        """The hash of a complete subtree.

        Raises:
            LookupError: it is not kept.
        """
        rows = self._query("SELECT hash FROM ledger_nodes WHERE level = ? AND place = ?", (level, place))
        if not rows:
            raise LookupError(f"the log keeps no node {place} of level {level}")
        return bytes(rows[0][0])

    @property
    def present(self) -> bool:
        """Whether the store has a log: one of an earlier Midge that is only read has none."""
        return bool(self._query("SELECT 1 FROM sqlite_schema WHERE name = 'ledger'"))

    def kept(self) -> int:
        """The number of entries that the store can still find."""
        return int(self._query("SELECT count(*) FROM ledger")[0][0]) if self.present else 0

    def newest_lsn(self) -> int:
        """The record of the newest release in the log; 0 if there is none."""
        newest = self._newest()
        return 0 if newest is None else newest[1]

    def logged(self, lsn: int) -> tuple[int, bytes] | None:
        """The place of a release's entry and the root with it; None if the log does not have the release."""
        rows = (
            self._query("SELECT place, about FROM ledger WHERE lsn = ? AND tag = x''", (lsn,)) if self.present else ()
        )
        return next(((int(place), _root_in(about)) for place, about in rows), None)

    def where(self, first: int, last: int) -> list[tuple[int, bytes, float]]:
        """Of the entries at some places: the lsn of the record, the tag, and the weight."""
        return self._query(
            "SELECT lsn, tag, weight FROM ledger WHERE place BETWEEN ? AND ? ORDER BY place", (first, last)
        )

    # --------------------------------------------------------------------- writing

    def release(self, record: rec.ReleaseRecord, generation: int, digest: bytes) -> None:
        """A release was made: its entries are written with the next transaction. One that is in the log is passed."""
        if record.lsn > self._released and record.lsn not in {each.lsn for each, _ in self._pending}:
            release = LoggedRelease(generation, record.version, record.step, digest, 0)
            self._pending.append((record, release))

    def write(self, db: sqlite3.Connection) -> None:
        """Write what is new. Call `written` once it is durable."""
        if not self._pending:
            return
        if self._damaged:
            db.execute("DELETE FROM ledger WHERE place >= ?", (self.head.size,))
            db.execute("DELETE FROM ledger_nodes WHERE (place + 1) << level > ?", (self.head.size,))
        if not self.keyed:
            meta_table.enter(db, KEY, secrets.token_bytes(32))  # in this transaction: a key says that there is a log
        new: dict[tuple[int, int], bytes] = {}
        size, lsn, root = self.head.size, 0, b""

        def node(level: int, place: int) -> bytes:
            found = new.get((level, place))
            return self.node(level, place) if found is None else found

        for record, release in self._pending:
            entries = self.entries(record, release)
            for place, one in enumerate(entries, start=size):
                new |= {
                    (level, at): sum_ for level, at, sum_ in merkle.completed(place, merkle.leaf_hash(one.entry), node)
                }
            size, lsn = size + len(entries), record.lsn
            root = merkle.root(node, size)
            rows = [
                (place, one.lsn, one.tag, one.weight, b"" if one.tag else frames.pack([one.entry, root]))
                for place, one in enumerate(entries, start=size - len(entries))
            ]
            db.executemany("INSERT INTO ledger VALUES (?, ?, ?, ?, ?)", rows)
        db.executemany("INSERT INTO ledger_nodes VALUES (?, ?, ?)", [(*where, sum_) for where, sum_ in new.items()])
        self._waiting = Head(size, root), lsn

    def written(self) -> None:
        """What was written is durable."""
        if self._waiting is not None:
            (self.head, self._released), self._waiting = self._waiting, None
            self._pending.clear()
            self._damaged = ""

    def prune(self, db: sqlite3.Connection, before: int) -> None:
        """Remove where entries of releases before an lsn are, and the nodes that no later proof needs."""
        row = db.execute("SELECT min(place) FROM ledger WHERE tag = x'' AND lsn >= ?", (before,)).fetchone()
        first = db.execute("SELECT max(place) + 1 FROM ledger WHERE tag = x'' AND lsn < ?", (before,)).fetchone()[0]
        if first is None or row[0] is None:
            return
        db.execute("DELETE FROM ledger WHERE place < ?", (first,))
        for level in range(int(first).bit_length()):
            # What is left of a prefix are the subtrees by the bits of its length: all later paths use these whole.
            keep = (first >> level) - 1 if first >> level & 1 else -1
            db.execute(
                "DELETE FROM ledger_nodes WHERE level = ? AND place < ? AND place != ?", (level, first >> level, keep)
            )

    # --------------------------------------------------------------------- entries

    def entries(self, record: rec.ReleaseRecord, release: LoggedRelease) -> list[LedgerEntry]:
        """The entries of a release, from the journal: of its updates, and its own, which is last."""
        weights = dict(self._steps(record)) if record.devices else {}
        found: list[LedgerEntry] = []
        updates = list(self._updates(list(weights)))
        aliases = forgotten(self._query) if any(update.device.startswith(GONE) for update, _ in updates) else {}
        for update, bare in updates:
            weight = weights[update.lsn]
            entry = taken_update(update, release, weight).entry(self.salt(update.lsn))
            # A name is not enough: whoever gives one to a record would hide it.
            erased = bare and update.lsn < aliases.get(update.device, 0)
            found.append(LedgerEntry(update.lsn, entry, self._tag(update), weight, erased))
        own = LoggedRelease(release.generation, release.version, release.step, release.digest, len(found))
        return [*found, LedgerEntry(record.lsn, own.entry())]

    def _steps(self, record: rec.ReleaseRecord) -> Iterator[tuple[int, float]]:
        """The updates of the steps since the last release with any device's work, each with its weight."""
        steps: list[rec.StepRecord] = []
        below, begun = record.lsn, False
        while not begun and (rows := self._query(f"{_WINDOW} ORDER BY lsn DESC LIMIT 100", (below,))):
            for below, kind, packed in rows:  # noqa: B007 - goes on from there
                found = rec.unpack(kind, packed)
                begun = isinstance(found, rec.RollbackRecord) or (
                    isinstance(found, rec.ReleaseRecord) and found.devices > 0
                )
                if begun:
                    break
                if isinstance(found, rec.StepRecord):
                    steps.append(found)
        for step in reversed(steps):
            yield from step.updates

    def _updates(self, lsns: Sequence[int]) -> Iterator[tuple[rec.UpdateRecord, bool]]:
        """The records of updates, in this order, and whether they have no body; those that are gone are left out."""
        for start in range(0, len(lsns), _AT_ONCE):
            some = lsns[start : start + _AT_ONCE]
            marks = ",".join("?" * len(some))
            bare = "body IS NULL AND segment IS NULL"
            query = f"SELECT lsn, record, {bare} FROM journal WHERE lsn IN ({marks})"  # noqa: S608 - question marks
            rows = {lsn: row for lsn, *row in self._query(query, tuple(some))}
            for lsn in some:
                if lsn in rows and isinstance(found := rec.unpack("update", rows[lsn][0]), rec.UpdateRecord):
                    yield found, bool(rows[lsn][1])

    def tags(self) -> dict[int, bytes]:
        """By what the entries of updates are found, by their records."""
        return dict(self._query("SELECT lsn, tag FROM ledger WHERE tag != x''")) if self.present and self.keyed else {}

    def names(self, update: rec.UpdateRecord, tag: bytes) -> bool:
        """Whether an entry's tag is of the device that the record names."""
        return hmac.compare_digest(self._tag(update), tag)

    def salt(self, lsn: int) -> bytes:
        """What blinds the entry of an update."""
        return self._mac(b"salt" + lsn.to_bytes(8, "little"))[:SALT]

    def _tag(self, update: rec.UpdateRecord | Prove, device: str = "") -> bytes:
        """By what an update's entry is found again; it says nothing without the key."""
        device = update.device if isinstance(update, rec.UpdateRecord) else device
        return self._mac(frames.pack(["tag", device, update.outbox, update.seq]))[:_TAG]

    def _mac(self, data: bytes) -> bytes:
        return hmac.digest(self._constant(KEY, lambda: secrets.token_bytes(32)), data, "sha256")

    # ---------------------------------------------------------------------- proofs

    def prove(self, device: str, asked: Prove) -> Proof:
        """The proof that a device's update is in a release, or why there is none."""
        plain = Proof(outbox=asked.outbox, seq=asked.seq, entries=asked.entries)
        if not 0 < asked.entries <= self.head.size or not asked.earlier <= asked.entries:
            return plain.model_copy(update={"why": f"the log has {self.head.size} entries"})
        rows = self._query("SELECT place, lsn, weight FROM ledger WHERE tag = ?", (self._tag(asked, device),))
        found = [row for row in rows if row[0] < asked.entries]
        if not found:
            reach = self._query("SELECT min(place) FROM ledger")[0][0] or 0
            why = f"no release among the log's entries {reach} to {asked.entries - 1}, which are kept, has this update"
            return plain.model_copy(update={"why": why})
        place, lsn, weight = found[-1]
        try:
            return self._proof(plain, place, lsn, weight, asked.earlier)
        except (LookupError, WireError) as error:
            return plain.model_copy(update={"why": f"the log no longer reaches back to it ({error})"[:400]})

    def _proof(self, plain: Proof, place: int, lsn: int, weight: float, earlier: int) -> Proof:
        ((kept,),) = self._query("SELECT record FROM journal WHERE lsn = ?", (lsn,)) or [(None,)]
        if kept is None:
            raise LookupError("the journal has it no longer")
        record = rec.unpack("update", kept)
        assert isinstance(record, rec.UpdateRecord)
        own, about = self._query(
            "SELECT place, about FROM ledger WHERE place > ? AND tag = x'' ORDER BY place LIMIT 1", (place,)
        )[0]
        _, generation, version, step, digest, updates = frames.unpack(frames.unpack(about, items=2)[0], items=6)
        size = plain.entries
        if own >= size:
            raise LookupError("the announced head is within a release")
        return plain.model_copy(
            update={
                "body": record.body,
                "base": record.base,
                "weight": weight,
                "salt": self.salt(lsn),
                "place": place,
                "path": tuple(merkle.inclusion(self.node, place, size)),
                "generation": generation,
                "version": version,
                "step": step,
                "digest": digest,
                "updates": updates,
                "release": own,
                "release_path": tuple(merkle.inclusion(self.node, own, size)),
                "since": tuple(merkle.consistency(self.node, earlier, size)) if earlier else (),
            }
        )


def forgotten(query: Query) -> dict[str, int]:
    """The aliases of erased devices, each with the last record that erased one."""
    rows = query("SELECT record FROM journal WHERE kind = 'forget' ORDER BY lsn")
    found = (rec.unpack("forget", packed) for (packed,) in rows)
    return {record.device: record.lsn for record in found if isinstance(record, rec.ForgetRecord)}


def _root_in(about: bytes) -> bytes:
    """The root with a release, as kept with its entry; empty if that is damaged."""
    try:
        return bytes(frames.unpack(about, items=2)[1])
    except (WireError, TypeError):
        return b""


def _updates_in(about: bytes) -> int:
    """The number of updates in a release, as kept with its entry; 0 if that is damaged."""
    try:
        return int(frames.unpack(frames.unpack(about, items=2)[0], items=6)[5])
    except (WireError, TypeError, ValueError):
        return 0


def taken_update(record: rec.UpdateRecord, release: LoggedRelease, weight: float) -> TakenUpdate:
    """An update as its release took it."""
    return TakenUpdate(record.outbox, record.seq, record.body, release.generation, record.base, release.version, weight)
