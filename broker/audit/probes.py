"""Probes: messages that test what a broker does with them."""

import os
import re
import time
from contextlib import suppress
from statistics import median

from midge.broker.audit.handshake import shake_hands
from midge.broker.audit.probe_topic import PATIENCE, Prober, ProbeTopic, came, echo, gather
from midge.broker.audit.results import Finding
from midge.broker.mqtt.connection import (
    BrokerError,
    ConnectionLost,
    Limits,
    Options,
    PacketTooLarge,
    PublishRefused,
    SubscribeRefused,
    Will,
)
from midge.broker.mqtt.endpoint import Endpoint

CHUNKS = (120 * 1024, 256 * 1024)
"""Bytes of a chunk: what every cloud broker takes, and what Midge sends on a broker of one's own."""
_SMALLER = {CHUNKS[0]: 56, CHUNKS[1]: 120}
"""Sizes in KiB to try if a chunk is too large."""
_LARGE_PATIENCE = 30.0
"""Seconds for a round trip of a chunk: 17 KB a second."""
_ROUND_TRIPS = 11
_SLOW = 1.0
"""Seconds of a round trip from which on advice is given."""
_NAGLE = 0.03
"""Seconds of a local round trip that show Nagle's algorithm waiting for a delayed acknowledgement: about 40 ms on
Linux, if a broker sends its PUBACK and the message in two small packets."""
_WILL_PATIENCE = 5.0
_VERSION_TOPIC = "$SYS/broker/version"
_QUEUE_ADVICE = (
    "Where it is yours, set max_queued_messages 1000000: with its default, 1000, Mosquitto drops what comes beyond "
    "and acknowledges it all the same."
)


async def latency(prober: Prober, probe_topic: ProbeTopic, *, near: bool) -> Finding:
    """Measure the round trip of a small message. `near`: the broker is on this machine."""
    times = []
    async with prober.connect() as connection:
        await connection.subscribe(probe_topic.topic)
        for number in range(_ROUND_TRIPS):
            began = time.perf_counter()
            if await echo(connection, probe_topic.topic, probe_topic.payload(b"%d" % number), PATIENCE):
                times.append(time.perf_counter() - began)
    if not times:
        return Finding("round trip", "no message came back any more", "problem", "Look into the broker's log.")
    middle = median(times)
    seen = f"{1000 * middle:.1f} ms (median of {len(times)})"
    if middle > _SLOW:
        return Finding("round trip", seen, "warning", "Training continues, but each receipt takes this long.")
    if near and middle > _NAGLE:
        return Finding(
            "round trip", seen, "note", "Long for one machine. Mosquitto is faster with: set_tcp_nodelay true"
        )
    return Finding("round trip", seen)


async def chunk(prober: Prober, probe_topic: ProbeTopic, size: int, limits: Limits) -> Finding:
    """Check that one message of this size comes back undamaged."""
    name, body = f"chunk of {size // 1024} KiB", os.urandom(size)
    told = limits.maximum_packet_size is not None
    try:
        async with prober.connect() as connection:
            await connection.subscribe(probe_topic.topic)
            began = time.perf_counter()
            if await echo(connection, probe_topic.topic, probe_topic.payload(body), _LARGE_PATIENCE):
                return Finding(name, f"came back unharmed after {time.perf_counter() - began:.2f} s")
            seen = f"did not come back within {_LARGE_PATIENCE:g} s"
    except PacketTooLarge:
        return Finding(
            name,
            f"over the broker's largest packet, {limits.maximum_packet_size:,} bytes",
            "note",
            "Nothing: Midge cuts smaller chunks where a broker tells its limit.",
        )
    except BrokerError as error:
        seen = f"was not taken: {error}"
    smaller = "" if told else ", and does not tell its limit"
    return Finding(
        name,
        seen + smaller,
        "problem",
        f"Raise the broker's largest packet (Mosquitto: max_packet_size) to {size // 1024 + 2} KiB or more, "
        f"or give midge.Aggregator chunk={_SMALLER[size]} * 1024.",
    )


