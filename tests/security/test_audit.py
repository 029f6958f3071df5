"""The audit log: what is changed, taken out or cut off is seen, also by who can write every file but the key."""

import hashlib
import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from midge.__main__ import main
from midge.aggregator.core import records
from midge.aggregator.store import device_erasure
from midge.aggregator.store.audit_log import AUDIT, KEY, KeyLost, verify
from midge.aggregator.store.store import Store
from midge.wire.messages import Verdict
from midge.wire.pseudonyms import pseudonym
from tests.security.test_forgetting import Keeping

NAMES = ("pump-1", "pump-2")
ONES = np.ones(64, np.float32)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    life = Keeping(tmp_path / "store")
    for name in NAMES:
        life.send(name, 1, ONES)
        device_erasure.ask(tmp_path / "store", name)
    life.hear(later=3.0)
    life.federation.close()
    assert verify(tmp_path / "store").lines == 4
    return tmp_path / "store"


def rechained(lines: list[bytes]) -> list[bytes]:
    """As who has no key can make them: the hashes right again."""
    before, made = "", []
    for line in lines:
        made.append(json.dumps({**json.loads(line), "before": before}).encode())
        before = hashlib.sha256(made[-1]).hexdigest()
    return made


def uncoded(lines: list[bytes]) -> list[bytes]:
    """As earlier versions wrote them."""
    plain = [json.loads(line) for line in lines]
    return rechained([json.dumps({name: line[name] for name in line if name != "code"}).encode() for line in plain])


@pytest.mark.parametrize(
    "forge",
    [
        lambda lines: lines[:-1],
        lambda lines: [],
        lambda lines: lines[1:],
        lambda lines: [lines[0], *lines[2:]],
        lambda lines: [*lines[:-1], lines[-1].replace(b"erased", b"gained")],
        lambda lines: rechained([lines[0], *lines[2:]]),
        lambda lines: rechained(lines[:-1]),
        lambda lines: rechained([*lines, lines[-1]]),
        lambda lines: [*lines, *rechained(lines[:1])],
        uncoded,
        lambda lines: [*lines[:-1], lines[-1][:-10]],
    ],
)
def test_no_line_goes_or_comes_unseen(
    store: Path, forge: Callable[[list[bytes]], list[bytes]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["audit", "verify", str(store)]) == 0
    assert "4 lines, as they were written" in capsys.readouterr().out
    lines = (store / AUDIT).read_bytes().splitlines()
    (store / AUDIT).write_bytes(b"".join(line + b"\n" for line in forge(lines)))
    assert main(["audit", "verify", str(store), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["wrong"] and not told["ok"]


def test_an_end_that_was_put_back_with_the_log_is_seen_unless_both_are_older(store: Path) -> None:
    lines = (store / AUDIT).read_bytes().splitlines()
    (store / AUDIT).write_bytes(b"".join(line + b"\n" for line in lines[:-1]))
    end = f"3 {hashlib.sha256(lines[2]).hexdigest()} {'0' * 64}"
    with closing(sqlite3.connect(store / "store.db")) as db, db:
        db.execute("UPDATE meta SET value = ? WHERE name = 'audit_end'", (end,))
    assert verify(store).wrong
    with closing(sqlite3.connect(store / "store.db")) as db, db:
        db.execute("DELETE FROM meta WHERE name = 'audit_end'")
    for forged in (lines[:1], uncoded(lines), []):
        (store / AUDIT).write_bytes(b"".join(line + b"\n" for line in forged))
        assert verify(store).wrong


def test_a_power_cut_in_a_line_is_no_alarm_and_the_next_line_follows(store: Path) -> None:
    whole = (store / AUDIT).read_bytes()
    (store / AUDIT).write_bytes(whole + b'{"time": "2026')
    assert verify(store).wrong == ()
    life = Keeping(store)
    life.send("third", 1, ONES)
    device_erasure.ask(store, "third")
    life.hear(later=3.0)
    life.federation.close()
    assert verify(store).wrong == () and verify(store).lines == 6
    assert (store / AUDIT).read_bytes().startswith(whole)


def test_who_has_the_database_cannot_confirm_a_guess_at_a_name(store: Path) -> None:
    key = (store / KEY).read_bytes()[:32]
    assert key not in (store / "store.db").read_bytes()
    with Store(store) as opened:
        rows = opened.query("SELECT kind, record FROM journal")
    updates = [each for kind, packed in rows if isinstance(each := records.unpack(kind, packed), records.UpdateRecord)]
    assert {each.device for each in updates} == {"gone-" + pseudonym(name, key) for name in NAMES}
    assert all(each.outbox != 7 for each in updates), "its card and its broker know that number"


def test_the_key_of_an_earlier_store_moves_out_and_the_withdrawn_stay_withdrawn(store: Path) -> None:
    key = (store / KEY).read_bytes()[:32]
    (store / KEY).unlink()
    lines = uncoded((store / AUDIT).read_bytes().splitlines())
    (store / AUDIT).write_bytes(b"".join(line + b"\n" for line in lines))
    with closing(sqlite3.connect(store / "store.db")) as db, db:
        db.execute("DELETE FROM meta WHERE name IN ('name_key_check', 'audit_end')")
        db.execute("INSERT INTO meta VALUES ('name_key', ?)", (key,))
    life = Keeping(store)
    assert life.send(NAMES[0], 2, ONES).verdict is Verdict.FORGOTTEN
    life.send("third", 1, ONES)
    device_erasure.ask(store, "third")
    life.hear(later=3.0)
    life.federation.close()
    assert key not in (store / "store.db").read_bytes() and (store / KEY).read_bytes()[:32] == key
    found = verify(store)
    assert (found.lines, found.older, found.wrong) == (6, 4, ())


def test_a_lost_or_foreign_key_stops_the_start_with_a_sentence(store: Path) -> None:
    (store / KEY).rename(store / "elsewhere")
    with pytest.raises(KeyLost, match="is gone"):
        Keeping(store)
    (store / KEY).write_bytes(bytes(32))
    with pytest.raises(KeyLost, match="another store"):
        Keeping(store)
