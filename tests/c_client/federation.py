"""A ledger's federation with devices of the C client, killed at random moments; then the books must balance."""

import asyncio
import random
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from midge.broker.local.local_broker import local_broker
from tests.harness.ledger import Audit, Books, audit
from tests.harness.processes import Actor, aggregator

STUCK = 120.0
"""Seconds without a settled update after which a device is taken to hang."""


@dataclass
class Fleet:
    """Devices over one program, each with its flash and its page of the ledger."""

    program: Path
    books: Books
    folder: Path
    port: int
    options: Sequence[str] = ()
    resets: int = 0
    ended: dict[int, int] = field(default_factory=dict)
    """The exit code of each device that ended by itself."""

    def page(self, number: int) -> Path:
        return self.folder / "devices" / f"device-{number}.jsonl"

    def actor(self, number: int, *more: str, flash: str = "") -> Actor:
        """A device; of another outbox than that of its number, if its flash is named."""
        (self.folder / "devices").mkdir(exist_ok=True)
        command = [str(self.program), "127.0.0.1", str(self.port), self.books.federation, str(number)]
        command += [str(self.books.updates), str(self.folder / f"flash-{flash or number}"), str(self.page(number))]
        return Actor(f"device {number}", [*command, *self.options, *more], self.folder / f"device-{number}.log", {})

    def settled(self, number: int) -> int:
        """Lines of its page: about as many as updates are settled."""
        page = self.page(number)
        return page.read_bytes().count(b"\n") if page.exists() else 0

    async def live(self, number: int, chance: random.Random, resets: int, pause: float) -> None:
        """Run a device to its end, killing it that often on the way, each time after a random while."""
        actor, done = self.actor(number), 0
        last, moved = -1, time.monotonic()
        try:
            while True:
                await actor.start()
                ending = asyncio.create_task(actor.ended())
                limit = chance.uniform(0, 2 * pause) if done < resets else STUCK
                await asyncio.wait({ending}, timeout=limit)
                if ending.done():
                    self.ended[number] = ending.result()
                    return
                if (now := self.settled(number)) > last:
                    last, moved = now, time.monotonic()
                if await actor.kill():
                    done += 1
                    self.resets += 1
                await ending
                if time.monotonic() - moved > STUCK:
                    raise AssertionError(f"device {number} hangs: {actor.tail()}")
        finally:
            await actor.kill()


async def played(
    program: Path,
    folder: Path,
    books: Books,
    *,
    resets: int,
    pause: float,
    seed: int = 1,
    aggregator_kills: int = 0,
    options: Sequence[str] = (),
) -> tuple[Audit, Fleet]:
    """Run a federation over Mosquitto with that many resets of each device, and audit it."""
    chance = random.Random(seed)
    async with local_broker("mosquitto", directory=folder) as broker:
        fleet = Fleet(program, books, folder, broker.endpoint.port, options)
        service = aggregator(books, str(broker.endpoint), folder)
        await service.start()
        try:
            async with asyncio.TaskGroup() as lives:
                for number in range(books.devices):
                    lives.create_task(fleet.live(number, random.Random(chance.random()), resets, pause))
                if aggregator_kills:
                    killer = lives.create_task(_kill(service, chance, aggregator_kills, fleet))
                    del killer
        finally:
            if service.send(signal.SIGTERM):
                await service.ended()
        return audit(folder / "model.safetensors", folder / "devices"), fleet


async def _kill(service: Actor, chance: random.Random, kills: int, fleet: Fleet) -> None:
    for _ in range(kills):
        await asyncio.sleep(chance.uniform(1.5, 3.0))
        if len(fleet.ended) == fleet.books.devices:
            return
        await service.kill()
        await service.start()
