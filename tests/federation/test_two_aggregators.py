"""Two aggregators of one federation find each other: one decides, the other ends with a sentence."""

import asyncio
import shutil
import time
from collections import Counter
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from midge.aggregator import contention
from midge.aggregator.contention import AnotherAggregator
from midge.aggregator.service import Aggregator
from midge.broker.embedded.in_memory import Twin
from midge.broker.mqtt.connection import Options
from midge.iot_client.session import events as ev
from midge.iot_client.session.trust import Trust, Untrusted
from midge.wire import frames, messages, signing
from midge.wire.messages import AggregatorState, AggregatorStatus, Answer, Claim, Receipt
from tests.demo.clock import live_virtually
from tests.federation.live import Log, aggregator, clients, device, overheard, serving
from tests.iot_client.test_session import OUTBOX, Driver, accepted, announcement
from tests.security.keys import Clock, announced, issuer, write_keys
from tests.security.test_federation import trusting
from tests.waiting import eventually

STATUS, CLAIM = "midge/1/f/aggregator", "midge/1/f/claim"


def status_of(twin: Twin) -> AggregatorStatus | None:
    for message in twin.router._retained_on(STATUS):
        return messages.decode(AggregatorStatus, message.payload)[0]
    return None


def stands(twin: Twin, server: Aggregator) -> AggregatorStatus | None:
    """The retained status, if it is this aggregator's."""
    status = status_of(twin)
    return status if status is not None and status.boot == server._boot else None


async def said(twin: Twin, topic: str, payload: bytes, *, retain: bool = False) -> None:
    async with twin.connect(Options("forger")) as forger:
        await forger.publish(topic, payload, retain=retain)


# ------------------------------------------------------------------------- one after the other


@pytest.mark.virtual
@pytest.mark.parametrize("signed", [False, True])
async def test_a_second_aggregator_on_a_copy_ends_and_nothing_is_decided_twice(tmp_path: Path, signed: bool) -> None:
    """Both answered, both released: 1,474 updates were decided on twice in 20 seconds."""
    twin, log, second = Twin(), Log(), Log()
    private, public = write_keys(tmp_path)
    keys: dict[str, Any] = {"release_key": private} if signed else {}
    devices = [trusting(twin, n, log, public) if signed else device(twin, n, log) for n in "ab"]
    server = aggregator(twin, tmp_path / "one", log, **keys)
    async with serving(server, *devices):
        await log.until(lambda: log.of("release", version=3))
        shutil.copytree(tmp_path / "one", tmp_path / "two")
        with pytest.raises(AnotherAggregator, match="Another aggregator serves federation 'f'"):
            await aggregator(twin, tmp_path / "two", second, **keys).serve()
        version = server.core.version
        await log.until(lambda: server.core.version > version + 3)
        assert stands(twin, server)
    assert not second.of("update") and not second.of("release")


@pytest.mark.virtual
async def test_two_that_start_at_once_are_one(tmp_path: Path) -> None:
    twin, logs = Twin(), [Log(), Log()]
    made = aggregator(twin, tmp_path / "one", logs[0])
    made.open()
    made.close()
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    servers = [aggregator(twin, tmp_path / name, log) for name, log in zip(("one", "two"), logs, strict=True)]
    running = [asyncio.create_task(server.serve()) for server in servers]
    done, left = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
    assert [type(task.exception()) for task in done] == [AnotherAggregator]
    await eventually("a connection", lambda: any(log.of("connected") for log in logs))  # a stop before ends it without
    for server in servers:
        server.stop()
    await asyncio.gather(*left)
    assert sum(bool(log.of("connected")) for log in logs) == 1


@pytest.mark.virtual
async def test_each_start_has_a_higher_token_whatever_the_clock_says(tmp_path: Path) -> None:
    twin, log, tokens = Twin(), Log(), []
    for off in (0.0, 1e7, -1e9, 0.0):
        server = aggregator(twin, tmp_path / "store", log)
        server._issuer._clock = lambda off=off: 1.8e9 + off  # type: ignore[misc]
        log.events.clear()
        async with serving(server):
            await log.until(lambda: log.of("connected"))
            await log.until(partial(stands, twin, server))
            tokens.append(server._issuer.token)
    assert tokens == sorted(set(tokens))
    await said(twin, STATUS, b"", retain=True)


