"""The doctor: each attack fails on a broker of `midge broker init`, and is seen to succeed on one that is left open."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from midge.broker import Connection, Delivery, Endpoint, connector
from midge.broker.audit.attacks import try_attacks
from midge.broker.audit.check import AuditReport, Parties, Role, Trial, check
from midge.broker.mqtt.connection import PublishRefused
from midge.broker.provisioning.bundles import Bundle, read_bundle
from midge.broker.provisioning.fleet_registry import ATTACKER, VICTIM
from midge.broker.provisioning.manage_devices import add
from midge.wire.topics import SLOTS, Topics, slot
from tests.broker.fleets import device, make_fleet, needs_mosquitto, running_fleet, serving
from tests.broker.test_check import a_live_federation, is_passed_over, kept, retain, watched, write_passwords
from tests.broker.worlds import options, somewhere
from tests.ports import free_port
from tests.waiting import LAST_RESORT

pytestmark = needs_mosquitto

TOPICS = Topics("pumps")
ENTRIES = ["no credentials", "foreign certificate", "guessed password", "revoked identity"]
FORGERIES = [
    "publish as another device",
    "forge another's status",
    "forge another's report",
    "forge the announcement",
    "forge a model's frames",
    "forge the aggregator's status",
    "claim to be the aggregator",
    "forge a receipt",
    "retained junk",
    "publish beside the federation",
    "retained flood",
    "fetch flood",
    "junk names",
    "half-finished uploads",
    "another's user name",
]
OTHERS = ["read everything", "take over a session", "oversized packet"]
ALL = pytest.mark.parametrize("name", [*ENTRIES, *FORGERIES, *OTHERS])
BOTH = pytest.mark.parametrize("version", [5, 4])


def parties_of(fleet: Path, url: str | None = None) -> tuple[Endpoint, Topics, Parties]:
    operator, attacker, victim, revoked = (
        read_bundle(fleet / name, broker=url)
        for name in ("operator", "probes/attacker", "probes/victim", "probes/revoked")
    )
    parties = Parties(
        attacker.endpoint, ATTACKER, victim.endpoint, VICTIM, witness=operator.endpoint, revoked=revoked.endpoint
    )
    return operator.endpoint, operator.topics, parties


def look(fleet: Path, url: str | None = None) -> AuditReport:
    endpoint, topics, parties = parties_of(fleet, url)
    return asyncio.run(check(endpoint, topics, Role(ATTACKER), parties=parties))


def row(report: AuditReport, name: str, version: int) -> Trial:
    (found,) = (each for each in report.attacks if (each.name, each.version) == (name, version))
    return found


@pytest.fixture(scope="module", params=["certificates", "passwords"])
def safe(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AuditReport]:
    with running_fleet(tmp_path_factory.mktemp(request.param) / "fleet", request.param) as fleet:
        yield look(fleet)


@pytest.fixture(scope="module")
def open_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    """A Mosquitto that is left as people leave it: anonymous, without TLS and ACL, its limits as they come."""
    directory, port = tmp_path_factory.mktemp("open"), free_port()
    (directory / "conf").write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\nuser root\n")
    with serving(directory / "conf", port):
        yield somewhere(port)


@pytest.fixture(scope="module", params=["fleet", "alone"])
def unsafe(
    request: pytest.FixtureRequest, open_broker: Endpoint, tmp_path_factory: pytest.TempPathFactory
) -> AuditReport:
    if request.param == "alone":
        parties = Parties(open_broker, "pump-1", open_broker, VICTIM)
        return asyncio.run(check(open_broker, TOPICS, Role("pump-1"), parties=parties))
    make_fleet(directory := tmp_path_factory.mktemp("fleet"), names=[])
    return look(directory, str(open_broker))


@BOTH
@ALL
def test_the_attack_fails_on_a_broker_of_init(name: str, version: int, safe: AuditReport) -> None:
    tried = row(safe, name, version)
    assert tried.passed, tried


@BOTH
@ALL
def test_the_attack_succeeds_on_an_open_broker_and_is_told(name: str, version: int, unsafe: AuditReport) -> None:
    tried = row(unsafe, name, version)
    assert tried.passed is False and tried.advice, tried


def test_all_is_well_with_a_broker_of_init(safe: AuditReport) -> None:
    assert safe.ok and not safe.acl
    assert [each for each in (*safe.attacks, *safe.limits) if not each.passed] == []
    assert {each.name for each in safe.limits} == {"largest packet", "in-flight window", "retained messages", "queue"}
    assert [each for each in safe.findings if each.level in {"warning", "problem"}] == []
    assert len(safe.attacks) == 1 + 2 * len([*ENTRIES, *FORGERIES, *OTHERS])


def test_an_open_broker_is_not_well(unsafe: AuditReport) -> None:
    assert not unsafe.ok
    assert unsafe.attacks[0].name == "listen on the wire" and unsafe.attacks[0].passed is False
    assert {each.name: each.passed for each in unsafe.limits} == {
        "largest packet": False,
        "in-flight window": True,
        "retained messages": True,
        "queue": False,
    }


async def test_a_live_federation_is_not_disturbed_and_nothing_stays(open_broker: Endpoint) -> None:
    """On a broker where every attack succeeds: what it did would be seen."""
    live = a_live_federation()
    await retain(open_broker, live)
    parties = Parties(open_broker, "midge-check", open_broker, VICTIM)
    async with watched(open_broker, TOPICS.everything) as seen:
        await try_attacks(parties, TOPICS)
    for delivery in seen:
        if not delivery.retain and not is_ours(delivery):
            assert is_passed_over(delivery), delivery
    assert await kept(open_broker) == live
    await retain(open_broker, dict.fromkeys(live, b""))


def is_ours(delivery: Delivery) -> bool:
    """On topics that no device and no aggregator looks at, or the clearing of what was retained by the flood."""
    if delivery.topic.startswith(f"{TOPICS.prefix}/update/") and not delivery.payload:
        return True
    return delivery.topic.startswith((f"{TOPICS.prefix}/check/", f"{TOPICS.announcement()}/0/check-"))


async def test_reading_only_publishes_nothing(open_broker: Endpoint) -> None:
    parties = Parties(open_broker, "midge-check", open_broker, VICTIM)
    async with watched(open_broker, "#") as seen:
        report = await check(open_broker, TOPICS, Role("midge-check"), parties=parties, read_only=True)
    assert [each for each in seen if not each.topic.startswith("$SYS") and each.topic != "settled"] == []
    assert all(row(report, name, 5).passed is False for name in ENTRIES)
    assert all(row(report, name, 5).passed is None for name in FORGERIES)


def test_a_device_that_may_claim_to_be_the_aggregator_is_told_of(tmp_path: Path) -> None:
    """One line of the ACL that is too generous: whoever answers the question keeps an aggregator from serving."""
    make_fleet(tmp_path, port=(port := free_port()))
    acl = tmp_path / "broker" / "acl"
    acl.write_text(acl.read_text() + "pattern readwrite midge/1/plant/claim\n")
    with serving(tmp_path / "broker" / "mosquitto.conf", port):
        report = look(tmp_path)
    failed = {(each.name, each.version) for each in report.attacks if each.passed is False}
    assert failed == {("claim to be the aggregator", 5), ("claim to be the aggregator", 4)}
    assert not report.ok and "midge/1/plant/claim" in row(report, "claim to be the aggregator", 5).seen


def test_a_device_of_init_writes_its_one_slot_and_a_new_one_too(tmp_path: Path) -> None:
    """With `update/+/NAME` a device had as many topics as there are words, and Mosquitto kept a message in each."""
    with running_fleet(tmp_path / "fleet") as fleet:
        add(fleet, ["pump-17"])
        for name in ("dev0001", "pump-17"):
            asyncio.run(writes_its_slot(device(fleet, name)))


async def writes_its_slot(bundle: Bundle) -> None:
    async with connector(bundle.endpoint)(options()) as connection:
        async with asyncio.timeout(LAST_RESORT):
            while not await takes(connection, bundle.topics.update(bundle.name)):
                pass  # it reads its files again
        for place in (*({*range(SLOTS)} - {slot(bundle.name)}), "x0", f"{slot(bundle.name)}/{bundle.name}"):
            assert not await takes(connection, f"{bundle.topics.prefix}/update/{place}/{bundle.name}")


async def takes(connection: Connection, topic: str) -> bool:
    try:
        await connection.publish(topic, b"", retain=True)
    except PublishRefused:
        return False
    return True


def test_the_broker_of_init_bounds_what_it_holds(tmp_path: Path) -> None:
    make_fleet(tmp_path)
    lines = (tmp_path / "broker" / "mosquitto.conf").read_text().splitlines()
    said = dict(line.split(" ", 1) for line in lines if line and not line.startswith("#"))
    assert 256 * 2**20 <= int(said["memory_limit"]) <= 512 * 2**20
    assert int(said["max_queued_bytes"]) <= 64 * 2**20 and int(said["max_packet_size"]) <= 2**20
    assert said["max_qos"] == "1" and int(said["max_inflight_messages"]) == 20


@pytest.fixture(scope="module")
def common(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AuditReport]:
    """A broker as many have it: users and an ACL, and nothing that binds client ids or bounds packets."""
    directory, port = tmp_path_factory.mktemp("users"), free_port()
    acl = Path(__file__).parents[2] / "deploy" / "mosquitto" / "acl"
    (directory / "conf").write_text(
        f"listener {port} 127.0.0.1\nallow_anonymous false\nacl_file {acl}\nuser root\n"
        f"password_file {write_passwords(directory)}\n"
    )
    with serving(directory / "conf", port):
        endpoint = replace(somewhere(port), user="pump-1", password="pump-1")
        parties = Parties(endpoint, "pump-1", endpoint, VICTIM)
        yield asyncio.run(check(endpoint, TOPICS, Role("pump-1"), parties=parties))


@BOTH
@pytest.mark.parametrize("name", ["no credentials", "guessed password", *FORGERIES])
def test_what_users_and_rights_prevent(name: str, version: int, common: AuditReport) -> None:
    assert row(common, name, version).passed, row(common, name, version)


@BOTH
@pytest.mark.parametrize("name", ["take over a session", "oversized packet"])
def test_what_they_do_not_prevent(name: str, version: int, common: AuditReport) -> None:
    assert row(common, name, version).passed is False


def test_what_cannot_be_told_there(common: AuditReport) -> None:
    assert row(common, "revoked identity", 5).passed is None
