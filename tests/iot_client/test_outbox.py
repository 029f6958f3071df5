"""An update that is in the outbox is there after a kill, under the same identity; and a file has one owner."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from midge.iot_client.state.memory_outbox import MemoryOutbox
from midge.iot_client.state.outbox import Outbox, OutboxError
from tests.iot_client.test_session import made


def test_what_is_stored_is_there_again(tmp_path: Path) -> None:
    with Outbox(tmp_path / "o") as outbox:
        identity = outbox.identity
        for seq in (1, 2, 3):
            outbox.store(made(outbox=identity, seq=seq), b"body %d" % seq)
        outbox.forget(1)
    with Outbox(tmp_path / "o") as outbox:
        assert (outbox.identity, outbox.next_seq) == (identity, 4)
        assert outbox.held() == [made(outbox=identity, seq=2), made(outbox=identity, seq=3)]
        assert outbox.body(3) == b"body 3"
        outbox.forget(3)
    with Outbox(tmp_path / "o") as outbox:
        assert (outbox.held(), outbox.next_seq) == ([], 4), "a number is never used again"


CHILD = """
import sys
from pathlib import Path
from midge.iot_client.state.outbox import Outbox
from tests.iot_client.test_session import made
with Outbox(Path(sys.argv[1])) as outbox:
    while True:
        seq = outbox.next_seq
        outbox.store(made(outbox=outbox.identity, seq=seq), b"%d" % seq * 1000)
        print(seq, flush=True)  # and this is where it would be sent
        outbox.forget(seq - 8)
"""


def test_a_kill_between_storing_and_sending_loses_nothing(tmp_path: Path) -> None:
    path, identity, said = tmp_path / "o", None, 0
    for kill in range(3):
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        command = [sys.executable, "-P", "-c", CHILD, str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as child:
            assert child.stdout is not None
            for line in child.stdout:
                said = int(line)
                if said >= 15 * (kill + 1):
                    child.send_signal(signal.SIGKILL)
                    break
        with Outbox(path) as outbox:
            assert identity in (None, outbox.identity)
            identity = outbox.identity
            held = [update.seq for update in outbox.held()]
            assert held == list(range(held[0], outbox.next_seq))
            assert outbox.next_seq > said
            assert len(held) >= 8
            assert all(outbox.body(seq) == b"%d" % seq * 1000 for seq in held)


def test_a_second_device_is_kept_out(tmp_path: Path) -> None:
    first = Outbox(tmp_path / "o").__enter__()
    with pytest.raises(OutboxError, match="in use by another device"), Outbox(tmp_path / "o"):
        pass
    first.close()
    with Outbox(tmp_path / "o"):
        pass


def test_a_new_identity_keeps_what_it_is_told_to(tmp_path: Path) -> None:
    with Outbox(tmp_path / "o") as outbox:
        old = outbox.identity
        for seq in (1, 2, 3):
            outbox.store(made(outbox=old, seq=seq), b"%d" % seq)
        outbox.renew((2, 3))
        new = outbox.identity
        assert new != old
        assert outbox.next_seq == 3
    with Outbox(tmp_path / "o") as outbox:
        assert (outbox.identity, outbox.next_seq) == (new, 3)
        assert [(update.outbox, update.seq) for update in outbox.held()] == [(new, 1), (new, 2)]
        assert [outbox.body(seq) for seq in (1, 2)] == [b"2", b"3"]


def test_two_outboxes_are_two(tmp_path: Path) -> None:
    with Outbox(tmp_path / "a") as a, Outbox(tmp_path / "b") as b, MemoryOutbox() as memory:
        assert len({a.identity, b.identity, memory.identity}) == 3


def test_a_file_that_is_no_outbox_is_named(tmp_path: Path) -> None:
    (tmp_path / "o").write_bytes(b"shopping list\n" * 100)
    with pytest.raises(OutboxError, match="cannot be used"), Outbox(tmp_path / "o"):
        pass
    (tmp_path / "o").unlink()
    with Outbox(tmp_path / "o"):
        pass


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutboxError, match="name a place that can"), Outbox(tmp_path / "file" / "o"):
        pass


def test_an_outbox_of_another_format_is_refused(tmp_path: Path) -> None:
    with Outbox(tmp_path / "o") as outbox:
        outbox._db.execute("UPDATE meta SET value = 6 WHERE name = 'format'")
        outbox._db.execute("UPDATE meta SET value = x'06' WHERE name = 'state'")
        outbox._db.commit()
    with pytest.raises(OutboxError, match="has format 6, of a newer Midge"), Outbox(tmp_path / "o"):
        pass


def test_a_damaged_update_is_told_and_the_others_go_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Outbox(tmp_path / "o") as outbox:
        for seq in (1, 2, 3):
            outbox.store(made(outbox=outbox.identity, seq=seq), b"%d" % seq)
        outbox._db.execute("UPDATE updates SET header = x'c1' WHERE seq = 2")
        outbox._db.commit()
    for _ in range(2):
        with Outbox(tmp_path / "o") as outbox:
            assert [(update.seq, outbox.body(update.seq)) for update in outbox.held()] == [(1, b"1"), (3, b"3")]
            assert (outbox.next_seq, outbox.lost) == (4, 1)
    assert caplog.text.count("1 update that waited in it is lost (number 2)") == 1
