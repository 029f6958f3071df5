"""The look at a broker: what it finds, and that it leaves nothing and disturbs nobody."""

import asyncio
import secrets
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from midge.broker import BrokerRefused, BrokerUnreachable, Delivery, Endpoint, Tls, connector
from midge.broker.audit.check import AuditReport, Finding, Role, check
from midge.broker.audit.probes import describe
from midge.broker.embedded.server import EmbeddedBroker
from midge.broker.local.local_broker import local_broker
from midge.broker.local.mosquitto import find_mosquitto
from midge.broker.local.process import Child
from midge.wire import frames, messages
from midge.wire.messages import (
    AggregatorState,
    AggregatorStatus,
    Announcement,
    DeviceState,
    FrameInfo,
    Hello,
)
from midge.wire.topics import Topics
from tests import needs
from tests.broker.test_local import certificates
from tests.broker.worlds import options, somewhere
from tests.ports import free_port

TOPICS = Topics("pumps")
ACL = (Path(__file__).parents[2] / "deploy" / "mosquitto" / "acl").read_text()
needs_mosquitto = [
    pytest.mark.mosquitto,
    needs.mosquitto,
]


def found(report: AuditReport, name: str) -> Finding:
    return next(finding for finding in report.findings if finding.name == name)


def levels(report: AuditReport, *names: str) -> set[str]:
    return {found(report, name).level for name in names}


def write_passwords(directory: Path) -> Path:
    passwords = directory / "passwords"
    passwords.touch()
    for user in ("aggregator", "pump-1", "pump-2"):
        subprocess.run(["mosquitto_passwd", "-b", passwords, user, user], check=True)
    return passwords


@asynccontextmanager
async def guarded(directory: Path, acl: str) -> AsyncIterator[Endpoint]:
    """A Mosquitto that lets `aggregator`, `pump-1` and `pump-2` in, each with its name as the password."""
    binary, port = find_mosquitto(), free_port()
    assert binary is not None
    passwords = write_passwords(directory)
    (directory / "acl").write_text(acl)
    (directory / "mosquitto.conf").write_text(
        f"listener {port} 127.0.0.1\nallow_anonymous false\npassword_file {passwords}\nacl_file {directory}/acl\n"
        "set_tcp_nodelay true\nuser root\nlog_dest stderr\n"
    )
    child = Child([str(binary), "-c", str(directory / "mosquitto.conf")], directory / "log", " running")
    try:
        assert await child.serves("127.0.0.1", port), child.log_tail()
        yield somewhere(port)
    finally:
        await child.stop()


def as_user(endpoint: Endpoint, user: str) -> Endpoint:
    return replace(endpoint, user=user, password=user)


@asynccontextmanager
async def watched(endpoint: Endpoint, topic_filter: str) -> AsyncIterator[list[Delivery]]:
    """All that others publish there meanwhile."""
    seen: list[Delivery] = []

    async with connector(endpoint)(options()) as connection:

        async def read() -> None:
            async for delivery in connection.messages():
                connection.ack(delivery)
                seen.append(delivery)

        await connection.subscribe(topic_filter)
        async with asyncio.TaskGroup() as tasks:
            reading = tasks.create_task(read())
            yield seen
            await connection.subscribe("settled")
            reading.cancel()
            seen += connection.waiting()  # what came before the answer, and has not been read yet


async def kept(endpoint: Endpoint) -> dict[str, bytes]:
    """Everything retained; an embedded or open broker shows it to everybody."""
    async with watched(endpoint, "#") as seen:
        pass
    return {delivery.topic: delivery.payload for delivery in seen if delivery.retain}


def a_live_federation() -> dict[str, bytes]:
    """What is retained where an aggregator and a device are at work."""
    lineage = secrets.token_bytes(16)
    announcement = Announcement(
        federation="pumps", lineage=lineage, generation=0, version=7, step=7, phase="training",
        schema_hash=bytes(16), digest=bytes(16), frames=(FrameInfo(version=4, span=0, size=5, parts=1),),
    )  # fmt: skip
    status = AggregatorStatus(state=AggregatorState.READY, boot=1, lineage=lineage)
    return {
        TOPICS.aggregator: frames.encode(status),
        TOPICS.announcement(): messages.encode_announcement(announcement),
        TOPICS.part(4, 0, 0): b"chunk",
        TOPICS.status("pump-1"): frames.encode(Hello(state=DeviceState.READY, outbox=5)),
    }


async def retain(endpoint: Endpoint, messages: dict[str, bytes]) -> None:
    async with connector(endpoint)(options()) as connection:
        for topic, payload in messages.items():
            await connection.publish(topic, payload, retain=True)


# ------------------------------------------------------------------ what a broker offers


