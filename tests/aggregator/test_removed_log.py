"""A log of releases, or newest releases, that were removed from a store are found; an honest store gives no alarm."""

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from midge.__main__ import main
from midge.aggregator.core import records as rec
from midge.aggregator.store.backup import backup
from midge.aggregator.store.device_erasure import Names, forget
from midge.aggregator.store.journal import checksum
from midge.aggregator.store.ledger import LedgerTable
from midge.aggregator.store.put_back import unmark
from midge.aggregator.store.reading import ReadOnlyStore
from midge.aggregator.store.restoring import restore
from midge.aggregator.store.salvage import salvage
from midge.aggregator.store.verification import verify
from tests.aggregator.rig import EVERYTHING_COUNTS, Rig, rig
from tests.aggregator.test_counterfactual import registered
from tests.aggregator.test_explained import go_back

NO_LOG = (
    "DROP TABLE ledger; DROP TABLE ledger_nodes; DELETE FROM meta WHERE name = 'ledger';"
    "DELETE FROM sums WHERE name = 'ledger'"
)
"""What makes a store one of an earlier Midge, which kept no log."""
NEWEST = "(SELECT max(place) FROM ledger WHERE tag = x'' AND place < (SELECT max(place) FROM ledger))"
MIDDLE = "(SELECT lsn FROM ledger WHERE tag = x'' ORDER BY place LIMIT 1 OFFSET 4)"


def lived(life: Rig, first: int = 1, last: int = 8, *, checkpoints: tuple[int, ...] = ()) -> None:
    """Each update a release."""
    for number in range(first, last + 1):
        life.send("a", number, [number, 1, 0, 0], base=life.core.version, generation=life.core.generation)
        if number in checkpoints:
            life.engine.checkpoint(life.core)


def changed(directory: Path, *statements: str) -> None:
    with closing(sqlite3.connect(directory / "store.db")) as db:
        db.executescript("; ".join(statements))


def asked(directory: Path, capsys: pytest.CaptureFixture[str], first: int = 1) -> tuple[int, dict[str, Any], str]:
    """Exit code, object and words of the audit."""
    capsys.readouterr()
    code = main(["audit", str(directory), "--from", str(first), "--json"])
    said = json.loads(capsys.readouterr().out)
    assert main(["audit", str(directory), "--from", str(first)]) == code
    return code, said, capsys.readouterr().out


def damaged(directory: Path) -> set[str]:
    return {part.name for part in verify(directory) if part.damaged}


@pytest.mark.parametrize(
    "statements",
    [
        ("DELETE FROM ledger",),
        ("DELETE FROM ledger", "DELETE FROM ledger_nodes"),
        ("DROP TABLE ledger", "DROP TABLE ledger_nodes"),
        (f"DELETE FROM ledger WHERE lsn = {MIDDLE}",),
        (f"DELETE FROM ledger WHERE place > {NEWEST}",),
        ("DELETE FROM ledger WHERE place < 3",),
        ("DELETE FROM meta WHERE name = 'ledger'",),
    ],
    ids=["emptied", "with its nodes", "dropped", "one release", "cut off", "begun later", "its key"],
)
def test_a_log_that_was_removed_is_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, statements: tuple[str, ...]
) -> None:
    """Seen to fail: "what is left of them is the same", nothing from the aggregator, and an undamaged store."""
    with rig(tmp_path, EVERYTHING_COUNTS) as life:
        lived(life, checkpoints=(2, 6))
    assert asked(tmp_path, capsys)[:1] == (0,) and not damaged(tmp_path)
    changed(tmp_path, *statements)
    code, said, words = asked(tmp_path, capsys)
    assert code == 1 and not said["ok"] and "WRONG: log of releases" in words
    if "ledger WHERE place < 3" not in statements[0]:  # as if they had been pruned
        assert "log of releases" in damaged(tmp_path)
        caplog.clear()
        with rig(tmp_path, EVERYTHING_COUNTS) as life:
            assert "ledger of releases is damaged" in caplog.text
            lived(life, 9, 12)  # and the log goes on, or begins again
        with rig(tmp_path, EVERYTHING_COUNTS) as life:
            assert life.store.ledger.head.size


