"""`midge broker check`: what a broker offers, and what this user may do there.

Everything is tried as this user, with messages of our own below `{root}/{federation}/check/`, or on the role's own
topics with messages that every client ignores. Nothing is left behind: what is retained for a moment is cleared again.
"""

import secrets

from midge.broker import connector
from midge.broker.audit import limits as bounds
from midge.broker.audit.attacks import try_attacks
from midge.broker.audit.handshake import Handshake, look_at_tls, shake_hands
from midge.broker.audit.identities import Parties
from midge.broker.audit.permissions import Rights, look_at_rights
from midge.broker.audit.probe_topic import Prober, ProbeTopic, Role, find_probe_topic, joining
from midge.broker.audit.probes import CHUNKS, about, chunk, last_will, latency, refusals, retained
from midge.broker.audit.results import AuditReport, Finding, Level, Trial
from midge.broker.mqtt.connection import BrokerError, Limits
from midge.broker.mqtt.endpoint import Endpoint, is_loopback
from midge.broker.mqtt.paho_errors import ProtocolRefused, Unanswered, disconnected
from midge.wire.topics import Topics

__all__ = ["AuditReport", "Finding", "Level", "Parties", "Role", "Trial", "check"]

_KEEP = 60
"""Session expiry in seconds that is requested, to see whether it is honoured."""
_RENEW = 14
"""Days before its end at which a certificate should be renewed."""
_DEFAULT_RECEIVE_MAXIMUM = 65_535
"""The receive maximum if the broker gives none; MQTT 5, section 3.2.2.3.3."""


async def check(
    endpoint: Endpoint,
    topics: Topics,
    role: Role | None = None,
    *,
    patience: float = 10.0,
    parties: Parties | None = None,
    read_only: bool = False,
) -> AuditReport:
    """Audit a broker as the user of `endpoint`; with a role, also that role's rights on the federation's topics.

    Args:
        endpoint: the broker, and the user.
        topics: of the federation.
        role: whose rights are checked: of the user of `endpoint`, or of the attacker if there are parties.
        patience: seconds to wait for each answer.
        parties: test identities for the attacks; None skips them.
        read_only: publish nothing, and take no session over.

    Raises:
        BrokerUnreachable: no broker serves there.
        BrokerRefused: it does not let this user in, or its certificate is not trusted.
    """
    random = secrets.token_hex(4)
    client = f"midge-check-{random}"
    prober = Prober(connector(endpoint), client, patience)
    protocols, limits = await _protocols(endpoint, prober)
    findings = [*protocols, *await _security(endpoint, patience)]
    tried = [] if parties is None else bounds.told(limits)
    probe_topic = None if read_only else await find_probe_topic(prober, topics, role, random)
    findings += await about(prober, probe_topic)
    findings.append(_window(limits))
    findings.append(_largest(limits))
    rights = Rights((), ())
    if not read_only:
        if probe_topic is None:
            findings.append(_no_probe_topic(topics, role))
        else:
            findings += await _probed(prober, endpoint, probe_topic, limits, topics, parties=parties)
            if parties is not None and probe_topic.ours:
                tried += [bounds.kept(each) for each in findings if each.name == bounds.RETAINED]
                tried.append(await bounds.queue(prober, probe_topic))
        findings.append(await _sessions(endpoint, prober, limits))
        findings.append(await refusals(prober, limits))
        if role is not None:
            rights = await _rights(
                prober, probe_topic, topics, role, random=random, user=endpoint.user, parties=parties
            )
    attacks: tuple[Trial, ...] = ()
    if parties is not None:
        attacks = await try_attacks(parties, topics, patience=patience, read_only=read_only)
    return AuditReport(str(endpoint), endpoint.user, (*findings, *rights.findings), rights.acl, attacks, tuple(tried))


async def _rights(
    prober: Prober,
    probe_topic: ProbeTopic | None,
    topics: Topics,
    role: Role,
    *,
    random: str,
    user: str | None,
    parties: Parties | None,
) -> Rights:
    """The rights of our own user, or of the attacker if the audit runs as another user."""
    if parties is not None and role.device == parties.name:
        prober, user = prober.of(connector(parties.attacker)), parties.name
        probe_topic = ProbeTopic(topics.status(parties.name), joining(), ours=False)
    return await look_at_rights(prober, probe_topic, topics, role, random=random, user=user)


async def _protocols(endpoint: Endpoint, prober: Prober) -> tuple[list[Finding], Limits]:
    """The MQTT versions that it speaks, and the limits that it announces in the newest one."""
    newest = await _hand(endpoint, prober, 5)
    older = await _hand(endpoint, prober, 4)
    if isinstance(newest, ProtocolRefused):
        if isinstance(older, ProtocolRefused):
            raise older if isinstance(older, Unanswered) else disconnected(endpoint)
        seen = Finding(
            "protocol",
            "MQTT 3.1.1",
            "note",
            "It is enough; with MQTT 5 a broker also tells its limits and what it refuses.",
        )
        return [seen], older.limits
    return [Finding("protocol", "MQTT 5" if isinstance(older, ProtocolRefused) else "MQTT 5 and 3.1.1")], newest.limits