async def test_a_broker_that_does_all_and_keeps_nothing() -> None:
    async with EmbeddedBroker() as broker:
        endpoint = somewhere(broker.port)
        report = await check(endpoint, TOPICS, Role())
        assert report.ok and not report.acl
        assert levels(
            report, "protocol", "round trip", "chunk of 120 KiB", "chunk of 256 KiB", "retained messages", "last will"
        ) == {"ok"}
        assert "MQTT 5 and 3.1.1" in found(report, "protocol").seen
        assert "offered" in found(report, "kept sessions").seen
        assert await kept(endpoint) == {}
        assert not [name for name in broker._router._sessions if "check" in name]


async def test_a_broker_of_the_older_protocol() -> None:
    async with EmbeddedBroker(versions=(4,)) as broker:
        report = await check(somewhere(broker.port), TOPICS, Role("pump-1"))
    assert report.ok
    assert found(report, "protocol") == Finding(
        "protocol",
        "MQTT 3.1.1",
        "note",
        "It is enough; with MQTT 5 a broker also tells its limits and what it refuses.",
    )
    assert found(report, "refusals").level == "note"
    assert found(report, TOPICS.status("pump-1")).seen == "may publish and read"
    assert "does not tell" in found(report, TOPICS.report("pump-1")).seen


async def test_a_broker_that_tells_a_small_limit_is_enough() -> None:
    async with EmbeddedBroker(maximum_packet_size=100_000) as broker:
        report = await check(somewhere(broker.port), TOPICS)
    assert report.ok
    assert found(report, "chunk of 120 KiB").level == "note"
    assert "100,000" in found(report, "largest packet").seen


async def test_a_broker_that_does_not_tell_its_limit() -> None:
    async with EmbeddedBroker(versions=(4,), maximum_packet_size=200_000) as broker:
        report = await check(somewhere(broker.port), TOPICS)
    assert not report.ok
    large = found(report, "chunk of 256 KiB")
    assert large.level == "problem" and "chunk=120 * 1024" in large.advice
    assert found(report, "retained messages").seen.startswith("a chunk of 120 KiB was kept")


async def test_no_broker_and_no_entry() -> None:
    with pytest.raises(BrokerUnreachable, match="Nothing listens"):
        await check(somewhere(free_port()), TOPICS)
    async with EmbeddedBroker(users={"anna": "secret"}) as broker:
        with pytest.raises(BrokerRefused, match="user 'anna'"):
            await check(replace(somewhere(broker.port), user="anna", password="wrong"), TOPICS)


async def test_what_is_no_broker() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        with pytest.raises(BrokerUnreachable, match="is it an MQTT broker"):
            await check(somewhere(server.sockets[0].getsockname()[1]), TOPICS)


@pytest.mark.parametrize(
    ("text", "level", "words"),
    [
        ("mosquitto version 2.0.11", "note", "2.0.13"),
        ("mosquitto version 2.0.18", "ok", ""),
        ("mosquitto version 2.1.2", "ok", ""),
        ("another broker 5.8", "ok", ""),
        ("", "note", ""),
    ],
)
def test_what_is_known_of_versions(text: str, level: str, words: str) -> None:
    version, queue = describe(text)
    assert version.level == level and words in version.advice
    assert queue.seen == "cannot be seen from outside" and "max_queued_messages" in queue.advice


@pytest.mark.mosquitto
@needs.mosquitto
async def test_tls_and_its_certificate(tmp_path: Path) -> None:
    async with local_broker("mosquitto", directory=tmp_path, tls=certificates(tmp_path)) as broker:
        report = await check(replace(broker.endpoint, tls=Tls(cafile=tmp_path / "ca.pem")), TOPICS)
        tls = found(report, "TLS")
        assert report.ok and "TLSv1." in tls.seen
        assert tls.level == "warning" and "Renew" in tls.advice  # it is made for two days
        with pytest.raises(BrokerRefused, match="not trusted"):
            await check(broker.endpoint, TOPICS)


# -------------------------------------------------------------------------------- rights


@pytest.mark.parametrize("role", [Role(), Role("pump-1"), Role("pump-3")])
async def test_a_live_federation_is_not_disturbed(role: Role) -> None:
    async with EmbeddedBroker() as broker:
        endpoint, live = somewhere(broker.port), a_live_federation()
        await retain(endpoint, live)
        async with watched(endpoint, TOPICS.everything) as seen:
            report = await check(endpoint, TOPICS, role)
        assert report.ok
        assert await kept(endpoint) == live
    meanwhile = [delivery for delivery in seen if not delivery.retain]
    assert meanwhile
    for delivery in meanwhile:
        if not delivery.topic.startswith(f"{TOPICS.prefix}/check/"):
            assert is_passed_over(delivery), delivery


