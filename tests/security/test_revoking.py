"""A device that is revoked: what waits of it is dropped, on a release key's word only, and a restart finds the same."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from midge.aggregator.core import events as ev
from midge.aggregator.core.presets import fedbuff
from midge.aggregator.publish.announcement_signer import AnnouncementSigner, ReleaseKeys
from midge.aggregator.store.store import StoreFull
from midge.wire import frames, overview, signing
from midge.wire.messages import Moment, Verdict
from midge.wire.moments import Moments
from tests.aggregator.rig import TOPICS, QuickStore, rig, statistics
from tests.security.test_forgetting import Keeping

THREE = fedbuff(3, norm_limit=None, release_floor=1)
ONES = np.ones(64, np.float32)
KEY = signing.new_key()


class Signed(Keeping):
    """A federation that signs, over a store."""

    def __init__(self, directory: Path, **arguments: Any) -> None:
        issuer = AnnouncementSigner(TOPICS, ReleaseKeys(((0.0, KEY),)))
        super().__init__(directory, THREE, issuer=issuer, **arguments)

    def ask(self, payload: bytes) -> None:
        self.federation.revocations.hear(payload)
        self.hear()

    def revoke(self, *names: str) -> None:
        self.ask(overview.revoking(KEY, TOPICS.federation, names))

    @property
    def waiting(self) -> int:
        return self.federation.core.buffered


def test_what_waits_of_a_revoked_device_is_dropped_and_the_others_make_the_step(tmp_path: Path) -> None:
    life = Signed(tmp_path)
    life.send("bad", 1, 100 * ONES)
    life.send("good", 1, ONES)
    assert life.waiting == 2
    life.revoke("bad")
    assert life.waiting == 1 and "revoked" in life.told
    assert life.federation.core.counts["revoked"] == 1
    life.send("good", 2, ONES)
    life.send("other", 1, ONES)
    core = life.federation.core
    assert (core.step, core.buffered) == (1, 0), "the step is made of three others"
    moved = life.federation.engine.model.state.parameters()["x"]
    assert np.abs(np.asarray(moved)).max() < 10, "nothing of the revoked one is in the model"


def test_a_revoked_device_is_refused_from_then_on(tmp_path: Path) -> None:
    life = Signed(tmp_path)
    life.revoke("bad")
    assert life.send("bad", 1, ONES).verdict is Verdict.FORGOTTEN
    assert life.send("good", 1, ONES).verdict is Verdict.ACCEPTED


@pytest.mark.parametrize("cut", ["before", "behind"])
def test_a_restart_finds_the_same(cut: str, tmp_path: Path) -> None:
    """Seen to fail on a drop that was not journaled: the replay applied the revoked device's update."""
    life = Signed(tmp_path)
    life.send("bad", 1, 100 * ONES)
    life.send("good", 1, ONES)
    life.revoke("bad")
    if cut == "behind":
        life.send("good", 2, ONES)
        life.send("other", 1, ONES)
    state = life.federation.engine.model.digest(), life.federation.core.dump()
    life.federation.store.close()
    again = Signed(tmp_path)
    found = again.federation.engine.model.digest(), again.federation.core.dump()
    lsn = found[1].pop("lsn")
    assert lsn >= state[1].pop("lsn") and found == state
    again.send("third", 1, ONES)
    again.send("third", 2, ONES)
    assert again.federation.core.step == 1
    again.federation.close()


@pytest.mark.parametrize("forged", ["unsigned", "another key", "a status's signature", "another federation", "junk"])
def test_only_the_release_keys_word_drops_anything(forged: str, tmp_path: Path) -> None:
    life = Signed(tmp_path)
    life.send("victim", 1, ONES)
    asking = frames.encode(overview.Ask(gone=("victim",), revoked=("victim",)))
    life.ask(
        {
            "unsigned": asking,
            "another key": overview.revoking(signing.new_key(), TOPICS.federation, ["victim"]),
            "a status's signature": signing.sign_frame(KEY, signing.AGGREGATOR, TOPICS.federation, asking),
            "another federation": overview.revoking(KEY, "other", ["victim"]),
            "junk": b"\xff" * 80,
        }[forged]
    )
    assert life.waiting == 1 and not life.federation.names.withdrawn("victim")


def test_without_a_key_nothing_is_dropped(tmp_path: Path) -> None:
    life = Keeping(tmp_path, THREE)
    life.send("victim", 1, ONES)
    life.federation.revocations.hear(overview.revoking(KEY, TOPICS.federation, ["victim"]))
    life.hear()
    assert life.federation.core.buffered == 1


def test_it_is_done_once_a_full_disk_has_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    life = Signed(tmp_path)
    life.send("bad", 1, ONES)
    room = {"there": False}
    commit, has_room = QuickStore.commit, QuickStore.has_room

    def full(store: QuickStore, *arguments: Any) -> None:
        if not room["there"]:
            raise StoreFull("no room.")
        commit(store, *arguments)

    monkeypatch.setattr(QuickStore, "commit", full)
    monkeypatch.setattr(QuickStore, "has_room", lambda store: room["there"] and has_room(store))
    life.revoke("bad")
    assert life.waiting == 1
    room["there"] = True
    life.hear(later=10.0)
    life.hear(later=1.0)
    assert life.waiting == 0 and "revoked" in life.told


def test_statistics_that_wait_are_dropped_too(tmp_path: Path) -> None:
    model = {"x": np.zeros(4, np.float32), "i_mean": np.zeros(1, np.float32), "i_scale": np.ones(1, np.float32)}
    arguments: dict[str, Any] = {
        "parameters": model,
        "roles": {"i_mean": "frozen", "i_scale": "frozen"},
        "moments": (Moment(name="i", channels=1),),
    }
    part = Moments.of(np.arange(100.0)[:, None])
    with rig(tmp_path, **arguments) as life:
        life.hear(statistics("bad", life.core.lineage, i=part))
        life.processor.shell.handle(ev.Revoked("bad"), 1.0)
        assert life.core.waiting_of("bad") == ()
        life.hear(statistics("a", life.core.lineage, i=part))
        alone = life.core.frozen
        life.hear(statistics("b", life.core.lineage, i=part))
        assert (alone, life.core.frozen) == (False, True), "one device's statistics are never pooled alone"
        state = life.state
    with rig(tmp_path, **arguments) as life:
        assert life.state == state