# --------------------------------------------------------------------- stopped, and cut off


def frozen(twin: Twin, server: Aggregator) -> str:
    """The client id of this aggregator's connection."""
    (name,) = clients(twin, f"-aggregator-{server._boot:016x}")
    return name


@pytest.mark.virtual
@pytest.mark.parametrize("signed", [False, True])
async def test_one_that_was_cut_off_ends_before_it_decides(tmp_path: Path, signed: bool) -> None:
    """Its messages are lost both ways while another takes over; then they arrive again."""
    twin, log, second = Twin(), Log(), Log()
    private, public = write_keys(tmp_path)
    keys: dict[str, Any] = {"release_key": private} if signed else {}
    devices = [trusting(twin, n, log, public) if signed else device(twin, n, log) for n in "ab"]
    first = aggregator(twin, tmp_path / "one", log, **keys)
    cut: set[str] = set()
    twin.copies = lambda client, _message: 0 if client in cut else 1
    async with serving(*devices):
        old = asyncio.create_task(first.serve())
        await log.until(lambda: log.of("release", version=3))
        shutil.copytree(tmp_path / "one", tmp_path / "two")
        cut.add(frozen(twin, first))
        later = aggregator(twin, tmp_path / "two", second, **keys)
        async with serving(later):
            await second.until(lambda: second.of("connected"))
            decided = len(log.of("update"))
            cut.clear()
            twin.drop(frozen(twin, first))  # as a broker does after a partition
            with pytest.raises(AnotherAggregator, match="has taken federation 'f' over"):
                await old
            assert len(log.of("update")) == decided
            version = later.core.version
            await second.until(lambda: later.core.version > version + 3)
    settled = Counter((e["device"], e["outbox"], e["seq"]) for e in log.of("receipt", repeat=False))
    assert max(settled.values()) == 1