def is_passed_over(delivery: Delivery) -> bool:
    """Whether aggregators and devices do nothing with it, and say nothing."""
    topic = delivery.topic
    if not delivery.payload:  # devices take it for a retained message that was cleared
        return topic.startswith((TOPICS.aggregator, TOPICS.announcement(), f"{TOPICS.prefix}/receipt/"))
    if topic == TOPICS.claim:
        claim, _ = messages.decode(messages.Claim, delivery.payload)
        return not (claim.number or claim.to or claim.token)
    if topic.startswith(f"{TOPICS.prefix}/status/"):
        return messages.decode(Hello, delivery.payload)[0].state is DeviceState.JOINING
    if topic.startswith(f"{TOPICS.prefix}/report/"):
        return not messages.decode(messages.Report, delivery.payload)[0].metrics
    message, _ = messages.decode_update(delivery.payload)
    if isinstance(message, messages.Chunk):  # of an offer that nobody made
        return message.outbox == 0
    return isinstance(message, messages.Fetch) and message.lineage == bytes(16)


async def test_a_device_that_may_publish_models() -> None:
    async with EmbeddedBroker() as broker:
        report = await check(somewhere(broker.port), TOPICS, Role("pump-1"))
    excess = found(report, "more than needed")
    assert excess.level == "warning" and TOPICS.announcement() in excess.seen


class TestWithMosquittosAcl:
    pytestmark = needs_mosquitto

    async def test_the_acl_of_deploy_is_enough(self, tmp_path: Path) -> None:
        async with guarded(tmp_path, ACL) as endpoint:
            report = await check(as_user(endpoint, "aggregator"), TOPICS, Role())
            assert report.ok and not report.acl
            assert levels(report, *TOPICS.from_devices, TOPICS.aggregator) == {"ok"}
            before = await check(as_user(endpoint, "pump-1"), TOPICS, Role("pump-1"))
            assert before.ok and "look again" in found(before, TOPICS.aggregator).seen
            await retain(as_user(endpoint, "aggregator"), a_live_federation())
            report = await check(as_user(endpoint, "pump-1"), TOPICS, Role("pump-1"))
            assert report.ok and not report.acl
            assert all(finding.name != "more than needed" for finding in report.findings)
            names = (TOPICS.aggregator, TOPICS.announcement(), f"{TOPICS.announcement()}/#", TOPICS.status("pump-1"))
            assert levels(report, *names, "round trip", "chunk of 256 KiB", "last will") == {"ok"}
            assert await kept(as_user(endpoint, "aggregator")) == await kept_without_check(endpoint)

    @pytest.mark.parametrize(
        ("without", "lacking", "lines"),
        [
            (
                "pattern read midge/1/pumps/model/#",
                f"{TOPICS.announcement()}/#",
                ["pattern read midge/1/pumps/model/train/#"],
            ),
            ("pattern read midge/1/pumps/aggregator", TOPICS.aggregator, ["pattern read midge/1/pumps/aggregator"]),
            (
                "pattern write midge/1/pumps/report/%u",
                TOPICS.report("pump-1"),
                ["pattern write midge/1/pumps/report/%u"],
            ),
            (
                "topic write midge/1/pumps/update/6/pump-1",
                f"{TOPICS.prefix}/update/6/pump-1",
                ["user pump-1", "topic write midge/1/pumps/update/6/pump-1"],
            ),
        ],
    )
    async def test_a_device_that_lacks_a_right(
        self, without: str, lacking: str, lines: Sequence[str], tmp_path: Path
    ) -> None:
        assert f"{without}\n" in ACL
        acl = ACL.replace(f"{without}\n", "pattern read midge/1/pumps/model/train\n" if "#" in without else "")
        async with guarded(tmp_path, acl) as endpoint:
            await retain(as_user(endpoint, "aggregator"), a_live_federation())
            report = await check(as_user(endpoint, "pump-1"), TOPICS, Role("pump-1"))
        assert not report.ok
        assert [finding.name for finding in report.findings if finding.level == "problem"] == [lacking]
        assert set(lines) <= set(report.acl)

    async def test_a_device_under_another_users_name(self, tmp_path: Path) -> None:
        async with guarded(tmp_path, ACL) as endpoint:
            report = await check(as_user(endpoint, "pump-1"), TOPICS, Role("pump-2"))
            assert report.acl == (
                "user pump-1",
                "topic readwrite midge/1/pumps/status/pump-2",
                "topic write midge/1/pumps/update/60/pump-2",
                "topic write midge/1/pumps/report/pump-2",
                "topic read midge/1/pumps/receipt/pump-2",
                "topic read midge/1/pumps/aggregator",
                "topic read midge/1/pumps/model/train",
                "topic read midge/1/pumps/model/train/#",
            )

    async def test_an_aggregator_without_rights(self, tmp_path: Path) -> None:
        lines = ("user aggregator", "topic readwrite midge/1/pumps/#")
        async with guarded(tmp_path, ACL.replace("\n".join(lines), "")) as endpoint:
            report = await check(as_user(endpoint, "aggregator"), TOPICS, Role())
        assert not report.ok and report.acl == lines
        assert found(report, "messages").level == "warning"


async def kept_without_check(endpoint: Endpoint) -> dict[str, bytes]:
    """What is retained, less what a probe might have left."""
    everything = await kept(as_user(endpoint, "aggregator"))
    return {topic: payload for topic, payload in everything.items() if "check" not in topic}
