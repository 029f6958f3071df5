"""A device that is withdrawn: refused, erased to the last byte of the store, and everybody else counts on as before."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from midge.__main__ import main
from midge.aggregator.config import AggregatorConfig
from midge.aggregator.core.presets import fedbuff
from midge.aggregator.federation import FederationRuntime
from midge.aggregator.ingress.rate_limits import IngressLimits
from midge.aggregator.publish.announcement_signer import AnnouncementSigner
from midge.aggregator.publish.outlet import Outlet
from midge.aggregator.publish.publish_queue import Post
from midge.aggregator.store import audit_log
from midge.aggregator.store import device_erasure as forgetting
from midge.aggregator.store.replaying import replay
from midge.aggregator.store.store import Store
from midge.broker.embedded.in_memory import Twin
from midge.broker.mqtt.connection import Delivery
from midge.wire import codecs, frames
from midge.wire.messages import Receipt, Settled, Verdict
from midge.wire.pseudonyms import LENGTH, pseudonym
from midge.wire.topics import check_name
from tests.aggregator.rig import EVERYTHING_COUNTS, TOPICS, QuickStore, hello, receipts, update_of
from tests.federation.live import Log, aggregator, device, serving

pytestmark = pytest.mark.virtual

NAME = "pump-in-the-garden"
SIZE = 64
MODEL = {"x": np.zeros(SIZE, np.float32)}
MARK = np.frombuffer(b"SECRETBODY! " * (4 * SIZE // 12 + 1), np.float32, SIZE).copy()
"""A delta whose bytes are found again wherever they are kept."""


class Keeping:
    """A federation over a store, as a process has it."""

    def __init__(
        self,
        directory: Path,
        strategy: Any = EVERYTHING_COUNTS,
        *,
        issuer: AnnouncementSigner | None = None,
        **arguments: Any,
    ) -> None:
        self.posts: list[Post] = []
        self.told: list[str] = []
        self.now = 0.0
        config = AggregatorConfig(
            connector=Twin().connect,
            federation=TOPICS.federation,
            initial=MODEL,
            store=directory,
            strategy=strategy,
            chunk=1024,
            memory=2**20,
            limits=IngressLimits(rate=None),
            **arguments,
        )
        outlet = Outlet(self.posts.append, lambda event, **_: self.told.append(event))
        self.federation = FederationRuntime(config, outlet, 0.0, issuer=issuer, store=QuickStore(directory))
        self.federation.begin(0.0)

    def hear(self, *messages_: tuple[str, bytes], later: float = 0.01) -> list[Receipt]:
        self.now += later
        before = len(self.posts)
        self.federation.process([Delivery(topic, payload, 1, retain=False) for topic, payload in messages_], self.now)
        return receipts(self.posts[before:])

    def update(self, name: str, seq: int, delta: Any = MARK) -> tuple[str, bytes]:
        body = codecs.encode_delta(np.asarray(delta, np.float32), self.federation.engine.model.schema, "float32")
        return TOPICS.update(name), frames.encode(update_of(self.federation.core, seq, body, outbox=7), body)

    def send(self, name: str, seq: int, delta: Any = MARK) -> Settled:
        (receipt,) = self.hear(self.update(name, seq, delta))
        (settled,) = receipt.settled
        return settled


def found(directory: Path, *needles: bytes) -> list[str]:
    """The files of a store that hold any of these bytes."""
    files = [path for path in directory.rglob("*") if path.is_file()]
    return sorted(
        str(path.relative_to(directory))
        for path in files
        if any(needle in path.read_bytes() for needle in needles)
        or any(needle.decode() in path.name for needle in needles)
    )


BODY = b"SECRETBODY! SECRETBODY!"


def test_a_running_aggregator_forgets_within_seconds_and_nothing_of_it_is_left(tmp_path: Path) -> None:
    with_others = Keeping(tmp_path)
    ones = np.ones(SIZE, np.float32)
    for seq in range(1, 6):
        with_others.send(NAME, seq)
        with_others.send("other", seq, ones)
    with_others.hear(hello(NAME))
    with_others.federation.names.write_heard(1.0, 1)
    model = with_others.federation.engine.model.digest()
    assert found(tmp_path, NAME.encode())
    assert found(tmp_path, BODY)
    forgetting.ask(tmp_path, NAME)
    with_others.hear(later=3.0)
    assert found(tmp_path, NAME.encode(), BODY) == []
    assert with_others.federation.engine.model.digest() == model
    assert {"withdrawn", "erased"} <= set(with_others.told)
    assert Post(TOPICS.status(NAME), b"") in with_others.posts
    assert with_others.send(NAME, 6).verdict is Verdict.FORGOTTEN
    assert with_others.send("other", 5, ones).repeat  # exactly once, as before
    assert with_others.send("other", 6, ones).verdict is Verdict.ACCEPTED
    model = with_others.federation.engine.model.digest()
    with_others.federation.store.close()  # as SIGKILL does
    again = Keeping(tmp_path)
    assert again.federation.engine.model.digest() == model
    assert again.send(NAME, 1).verdict is Verdict.FORGOTTEN
    assert again.send("other", 6, ones).repeat
    again.federation.close()
    with Store(tmp_path) as store:
        assert len({way.whole for way in replay(store)}) == 1
    assert found(tmp_path, NAME.encode(), BODY) == []


def test_an_accepted_update_is_applied_before_it_is_erased(tmp_path: Path) -> None:
    life = Keeping(tmp_path, fedbuff(buffer_size=2, release_floor=1, norm_limit=None, bounded=False))
    assert life.send(NAME, 1).verdict is Verdict.ACCEPTED
    forgetting.ask(tmp_path, NAME)
    life.hear(later=3.0)
    assert life.send(NAME, 2).verdict is Verdict.FORGOTTEN  # at once
    assert found(tmp_path, BODY)
    before = life.federation.engine.model.digest()
    life.send("other", 1, np.ones(SIZE, np.float32))
    assert life.federation.engine.model.digest() != before
    life.hear(later=3.0)
    assert found(tmp_path, NAME.encode(), BODY) == []
    life.federation.close()


def test_a_stopped_store_is_done_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    life = Keeping(tmp_path)
    for seq in range(1, 4):
        life.send(NAME, seq)
        life.send("other", seq)
    model = life.federation.engine.model.digest()
    life.federation.close()
    assert main(["device-forget", NAME, "--store", str(tmp_path)]) == 0
    assert "3 records" in capsys.readouterr().out
    assert found(tmp_path, NAME.encode()) == []
    again = Keeping(tmp_path)
    assert again.federation.engine.model.digest() == model
    assert again.send(NAME, 4).verdict is Verdict.FORGOTTEN
    assert again.send("other", 4).verdict is Verdict.ACCEPTED
    again.federation.close()


def test_where_it_was_killed_the_next_start_does_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    life = Keeping(tmp_path)
    for seq in range(1, 4):
        life.send(NAME, seq)
    model = life.federation.engine.model.digest()
    life.federation.store.close()
    assert main(["device-forget", NAME, "--store", str(tmp_path)]) == 0
    assert "next start" in capsys.readouterr().out
    again = Keeping(tmp_path)
    assert again.federation.engine.model.digest() == model
    assert again.send(NAME, 4).verdict is Verdict.FORGOTTEN
    again.hear(later=3.0)
    assert found(tmp_path, NAME.encode()) == []
    again.federation.close()


class Cut(BaseException):
    """The power goes."""


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (Store, "commit"),
        (Store, "checkpoint"),
        (Store, "_prune"),
        (Store, "rewrite"),
        (Store, "keep_newest_checkpoint"),
        (Store, "vacuum"),
        (forgetting.Names, "audit"),
    ],
)
def test_it_survives_a_power_cut_before_and_after_each_of_its_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: type, name: str, *, after: bool
) -> None:
    """The checkpoint that does not know the device comes before older ones go: there is always one to start from."""
    life = Keeping(tmp_path)
    for seq in range(1, 4):
        life.send(NAME, seq)
        life.send("other", seq)
    model = life.federation.engine.model.digest()
    forgetting.ask(tmp_path, NAME)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, _cutting(getattr(owner, name), after=after))
        with pytest.raises(Cut):
            life.hear(later=3.0)
    life.federation.store.close()
    again = Keeping(tmp_path)
    assert again.federation.engine.model.digest() == model
    assert again.send("other", 3).repeat
    assert again.send(NAME, 4).verdict is Verdict.FORGOTTEN
    assert found(tmp_path, NAME.encode()) == []
    again.federation.close()


def _cutting(work: Callable[..., Any], *, after: bool) -> Callable[..., Any]:
    def cut(*arguments: Any, **named: Any) -> Any:
        if after:
            work(*arguments, **named)
        raise Cut

    return cut


def test_who_is_silent_for_long_is_forgotten_and_nothing_counts_twice(tmp_path: Path) -> None:
    """Seen to fail: a fleet that releases every quarter of an hour would have erased no name for a century."""
    life = Keeping(tmp_path, retention=1000.0)
    sent = life.update(NAME, 1)
    life.hear(sent)
    life.send("other", 1)
    names, core = life.federation.names, life.federation.core
    names.write_heard(0.0, core.version)  # long ago
    life.federation.upkeep.looked_for_silence = -1e9
    life.hear(later=1.0)
    assert "silent" not in life.told  # its version is the newest one, which is never too old
    life.send("other", 2, np.ones(SIZE, np.float32))
    life.send("third", 1, np.ones(SIZE, np.float32))
    life.federation.upkeep.looked_for_silence = -1e9
    life.hear(later=1.0)
    assert "silent" in life.told
    assert found(tmp_path, NAME.encode()) == []
    assert [each.verdict for each in life.hear(sent)[0].settled] == [Verdict.STALE]
    life.federation.close()
    again = Keeping(tmp_path)
    assert [each.verdict for each in again.hear(sent)[0].settled] == [Verdict.STALE]
    assert again.send(NAME, 2).verdict is Verdict.ACCEPTED  # it is not refused, and starts over
    again.federation.close()


def _counting(sync: Callable[[int], None], counted: Counter[str]) -> Callable[[int], None]:
    def count(file: int) -> None:
        counted[sync.__name__] += 1
        sync(file)

    return count


def test_many_silent_devices_are_forgotten_by_few_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen to fail: three syncs and two lines of the log for each kept everything waiting, 600 of them for 7 s."""
    life, syncs = Keeping(tmp_path, retention=1000.0), Counter[str]()
    silent = [f"pump-{number}" for number in range(40)]
    for name in silent:
        life.send(name, 1)
    life.federation.names.write_heard(0.0, 0)  # long ago
    for sync in (os.fsync, os.fdatasync):
        monkeypatch.setattr(os, sync.__name__, _counting(sync, syncs))
    life.federation.upkeep.looked_for_silence = -1e9
    life.hear(later=1.0)
    assert "silent" in life.told and syncs.total() < 20
    assert all(not found(tmp_path, name.encode()) for name in silent)
    (line,) = (json.loads(line) for line in (tmp_path / audit_log.AUDIT).read_bytes().splitlines())
    assert line["what"] == "erased after silence" and len(set(line["devices"])) == len(silent)
    life.federation.close()
    assert audit_log.verify(tmp_path).wrong == ()


