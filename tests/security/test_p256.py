"""P-256 beside Ed25519: devices that can verify only the one follow as the others do."""

import time
from dataclasses import replace
from pathlib import Path

import pytest

from midge.__main__ import main
from midge.aggregator.publish.announcement_signer import AnnouncementSigner, load_release_keys, succeed
from midge.broker.embedded.in_memory import Twin
from midge.iot_client.session.trust import Trust
from midge.wire import messages, sealing, signing
from midge.wire.messages import Announcement, Envelope, Receipt, Trouble
from midge.wire.signing import BadSignature, KeyUnusable, PublicKey
from tests.aggregator.rig import TOPICS
from tests.federation.live import Log, aggregator, device, serving


def made(folder: Path, kind: str) -> Path:
    assert main(["release-key", "new", str(folder / "release.key"), "--type", kind]) == 0
    return folder / "release.key"


def pinned(path: Path) -> Trust:
    return Trust([public(path)], TOPICS.federation, "board")


def public(path: Path) -> PublicKey:
    return signing.read_public(path.with_name(path.name + ".pub").read_bytes())


def announced(version: int) -> Announcement:
    return Announcement(
        federation=TOPICS.federation,
        lineage=b"l" * 16,
        generation=0,
        version=version,
        step=version,
        phase="training",
        schema_hash=b"s" * 16,
        digest=bytes([version]) * 16,
    )


def test_both_keys_sign_what_is_announced_and_each_device_is_told_by_the_one_that_it_verifies(tmp_path: Path) -> None:
    path = made(tmp_path, "both")
    issuer = AnnouncementSigner(TOPICS, load_release_keys(path))
    issuer.verifies = {"board": "p256"}
    payload = issuer.announcement(announced(1))
    envelope, _ = messages.decode(Envelope, payload)
    assert [len(signature) for _, signature in envelope.signatures] == [64, 64]
    board, pi = pinned(path.with_name("release.key.p256")), Trust([public(path)], TOPICS.federation, "pi")
    for trust in (board, pi):
        assert trust.announcement(payload, time.time(), 0.0).version == 1
    said = Receipt(outbox=1, hi=1)
    assert board.read_answer(issuer.receipt("board", said)) == said
    assert board.read_answer(issuer.trouble("board", Trouble(why="no"))) == Trouble(why="no")
    assert pi.read_answer(issuer.receipt("pi", said)) == said
    with pytest.raises(BadSignature):
        pi.read_answer(issuer.receipt("board", said))
    forged = AnnouncementSigner(TOPICS, replace(load_release_keys(path), companion=signing.new_key("p256")))
    with pytest.raises(BadSignature):
        board.announcement(forged.announcement(announced(2)), time.time(), 1.0)


def test_the_key_beside_stays_when_the_first_has_a_successor(tmp_path: Path) -> None:
    path = made(tmp_path, "both")
    board, pi = pinned(path.with_name("release.key.p256")), Trust([public(path)], TOPICS.federation, "pi")
    keys = succeed(path, TOPICS.federation, time.time() - 1)
    assert keys.companion is not None and keys.companion.public == board._keys[0]
    payload = AnnouncementSigner(TOPICS, load_release_keys(path)).announcement(announced(1))
    assert board.announcement(payload, time.time(), 0.0).version == 1
    assert board.newest.number == 0 and board._keys[0].kind == "p256"
    assert pi.announcement(payload, time.time(), 0.0).version == 1
    assert pi.newest.number == 1
    again = Trust(board._keys, TOPICS.federation, "board", board.packed())
    assert again.newest == board.newest, "it is remembered over a restart"


def test_a_chain_of_another_key_makes_a_device_believe_nothing_more(tmp_path: Path) -> None:
    path = made(tmp_path, "both")
    board = pinned(path.with_name("release.key.p256"))
    succeed(path, TOPICS.federation, time.time() - 1)
    alone = replace(load_release_keys(path), companion=None)
    with pytest.raises(BadSignature):
        board.announcement(AnnouncementSigner(TOPICS, alone).announcement(announced(1)), time.time(), 0.0)


def test_p256_alone_signs_seals_and_has_successors(tmp_path: Path) -> None:
    path = made(tmp_path, "p256")
    old = pinned(path)
    issuer = AnnouncementSigner(TOPICS, load_release_keys(path))
    told = old.announcement(issuer.announcement(announced(1)), time.time(), 0.0)
    assert told.seal_key == sealing.public(issuer.seal_keys[0])
    keys = succeed(path, TOPICS.federation, time.time() - 1)
    assert keys.companion is None and keys.keys[-1][1].public.kind == "p256"
    old.announcement(AnnouncementSigner(TOPICS, load_release_keys(path)).announcement(announced(2)), time.time(), 1.0)
    assert old.newest.number == 1
    said = Receipt(outbox=1, hi=1)
    assert old.read_answer(AnnouncementSigner(TOPICS, load_release_keys(path)).receipt("board", said)) == said


def test_the_key_beside_must_be_p256_and_nothing_is_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = made(tmp_path, "ed25519")
    assert load_release_keys(path).companion is None
    (tmp_path / "release.key.p256").write_bytes(signing.new_key().pem())
    with pytest.raises(KeyUnusable, match="no P-256 key"):
        load_release_keys(path)
    for kind in ("ed25519", "both"):
        assert main(["release-key", "new", str(path), "--type", kind]) == 2
    assert "is there already" in capsys.readouterr().err
    path.unlink()
    assert main(["release-key", "new", str(path), "--type", "both"]) == 2, "nor the one beside it"


async def test_a_federation_of_both_learns(tmp_path: Path) -> None:
    path = made(tmp_path, "both")
    twin, log = Twin(), Log()
    server = aggregator(twin, tmp_path / "store", log, release_key=path)
    beside = tmp_path / "release.key.p256.pub"
    board = device(twin, "board", log, release_key=beside)
    async with serving(server, board, device(twin, "pi", log, release_key=tmp_path / "release.key.pub")):
        await log.until(lambda: all(len(log.of("settled", device=name)) > 2 for name in ("board", "pi")))
        assert server.devices["board"].verifies == "p256" and not server.devices["pi"].verifies
    assert not log.of("untrusted")
