"""A tier for boards that verify no signature: a secret of each with the aggregator, and its word for announcements."""

import hashlib
import hmac
from pathlib import Path

import pytest

from midge.__main__ import main
from midge.aggregator.config import AggregatorConfig
from midge.aggregator.federation import FederationRuntime
from midge.aggregator.ingress.authentication import Credentials, DeviceKeys
from midge.aggregator.publish.announcement_signer import AnnouncementSigner, load_release_keys
from midge.aggregator.publish.outlet import Outlet
from midge.aggregator.publish.publish_queue import Post
from midge.broker.embedded.in_memory import Twin
from midge.broker.mqtt.connection import Delivery
from midge.wire import frames, messages, signing
from midge.wire.messages import DeviceState, Envelope, Hello, Receipt, Verdict, Vouch
from midge.wire.signing import KeyUnusable, MacKey
from tests.aggregator.rig import EVERYTHING_COUNTS, TOPICS, QuickStore
from tests.security.test_budgets import SMALL, Life


class Board:
    """What firmware does: it has a secret, SHA-256, and nothing of ours."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def mac(self, purpose: bytes, head: bytes) -> bytes:
        return hmac.digest(self._secret, b"midge/1 " + purpose + b"\0f/board\0" + head, "sha256") + bytes(32)

    def signed(self, payload: bytes, head: bytes) -> bytes:
        return payload + self.mac(b"device", head)

    def believes(self, payload: bytes) -> bool:
        return payload[-64:] == self.mac(b"receipt", payload[:-64])


class Secured(Life):
    """A federation that takes only what is signed, with a release key."""

    def __init__(self, directory: Path) -> None:
        self.posts: list[Post] = []
        self.told = []
        keys = directory / "keys"
        keys.mkdir()
        for name in ("board", "other"):
            assert main(["release-key", "new", str(keys / f"{name}.hmac"), "--type", "hmac"]) == 0
        assert main(["release-key", "new", str(directory / "release.key")]) == 0
        config = AggregatorConfig(
            connector=Twin().connect, federation="f", initial=SMALL, store=directory / "s", strategy=EVERYTHING_COUNTS
        )
        self.outlet = Outlet(self.posts.append, lambda event, **fields: self.told.append((event, fields)))
        credentials = Credentials(TOPICS, device_keys=DeviceKeys(keys), require_signed=True)
        issuer = AnnouncementSigner(TOPICS, load_release_keys(directory / "release.key"))
        self.federation = FederationRuntime(
            config, self.outlet, 0.0, issuer=issuer, credentials=credentials, store=QuickStore(directory / "s")
        )
        self.federation.begin(0.0)
        self.board = Board(bytes.fromhex((keys / "board.hmac").read_text().split()[1]))

    def say(self, topic: str, payload: bytes, now: float = 1.0) -> list[bytes]:
        """What the board is told in answer."""
        before = len(self.posts)
        self.federation.process([Delivery(topic, payload, 1, retain=False)], now)
        return [post.payload for post in self.posts[before:] if post.topic == TOPICS.receipt("board")]

    def greet(self, now: float = 1.0) -> list[bytes]:
        head = frames.encode(Hello(state=DeviceState.READY, outbox=1, verifies="hmac"))
        return self.say(TOPICS.status("board"), self.board.signed(head, head), now)

    def body(self) -> bytes:
        """Of the newest announcement."""
        payload = next(post.payload for post in reversed(self.posts) if post.topic == TOPICS.announcement())
        return messages.decode(Envelope, payload)[0].body


def vouched(payloads: list[bytes]) -> list[bytes]:
    found = [frames.decode(payload)[0] for payload in payloads]
    return [each["digest"] for each in found if each["kind"] == "vouch"]


def test_a_board_with_a_secret_takes_part_and_believes_only_what_is_vouched_for(tmp_path: Path) -> None:
    life = Secured(tmp_path)
    answers = life.greet()
    assert answers and all(map(life.board.believes, answers))
    assert set(vouched(answers)) == {hashlib.sha256(life.body()).digest()[:16]}
    topic, payload = life.update("board", 1)
    head = payload[: len(payload) - 16]
    answers = life.say(topic, life.board.signed(payload, head), 2.0)
    assert all(map(life.board.believes, answers))
    receipt = next(messages.decode(Receipt, each)[0] for each in answers if frames.decode(each)[0]["kind"] == "receipt")
    assert receipt.settled[0].verdict is Verdict.ACCEPTED
    assert vouched(answers) == [hashlib.sha256(life.body()).digest()[:16]], "of the release that came of it"
    life.federation.close()


def test_who_has_another_secret_or_none_is_not_believed_and_told_nothing_new(tmp_path: Path) -> None:
    life = Secured(tmp_path)
    topic, payload = life.update("board", 1)
    stranger = Board(bytes(32))
    (answer,) = life.say(topic, stranger.signed(payload, payload[: len(payload) - 16]))
    assert messages.decode(Receipt, answer)[0].settled[0].verdict is Verdict.BAD_SIGNATURE
    before = len(life.posts)
    for name in ("board", "other", "nameless"):
        head = frames.encode(Hello(state=DeviceState.READY, outbox=1, verifies="hmac"))
        life.federation.process([Delivery(TOPICS.status(name), stranger.signed(head, head), 1, retain=False)], 3.0)
    assert not [post for post in life.posts[before:] if vouched([post.payload] if "/receipt/" in post.topic else [])]
    life.federation.close()


def test_a_reissued_announcement_is_vouched_for_and_gone_boards_are_not_told(tmp_path: Path) -> None:
    life = Secured(tmp_path)
    life.greet()
    before = len(life.posts)
    life.federation.processor.announce()
    life.federation.process([], 2.0)
    assert vouched([post.payload for post in life.posts[before:] if post.topic == TOPICS.receipt("board")])
    head = frames.encode(Hello(state=DeviceState.LOST, outbox=1, verifies="hmac"))
    life.say(TOPICS.status("board"), life.board.signed(head, head), 3.0)
    before = len(life.posts)
    life.federation.processor.announce()
    life.federation.process([], 4.0)
    assert not [post for post in life.posts[before:] if "/receipt/" in post.topic]
    life.federation.close()


def test_a_secret_is_read_as_it_was_written_and_signs_nothing_else(tmp_path: Path) -> None:
    key = MacKey(bytes(range(32)))
    assert MacKey.read(key.text()).text() == key.text()
    signature = key.sign(signing.DEVICE, "f/a", b"data")
    assert len(signature) == 64 and key.verifies(signature, signing.DEVICE, "f/a", b"data")
    assert not key.verifies(signature, signing.RECEIPT, "f/a", b"data")
    assert not key.verifies(signature, signing.DEVICE, "f/b", b"data")
    assert not key.verifies(signature, signing.DEVICE, "f/a", b"date")
    assert not key.verifies(signature[:32], signing.DEVICE, "f/a", b"data")
    assert not key.verifies(b"", signing.DEVICE, "f/a", b"data")
    for text in (b"", b"hmac-sha256 00", b"hmac-sha256 zz", key.text()[1:], signing.new_key().pem()):
        with pytest.raises(KeyUnusable):
            MacKey.read(text)
    path = tmp_path / "a.hmac"
    assert main(["release-key", "new", str(path), "--type", "hmac"]) == 0
    assert path.stat().st_mode & 0o077 == 0
    assert main(["release-key", "new", str(path), "--type", "hmac"]) == 2


def test_a_vouch_is_a_message_like_others() -> None:
    assert messages.decode(Vouch, frames.encode(Vouch(digest=b"d" * 16)))[0].digest == b"d" * 16
