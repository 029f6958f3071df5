"""Keys of the day: a stolen release key opens no recorded update, and no update is lost to a key that was erased."""

import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from cryptography.hazmat.primitives import hpke

from midge.aggregator.ingress.authentication import Credentials
from midge.aggregator.ingress.sealing_keys import DAY, KEEP, KEYS, SealingKeys
from midge.aggregator.publish.announcement_signer import AnnouncementSigner, ReleaseKeys
from midge.aggregator.service import Aggregator
from midge.aggregator.store.backup import backup
from midge.broker.embedded.in_memory import Twin
from midge.broker.embedded.routing import RoutedMessage
from midge.iot_client.connection.identity import Identity
from midge.iot_client.connection.sealed_updates import SealedUpdates
from midge.iot_client.session.trust import Trust
from midge.iot_client.state.memory_outbox import MemoryOutbox
from midge.iot_client.state.outbox import Outbox
from midge.iot_client.state.outbox_state import FORMAT, UNSEALED
from midge.storage.files import replace_secret
from midge.wire import chunks, frames, messages, sealing, signing
from midge.wire.errors import WireError
from midge.wire.messages import AggregatorState, AggregatorStatus, DeviceState, Hello, Update, Verdict
from tests.aggregator.rig import TOPICS, rig
from tests.announced import announced
from tests.federation.live import Log, Service, aggregator, overheard, serving
from tests.security.keys import write_keys
from tests.security.test_federation import trusting
from tests.security.test_gate import ONES, sole

RELEASE = signing.new_key()
NOW = 1_800_000_000.0
UPDATE = Update(
    outbox=0, first=1, seq=1, lineage=bytes(16), generation=0, base=1, codec="float32", size=4, sha256=bytes(16)
)


