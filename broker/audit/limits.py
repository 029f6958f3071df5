"""A broker's limits that matter to a federation, as trials that pass or fail."""

import asyncio
import secrets
from contextlib import suppress

from midge.broker.audit.probe_topic import Prober, ProbeTopic
from midge.broker.audit.results import Finding, Trial
from midge.broker.mqtt.connection import BrokerError, Limits

SMALLEST, LARGEST = 264 * 1024, 16 * 1024 * 1024
"""Bytes: a broker should take packets of the first size, a chunk of 256 KiB, and refuse those of the second."""
WINDOW = 8
"""Most messages that a device has in flight."""
QUEUED = 1200
"""Small messages that are queued for one client at once; a stock Mosquitto drops all but the first 1,020."""
RETAINED = "retained messages"
_SILENCE = 2.0
"""Seconds of silence after which no more messages are expected."""


def told(limits: Limits) -> list[Trial]:
    """Trials of the limits announced in CONNACK, by MQTT 5 only."""
    expected = f"a limit, from {SMALLEST // 1024} KiB to {LARGEST // 2**20} MiB"
    window_expected = f"{WINDOW} messages or more"
    if limits.protocol == 4:
        seen = "MQTT 3.1.1 does not tell"
        return [Trial("largest packet", expected, seen, None), Trial("in-flight window", window_expected, seen, None)]
    size, window = limits.maximum_packet_size, limits.receive_maximum
    fits = size is not None and SMALLEST <= size <= LARGEST
    return [
        Trial(
            "largest packet",
            expected,
            "no limit told" if size is None else f"{size:,} bytes",
            fits,
            "" if fits else "Mosquitto: max_packet_size 1048576",
        ),
        Trial(
            "in-flight window",
            window_expected,
            f"{window} messages",
            window >= WINDOW,
            "" if window >= WINDOW else "Mosquitto: max_inflight_messages 20",
        ),
    ]


def kept(finding: Finding) -> Trial:
    """The trial that belongs to the finding on retained messages."""
    passed = None if finding.level == "note" else finding.level == "ok"
    return Trial(RETAINED, "a chunk is kept, and can be cleared", finding.seen, passed, finding.advice)


async def queue(prober: Prober, probe_topic: ProbeTopic) -> Trial:
    """Whether a slow subscriber gets everything that was acknowledged to the sender."""
    name, expected = "queue", f"{QUEUED:,} messages wait for one client"
    payloads = [probe_topic.payload(secrets.token_bytes(8)) for _ in range(QUEUED)]
    waiting = set(payloads)
    try:
        async with prober.connect() as connection:
            await connection.subscribe(probe_topic.topic)
            await asyncio.gather(*(connection.publish(probe_topic.topic, each) for each in payloads))
            with suppress(TimeoutError):
                messages = connection.messages()
                while waiting:
                    async with asyncio.timeout(_SILENCE):
                        delivery = await anext(messages)
                    connection.ack(delivery)
                    waiting.discard(delivery.payload)
    except BrokerError as error:
        return Trial(name, expected, f"not tried to the end: {error}", None)
    if waiting:
        seen = f"{len(waiting)} of {QUEUED:,} were acknowledged to their sender, and dropped"
        return Trial(name, expected, seen, passed=False, advice="Mosquitto: max_queued_messages 1000000")
    return Trial(name, expected, "all came", passed=True)
