"""A federation that exists as messages only: any number of devices, and an aggregator that answers."""

import asyncio
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from midge.broker.mqtt.connection import Connection
from midge.wire import frames, messages, overview
from midge.wire.messages import (
    AggregatorState,
    AggregatorStatus,
    Announcement,
    DeviceState,
    Health,
    HealthState,
    Hello,
    Plan,
    Receipt,
    Settled,
    Verdict,
)
from midge.wire.overview import DeviceRow, Overview
from midge.wire.topics import Topics
from tests.announced import announced

LINEAGE = bytes(range(16))
SLEEPS, LEFT, LOST, SILENT, REFUSED = 0.05, 0.08, 0.10, 0.11, 0.12
"""Which share of the devices is in which state, cumulated; the others are ready."""


@dataclass
class SyntheticFederation:
    """What is published for `devices` devices; the same for the same seed."""

    topics: Topics
    devices: int
    seed: int = 1
    alarms: tuple[str, ...] = ()
    state: HealthState = HealthState.LEARNING
    why: str = ""
    version: int = 40
    began: float = field(default_factory=time.time)
    sent: int = 0
    """Statuses, updates and receipts since the beginning."""

    def __post_init__(self) -> None:
        self.names = [f"pump-{number:04d}" for number in range(1, self.devices + 1)]
        chance = random.Random(self.seed)
        self.kinds = [chance.random() for _ in self.names]
        self.luck = [chance.gauss(0, 0.03) for _ in self.names]
        self.seqs = [chance.randrange(1, 50) for _ in self.names]
        self.heard = [self.began - chance.uniform(0, 30) for _ in self.names]
        self.chance = chance

    # ---------------------------------------------------------------------- messages

    def status(self) -> AggregatorStatus:
        health = Health(
            state=self.state,
            since=self.began - 4000,
            accepted=time.time(),
            why=self.why,
            verdicts={"accepted": 9 * self.devices, "stale": self.devices // 40, "norm_too_large": self.devices // 200},
            devices={"accepted": self.devices * 9 // 10, "stale": self.devices // 60, "norm_too_large": 2},
            alarms=self.alarms,
        )
        return AggregatorStatus(
            state=AggregatorState.READY, boot=7, lineage=LINEAGE, version=self.version, step=self.version, health=health
        )

    def announcement(self) -> Announcement:
        return announced(
            self.version,
            federation=self.topics.federation,
            lineage=LINEAGE,
            chunk=262_144,
            plan=Plan(),
            issued=self.began,
        )

    def hello(self, number: int) -> Hello:
        kind = self.kinds[number]
        state = (
            DeviceState.SLEEPING if kind < SLEEPS
            else DeviceState.DISCONNECTED if kind < LEFT
            else DeviceState.LOST if kind < LOST
            else DeviceState.READY
        )  # fmt: skip
        said: dict[str, str | int | float | bool] = {"cores": 4, "machine": "aarch64", "memory_mib": 1024}
        if number % 3 == 0:
            said["battery"] = round(0.05 + 0.95 * ((number * 7919) % 100) / 100, 2)
        said["clock"] = round(time.time() + (7200.0 if number % 251 == 17 else self.luck[number]), 1)
        wakes = time.time() + 1800 if state is DeviceState.SLEEPING else 0.0
        return Hello(
            state=state, outbox=1000 + number, first=1, next=self.seqs[number], lineage=LINEAGE,
            version=max(0, self.version - number % 7), wakes=wakes, capabilities=said,
        )  # fmt: skip

    def receipt(self, number: int) -> Receipt:
        self.seqs[number] += 1
        verdict, why = Verdict.ACCEPTED, ""
        if SILENT < self.kinds[number] < REFUSED:
            verdict, why = Verdict.NORM_TOO_LARGE, "its delta is 40 times as large as that of others"
        elif self.chance.random() < 0.01:
            verdict, why = Verdict.STALE, "its base is too old"
        settled = Settled(
            seq=self.seqs[number], verdict=verdict, why=why, weight=0.02, staleness=int(self.chance.expovariate(0.4))
        )
        return Receipt(outbox=1000 + number, hi=self.seqs[number], settled=(settled,))

    def rows(self) -> Iterator[DeviceRow]:
        now, learned = time.time(), 0.95 - 0.85 * 0.97**self.version
        for number, name in enumerate(self.names):
            kind = self.kinds[number]
            bad = SILENT < kind < REFUSED
            silent = LOST <= kind < SILENT
            yield DeviceRow(
                name=name,
                state="silent" if silent else self.hello_state(kind),
                heard=max(0.0, now - self.heard[number]) + (900 if silent else 0),
                accepted=None if bad else max(0.0, now - self.heard[number]),
                updates=0 if bad else self.seqs[number],
                refused=self.seqs[number] if bad else 0,
                verdict="norm_too_large" if bad else "accepted",
                why="its delta is 40 times as large as that of others" if bad else "",
                version=max(0, self.version - number % 7),
                behind=number % 7,
                metrics={"accuracy": min(1.0, max(0.0, learned + self.luck[number]))},
                metrics_version=self.version,
            )

    @staticmethod
    def hello_state(kind: float) -> str:
        return "sleeping" if kind < SLEEPS else "disconnected" if kind < LEFT else "lost" if kind < LOST else "ready"

    def pages(self) -> Iterator[bytes]:
        learned = 0.95 - 0.85 * 0.97**self.version
        moved = int((time.time() - self.began) * self.devices / 30)
        about = Overview(
            status=self.status(), metrics={"accuracy": learned, "loss": 1 - learned}, bytes_in=2400 * moved,
            bytes_out=5200 * moved,
        )  # fmt: skip
        return overview.encode_pages(about, self.rows(), self.devices)

    # ------------------------------------------------------------------------ its life

    async def begin(self, connection: Connection) -> None:
        """Publish what is retained."""
        topics = self.topics
        for number, name in enumerate(self.names):
            await connection.publish(topics.status(name), frames.encode(self.hello(number)), qos=0, retain=True)
        await connection.publish(topics.announcement(), messages.encode_announcement(self.announcement()), retain=True)
        await connection.publish(topics.aggregator, frames.encode(self.status()), retain=True)

    async def live(self, connection: Connection, every: float = 30.0, tick: float = 0.25) -> None:
        """Send a status and an update of each device in `every` seconds, each with its receipt; answer questions."""
        await connection.subscribe(self.topics.ask, qos=0)
        answering = asyncio.create_task(self._answer(connection))
        place, owed, began = 0, 0.0, time.monotonic()
        body = bytes(800)
        try:
            while True:
                await asyncio.sleep(tick)
                owed += (time.monotonic() - began) * self.devices / every
                began = time.monotonic()
                while owed >= 1:
                    owed -= 1
                    number, place = place, (place + 1) % self.devices
                    if self.kinds[number] < SILENT:
                        continue
                    name = self.names[number]
                    self.heard[number] = time.time()
                    await connection.publish(
                        self.topics.status(name), frames.encode(self.hello(number)), qos=0, retain=True
                    )
                    await connection.publish(self.topics.update(name), body, qos=0)
                    await connection.publish(self.topics.receipt(name), frames.encode(self.receipt(number)), qos=0)
                    self.sent += 3
                self.version = 40 + int((time.time() - self.began) / 4)
        finally:
            answering.cancel()

    async def _answer(self, connection: Connection) -> None:
        async for delivery in connection.messages():
            connection.ack(delivery)
            waiting = connection.waiting()
            if any(each.topic == self.topics.ask for each in (delivery, *waiting)):
                for page in self.pages():
                    await connection.publish(self.topics.overview, page, qos=0)
                await asyncio.sleep(1)