class Clock:
    """Seconds since 1970, as a test sets them."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


def contents(directory: Path) -> bytes:
    """All bytes of all files below a directory."""
    return b"".join(each.read_bytes() for each in directory.rglob("*") if each.is_file())


def opens(update: Update, body: bytes, device: str, private: bytes) -> bool:
    """Whether a key opens a recorded update."""
    try:
        sealing.unseal(body, private, sealing.about("f", device, update))
    except WireError:
        return False
    return True


def updates(seen: list[RoutedMessage]) -> list[tuple[Update, bytes, str]]:
    """The whole updates among recorded messages, with body and device."""
    found = []
    for message in seen:
        if "/update/" in message.topic:
            update, body = messages.decode_update(message.payload)
            if isinstance(update, Update) and update.kind == "update":
                found.append((update, bytes(body[: update.size]), message.topic.rsplit("/", 1)[-1]))
    return found


# ------------------------------------------------------------------- the keys of the day


def test_a_key_lasts_a_day_and_is_erased_a_day_later(tmp_path: Path) -> None:
    clock, path = Clock(), tmp_path / KEYS
    keys = SealingKeys(path, clock)
    first, public = keys.private[0], keys.public
    clock.now += DAY - 1
    keys.roll()
    assert (keys.public, keys.number) == (public, 1)
    clock.now += 1
    keys.roll()
    assert keys.public != public
    assert keys.number == 2
    assert keys.of(sealing.key_id(public)) == first, "what is on its way can still be opened"
    again = SealingKeys(path, clock)
    assert (again.private, again.number) == (keys.private, 2), "a restart keeps them"
    clock.now += KEEP
    keys.roll()
    assert keys.of(sealing.key_id(public)) is None
    assert first not in contents(tmp_path)


def test_an_erased_key_is_overwritten_on_the_disk_and_not_just_unlinked(tmp_path: Path) -> None:
    clock, path = Clock(), tmp_path / KEYS
    keys = SealingKeys(path, clock)
    first = keys.private[0]
    with path.open("rb") as old:  # the blocks that the name leads to now
        assert first in old.read()
        clock.now += DAY + KEEP
        keys.roll()
        clock.now += DAY + KEEP
        keys.roll()
        old.seek(0)
        assert not any(old.read())
    assert [each.name for each in tmp_path.iterdir()] == [KEYS]


@pytest.mark.parametrize("replaced", [False, True])
def test_what_a_kill_left_of_an_erasure_is_overwritten_by_the_next_one(tmp_path: Path, *, replaced: bool) -> None:
    path, aside = tmp_path / KEYS, tmp_path / f".{KEYS}.old"
    replace_secret(path, b"the first secret")
    os.link(path, aside)
    if replaced:  # killed after the new content had its name, or before
        path.unlink()
        path.write_bytes(b"the second secret")
    with path.open("rb") as kept, aside.open("rb") as left:
        replace_secret(path, b"the third secret")
        assert not any(left.read())
        assert not any(kept.read())
    assert path.read_bytes() == b"the third secret"
    assert not aside.exists()


@pytest.mark.parametrize("jump", [-400 * DAY, 400 * DAY])
def test_a_clock_that_jumps_ends_no_rolling(tmp_path: Path, jump: float) -> None:
    clock = Clock()
    keys = SealingKeys(tmp_path / KEYS, clock)
    clock.now += jump
    keys.roll()
    before, number = keys.public, keys.number
    clock.now += DAY
    keys.roll()
    assert keys.public != before
    assert keys.number == number + 1
    clock.now += -jump
    keys.roll()
    held = set(keys.private)
    for _ in range(3):
        clock.now += DAY
        keys.roll()
    assert not held & set(keys.private), "every key ends within days, whatever the clock showed when it was made"


def test_a_full_disk_keeps_the_key_in_force(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    keys = SealingKeys(tmp_path / KEYS, clock)
    before = keys.public

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("midge.aggregator.ingress.sealing_keys.replace_secret", full)
        clock.now += DAY
        keys.roll()
        assert keys.public == before
    keys.roll()
    assert keys.public != before


# ------------------------------------------------------------------------- a whole federation


@pytest.mark.virtual
@pytest.mark.parametrize("post_quantum", [False, True])
async def test_a_stolen_release_key_opens_no_recorded_update(tmp_path: Path, *, post_quantum: bool) -> None:
    twin, log, clock = Twin(), Log(), Clock()
    private, public = write_keys(tmp_path)
    seen = overheard(twin)
    server = aggregator(
        twin, tmp_path / "store", log, release_key=private, require_sealed=True, post_quantum=post_quantum
    )
    devices = [trusting(twin, name, log, public) for name in "ab"]
    async with serving(server, *devices):
        await log.until(lambda: log.of("release", version=3))
        daily = server.federation.issuer.daily
        assert daily is not None
        held = daily.private
        recorded = updates(seen)
        assert len(recorded) >= 4
        assert all(any(opens(*each, key) for key in held) for each in recorded), "so the recording is of such updates"
        clock.now = daily._clock() + DAY + KEEP
        daily._clock = clock
        before = daily.number
        await log.until(lambda: daily.number > before)
        clock.now += DAY + KEEP
        await log.until(lambda: daily.number > before + 1)
        version = server.core.version
        await log.until(lambda: log.of("release", version=version + 3))
        later = [each for each in updates(seen) if each[0].key == sealing.key_id(daily.public)]
        assert later, "devices follow to the new key"
        stolen = signing.read_private(private.read_bytes(), "")
        for thief in (sealing.derive(stolen), *daily.private):
            assert not any(opens(*each, thief) for each in recorded)
        assert daily.private[0] in contents(tmp_path / "store")
        assert not any(key in contents(tmp_path / "store") for key in held)
    assert {event["verdict"] for event in log.of("receipt")} == {"accepted"}
    backup(tmp_path / "store", tmp_path / "copy")
    assert not any(key in contents(tmp_path / "copy") for key in daily.private), "a backup opens nothing"


@pytest.mark.virtual
@pytest.mark.parametrize("restarted", [False, True])
async def test_an_update_that_waited_until_its_key_was_erased_is_sealed_again(
    tmp_path: Path, *, restarted: bool
) -> None:
    """Its first answer is lost too: the aggregator has it, and must not count it twice."""
    twin, log = Twin(), Log()
    private, public = write_keys(tmp_path)
    lost: list[bytes] = []

    def losing(_client: str, message: RoutedMessage) -> int:
        if "/receipt/" in message.topic and b"accepted" in message.payload:
            lost.append(message.payload)
            return 0
        return 1

    store, outbox = tmp_path / "store", tmp_path / "a.outbox"

    def served(*, first: bool) -> list[Service]:
        here: list[Service] = [aggregator(twin, store, log, release_key=private, require_sealed=True)]
        if restarted or first:
            here.append(trusting(twin, "a", log, public, outbox))
        return here

    twin.copies = losing
    server, device = served(first=True)
    stays, ends = ([], [server, device]) if restarted else ([device], [server])
    async with serving(*stays):
        async with serving(*ends):
            await log.until(lambda: lost)
        (seq,) = {event["seq"] for event in log.of("update", verdict="accepted")}
        (store / KEYS).unlink()
        twin.copies = lambda *_: 1
        log.events.clear()
        async with serving(*served(first=False)):
            await log.until(lambda: log.of("receipt", seq=seq))
    assert {event["verdict"] for event in log.of("receipt", seq=seq)} == {"accepted"}
    assert not log.of("renewed")
    assert not log.of("update", seq=seq)


@pytest.mark.virtual
async def test_an_aggregator_of_an_earlier_version_gets_updates_sealed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It names no key of the day, and its receipts name the bytes that came."""
    twin, log = Twin(), Log()
    private, public = write_keys(tmp_path)
    monkeypatch.setattr(Update, "digest", property(lambda update: update.sha256[:8]))
    seen = overheard(twin)

    class Earlier(Aggregator):
        def open(self) -> None:
            super().open()
            self.federation.issuer.daily = self._credentials.daily = None

    config = aggregator(twin, tmp_path / "store", log, release_key=private, require_sealed=True).config
    devices = [trusting(twin, name, log, public, tmp_path / f"{name}.outbox") for name in "ab"]
    async with serving(Earlier(config), *devices):
        await log.until(lambda: log.of("release", version=4))
    assert {event["verdict"] for event in log.of("receipt")} == {"accepted"}
    assert not log.of("renewed")
    assert {update.key for update, _, _ in updates(seen)} == {b""}


