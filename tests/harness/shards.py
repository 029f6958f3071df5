"""A federation whose aggregator has shards, in a world that kills its processes, the broker and the devices.

No broker keeps anything on disk. Then the books must balance, as in `tests.harness.chaos`.
"""

import asyncio
import os
import signal
import time
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from random import Random

from midge.broker.local.local_broker import LocalBroker, local_broker
from tests.harness.chaos import AGAIN, PATIENCE, PAUSE, PER_SECOND, PLACES, QUICK, STARTING, Outcome, Play, start_again
from tests.harness.ledger import Books
from tests.harness.processes import Actor, address, aggregator, fleet, keep_running

HAPPENINGS = {"kill devices": 6, "kill shard": 10, "stop shard": 3, "kill root": 2, "kill broker": 1}
"""What happens, and how often compared to the others."""
_LONGEST = 1.0
"""Most seconds between two misfortunes, on average: a shard starts within about that."""


def shards_of(root: Actor) -> list[int]:
    """The process numbers of a root's shards that run."""
    found = []
    for folder in Path("/proc").iterdir() if root.running else ():
        with suppress(OSError, ValueError, IndexError):
            state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            if int(parent) == root.pid and state != "Z":
                found.append(int(folder.name))
    return sorted(found)


class ShardChaos:
    """One play with shards, in a directory of its own."""

    def __init__(self, play: Play, shards: int, directory: Path) -> None:
        self._play, self._shards, self._directory = play, shards, directory
        self._random = Random(play.seed)
        updates = min(max(1, int(PER_SECOND * play.seconds)), PLACES // play.devices)
        self._pace = play.seconds / updates
        self._books = Books(devices=play.devices, updates=updates, federation="shards", checkpoint=200)
        self._pause = PAUSE
        self.outcome = Outcome(play.seed, "")

    async def run(self) -> Outcome:
        """Play it to its end.

        Raises:
            BrokerUnreachable: there is none to be had.
        """
        folder = self._directory
        async with AsyncExitStack() as stack:
            await asyncio.to_thread((folder / "broker").mkdir)
            broker = await stack.enter_async_context(local_broker(self._play.broker, directory=folder / "broker"))
            self.outcome.broker = broker.kind
            url = address(broker.endpoint)
            root = aggregator(self._books, url, folder, name="root", options=("--shards", str(self._shards)))
            until = ("--until", str(time.time() + self._play.seconds + _LONGEST), "--pace", str(self._pace))
            each = -(-self._play.devices // self._play.processes)
            fleets = [
                fleet(
                    *(self._books, url, folder, range(start, min(start + each, self._play.devices)), *until),
                    *("--patience", str(PATIENCE)),
                )
                for start in range(0, self._play.devices, each)
            ]
            for actor in (root, *fleets):
                stack.push_async_callback(actor.kill)
            async with asyncio.TaskGroup() as tasks:
                serving = tasks.create_task(self._keep(root))
                taking_part = [tasks.create_task(self._keep(actor)) for actor in fleets]
                self._pause = min(_LONGEST, PAUSE * max(1.0, await self._started(root) / QUICK))
                await self._harm(broker, root, fleets)
                if not broker.running:
                    await start_again(broker)
                await self._drain(root, serving, taking_part)
                for task in (serving, *taking_part):
                    task.cancel()
        await asyncio.to_thread(self.outcome.balance, folder / "model.safetensors", folder / "devices")
        return self.outcome

    async def _keep(self, actor: Actor) -> None:
        await keep_running(actor, self.outcome.crashes, self._random)

    async def _started(self, root: Actor) -> float:
        """Wait until all shards serve; return how many seconds that took."""
        began = time.monotonic()
        with suppress(TimeoutError):
            async with asyncio.timeout(STARTING):
                while len(root.events("caught_up")) < self._shards:  # noqa: ASYNC110 - other processes write them
                    await asyncio.sleep(0.05)
        return time.monotonic() - began

    async def _harm(self, broker: LocalBroker, root: Actor, fleets: list[Actor]) -> None:
        until = time.time() + self._play.seconds
        while time.time() < until or not self.outcome.kills:
            await asyncio.sleep(2 * self._pause * self._random.random())
            (name,) = self._random.choices(list(HAPPENINGS), list(HAPPENINGS.values()))
            shards = shards_of(root)
            match name:
                case "kill devices" if self._random.choice(fleets).send(signal.SIGKILL):
                    self.outcome.count("devices")
                case "kill root" if root.send(signal.SIGKILL):
                    self.outcome.count("root")
                case "kill shard" if shards and _send(self._random.choice(shards), signal.SIGKILL):
                    self.outcome.count("shard")
                case "stop shard" if shards and _send(pid := self._random.choice(shards), signal.SIGSTOP):
                    self.outcome.stops += 1
                    await asyncio.sleep(1.5 * self._random.random())
                    _send(pid, signal.SIGCONT)
                case "kill broker":
                    broker.kill()
                    self.outcome.count("broker")
                    await asyncio.sleep(0.3 * self._random.random())
                    await start_again(broker)
                case _:
                    pass  # it does not run just now

    async def _drain(self, root: Actor, serving: "asyncio.Task[None]", taking_part: "list[asyncio.Task[None]]") -> None:
        """Wait until all devices have settled everything, and end the root, whose shards give it what they have."""
        began = time.monotonic()
        with suppress(TimeoutError):
            async with asyncio.timeout(self._play.drain):
                await asyncio.gather(*taking_part)
                while not serving.done():
                    root.send(signal.SIGTERM)
                    await asyncio.wait([serving], timeout=AGAIN)
                self.outcome.drain_seconds = round(time.monotonic() - began, 2)
                self.outcome.drained = True


def _send(pid: int, number: signal.Signals) -> bool:
    with suppress(ProcessLookupError):
        os.kill(pid, number)
        return True
    return False
