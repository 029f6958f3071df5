"""Attacks that a device of a federation could try, carried out under MQTT 3.1.1 and 5.

All of them use test identities that do no work, and messages that every client ignores: an empty one, a status of a
joining device, a request for a chunk of a lineage that no store has, a chunk of no offer. What the broker kept although
it should have refused it is cleared again. A refusal shows as a negative PUBACK (MQTT 5) or a lost connection; that a
message went nowhere shows at a witness to whom the broker delivers everything in order.
"""

import asyncio
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, replace

from midge.broker.audit.auth_attacks import break_in, one_each
from midge.broker.audit.identities import Parties, Visitor, Watch, watching
from midge.broker.audit.permissions import passed_over_claim, passed_over_fetch, passed_over_report
from midge.broker.audit.probe_topic import joining
from midge.broker.audit.results import Trial
from midge.broker.mqtt.connection import BrokerError, ConnectionLost, Delivery, PublishRefused, SubscribeRefused
from midge.broker.mqtt.paho_errors import ProtocolRefused
from midge.broker.mqtt.paho_session import PahoSession
from midge.wire import frames
from midge.wire.messages import Chunk
from midge.wire.topics import SLOTS, Topics, slot

OVERSIZED = 4 * 1024 * 1024
"""Bytes of a packet that no federation needs: chunks have 256 KiB."""
_OVERSIZED_PATIENCE = 60.0
"""Seconds, for 70 KB a second."""
FLOODED = 200
"""Requests in a row of one device: the burst that an aggregator accepts."""
_SLOW = 1.0
"""Seconds of a round trip from which on a flood counts as holding others up."""
_ACL = "Give each user its own topics only (Mosquitto: acl_file; `midge broker init` writes one)."
_IDENTITY = "Bind user names to credentials (Mosquitto: use_identity_as_username true, or passwords)."


@dataclass(frozen=True, slots=True)
class Forgery:
    """Something that a device may not publish."""

    name: str
    topic: str
    payload: bytes = b""
    retain: bool = False
    advice: str = _ACL


async def try_attacks(
    parties: Parties, topics: Topics, *, patience: float = 10.0, read_only: bool = False
) -> tuple[Trial, ...]:
    """Try all attacks. `read_only`: publish nothing and take no session over.

    Raises:
        BrokerError: the attacker is not let in with its own credentials, so that no result is possible.
    """
    trials = [_wire(parties)]
    refused: set[str] = set()
    for version in (5, 4):
        visitor = Visitor(5 if version == 5 else 4, patience)
        try:
            async with visitor.visit(parties.attacker):
                pass
        except ProtocolRefused as error:
            if version == 4:
                raise
            trials.append(Trial("MQTT 5", "spoken, or not at all", str(error), None, version=5))
            continue
        trials += await break_in(parties, visitor)
        trials += await _Attempt(parties, topics, visitor, refused).everything(read_only=read_only)
    return tuple(trials)


def _wire(parties: Parties) -> Trial:
    name, expected = "listen on the wire", "TLS, and the broker's certificate verified"
    tls = parties.attacker.tls
    if tls is None:
        return Trial(name, expected, "all is in the clear", passed=False, advice="Use TLS: mqtts://")
    if tls.insecure:
        return Trial(name, expected, "the certificate is not verified", passed=False, advice="Verify it: --cafile")
    return Trial(name, expected, "TLS, verified", passed=True)