async def retained(prober: Prober, probe_topic: ProbeTopic, size: int) -> Finding:
    """Check that a chunk is retained for later subscribers; it is always cleared again."""
    name, payload = "retained messages", probe_topic.payload(os.urandom(size))
    advice = "Allow retained messages: what a federation trains from is announced in one."
    try:
        try:
            async with prober.connect() as connection:
                await connection.publish(probe_topic.topic, payload, retain=True)
            async with prober.connect() as connection:
                await connection.subscribe(probe_topic.topic)
                kept = await came(connection, probe_topic.topic, payload, _LARGE_PATIENCE)
        finally:
            async with prober.connect() as connection:
                await connection.publish(probe_topic.topic, b"", retain=True)
        async with prober.connect() as connection:
            await connection.subscribe(probe_topic.topic)
            still = await came(connection, probe_topic.topic, payload, 0.3)
    except BrokerError as error:
        return Finding(name, f"not kept: {error}", "problem", advice)
    if kept is None or not kept.retain:
        return Finding(name, f"a chunk of {size // 1024} KiB was not kept", "problem", advice)
    if still is not None:
        return Finding(name, f"kept, and cannot be cleared from {probe_topic.topic}", "warning", "Clear it by hand.")
    return Finding(name, f"a chunk of {size // 1024} KiB was kept, read back and cleared")


async def last_will(prober: Prober, endpoint: Endpoint, probe_topic: ProbeTopic) -> Finding:
    """Check that the broker publishes the will of a client that vanishes."""
    payload = probe_topic.payload(os.urandom(8))
    mine = prober.options()
    options = Options(
        mine.client_id,
        will=Will(probe_topic.topic, payload, retain=False),
        keepalive=mine.keepalive,
        timeout=mine.timeout,
    )
    why = "none came"
    try:
        async with prober.connect() as connection:
            await connection.subscribe(probe_topic.topic)
            version = connection.limits.protocol
            await shake_hands(endpoint, options, version=version, vanish=True)
            if await came(connection, probe_topic.topic, payload, _WILL_PATIENCE) is not None:
                return Finding("last will", "published when its client vanished")
    except BrokerError as error:
        why = str(error)
    return Finding(
        "last will",
        why,
        "warning",
        "Allow wills: without them a device that vanishes looks alive.",
    )


async def refusals(prober: Prober, limits: Limits) -> Finding:
    """Check that a forbidden message gets a negative acknowledgement."""
    name = "refusals"
    if limits.protocol == 4:
        return Finding(
            name, "MQTT 3.1.1 has no word for them", "note", "A missing right shows as silence only: see the log."
        )
    try:
        async with prober.connect() as connection:
            await connection.publish("$SYS/midge/check", b"")
    except PublishRefused as error:
        return Finding(name, f"told: {error}")
    except BrokerError as error:
        return Finding(name, f"by hanging up: {error}", "note", "A missing right shows as a lost connection.")
    return Finding(
        name, "a message on $SYS was taken without a word", "note", "A missing right may show as silence only."
    )


async def about(prober: Prober, probe_topic: ProbeTopic | None) -> list[Finding]:
    """The broker's product and version, if it tells, and known problems of that version."""
    told: list[str] = []
    with suppress(SubscribeRefused, PublishRefused, ConnectionLost):
        async with prober.connect() as connection:
            await connection.subscribe(_VERSION_TOPIC)
            found = await gather(connection, probe_topic)
            told = [each.payload.decode(errors="replace")[:80] for each in found if each.topic == _VERSION_TOPIC]
    return describe(told[0] if told else "")


def describe(text: str) -> list[Finding]:
    """Known problems of a broker with this version text; empty if it has none."""
    queue = Finding("queue limit", "cannot be seen from outside", "note", _QUEUE_ADVICE)
    found = re.fullmatch(r"mosquitto version (\d+)\.(\d+)\.(\d+).*", text)
    if found is None:
        return [Finding("version", text or "not told", "note" if not text else "ok"), queue]
    version = tuple(int(part) for part in found.groups())
    if version < (2, 0, 13):
        seen = Finding(
            "version",
            text,
            "note",
            "Before 2.0.13 it sends more at once than a client asked for (receive maximum). Midge does without; "
            "2.0.18 or newer is better.",
        )
    else:
        seen = Finding("version", text)
    return [seen, queue]
