"""The rights that a role needs on a federation's topics, and whether it has them.

Brokers differ in what they report. A refused PUBLISH shows as a negative PUBACK (MQTT 5), as a lost connection, or not
at all (3.1.1). A refused SUBSCRIBE shows in SUBACK, or not at all: Mosquitto's ACL file lets everyone subscribe to
everything and delivers only what may be read. So for each topic we subscribe, publish a message that every client
ignores, then send a marker on the probe topic: what has not arrived before the marker will not arrive.
"""

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from midge.broker.audit.probe_topic import Prober, ProbeTopic, Role, gather, joining
from midge.broker.audit.results import Finding
from midge.broker.mqtt.connection import ConnectionLost, PublishRefused, SubscribeRefused
from midge.broker.mqtt.topic_filters import matches
from midge.wire import frames, messages
from midge.wire.errors import WireError
from midge.wire.messages import NO_LINEAGE, Claim, Fetch, Report
from midge.wire.topics import Topics


@dataclass(frozen=True, slots=True)
class Need:
    """A topic, what the role does on it, and a harmless message to test that."""

    rule: str
    """The topic as in a line of an ACL."""
    topic: str
    """A topic that the rule covers, to publish on."""
    payload: bytes
    """A message that every reader ignores. Never retained."""
    publishes: bool = False
    reads: str = ""
    """The filter that the role subscribes to; empty if none."""
    expected: bool | None = None
    """Whether a retained message is known to be there; None if there never is one."""

    @property
    def words(self) -> str:
        return " and ".join(
            word for word, wanted in (("publish", self.publishes), ("read", bool(self.reads))) if wanted
        )

    @property
    def right(self) -> str:
        """The right, in Mosquitto's words."""
        return {"publish": "write", "read": "read"}.get(self.words, "readwrite")


@dataclass(frozen=True, slots=True)
class Observed:
    """The result of a test."""

    published: bool | None
    """None if the broker took it and cannot report a refusal (MQTT 3.1.1)."""
    subscribed: bool
    came: bool
    """Whether a message arrived on the subscription."""


@dataclass(frozen=True, slots=True)
class Rights:
    """Findings, and the ACL lines that grant what is missing."""

    findings: tuple[Finding, ...]
    acl: tuple[str, ...]


async def look_at_rights(
    prober: Prober, probe_topic: ProbeTopic | None, topics: Topics, role: Role, *, random: str, user: str | None
) -> Rights:
    """Test each topic of the role; the messages are not retained, and clients ignore them.

    Raises:
        BrokerUnreachable: the broker is gone.
    """
    name = role.device
    wanted = (
        _of_aggregator(topics, f"check-{random}")
        if name is None
        else await _of_device(prober, probe_topic, topics, name)
    )
    judged = [
        (need, observed, _judge(need, observed))
        for need in wanted
        for observed in [await _observe(prober, probe_topic, need)]
    ]
    findings = [finding for _, _, finding in judged]
    excess = [need.rule for need, observed, _ in judged if observed.published and not need.publishes]
    if excess and name is not None:
        findings.append(
            Finding(
                "more than needed",
                f"this device may publish on {', '.join(excess)}",
                "warning",
                "Anyone with its password can send a false model to every device: use an ACL.",
            )
        )
    lines: list[str] = []
    if any(finding.level == "problem" for finding in findings):
        lines = acl_lines([need for need, _, finding in judged if finding.level != "ok"], topics, role, user)
    return Rights(tuple(findings), tuple(lines))


def _of_aggregator(topics: Topics, probe: str) -> tuple[Need, ...]:
    """Everything that the aggregator does. `probe` is a name that no device has."""
    updates, statuses, reports = topics.from_devices
    announcement, status = topics.announcement(), topics.aggregator
    return (
        Need(updates, topics.update(probe), passed_over_fetch(), reads=updates),
        Need(statuses, topics.status(probe), joining(), reads=statuses),
        Need(reports, topics.report(probe), passed_over_report(), reads=reports),
        Need(status, status, b"", publishes=True, reads=status),
        Need(topics.claim, topics.claim, passed_over_claim(), publishes=True, reads=topics.claim),
        Need(announcement, announcement, b"", publishes=True, reads=announcement),
        Need(f"{announcement}/#", topics.part(0, 0, 0), b"", publishes=True),
        Need(f"{topics.prefix}/receipt/+", topics.receipt(probe), b"", publishes=True),
    )