def test_the_audit_log_is_a_chain_without_names(tmp_path: Path) -> None:
    life = Keeping(tmp_path)
    for name in (NAME, "second"):
        life.send(name, 1)
        forgetting.ask(tmp_path, name)
    life.hear(later=3.0)
    life.federation.close()
    raw = (tmp_path / audit_log.AUDIT).read_bytes().splitlines()
    lines = [json.loads(line) for line in raw]
    assert [line["what"] for line in lines] == ["withdrawn", "erased", "withdrawn", "erased"]
    assert lines[0]["device"] == lines[1]["device"] != lines[2]["device"]
    assert lines[0]["before"] == ""
    for before, line in zip(raw, lines[1:], strict=False):
        assert line["before"] == hashlib.sha256(before).hexdigest()
    assert (tmp_path / audit_log.AUDIT).stat().st_mode & 0o077 == 0


async def test_a_device_of_a_running_federation_is_withdrawn_and_the_others_go_on(tmp_path: Path) -> None:
    twin, log = Twin(), Log()
    server = aggregator(twin, tmp_path / "store", log)
    devices = [device(twin, name, log, tmp_path / name) for name in (NAME, "b", "c")]
    async with serving(server, *devices):
        await log.until(lambda: log.of("release", version=4) and log.of("receipt", device=NAME))
        forgetting.ask(tmp_path / "store", NAME)
        await log.until(lambda: log.of("receipt", device=NAME, verdict="forgotten"))
        await log.until(lambda: log.of("hindered", device=NAME))
        trained = len(log.of("training", device=NAME))
        version = server.core.version
        await log.until(lambda: log.of("release", version=version + 4) and log.of("erased"))
        assert len(log.of("training", device=NAME)) <= trained + 1
        assert not (tmp_path / "store" / forgetting.FOLDER / NAME).exists()


def test_names_that_can_be_no_files_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Keeping(tmp_path).federation.close()
    assert main(["device-forget", "../store.db", "--store", str(tmp_path)]) == 2
    assert "device name" in capsys.readouterr().err
    assert main(["device-forget", "a", "--store", str(tmp_path / "none")]) == 2
    assert "no store" in capsys.readouterr().err
    (tmp_path / forgetting.FOLDER).mkdir(exist_ok=True)
    (tmp_path / forgetting.FOLDER / "half").write_bytes(b"{")
    assert list(forgetting.asked(tmp_path)) == []


def test_a_pseudonym_is_a_name_that_only_the_key_tells() -> None:
    key = bytes(range(32))
    said = pseudonym(NAME, key)
    assert check_name(said) == said == pseudonym(NAME, key)
    assert len(said) == LENGTH
    assert said != pseudonym(NAME, bytes(32))
    assert said != pseudonym(NAME + "x", key)
    with pytest.raises(ValueError, match="guessed"):
        pseudonym(NAME, b"short")