def test_a_log_without_its_newest_entries_and_hashes_is_not_confirmed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Seen to fail: they were counted among those that are the same, without a word about the log."""
    with rig(tmp_path, EVERYTHING_COUNTS) as life:
        lived(life)
        version = life.core.version
    changed(
        tmp_path,
        f"DELETE FROM ledger_nodes WHERE (place + 1) << level > {NEWEST} + 1",
        f"DELETE FROM ledger WHERE place > {NEWEST}",
    )
    code, said, words = asked(tmp_path, capsys)
    assert code == 0 and said["not_logged"] == [version]
    assert f"Not compared with the log of releases: {version}." in words


def cut(directory: Path, left: str) -> int:
    """Remove the records behind a release from the journal, and all but one sign of them; return its version."""
    with rig(directory, EVERYTHING_COUNTS) as life:
        lived(life, checkpoints=(2, 8))
        newest = life.core.lsn
    with ReadOnlyStore(directory) as store:
        ((lsn, record),) = store.query(
            "SELECT lsn, record FROM journal WHERE kind = 'release' ORDER BY lsn DESC LIMIT 1 OFFSET 2"
        )
        release = rec.unpack("release", record)
        assert isinstance(release, rec.ReleaseRecord)
    changed(directory, f"DELETE FROM journal WHERE lsn > {lsn}")
    if left not in {"checkpoint", "all"}:
        changed(directory, f"DELETE FROM checkpoints WHERE lsn = {newest}")
    if left not in {"frames", "all"}:
        changed(directory, f"DELETE FROM frames WHERE version > {release.version}")
    if left not in {"log", "all"}:
        changed(
            directory,
            f"DELETE FROM ledger_nodes WHERE (place + 1) << level > 1 + (SELECT place FROM ledger WHERE lsn = {lsn})",
            f"DELETE FROM ledger WHERE place > (SELECT place FROM ledger WHERE lsn = {lsn})",
        )
    return release.version


@pytest.mark.parametrize("left", ["checkpoint", "frames", "log", "all"])
def test_releases_that_were_cut_from_the_journal_are_missed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], left: str
) -> None:
    """Seen to fail: the releases before them were the same, and of the others nothing was said."""
    version = cut(tmp_path, left)
    code, said, words = asked(tmp_path, capsys)
    assert code == 1 and not said["ok"] and said["releases"][-1]["version"] == version
    assert "behind the journal's end" in words and f"release {version}: " in words
    assert [each["version"] for each in said["releases"] if each["wrong"]] == [version]
    assert main(["audit", str(tmp_path), "--from", "2", "--to", str(version - 1)]) == 0
    assert main(["audit", str(tmp_path), "--from", str(version + 1)]) == 2
    assert "The newest records were removed" in capsys.readouterr().err


def honest_promotion(directory: Path) -> None:
    with rig(directory, EVERYTHING_COUNTS) as life:
        life.send("b", 1, [1, 1, 1, 1], base=life.core.version)
        lived(life)
    words = ["replay", str(directory), "--without", "b", "--promote", "--release-floor", "1"]
    assert main(words) == 0


def honest_upgrade(directory: Path) -> None:
    with rig(directory, EVERYTHING_COUNTS) as life:
        lived(life, checkpoints=(2, 6, 8))
    changed(directory, NO_LOG)


def honest_log_after_an_upgrade(directory: Path) -> None:
    honest_upgrade(directory)
    with rig(directory, EVERYTHING_COUNTS) as life:
        lived(life, 9, 12)


def honest_return_to_an_earlier_midge(directory: Path) -> None:
    """It leaves the log alone, and writes checkpoints behind its releases."""
    with rig(directory, EVERYTHING_COUNTS) as life:
        lived(life)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LedgerTable, "release", lambda *_: None)
        with rig(directory, EVERYTHING_COUNTS) as life:
            lived(life, 9, 12, checkpoints=(12,))
    with rig(directory, EVERYTHING_COUNTS) as life:
        lived(life, 13, 14)


def honest_salvage(directory: Path) -> None:
    with rig(directory / "damaged", EVERYTHING_COUNTS) as life:
        lived(life, checkpoints=(2, 6))
    salvage(directory / "damaged", directory / "s", "me")


def honest_salvage_of_an_earlier_version(directory: Path) -> None:
    """Which kept the key of the log."""
    honest_salvage(directory)
    changed(directory / "s", "INSERT INTO meta VALUES ('ledger', zeroblob(32))")


def honest_start_after_a_salvage(directory: Path) -> None:
    honest_salvage(directory)
    with rig(directory / "s", EVERYTHING_COUNTS) as life:
        unmark(life.store)
        lived(life, 9, 12)


def honest_backup(directory: Path) -> None:
    with rig(directory / "before", EVERYTHING_COUNTS) as life:
        lived(life, checkpoints=(2, 6))
    backup(directory / "before", directory / "backup")
    restore(directory / "backup", directory / "s", "me")


def honest_start_after_a_restore(directory: Path) -> None:
    honest_backup(directory)
    with rig(directory / "s", EVERYTHING_COUNTS) as life:
        life.processor.shell.carry_out(life.core.begin_generation(1, life.core.version + 3, 0.0), 0.0)
        lived(life, 9, 12)


def honest_power_cut(directory: Path) -> None:
    """Between a release's record and its frames."""
    with rig(directory, EVERYTHING_COUNTS) as life:
        lived(life)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(life.store.ledger, "write", lambda db: None)
            life.send("b", 1, [1, 1, 1, 1], base=life.core.version)