async def _of_device(prober: Prober, probe_topic: ProbeTopic | None, topics: Topics, name: str) -> tuple[Need, ...]:
    """Everything that a device does."""
    announcement, status = topics.announcement(), topics.status(name)
    live, part = await _announced(prober, probe_topic, topics)
    return (
        Need(status, status, joining(), publishes=True, reads=status),
        Need(topics.update(name), topics.update(name), passed_over_fetch(), publishes=True),
        Need(topics.report(name), topics.report(name), passed_over_report(), publishes=True),
        Need(topics.receipt(name), topics.receipt(name), b"", reads=topics.receipt(name)),
        Need(topics.aggregator, topics.aggregator, b"", reads=topics.aggregator, expected=live),
        Need(announcement, announcement, b"", reads=announcement, expected=live),
        Need(f"{announcement}/#", topics.part(0, 0, 0), b"", reads=part, expected=part != topics.part(0, 0, 0)),
    )


def passed_over_fetch() -> bytes:
    """A request for a chunk of a lineage that no store has, which the aggregator ignores."""
    return frames.encode(Fetch(lineage=NO_LINEAGE, version=0, span=0, parts=(0,)))


def passed_over_report() -> bytes:
    """A report on that lineage, without a number, which is ignored too."""
    return frames.encode(Report(lineage=NO_LINEAGE, version=0, examples=0, metrics={}))


def passed_over_claim() -> bytes:
    """An answer of no aggregator to no question, which is ignored too."""
    return frames.encode(Claim(boot=0, lineage=NO_LINEAGE, token=0))


async def _announced(prober: Prober, probe_topic: ProbeTopic | None, topics: Topics) -> tuple[bool, str]:
    """Whether an announcement is retained, and the topic of a chunk of its model; a made-up chunk otherwise."""
    live, part = False, topics.part(0, 0, 0)
    with suppress(SubscribeRefused, PublishRefused, ConnectionLost):
        async with prober.connect() as connection:
            await connection.subscribe(topics.aggregator, topics.announcement())
            for delivery in await gather(connection, probe_topic):
                live = live or bool(delivery.payload)
                if delivery.topic == topics.announcement():
                    with suppress(WireError):
                        offered = messages.decode_announcement(delivery.payload).frames
                        snapshots = [frame.version for frame in offered if frame.span == 0]
                        part = topics.part(max(snapshots), 0, 0) if snapshots else part
    return live, part


async def _observe(prober: Prober, probe_topic: ProbeTopic | None, need: Need) -> Observed:
    """Subscribe if the role does, publish, and collect what arrives."""
    published: bool | None = False
    subscribed = came = False
    try:
        async with prober.connect() as connection:
            if need.reads:
                with suppress(SubscribeRefused):
                    await connection.subscribe(need.reads)
                    subscribed = True
            try:
                await connection.publish(need.topic, need.payload)
                published = True if connection.limits.protocol == 5 else None
            except PublishRefused:
                pass
            if subscribed:
                came = any(matches(need.reads, each.topic) for each in await gather(connection, probe_topic))
    except ConnectionLost:
        pass  # some brokers disconnect on a forbidden subscription
    return Observed(published, subscribed, came)


def _judge(need: Need, observed: Observed) -> Finding:
    """The finding of an observation."""
    silent = observed.subscribed and not observed.came
    untold = observed.published is None and not observed.came
    lacking = []
    if need.publishes and observed.published is False:
        lacking.append("publish")
    if need.reads and (not observed.subscribed or (silent and (observed.published is True or need.expected))):
        lacking.append("read")
    if lacking:
        return Finding(need.rule, f"may not {' nor '.join(lacking)}", "problem", "Give this user the right.")
    if need.reads and silent:
        later = "" if need.expected is None else ": look again while the aggregator runs"
        return Finding(need.rule, f"subscribed, and nothing came{later}", "note")
    if need.publishes and untold:
        return Finding(need.rule, "sent; MQTT 3.1.1 does not tell whether it was taken", "note")
    return Finding(need.rule, "may " + need.words)


def acl_lines(needs: Sequence[Need], topics: Topics, role: Role, user: str | None) -> list[str]:
    """The lines of Mosquitto's ACL file for these needs, as in deploy/mosquitto/acl."""
    head = ["# before the first line that begins with 'user':"] if user is None else [f"user {user}"]
    if role.device is None:
        return [*head, f"topic readwrite {topics.everything}"]
    if user != role.device:
        return [*head, *(f"topic {need.right} {need.rule}" for need in needs)]
    own = re.compile(rf"(?<=/){re.escape(user)}$")
    updates = topics.update(user)  # the only topic that a pattern cannot express for all devices
    lines = [f"pattern {need.right} {own.sub('%u', need.rule)}" for need in needs if need.rule != updates]
    return [*([f"user {user}", f"topic write {updates}"] if len(lines) < len(needs) else []), *lines]