# ---------------------------------------------------------------------------- the aggregator


def resealed(message: tuple[str, bytes], number: int, public: bytes, *, size: int = 0) -> tuple[str, bytes]:
    """An update of the device `a`, sealed to a key of the day."""
    topic, payload = message
    update, body = messages.decode_update(payload)
    assert isinstance(update, Update)
    update = update.model_copy(
        update={"number": number, "sealed": sealing.NAME, "key": sealing.key_id(public), "kind": "update"}
    )
    update, plain = sealing.confide(update, body)
    data = sealing.seal(plain, public, sealing.about("f", "a", update))
    update = update.model_copy(update={"size": len(data), "sha256": chunks.checksum(data)})
    return topic, frames.encode(update, data)


def test_a_key_that_is_gone_costs_no_update_and_another_seal_is_the_same_update(tmp_path: Path) -> None:
    clock = Clock()
    keys = SealingKeys(tmp_path / KEYS, clock)
    with rig(tmp_path / "store") as life:
        life.ingress.credentials = Credentials(TOPICS, require_sealed=True, seal_keys=(bytes(32),), daily=keys)
        update, old = life.update("a", 1, ONES), keys.public
        strange = sealing.public(sealing.new_key())
        settled = sole(life.hear(resealed(update, 77, strange)))
        assert (settled.verdict, settled.verdict.final) == (Verdict.BUSY, False)
        first = sole(life.hear(resealed(update, 77, old)))
        assert (first.verdict, first.body, first.repeat) == (Verdict.ACCEPTED, (77).to_bytes(8, "big"), False)
        clock.now += DAY
        keys.roll()
        again = sole(life.hear(resealed(update, 77, keys.public)))
        assert (again.verdict, again.body, again.repeat) == (Verdict.ACCEPTED, first.body, True)
        np.testing.assert_array_equal(life.model.x, ONES)
        offer, _ = messages.decode_update(resealed(life.update("a", 2, ONES), 78, strange)[1])
        assert isinstance(offer, Update)
        asked = life.hear((update[0], frames.encode(offer.model_copy(update={"kind": "offer", "parts": 2}))))
        assert sole(asked).verdict is Verdict.BUSY, "before its chunks are sent"


# ------------------------------------------------------------------------------- the device