async def _hand(endpoint: Endpoint, prober: Prober, version: int) -> Handshake | ProtocolRefused:
    try:
        return await shake_hands(endpoint, prober.options(), version=5 if version == 5 else 4)
    except ProtocolRefused as refused:
        return refused


async def _security(endpoint: Endpoint, patience: float) -> list[Finding]:
    """Whether it requires authentication, and whether the connection is encrypted."""
    near = is_loopback(endpoint.host)
    findings = []
    if endpoint.user is not None:
        findings.append(Finding("user", f"{endpoint.user} is let in"))
    elif endpoint.tls is not None and endpoint.tls.certfile is not None:
        findings.append(Finding("user", "let in with a certificate"))
    elif near:
        findings.append(
            Finding("user", "anonymous clients are let in", "note", "Before others reach it: allow_anonymous false.")
        )
    else:
        findings.append(
            Finding(
                "user",
                "anonymous clients are let in",
                "warning",
                "Ask for passwords: otherwise any client can send updates.",
            )
        )
    look = await look_at_tls(endpoint, patience)
    if look is None:
        level: Level = "note" if near else "warning"
        advice = "Use mqtts:// (wss://): passwords and models are in the clear." if not near else ""
        findings.append(Finding("TLS", "none", level, advice))
    elif look.days_left is None:
        findings.append(Finding("TLS", f"{look.version}, certificate not verified", "warning", "Verify it."))
    else:
        left = f"{look.version}, certificate for {look.days_left:.0f} more days"
        soon = look.days_left < _RENEW
        findings.append(
            Finding("TLS", left, "warning" if soon else "ok", "Renew the broker's certificate now." if soon else "")
        )
    return findings


def _window(limits: Limits) -> Finding:
    if limits.receive_maximum == _DEFAULT_RECEIVE_MAXIMUM:
        return Finding("in-flight window", "no limit told", "ok" if limits.protocol == 5 else "note")
    seen = f"{limits.receive_maximum} messages (receive maximum)"
    if limits.receive_maximum < bounds.WINDOW:
        advice = f"Large models travel faster from {bounds.WINDOW} on (Mosquitto: max_inflight_messages)."
        return Finding("in-flight window", seen, "note", advice)
    return Finding("in-flight window", seen)


def _largest(limits: Limits) -> Finding:
    size = limits.maximum_packet_size
    if size is None:
        return Finding("largest packet", "no limit told", "ok" if limits.protocol == 5 else "note")
    return Finding("largest packet", f"{size:,} bytes")


def _no_probe_topic(topics: Topics, role: Role | None) -> Finding:
    seen = f"no message on {topics.prefix}/check/# comes back to this user"
    if role is None:
        return Finding(
            "messages",
            seen,
            "warning",
            "Say what it is there for: --federation NAME with --device NAME or --aggregator.",
        )
    return Finding("messages", seen, "warning", "Round trip, sizes and wills were not tried: see the rights below.")


async def _probed(
    prober: Prober,
    endpoint: Endpoint,
    probe_topic: ProbeTopic,
    limits: Limits,
    topics: Topics,
    *,
    parties: Parties | None,
) -> list[Finding]:
    """Findings from test messages of our own."""
    findings = [await latency(prober, probe_topic, near=is_loopback(endpoint.host))]
    fitting = 1024
    for size in CHUNKS:
        found = await chunk(prober, probe_topic, size, limits)
        findings.append(found)
        fitting = size if found.level == "ok" else fitting
        if found.level != "ok":
            break
    if not probe_topic.ours:
        findings.append(
            Finding(
                "retained messages",
                "not tried: this user has no topic of its own",
                "note",
                "Look once as the aggregator's user.",
            )
        )
    elif not limits.retain_available:
        findings.append(
            Finding(
                "retained messages",
                "the broker says that it keeps none",
                "problem",
                "Allow them: what a federation trains from is announced in one.",
            )
        )
    else:
        findings.append(await retained(prober, probe_topic, fitting))
    if parties is not None and parties.witness == endpoint:  # because one identity may have only one connection
        endpoint, probe_topic = parties.attacker, ProbeTopic(topics.status(parties.name), joining(), ours=False)
    findings.append(await last_will(prober, endpoint, probe_topic))
    return findings


async def _sessions(endpoint: Endpoint, prober: Prober, limits: Limits) -> Finding:
    """Whether sessions are kept. Informative only: Midge begins each connection with a new session."""
    options = prober.options()
    version = limits.protocol
    try:
        first = await shake_hands(endpoint, options, version=version, keep=_KEEP, clean=False)
        second = await shake_hands(endpoint, options, version=version, keep=_KEEP, clean=False)
        await shake_hands(endpoint, options, version=version)  # delete the session again
    except BrokerError as error:
        return Finding("kept sessions", f"not offered: {error}", "note", "Midge does without.")
    if not second.session_present:
        return Finding("kept sessions", "not offered", "note", "Midge does without.")
    limit = "" if first.session_expiry in (None, _KEEP) else f", for {first.session_expiry} s at most"
    return Finding("kept sessions", f"offered{limit}; Midge does without")