def honest_pruning(directory: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("midge.aggregator.store.store.KEEP_RECORDS", 3)
        with rig(directory, EVERYTHING_COUNTS) as life:
            lived(life, 1, 30, checkpoints=(10, 20, 22, 24, 26, 28))


def honest_erasure(directory: Path) -> None:
    with rig(directory, EVERYTHING_COUNTS) as life:
        life.send("c", 1, [1, 2, 3, 4])
        lived(life)
        forget(life.engine, life.core, Names(life.store), ["c"])
        lived(life, 9, 12)


def honest_retention(directory: Path) -> None:
    """Of several devices at once, one of whose updates is in a step that no release has yet."""
    with rig(directory, replace(EVERYTHING_COUNTS, release_floor=2)) as life:
        for seq, device in enumerate("cdcdc", start=1):
            life.send(device, (seq + 1) // 2, [seq, 1, 2, 3], base=life.core.version)
        names = Names(life.store)
        forget(life.engine, life.core, names, ["c", "d"])
        names.audit_all("expired", ["c", "d"], "retention")
        life.send("e", 1, [1, 1, 1, 1], base=life.core.version)


def honest_generation(directory: Path) -> None:
    with rig(directory, EVERYTHING_COUNTS) as life:
        lived(life, checkpoints=(4,))
        life.processor.shell.carry_out(life.core.begin_generation(1, life.core.version, 0.0), 0.0)
        lived(life, 9, 12, checkpoints=(10,))


def honest_rollback(directory: Path) -> None:
    with rig(directory, EVERYTHING_COUNTS) as life:
        lived(life, 1, 4)
        registered(life)
        lived(life, 5, 8)
        go_back(life, max(life.core.registry.versions))
        lived(life, 9, 12)


@pytest.mark.parametrize(
    "made",
    [
        honest_promotion,
        honest_upgrade,
        honest_log_after_an_upgrade,
        honest_return_to_an_earlier_midge,
        honest_salvage,
        honest_salvage_of_an_earlier_version,
        honest_start_after_a_salvage,
        honest_backup,
        honest_start_after_a_restore,
        honest_power_cut,
        honest_pruning,
        honest_erasure,
        honest_retention,
        honest_generation,
        honest_rollback,
    ],
    ids=lambda made: made.__name__,
)
def test_an_honest_store_gives_no_alarm(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    made: Callable[[Path], None],
) -> None:
    """Before a start and after it."""
    made(tmp_path)
    store = tmp_path / "s" if (tmp_path / "s").exists() else tmp_path
    caplog.clear()
    for _ in range(2):
        with closing(sqlite3.connect(store / "store.db")) as db:
            ((oldest,),) = db.execute("SELECT min(lsn) FROM checkpoints").fetchall()
            releases = db.execute("SELECT count(*) FROM journal WHERE kind = 'release' AND lsn > ?", (oldest,))
            many = releases.fetchone()[0]
        if many:
            with ReadOnlyStore(store) as read:
                first = min(int(each.values["version"]) for each in read.checkpoints()) + 1
            code, said, _ = asked(store, capsys, first)
            assert code == 0 and said["ok"] and len(said["releases"]) == many
        assert not damaged(store) - {"witness"}
        with rig(store, EVERYTHING_COUNTS) as life:
            lived(life, 30, 33)
    assert "damaged" not in caplog.text


@pytest.mark.parametrize("alias", ["gone-77", "b"])
def test_an_update_under_another_name_is_found_and_is_not_said_to_be_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], alias: str
) -> None:
    """Seen to fail: under a name as of an erased device, the audit passed over it, and `complete` was true."""
    with rig(tmp_path, EVERYTHING_COUNTS) as life:
        lived(life)
        lived_as(life, "c", 5)
    renamed(tmp_path, "c", alias, after=2)
    code, _, words = asked(tmp_path, capsys)
    assert code == 1 and "WRONG: log of" in words
    said = without(tmp_path, "c", capsys)
    assert said["left_out"] == 2 and not said["complete"] and said["unnamed"] == 3
    assert "Not known: whose work is in 3 updates" in said["words"]