def status(token: int, number: int, key: bytes, signer: signing.PrivateKey = RELEASE) -> bytes:
    """A status of the aggregator that names a key of the day."""
    made = AggregatorStatus(
        state=AggregatorState.READY, boot=1, lineage=bytes(16), token=token, seal_key=key, number=number
    )
    return signing.sign_frame(signer, signing.AGGREGATOR, "f", frames.encode(made))


def test_a_device_takes_the_key_from_a_signed_status_and_never_an_earlier_one() -> None:
    trust = Trust([RELEASE.public], "f", "a")
    assert trust.daily == b"", "an aggregator of an earlier version has none"
    trust.status(status(5, 3, b"3" * 32))
    assert trust.daily == b"3" * 32
    for payload in (
        status(5, 2, b"2" * 32),
        status(4, 9, b"9" * 32),
        status(5, 0, b""),
        status(6, 4, b"4" * 32, signing.new_key()),
    ):
        trust.status(payload)
        assert trust.daily == b"3" * 32
    trust.status(status(6, 1, b"1" * 32))
    assert trust.daily == b"1" * 32, "another start may have lost its keys"
    later = Trust([RELEASE.public], "f", "a", trust.packed())
    assert later.daily is None, "it knows that there is one, so it does not seal to the announced key"
    later.status(status(6, 0, b""))
    assert later.daily is None
    later.status(status(7, 0, b""))
    assert later.daily == b"", "the aggregator was put back to an earlier version"


def test_where_the_library_has_no_hybrid_keys_the_device_says_so_and_sends_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    identity = Identity(TOPICS, release_key=RELEASE.public_pem())
    outbox = MemoryOutbox()
    identity.begin("a", outbox)
    identity.status(status(5, 1, sealing.public(sealing.new_key(hybrid=True))))
    assert identity.objection() is None
    monkeypatch.setattr(hpke, "KEM", SimpleNamespace(X25519=hpke.KEM.X25519))
    why = identity.objection()
    assert why is not None and "needs cryptography 50 or newer" in why
    hello = Hello(state=DeviceState.READY, outbox=1, capabilities={"cores": 4})
    offered = announced(seal_key=sealing.public(bytes(range(32))), hides=True)
    assert identity.hide(hello, offered) == sealing.withheld(hello)
    update = identity.to_be_sealed(UPDATE, offered)
    outbox.store(update, b"abcd")
    assert SealedUpdates(identity, outbox, lambda: offered, {}).outgoing(update) is None
    monkeypatch.undo()
    assert SealedUpdates(identity, outbox, lambda: offered, {}).outgoing(update) is not None


def test_an_outbox_with_an_update_to_be_sealed_is_refused_by_an_earlier_midge(tmp_path: Path) -> None:
    """That would send it as it is. It reads the format where it cannot read the state."""

    def formats(outbox: Outbox) -> tuple[int, int]:
        rows = dict(outbox._db.execute("SELECT name, value FROM meta WHERE name IN ('format', 'state')").fetchall())
        return rows["format"], rows["state"][0]

    path = tmp_path / "outbox"
    with Outbox(path) as outbox:
        outbox.store(UPDATE, b"abcd")
        assert formats(outbox) == (FORMAT, FORMAT)
        outbox.store(UPDATE.model_copy(update={"seq": 2, "number": 7}), b"efgh")
        assert formats(outbox) == (UNSEALED, UNSEALED)
    with Outbox(path) as outbox:
        assert [update.number for update in outbox.held()] == [0, 7]
        assert not outbox.rotted
        outbox.forget(1)
        assert formats(outbox) == (UNSEALED, UNSEALED)
        outbox.forget(2)
        assert formats(outbox) == (FORMAT, FORMAT)


def test_the_statement_of_the_key_is_only_in_statuses(tmp_path: Path) -> None:
    issuer = AnnouncementSigner(TOPICS, ReleaseKeys(((0.0, RELEASE),)))
    issuer.daily = SealingKeys(tmp_path / KEYS, Clock())
    said, _ = messages.decode(
        AggregatorStatus, issuer.own_message(AggregatorStatus(state=AggregatorState.READY, boot=1, lineage=bytes(16)))
    )
    assert (said.seal_key, said.number) == (issuer.daily.public, 1)
