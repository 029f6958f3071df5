"""`midge store backup` and `restore`: one moment of a running store, whole or not there; nothing doubled after it."""

import json
import os
import shutil
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from midge.__main__ import main
from midge.aggregator.core import records as rec
from midge.aggregator.core.presets import private
from midge.aggregator.core.privacy import Privacy
from midge.aggregator.store import audit_log, segments
from midge.aggregator.store.backup import backup
from midge.aggregator.store.consistency import UNFINISHED
from midge.aggregator.store.device_erasure import Names
from midge.aggregator.store.errors import StoreDamaged, StoreError, StoreFull, StoreInUse
from midge.aggregator.store.manifest import MANIFEST, Manifest, read_backup
from midge.aggregator.store.put_back import marked
from midge.aggregator.store.reading import ReadOnlyStore
from midge.aggregator.store.replaying import replay
from midge.aggregator.store.restoring import restore
from midge.aggregator.store.store import Store
from midge.broker.embedded.in_memory import Twin
from midge.broker.mqtt.connection import Options
from midge.iot_client.state.outbox import Outbox
from tests.aggregator.rig import Rig, rig
from tests.aggregator.test_full_disk import Life, small_disk
from tests.federation.live import Log, aggregator, device, serving

SIZE = 9000
"""Of a model whose updates lie beside the journal."""


def wide_rig(directory: Path) -> AbstractContextManager[Rig]:
    return rig(directory, parameters={"x": np.zeros(SIZE, np.float32)})


def digests(directory: Path) -> set[str]:
    with ReadOnlyStore(directory) as store:
        return {way.whole for way in replay(store)}


def wide(life: Rig, seq: int) -> None:
    """An update that lies in a segment; and now and then a checkpoint, which has older ones removed."""
    life.send("a", seq, np.full(SIZE, seq, np.float32))
    if seq % 4 == 0:
        life.engine.checkpoint(life.core)