def test_an_update_under_an_alias_that_was_given_to_another_is_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Seen to fail: the name of a device that was really erased hid the updates of others."""
    with rig(tmp_path, EVERYTHING_COUNTS) as life:
        lived_as(life, "c", 2)
        alias = (names := Names(life.store)).alias("c")
        forget(life.engine, life.core, names, ["c"])
        lived(life)
        lived_as(life, "d", 5)
    code, said, _ = asked(tmp_path, capsys, 4)
    assert code == 0 and said["ok"]
    renamed(tmp_path, "d", alias, after=2)
    assert asked(tmp_path, capsys, 4)[0] == 1
    assert not without(tmp_path, "d", capsys)["complete"]


def test_a_device_whose_name_begins_like_an_alias_is_one_like_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Seen to fail: its entries were passed over, and its updates made all others' what-ifs incomplete."""
    with rig(tmp_path, EVERYTHING_COUNTS) as life:
        lived_as(life, "gone-fishing", 3)
        lived(life)
    assert asked(tmp_path, capsys)[0] == 0
    assert without(tmp_path, "a", capsys)["complete"]
    renamed(tmp_path, "a", "gone-fishing", after=4)
    assert asked(tmp_path, capsys)[0] == 1


def lived_as(life: Rig, device: str, many: int) -> None:
    for number in range(1, many + 1):
        life.send(device, number, [number, 1, 0, 2], base=life.core.version)


def renamed(directory: Path, device: str, name: str, after: int) -> None:
    """Give a device's updates behind the first ones another name, with their checksums."""
    with closing(sqlite3.connect(directory / "store.db")) as db, db:
        rows = db.execute("SELECT lsn, record, body FROM journal WHERE kind = 'update' ORDER BY lsn").fetchall()
        read = [(rec.unpack("update", record), body) for _, record, body in rows]
        own = [(record, body) for record, body in read if isinstance(record, rec.UpdateRecord)]
        for record, body in [one for one in own if one[0].device == device][after:]:
            packed = rec.pack(replace(record, device=name))
            values = (packed, checksum(packed, body), record.lsn)
            db.execute("UPDATE journal SET record = ?, crc = ? WHERE lsn = ?", values)


def without(directory: Path, device: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The guarantee of a what-if."""
    capsys.readouterr()
    assert main(["replay", str(directory), "--without", device, "--json"]) == 0
    said: dict[str, Any] = json.loads(capsys.readouterr().out)["guarantee"]
    return said