@pytest.mark.virtual
async def test_one_that_stood_still_looks_around_before_it_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its connection has survived: what it reads first is of the time before."""
    twin, log, stopped = Twin(), Log(), [0.0]
    monkeypatch.setattr(
        "midge.aggregator.standstill.time",
        SimpleNamespace(monotonic=lambda: time.monotonic() + stopped[0], time=time.time),
    )
    server = aggregator(twin, tmp_path / "one", log)
    async with serving(server, device(twin, "a", log), device(twin, "b", log)):
        await log.until(lambda: log.of("release", version=3))
        connected = len(log.of("connected"))
        stopped[0] = 60.0
        await log.until(lambda: any("stood still" in event["why"] for event in log.of("disconnected")))
        await log.until(lambda: len(log.of("connected")) > connected)


# ---------------------------------------------------------------- messages that anyone can send


def lie(server: Aggregator, token: int = 2**52, state: AggregatorState = AggregatorState.LOST) -> bytes:
    return frames.encode(AggregatorStatus(state=state, boot=99, lineage=server.core.lineage, token=token))


@pytest.mark.virtual
@pytest.mark.parametrize("signed", [False, True])
async def test_a_forged_status_or_claim_ends_no_aggregator_and_holds_no_fleet(tmp_path: Path, signed: bool) -> None:
    twin, log = Twin(), Log()
    private, public = write_keys(tmp_path)
    keys: dict[str, Any] = {"release_key": private} if signed else {}
    devices = [trusting(twin, n, log, public) if signed else device(twin, n, log) for n in "ab"]
    server = aggregator(twin, tmp_path / "one", log, **keys)
    async with serving(server, *devices):
        await log.until(lambda: log.of("release", version=2))
        for payload in (lie(server), lie(server, 2**53 - 1), lie(server, 2**63 - 1), lie(server, 0), b"", b"\0"):
            await said(twin, STATUS, payload, retain=True)
            claim = Claim(boot=7, lineage=server.core.lineage, token=2**53, number=0, to=server._boot)
            await said(twin, CLAIM, frames.encode(claim))
            await said(twin, CLAIM, frames.encode(claim.model_copy(update={"number": 5, "to": 0})))
            await said(twin, CLAIM, b"\xff")
            version = server.core.version
            await log.until(lambda version=version: server.core.version > version + 2)  # type: ignore[misc]
        await said(twin, STATUS, lie(server), retain=True)
        await log.until(partial(stands, twin, server))
    for _ in range(2):  # a retained one does not keep the next start from serving either
        await said(twin, STATUS, lie(server, 2**53 - 1, AggregatorState.READY), retain=True)
        log.events.clear()
        async with serving(aggregator(twin, tmp_path / "one", log, **keys)):
            await log.until(lambda: log.of("connected"))


# ------------------------------------------------------------------------------ the devices


def test_a_device_settles_only_by_the_highest_token_it_has_seen() -> None:
    driver = Driver()
    driver.up()
    driver.train()

    def heard(token: int) -> int:

        driver(ev.Receipted(Receipt(outbox=OUTBOX, hi=1, settled=(accepted(1),), token=token)))
        return driver.session.holding

    status = AggregatorStatus(state=AggregatorState.READY, boot=1, lineage=b"l" * 16, token=7)
    driver(ev.AggregatorSeen(status))
    assert heard(6) == 1
    driver(ev.AggregatorSeen(status.model_copy(update={"token": 5})))
    assert heard(6) == 1
    assert heard(7) == 0
    higher = announcement(2).model_copy(update={"epoch": 1})
    driver(ev.Announced(higher))
    assert driver.session._fence == 0, "the operator's word"


def test_a_device_that_pins_the_key_remembers_the_token_and_believes_no_forged_one() -> None:
    key = signing.new_key()
    device, signer = Trust([key.public], "f", "a"), issuer(key, Clock())
    device.announcement(signer.announcement(announced(1)), 1_000_000.0, 0.0)
    device.wrote(0.0)
    signer.token = 9
    status = AggregatorStatus(state=AggregatorState.READY, boot=1, lineage=bytes(16), token=9)
    assert device.status(frames.encode(status.model_copy(update={"token": 50}))).token == 0
    assert device.status(signer.own_message(status)).token == 9
    assert device.urgent(0.0), "a restart must not forget it"
    device = Trust([key.public], "f", "a", device.packed())
    receipt = Receipt(outbox=1, hi=1)
    assert token_of(device.read_answer(signer.receipt("a", receipt))) == 9
    signer.token = 8
    with pytest.raises(Untrusted, match="another one has replaced"):
        device.read_answer(signer.receipt("a", receipt))
    signer.token = 0
    assert token_of(device.read_answer(signer.receipt("a", receipt))) == 0, (
        "an aggregator of an earlier version says none"
    )
    signer.token, signer.epoch = 3, signer.epoch + 1
    device.announcement(signer.announcement(announced(2)), 1_000_000.0, 1.0)
    assert token_of(device.read_answer(signer.receipt("a", receipt))) == 3


def token_of(answer: Answer) -> int:
    assert isinstance(answer, Receipt)
    return answer.token


def test_receipts_on_the_wire_carry_the_token(tmp_path: Path) -> None:
    twin, log = Twin(), Log()
    seen = overheard(twin)

    async def run() -> int:
        server = aggregator(twin, tmp_path / "store", log)
        async with serving(server, device(twin, "a", log), device(twin, "b", log)):
            await log.until(lambda: log.of("release", version=2))
        return server._issuer.token

    tokens: list[int] = []

    async def kept() -> None:
        tokens.append(await run())

    live_virtually(kept())
    said = [messages.decode_answer(m.payload)[0] for m in seen if "/receipt/" in m.topic]
    assert {each.token for each in said if isinstance(each, Receipt)} == set(tokens)
    assert contention.PATIENCE >= 1.0