def listed(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def full(directory: Path) -> Path:
    """A store that was closed in order: checkpoints, segments, names that were erased, a history, and an audit log."""
    with wide_rig(directory) as life:
        life.store.history.follow(2e9)
        for seq in range(1, 8):
            wide(life, seq)
        names = Names(life.store)
        names.withdraw("gone")
        names.audit("withdrawn", "gone", "who")
        life.store.write_history()
    return directory


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """A backup of a store with something in every part of it."""
    full(tmp_path / "store")
    backup(tmp_path / "store", tmp_path / "backup")
    return tmp_path / "backup"


def test_backups_of_a_running_store_are_each_of_one_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copied file by file, the database speaks of checkpoints and bodies that are gone, or not there yet."""
    monkeypatch.setattr(segments, "LONGEST", 100_000)
    enough, made, failed = threading.Event(), list[Path](), list[BaseException]()

    def copy() -> None:
        try:
            while len(made) < 12:
                target = tmp_path / f"backup-{len(made)}"
                backup(tmp_path / "store", target)
                made.append(target)
        except BaseException as error:  # noqa: BLE001 - is told by the assertion below
            failed.append(error)
        finally:
            enough.set()

    known = {}
    with wide_rig(tmp_path / "store") as life:
        wide(life, 1)
        known[life.core.lsn] = life.model.digest().hex()
        thread = threading.Thread(target=copy)
        thread.start()
        seq = 1
        while not enough.is_set():
            seq += 1
            wide(life, seq)
            known[life.core.lsn] = life.model.digest().hex()
        thread.join()
    assert not failed
    manifests = [read_backup(each) for each in made]
    assert len({manifest.lsn for manifest in manifests}) > 3
    for target, manifest in zip(made, manifests, strict=True):
        assert digests(target) <= {known[manifest.lsn]}
    assert not list(tmp_path.glob(".*"))


def test_a_device_that_is_erased_while_its_bodies_are_copied_is_erased_in_the_backup(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from midge.aggregator.store import backup as backups

    copied, done = backups._copy_database, list[bool]()
    with wide_rig(tmp_path / "store") as life:
        for seq in range(1, 6):
            wide(life, seq)

        def then_erase(directory: Path, partial: Path) -> None:
            copied(directory, partial)
            if not done:
                done.append(True)
                Names(life.store).erase(["a"])

        monkeypatch.setattr(backups, "_copy_database", then_erase)
        backup(tmp_path / "store", tmp_path / "backup")
    with ReadOnlyStore(tmp_path / "backup") as store:
        updates = [each.record for each in store.entries(0) if isinstance(each.record, rec.UpdateRecord)]
    assert updates and not [update for update in updates if update.device == "a"]


def killed_at(left: int, *command: str | Path) -> int:
    """Give a command in a process of its own, which is killed before its durable action of this number; its end."""
    child = os.fork()
    if child == 0:
        actions = count()

        def counted(call: Any) -> Any:
            def stand_in(*arguments: Any, **named: Any) -> Any:
                if next(actions) == left:
                    os.kill(os.getpid(), signal.SIGKILL)
                return call(*arguments, **named)

            return stand_in

        for owner, name in ((os, "fsync"), (Path, "rename"), (Path, "replace"), (Path, "unlink"), (Path, "mkdir")):
            setattr(owner, name, counted(getattr(owner, name)))
        os._exit(main([str(word) for word in command]))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def lives(*command: str | Path) -> Iterator[int]:
    """Give a command again and again, killed before its first durable action, its second, and so on until it ends."""
    for left in count():
        code = killed_at(left, *command)
        yield code
        if code != -signal.SIGKILL:
            return


def test_a_kill_in_the_middle_leaves_no_backup_and_the_next_one_succeeds(tmp_path: Path) -> None:
    with wide_rig(tmp_path / "store") as life:
        for seq in range(1, 4):
            wide(life, seq)
    target, kills = tmp_path / "backup", 0
    for code in lives("store", "backup", tmp_path / "store", target):
        if code == 0:
            break
        kills += 1
        assert code == -signal.SIGKILL
        if target.exists():  # the power went after its name was there: then all of it is
            read_backup(target)
            target.rename(tmp_path / f"whole-{kills}")
    assert kills > 4
    read_backup(target)


def test_a_kill_in_the_middle_of_a_restore_leaves_no_store_that_an_aggregator_begins_with(kept: Path) -> None:
    target, kills = kept.parent / "restored", 0
    for code in lives("store", "restore", kept, target):
        if code == 0:
            break
        kills += 1
        assert code == -signal.SIGKILL
        if (target / "store.db").exists():
            with Store(target) as store:
                assert marked(store) is not None
            shutil.rmtree(target)
        elif (target / UNFINISHED).exists():
            with pytest.raises(StoreError, match="repeat the command"), Store(target):
                pass
            assert not (target / "store.db").exists(), "refused before a database is made"
    assert kills > 4
    assert digests(target) == digests(kept)


def test_a_full_target_is_a_sentence_and_nothing_is_left(tmp_path: Path) -> None:
    with wide_rig(tmp_path / "store") as life:
        for seq in range(1, 8):
            wide(life, seq)
    with small_disk(tmp_path / "disk", 100_000) as disk:
        with pytest.raises(StoreFull, match="no room"):
            backup(tmp_path / "store", disk / "backup")
        assert not list(disk.iterdir())
        backup(tmp_path / "store", tmp_path / "backup")
        with pytest.raises(StoreFull, match="no room"):
            restore(tmp_path / "backup", disk / "store", "who")
        assert not list(disk.iterdir())


def test_any_flipped_bit_of_a_backup_is_found_before_a_store_is_made(
    kept: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = kept.parent / "restored"
    for path in sorted(kept.rglob("*")):
        data = path.read_bytes()
        for place in (0, len(data) // 3, len(data) // 2, len(data) - 2):
            rotten = bytearray(data)
            rotten[place] ^= 1
            path.write_bytes(rotten)
            with pytest.raises(StoreDamaged, match=path.name):
                restore(kept, target, "who")
        path.write_bytes(data[:-3])
        with pytest.raises(StoreDamaged):
            restore(kept, target, "who")
        path.write_bytes(data)
    assert not target.exists()
    (kept / "names.key").unlink()
    assert main(["store", "restore", str(kept), str(target), "--json"]) == 1
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["ok"] is False


def test_a_backup_of_a_later_format_is_refused_in_a_sentence(kept: Path) -> None:
    manifest = read_backup(kept)
    later = Manifest(99, *(getattr(manifest, name) for name in Manifest.__slots__[1:]))
    (kept / MANIFEST).write_bytes(later.packed())
    with pytest.raises(StoreError, match="later version"):
        restore(kept, kept.parent / "restored", "who")


def test_a_damaged_store_is_not_backed_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with wide_rig(tmp_path / "store") as life:
        for seq in range(1, 4):
            wide(life, seq)
    (segment,) = (tmp_path / "store").glob("bodies-*")
    data = bytearray(segment.read_bytes())
    data[len(data) // 2] ^= 1
    segment.write_bytes(data)
    assert main(["store", "backup", str(tmp_path / "store"), str(tmp_path / "backup")]) == 1
    assert "is damaged, and no backup was made" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"store"}


def test_nothing_is_written_over(kept: Path) -> None:
    store = kept.parent / "store"
    with pytest.raises(StoreError, match="is there already"):
        backup(store, kept)
    with wide_rig(store):
        before = listed(store)
        with pytest.raises(StoreInUse):
            restore(kept, store, "who")
    with pytest.raises(StoreError, match="is not empty"):
        restore(kept, store, "who")
    assert before.keys() >= listed(store).keys() >= {"store.db", "audit.log"}
    empty = kept.parent / "empty"
    empty.mkdir()
    with pytest.raises(StoreError, match="no store"):
        backup(empty, kept.parent / "other")
    with pytest.raises(StoreError, match="no backup"):
        restore(store, empty, "who")
    restore(kept, empty, "who")
    assert digests(empty) == digests(kept)


def test_a_restored_store_says_so_in_its_audit_log_and_begins_one_generation(kept: Path) -> None:
    target = kept.parent / "restored"
    assert main(["store", "restore", str(kept), str(target)]) == 0
    verdict = audit_log.verify(target)
    assert (verdict.lines, verdict.wrong) == (2, ())
    last = json.loads((target / "audit.log").read_text().splitlines()[-1])
    assert last["what"] == "restored" and last["record"] == read_backup(kept).lsn


def test_a_budget_of_privacy_is_not_spent_again_without_a_word(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    life = Life(Store(tmp_path / "store"), strategy=private(Privacy(clip=0.5, noise=4.0, epsilon=50.0), 3))
    life.federation.begin(0.0)
    backup(tmp_path / "store", tmp_path / "backup")
    life.federation.close()
    assert main(["store", "restore", str(tmp_path / "backup"), str(tmp_path / "new")]) == 2
    assert "spend it again" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
    assert main(["store", "restore", str(tmp_path / "backup"), str(tmp_path / "new"), "--accept-spent"]) == 0


@pytest.mark.virtual
@pytest.mark.parametrize("forgets", [True, False])
async def test_devices_that_are_ahead_of_a_restored_store_go_on_and_nothing_is_doubled(
    tmp_path: Path, forgets: bool
) -> None:
    twin, log = Twin(), Log()
    async with serving(*[device(twin, name, log, tmp_path / name) for name in "ab"]):
        async with serving(aggregator(twin, tmp_path / "store", log)):
            await log.until(lambda: log.of("release", version=3))
            kept = backup(tmp_path / "store", tmp_path / "backup")
            await log.until(lambda: log.of("release", version=9))
        async with twin.connect(Options("power cut")) as operator:
            for topic in ("model/train", "model/serve", "aggregator") if forgets else ():
                await operator.publish(f"midge/1/f/{topic}", b"", retain=True)
        restore(tmp_path / "backup", tmp_path / "restored", "who")
        server = aggregator(twin, tmp_path / "restored", log)
        log.events.clear()
        async with serving(server):
            await log.until(lambda: len(log.of("receipt", verdict="accepted", repeat=False)) >= 8)
        assert server.core.generation == kept.generation + 1, "one, however many say that they are ahead"
        assert len(log.of("put_back")) == 1
        log.events.clear()
        async with serving(aggregator(twin, tmp_path / "restored", log)):
            await log.until(lambda: log.of("receipt", verdict="accepted", repeat=False))
        assert not log.of("put_back")
    with ReadOnlyStore(tmp_path / "restored") as store:
        taken = Counter(
            (each.record.device, each.record.outbox, each.record.seq)
            for each in store.entries(0)
            if isinstance(each.record, rec.UpdateRecord) and each.record.verdict == "accepted"
        )
    assert max(taken.values()) == 1
    for name in "ab":
        with Outbox(tmp_path / name) as outbox:
            assert len(outbox.held()) <= 1, "what was trained and not yet settled"
