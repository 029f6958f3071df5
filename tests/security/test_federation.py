"""Whole federations that trust a key: over a broker that forges, rolls back, reads along, and through successions."""

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from midge.aggregator.publish.announcement_signer import load_release_keys, succeed, write_secret
from midge.aggregator.service import Aggregator
from midge.broker.embedded.in_memory import Twin
from midge.broker.mqtt.connection import Options
from midge.iot_client.device import Device
from midge.iot_client.session.trust import Trust
from midge.iot_client.state.outbox import Outbox
from midge.wire import frames, messages, signing
from midge.wire.messages import Envelope, Receipt, Settled, Update, Verdict
from midge.wire.signing import KeyUnusable
from tests.federation.live import Log, aggregator, device, distance, overheard, serving
from tests.security.keys import write_keys

pytestmark = pytest.mark.virtual


def trusting(twin: Twin, name: str, log: Log, pinned: Path, outbox: Path | None = None, **arguments: Any) -> Device:
    return device(twin, name, log, outbox, release_key=pinned, **arguments)


def retained(twin: Twin) -> bytes:
    (message,) = twin.router._retained_on("midge/1/f/model/train")
    return message.payload


async def test_a_fleet_that_signs_and_seals_learns_and_the_broker_reads_nothing(tmp_path: Path) -> None:
    twin, log = Twin(), Log()
    private, public = write_keys(tmp_path)
    keys = tmp_path / "devices"
    keys.mkdir()
    for name in "ab":
        _, own = write_keys(tmp_path, name)
        (keys / f"{name}.pub").write_bytes(own.read_bytes())
    seen = overheard(twin)
    server = aggregator(
        twin,
        tmp_path / "store",
        log,
        release_key=private,
        device_keys=keys,
        require_signed=True,
        require_sealed=True,
    )
    devices = [trusting(twin, n, log, public, tmp_path / f"{n}.outbox", signing_key=tmp_path / n) for n in "ab"]
    async with serving(server, *devices):
        await log.until(lambda: log.of("release", version=6) and distance(server.model.parameters()) < 1.5)
    assert {event["verdict"] for event in log.of("receipt")} == {"accepted"}
    assert not log.of("untrusted")
    updates = [messages.decode_update(message.payload)[0] for message in seen if "/update/" in message.topic]
    assert {update.sealed for update in updates if isinstance(update, Update)} == {"hpke"}
    for update in updates:
        if isinstance(update, Update):
            assert update.confided, "what it tells of its training is sealed with it"
            assert (update.examples, update.steps, update.seconds, update.metrics) == (0, 0, 0.0, {})
    for name in "ab":
        with Outbox(tmp_path / f"{name}.outbox") as outbox:
            remembered = outbox.remembered("trust.train")
        trust = Trust([signing.read_public(public.read_bytes())], "f", name, remembered)
        assert trust.newest.version >= 5


async def test_a_broker_that_forges_and_rolls_back_gets_nowhere(tmp_path: Path) -> None:
    """It hands out old announcements and forged ones, and receipts that it made itself, while the fleet goes on."""
    twin, log = Twin(), Log()
    private, public = write_keys(tmp_path)
    devices = [trusting(twin, name, log, public) for name in "ab"]
    server = aggregator(twin, tmp_path / "store", log, release_key=private)
    async with serving(server, *devices), twin.connect(Options("broker")) as evil:
        await log.until(lambda: log.of("release", version=2))
        old = retained(twin)
        await log.until(lambda: log.of("release", version=5))
        for _ in range(3):
            await evil.publish("midge/1/f/model/train", old, retain=True)
            envelope, _ = messages.decode(Envelope, old)
            forged = messages.decode_announcement(old).model_copy(update={"version": 10**6})
            body = frames.encode(forged)
            await evil.publish(
                "midge/1/f/model/train", frames.encode(envelope.model_copy(update={"body": body})), retain=True
            )
            for device in devices:
                settled = Settled(seq=device.next_seq - 1, verdict=Verdict.ACCEPTED)
                lie = Receipt(outbox=device._parts.outbox.identity, hi=device.next_seq - 1, settled=(settled,))
                await evil.publish(f"midge/1/f/receipt/{device.name}", frames.encode(lie))
        version = server.core.version
        await log.until(lambda: log.of("release", version=version + 4))
    assert log.of("untrusted")
    said = [(event["device"], event["outbox"], event["seq"]) for event in log.of("receipt", repeat=False)]
    assert len(said) == len(set(said))
    taken = {(event["device"], event["seq"]) for event in log.of("update")}
    assert {(device, seq) for device, _, seq in said} <= taken


