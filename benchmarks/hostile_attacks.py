"""Attacks of one valid device in `benchmarks.hostile`, each at the full rate that it is allowed.

An attack is a coroutine that runs until it is cancelled. With an ACL a device acts under its own name; without one
(`Attacker.free`) under any name. `paced` limits what reaches the aggregator to its rate limit, a burst of 200, then 50
a second; messages to the broker alone are sent as fast as it accepts them.
"""

import asyncio
import secrets
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np

from midge.broker.mqtt.connection import BrokerError, Connection, PublishRefused
from midge.wire import chunks, frames, messages
from midge.wire.codecs import encode_delta, lossless
from midge.wire.messages import Announcement, Chunk, DeviceState, Fetch, Hello, Update
from midge.wire.schema import Schema
from midge.wire.topics import Topics, slot

RATE, BURST = 50.0, 200
"""A device's share of the aggregator's rate limits, in updates and similar messages."""
WINDOW = 8
"""Concurrent messages."""
LARGE = 900_000
"""Bytes of a message just below the maximum packet size of a broker of `midge broker init`."""


@dataclass
class Attacker:
    """A device with valid credentials that does not follow the protocol."""

    connection: Connection
    topics: Topics
    name: str
    announcement: Announcement
    schema: Schema
    free: bool
    """Whether the broker has no ACL."""
    outbox: int = field(default_factory=lambda: secrets.randbits(60))
    seq: int = 0
    sent: int = 0
    refused: int = 0

    async def say(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        self.sent += 1
        try:
            await self.connection.publish(topic, payload, retain=retain)
        except PublishRefused:
            self.refused += 1

    async def update(self, body: bytes, codec: str, **fields: object) -> bytes:
        """Send the next update in order; return it."""
        self.seq += 1
        payload = frames.encode(self.header(body, codec, **fields), body)
        await self.say(self.topics.update(self.name), payload)
        return payload

    def header(self, body: bytes, codec: str, **fields: object) -> Update:
        now = self.announcement
        said = {
            "outbox": self.outbox,
            "first": max(1, self.seq),
            "seq": max(1, self.seq),
            "lineage": now.lineage,
            "generation": now.generation,
            "base": now.version,
            "codec": codec,
            "size": len(body),
            "sha256": chunks.checksum(body),
            "examples": 32,
            "steps": 10,
            "seconds": 1.0,
        }
        return Update.model_validate({**said, **fields})

    def delta(self, scale: float) -> bytes:
        rng = np.random.default_rng(self.seq)
        values = (scale * rng.normal(size=self.schema.size)).astype(np.float32)
        return encode_delta(values, self.schema, self.announcement.plan.codec, seed=1)

    async def listen(self) -> None:
        """Receive the newest announcement."""
        async for delivery in self.connection.messages():
            self.connection.ack(delivery)
            if delivery.topic == self.topics.announcement() and delivery.payload:
                self.announcement = messages.decode_announcement(delivery.payload)

    async def greet(self, name: str | None = None) -> None:
        hello = Hello(state=DeviceState.READY, outbox=self.outbox, first=max(1, self.seq))
        await self.say(self.topics.status(name or self.name), frames.encode(hello))


async def paced() -> AsyncIterator[int]:
    """Count at the allowed rate: a burst, then evenly."""
    began, number = time.monotonic(), 0
    while True:
        yield number
        number += 1
        await asyncio.sleep(max(0.0, began + (number - BURST) / RATE - time.monotonic()))


async def at_once(act: Callable[[int], Awaitable[None]]) -> None:
    """Act as fast as the broker accepts it, with a window of concurrent messages."""
    number = 0
    while True:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(WINDOW):
                tasks.create_task(act(number))  # type: ignore[arg-type]
                number += 1


async def tiny_norms(one: Attacker) -> None:
    """Tiny updates: a reference norm that follows them refuses all other devices."""
    body = one.delta(1e-9)
    async for _ in paced():
        await one.update(body, one.announcement.plan.codec)


async def zeros_then_huge(one: Attacker) -> None:
    """Send zeros until the reference norm is zero, then huge updates."""
    zeros, huge = one.delta(0.0), one.delta(1e15)
    async for number in paced():
        await one.update(zeros if number < 0.8 * BURST else huge, one.announcement.plan.codec)


async def fetch_flood(one: Attacker) -> None:
    """Request the largest frame again and again: few bytes that cost many."""
    async for _ in paced():
        now = one.announcement
        frame = max(now.frames, key=lambda each: each.size)
        parts = tuple(range(min(64, frame.parts)))
        fetch = Fetch(lineage=now.lineage, version=frame.version, span=frame.span, parts=parts)
        await one.say(one.topics.update(one.name), frames.encode(fetch))


async def retained_flood(one: Attacker) -> None:
    """Retained messages, each on its own topic."""
    payload = bytes(LARGE)

    async def keep(number: int) -> None:
        await one.say(f"{one.topics.prefix}/update/x{number}/{one.name}", payload, retain=True)

    await at_once(keep)


async def bombs(one: Attacker) -> None:
    """Decompression bombs, for each codec that has a place for one."""
    size = one.schema.size
    plain = np.ones(1, "<f4").tobytes() + struct.pack("<I", 256) + bytes(1)
    room = 4 * size - len(plain) - 68
    bomb = b"\1" + lossless.compress(plain + struct.pack("<I", room) + b"\xff" * room)
    valid = encode_delta(np.ones(size, np.float32) * 0.01, one.schema, "randk:0.001|float32|zstd", seed=1)
    async for number in paced():
        await one.update(*((bomb, "uq:4|rice|zstd"), (valid, "randk:0.001|float32|zstd"))[number % 2])


async def half_finished(one: Attacker) -> None:
    """Large updates that are offered, granted, begun and abandoned."""
    size = 4 * one.schema.size
    parts = chunks.count(size, 1024)
    async for number in paced():
        one.seq += 1
        name = f"half{number}" if one.free else one.name
        offer = one.header(b"", "float32", kind="offer", size=size, sha256=bytes(16), parts=parts)
        await one.say(one.topics.update(name), frames.encode(offer))
        chunk = Chunk(outbox=one.outbox, first=one.seq, seq=one.seq, part=0)
        await one.say(one.topics.update(name), frames.encode(chunk, bytes(1024)))


async def junk_topics(one: Attacker) -> None:
    """Small messages under names of devices that do not exist."""

    async def junk(number: int) -> None:
        name = f"junk{number}"
        place = (f"update/{slot(name)}/{name}", f"status/{name}", f"report/{name}", f"update/x/{name}")[number % 4]
        await one.say(f"{one.topics.prefix}/{place}", b"junk!")

    await at_once(junk)


async def greetings(one: Attacker) -> None:
    """Greetings, each of a new outbox, and without an ACL of another device."""

    async def greet(number: int) -> None:
        one.outbox = secrets.randbits(60)
        await one.greet(f"hello{number}" if one.free else None)

    if one.free:
        await at_once(greet)
    async for number in paced():
        await greet(number)


async def wrong_clock(one: Attacker) -> None:
    """Aggregator messages dated a year ahead, and training durations of more than the age of the universe."""
    body, year = one.delta(1e-3), 365 * 86_400
    async for number in paced():
        now = one.announcement
        ahead = now.model_copy(update={"issued": now.issued + year, "expires": now.expires + year})
        await one.say(one.topics.announcement(), messages.encode_announcement(ahead), retain=number == 0)
        large = {"seconds": 1e308, "steps": 2**62, "examples": 2**63 - 1}
        await one.update(body, now.plan.codec, **large)


async def replayed(one: Attacker) -> None:
    """Replays: whole, under the next number, and in another outbox."""
    body = one.delta(1e-3)
    recorded = await one.update(body, one.announcement.plan.codec)
    then = one.announcement
    async for number in paced():
        if number % 3 == 0:
            await one.say(one.topics.update(one.name), recorded)
        else:
            now, one.announcement = one.announcement, then
            other = {"outbox": secrets.randbits(60)} if number % 3 == 1 else {}
            await one.update(body, then.plan.codec, **other)
            one.announcement = now


async def nothing(_one: Attacker) -> None:
    """The machine's own influence on honest work."""
    await asyncio.Event().wait()


ATTACKS: dict[str, Callable[[Attacker], Awaitable[None]]] = {
    "nothing": nothing,
    "tiny norms": tiny_norms,
    "zeros then huge": zeros_then_huge,
    "fetch flood": fetch_flood,
    "retained flood": retained_flood,
    "bombs": bombs,
    "half-finished uploads": half_finished,
    "junk topics": junk_topics,
    "greetings": greetings,
    "wrong clock": wrong_clock,
    "replayed frames": replayed,
}


async def attack(name: str, one: Attacker, seconds: float) -> None:
    """Run an attack for a while; it ends if the broker disconnects the attacker."""
    listening = asyncio.ensure_future(one.listen())
    with suppress(TimeoutError, BrokerError, ExceptionGroup):
        async with asyncio.timeout(seconds):
            await one.greet()
            await ATTACKS[name](one)
    listening.cancel()
    with suppress(asyncio.CancelledError, BrokerError):
        await listening