class _Attempt:
    """The attacks of a client with valid credentials, under one version of MQTT."""

    def __init__(self, parties: Parties, topics: Topics, visitor: Visitor, refused: set[str]) -> None:
        self._parties, self._topics, self._visitor = parties, topics, visitor
        self._refused = refused
        """Refusals under MQTT 5: rights are the same for both versions."""
        self._marker = f"{topics.prefix}/check/{visitor.random}"

    def _trial(self, name: str, expected: str, seen: str, passed: bool | None, advice: str = "") -> Trial:
        return Trial(name, expected, seen, passed, "" if passed is not False else advice, self._visitor.version)

    async def everything(self, *, read_only: bool) -> list[Trial]:
        parties, visitor = self._parties, self._visitor
        exclusive = parties.alone and await one_each(parties.attacker, visitor)
        forged, floods = self._forgeries(), self._floods()
        trials = []
        async with AsyncExitStack() as stack:
            watch: Watch | None = None
            source = parties.witness or (None if exclusive else parties.attacker)
            if source is not None and not read_only:
                places = tuple(each.topic for each in (*forged, *(each for flood in floods.values() for each in flood)))
                watch = await stack.enter_async_context(watching(visitor, source, places, self._marker))
            trials += [
                self._untried(each.name, "refused") if read_only else await self._forge(each, watch) for each in forged
            ]
            for name, flood in floods.items():
                trials.append(self._untried(name, "refused") if read_only else await self._flood(flood, watch))
            if read_only:
                others = ("another's user name", "take over a session", "oversized packet")
                trials += [self._untried(name, "refused") for name in others]
            else:
                trials.append(await self._as_another(watch))
            trials.append(await self._read(watch, alone=exclusive or read_only))
        if not read_only:
            trials = [await self._flooded(each) if each.name == "fetch flood" else each for each in trials]
            trials += [await self._take_over(exclusive=exclusive), await self._oversized()]
        return trials

    def _untried(self, name: str, expected: str) -> Trial:
        return self._trial(name, expected, "not tried: --read-only", None)

    def _forgeries(self) -> tuple[Forgery, ...]:
        topics, victim, random = self._topics, self._parties.victim_name, self._visitor.random
        return (
            Forgery("publish as another device", topics.update(victim), passed_over_fetch()),
            Forgery("forge another's status", topics.status(victim), joining()),
            Forgery("forge another's report", topics.report(victim), passed_over_report()),
            Forgery("forge the announcement", topics.announcement()),
            Forgery("forge a model's frames", topics.part(0, 0, 0)),
            Forgery("forge the aggregator's status", topics.aggregator),
            Forgery("claim to be the aggregator", topics.claim, passed_over_claim()),
            Forgery("forge a receipt", topics.receipt(victim)),
            Forgery("retained junk", f"{topics.announcement()}/0/check-{random}", b"junk", retain=True),
            Forgery("publish beside the federation", f"{topics.root}/midge-check-{random}/status/x"),
        )

    def _floods(self) -> dict[str, tuple[Forgery, ...]]:
        """Messages that let one device fill a broker and its aggregator, if other topics than its own are allowed."""
        topics, own = self._topics, self._parties.name
        invented = [f"midge-check-{self._visitor.random}-{number}" for number in range(3)]
        slots = ((slot(own) + 1) % SLOTS, f"x{self._visitor.random}")
        places = [f"{topics.prefix}/update/{each}/{own}" for each in slots]
        chunk = frames.encode(Chunk(outbox=0, first=1, seq=1, part=0), b"half")
        first, second, third = invented
        return {
            "retained flood": tuple(Forgery("retained flood", at, passed_over_fetch(), retain=True) for at in places),
            "fetch flood": tuple(Forgery("fetch flood", topics.update(each), passed_over_fetch()) for each in invented),
            "junk names": (
                Forgery("junk names", topics.update(first), passed_over_fetch()),
                Forgery("junk names", topics.status(second), joining()),
                Forgery("junk names", topics.report(third), passed_over_report()),
            ),
            "half-finished uploads": tuple(
                Forgery("half-finished uploads", topics.update(each), chunk) for each in invented
            ),
        }

    async def _flood(self, flood: tuple[Forgery, ...], watch: Watch | None) -> Trial:
        """Try each, and report the one that got farthest."""
        tried = [await self._forge(each, watch) for each in flood]
        passed = {True: 0, None: 1, False: 2}
        worst = max(tried, key=lambda each: passed[each.passed])
        return replace(worst, seen=f"{worst.seen}, {len(tried)} of {len(tried)}") if worst.passed else worst

    async def _flooded(self, names: Trial) -> Trial:
        """Whether another's message is delivered while a device sends many requests in its own name."""
        parties, topics = self._parties, self._topics
        if not names.passed or parties.alone:
            return names
        own, topic = topics.update(parties.name), topics.status(parties.victim_name)
        try:
            async with self._visitor.visit(parties.attacker) as attacker, self._visitor.visit(parties.victim) as victim:
                mark = Watch(victim, topic, joining())
                await victim.subscribe(topic)
                flood = asyncio.gather(*(attacker.publish(own, passed_over_fetch()) for _ in range(FLOODED)))
                began = time.perf_counter()
                came = await mark.seen() is not None
                seconds = time.perf_counter() - began
                await flood
        except BrokerError as error:
            return replace(names, seen=f"{names.seen}; {FLOODED} in its own name: {error}")
        if came and seconds < _SLOW:
            return replace(names, seen=f"{names.seen}; beside {FLOODED} of its own another's took {seconds:.2f} s")
        seen = f"beside {FLOODED} requests of one device, another's message took more than {_SLOW:g} s"
        return replace(names, seen=seen, passed=False, advice="Look into the broker's load and its link.")

    async def _forge(self, forgery: Forgery, watch: Watch | None) -> Trial:
        """Publish a forbidden message, and check whether it went anywhere."""
        try:
            async with self._visitor.visit(self._parties.attacker) as session:
                try:
                    told = await _publish(session, forgery)
                    arrived = await _arrived(watch, forgery)
                finally:
                    if forgery.retain:
                        with suppress(BrokerError):
                            await session.publish(forgery.topic, b"", retain=True)
        except BrokerError as error:
            return self._trial(forgery.name, "refused", f"not let in: {error}", None)
        return self._judge(forgery, told, arrived=arrived, witnessed=self._parties.witness is not None)

    def _judge(self, forgery: Forgery, told: str | None, *, arrived: bool | None, witnessed: bool) -> Trial:
        name, expected = forgery.name, "refused"
        if arrived:
            return self._trial(name, expected, f"delivered on {forgery.topic}", False, forgery.advice)
        if told is not None:
            self._refused.add(name)
            return self._trial(name, expected, told, True)
        if self._visitor.version == 5:
            return self._trial(name, expected, f"taken on {forgery.topic}", False, forgery.advice)
        if witnessed and arrived is False and forgery.topic.startswith(f"{self._topics.prefix}/"):
            return self._trial(name, expected, "went nowhere, as the witness saw", True)
        if name in self._refused:
            return self._trial(name, expected, "refused under MQTT 5; 3.1.1 has no word for it", True)
        return self._trial(name, expected, "MQTT 3.1.1 does not tell, and no witness could watch", None)

    async def _as_another(self, watch: Watch | None) -> Trial:
        """Use our own credentials with another's user name."""
        name, expected = "another's user name", "not let in, or only as oneself"
        parties = self._parties
        borrowed = replace(parties.attacker, user=parties.victim_name, password=parties.attacker.password or "guess")
        forgery = Forgery(name, self._topics.status(parties.victim_name), joining())
        try:
            async with self._visitor.visit(borrowed) as session:
                told = await _publish(session, forgery)
                arrived = await _arrived(watch, forgery)
        except BrokerError as error:
            return self._trial(name, expected, f"not let in: {error}", True)
        judged = self._judge(replace(forgery, advice=_IDENTITY), told, arrived=arrived, witnessed=bool(parties.witness))
        return replace(judged, expected=expected)

    async def _read(self, watch: Watch | None, *, alone: bool) -> Trial:
        """Subscribe to everything, and check which of others' messages arrive."""
        name, expected = "read everything", "nothing but the model and one's own"
        parties, topics = self._parties, self._topics
        wide = "#" if self._visitor.version == 5 else f"{topics.prefix}/+"  # 3.1.1 would send the whole model
        others = (*topics.from_devices, f"{topics.prefix}/receipt/+", f"{topics.prefix}/check/+")
        try:
            async with self._visitor.visit(parties.attacker) as session:
                refused = 0
                for each in (wide, *others):
                    try:
                        await session.subscribe_to_new(each)
                    except SubscribeRefused:
                        refused += 1
                mark = Watch(session, topics.status(parties.name), joining())
                if alone:  # retained messages suffice; they come before the answer to the second subscription
                    with suppress(SubscribeRefused):
                        await session.subscribe(f"{topics.prefix}/status/+", qos=0)
                    await session.unsubscribe(mark.marker)
                    found: Sequence[Delivery] | None = session.waiting()
                else:
                    await session.subscribe(mark.marker)
                    await self._provoke(watch)
                    found = await mark.seen()
        except BrokerError as error:
            return self._trial(name, expected, f"refused: {error}", True)
        allowed = (topics.announcement(), topics.status(parties.name), topics.receipt(parties.name), topics.aggregator)
        foreign = sorted({each.topic for each in found or () if not _mine(each.topic, allowed)})
        if foreign:
            more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
            return self._trial(name, expected, f"got what is on {foreign[0]}{more}", False, _ACL)
        if refused == len(others) + 1:
            return self._trial(name, expected, "all subscriptions refused", True)
        if alone or found is None:
            return self._trial(name, expected, "nothing came, and no client could be made to send", None)
        return self._trial(name, expected, "subscribed, and nothing came", True)

    async def _provoke(self, watch: Watch | None) -> None:
        """Have the victim and the witness publish messages that the attacker must not receive."""
        topics, victim = self._topics, self._parties.victim_name
        with suppress(BrokerError):
            async with self._visitor.visit(self._parties.victim) as session:
                await session.publish(topics.update(victim), passed_over_fetch())
                await session.publish(topics.status(victim), joining())
                await session.publish(topics.report(victim), passed_over_report())
        if watch is not None:
            with suppress(BrokerError):
                await watch.session.publish(topics.receipt(victim), b"")
                await watch.session.publish(self._marker, b"")

    async def _take_over(self, *, exclusive: bool) -> Trial:
        """Connect under the victim's client id and user name, and check whether the victim stays connected."""
        name, expected = "take over a session", "the victim stays connected"
        advice = "Tie the client id to the identity (Mosquitto: use_username_as_clientid true)."
        parties, visitor = self._parties, self._visitor
        if parties.alone and exclusive:
            return self._trial(name, expected, "a client id cannot be chosen: the identity is it", True)
        try:
            async with visitor.visit(parties.victim) as victim:
                for taken in (victim.options.client_id, parties.victim_name):
                    with suppress(BrokerError):
                        async with visitor.visit(parties.attacker, taken) as thief:
                            await thief.unsubscribe("midge-check")
                    try:
                        await victim.unsubscribe("midge-check")
                    except ConnectionLost as error:
                        return self._trial(name, expected, f"the victim lost its connection: {error}", False, advice)
        except BrokerError as error:
            return self._trial(name, expected, f"the victim was not let in: {error}", None)
        return self._trial(name, expected, "the victim stayed connected", True)

    async def _oversized(self) -> Trial:
        name, expected = "oversized packet", "refused"
        advice = "Bound the packets that are read (Mosquitto: max_packet_size 1048576)."
        topic = f"{self._topics.prefix}/check/{self._visitor.random}"
        size = f"{OVERSIZED // 2**20} MiB"
        try:
            async with self._visitor.visit(self._parties.attacker) as session:
                limit = session.limits.maximum_packet_size
                session.lift_limit()
                async with asyncio.timeout(_OVERSIZED_PATIENCE):
                    await session.publish(topic, bytes(OVERSIZED))
        except TimeoutError:
            return self._trial(name, expected, f"{size} were never acknowledged", None)
        except PublishRefused as error:
            if error.reason in _TOO_LARGE:
                return self._trial(name, expected, f"{size} were refused: {error}", True)
            return self._trial(name, expected, f"{size} were read, then refused: {error}", False, advice)
        except BrokerError:
            told = "" if limit is None else f"; the announced limit is {limit:,} bytes"
            return self._trial(name, expected, f"the broker hung up upon {size}{told}", True)
        return self._trial(name, expected, f"{size} were taken", False, advice)


_TOO_LARGE = frozenset({0x95, 0x97})
"""Packet too large, quota exceeded; MQTT 5, section 2.4."""


async def _publish(session: PahoSession, forgery: Forgery) -> str | None:
    """None if the broker took it silently, otherwise how it refused."""
    try:
        async with asyncio.timeout(session.options.timeout):
            await session.publish(forgery.topic, forgery.payload, retain=forgery.retain)
    except TimeoutError:
        return "never acknowledged"
    except BrokerError as error:
        return str(error)
    return None


async def _arrived(watch: Watch | None, forgery: Forgery) -> bool | None:
    """Whether the witness received it; None if there is no witness."""
    seen = None if watch is None else await watch.seen()
    return (
        None if seen is None else any((each.topic, each.payload) == (forgery.topic, forgery.payload) for each in seen)
    )


def _mine(topic: str, allowed: tuple[str, ...]) -> bool:
    announcement, *others = allowed
    return topic in others or topic == announcement or topic.startswith((f"{announcement.rsplit('/', 1)[0]}/", "$"))