async def test_a_store_that_was_put_back_is_not_followed_down_and_a_raised_epoch_is(tmp_path: Path) -> None:
    twin, log = Twin(), Log()
    private, public = write_keys(tmp_path)
    names = {name: tmp_path / f"{name}.outbox" for name in "ab"}

    def fleet() -> list[Device]:
        return [trusting(twin, name, log, public, path) for name, path in names.items()]

    async with serving(aggregator(twin, tmp_path / "one", log, release_key=private), *fleet()):
        await log.until(lambda: log.of("release", version=5))
    async with twin.connect(Options("operator")) as operator:
        await operator.publish("midge/1/f/model/train", b"", retain=True)  # the broker has lost what it retained
    log.events.clear()
    later = aggregator(twin, tmp_path / "two", log, release_key=private)
    later.open()
    later.federation.store.set_constant("epoch", 1)  # as if it had been made long before
    later.close()
    async with serving(aggregator(twin, tmp_path / "two", log, release_key=private), *fleet()):
        await log.until(lambda: len(log.of("untrusted")) >= 2)
        assert not log.of("training")
    async with serving(aggregator(twin, tmp_path / "two", log, release_key=private, raise_epoch=True), *fleet()):
        await log.until(lambda: log.of("release", version=3))


async def test_a_fleet_follows_a_key_to_its_successor(tmp_path: Path) -> None:
    twin, log = Twin(), Log()
    private, public = write_keys(tmp_path)
    devices = [trusting(twin, name, log, public, tmp_path / f"{name}.outbox") for name in "ab"]
    async with serving(*devices):
        async with serving(aggregator(twin, tmp_path / "store", log, release_key=private)):
            await log.until(lambda: log.of("release", version=3))
        succeed(private, "f", 0.0)
        server = aggregator(twin, tmp_path / "store", log, release_key=private)
        async with serving(server):
            await log.until(lambda: log.of("release", version=6))
        newest = server.core.version
        assert {device._parts.identity._trusts["train"].newest.number for device in devices} == {1}
        private.write_bytes(private.with_name("release.key.1").read_bytes())  # a thief has the old key
        private.with_name("release.key.chain").unlink()
        log.events.clear()
        async with serving(aggregator(twin, tmp_path / "store", log, release_key=private)):
            await log.until(lambda: len(log.of("untrusted")) >= 2)
            await asyncio.sleep(0.2)
        assert not log.of("receipt")  # so that nothing is forgotten on its word
        assert all(event["version"] <= newest for event in log.of("training"))


async def test_the_announcement_is_issued_anew_before_it_expires(tmp_path: Path) -> None:
    twin, log = Twin(), Log()
    private, _ = write_keys(tmp_path)
    server = aggregator(twin, tmp_path / "store", log, release_key=private, announcement_lifetime=30.0)
    server._issuer._clock = time.time  # the virtual one
    issued: set[float] = set()
    async with serving(server):
        while len(issued) < 3:
            await asyncio.sleep(0.05)
            with_retained = twin.router._retained_on("midge/1/f/model/train")
            issued |= {messages.decode_announcement(message.payload).issued for message in with_retained}


def test_a_succession_is_whole_or_not_at_all(tmp_path: Path) -> None:
    private, _ = write_keys(tmp_path)
    first = load_release_keys(private).at(0.0).public
    second = succeed(private, "f", 100.0)
    assert second.at(99.0).public == first
    assert second.at(100.0).public != first
    assert (len(second.chain_at(99.0)), len(second.chain_at(100.0))) == (0, 1)
    third = succeed(private, "f", 200.0)
    assert [len(third.chain_at(when)) for when in (0.0, 150.0, 200.0)] == [0, 1, 2]
    with pytest.raises(KeyUnusable, match="later time"):
        succeed(private, "f", 150.0)
    newest = private.read_bytes()
    private.write_bytes(private.with_name("release.key.2").read_bytes())  # as a power cut leaves it
    write_secret(private.with_name("release.key.new"), newest)
    assert load_release_keys(private).chain == third.chain
    assert private.read_bytes() == newest
    private.with_name("release.key.1").unlink()
    assert load_release_keys(private).at(150.0).public == third.at(150.0).public
    private.write_bytes(signing.new_key().pem())
    with pytest.raises(KeyUnusable, match="another key"):
        load_release_keys(private)


def test_a_key_that_cannot_be_used_is_said_at_once(tmp_path: Path) -> None:
    twin, log = Twin(), Log()
    with pytest.raises(KeyUnusable, match="release-key new"):
        aggregator(twin, tmp_path / "store", log, release_key=tmp_path / "none")
    with pytest.raises(KeyUnusable, match="cannot be read"):
        trusting(twin, "a", log, tmp_path / "none")
    with pytest.raises(KeyUnusable, match="directory"):
        aggregator(twin, tmp_path / "store", log, device_keys=tmp_path / "none")
    assert Aggregator is not None
