"""A federation of real processes in a world that kills, stops and cuts them off; then the books must balance.

The broker keeps nothing on disk. Safety, that nothing is lost or doubled, must hold throughout; that everything is
settled in the end is asked for only after the world has healed.
"""

import asyncio
import shutil
import signal
import statistics
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Literal

from midge.broker.local.local_broker import BrokerProgram, LocalBroker, local_broker
from midge.broker.mqtt.connection import BrokerUnreachable
from tests.harness import clock
from tests.harness.disk import SmallDisk
from tests.harness.ledger import Books, audit
from tests.harness.processes import PROGRAM, USER_ERROR, Actor, address, aggregator, fleet
from tests.harness.proxy import Proxy, Weather

PLACES = 20_000
"""In the model at most: a long run makes updates less often."""
PER_SECOND = 5
"""Updates of each device, at most."""
PATIENCE = 0.1
"""Seconds before a device sends again what was not answered: in this world much comes twice."""
PAUSE = 0.3
"""Seconds between two misfortunes, on average, where an aggregator starts within `QUICK`; else in proportion more."""
QUICK = 0.4
"""Seconds. Where all are killed faster than they can start, nothing is put to the test."""
STARTING = 60.0
"""Seconds that the first start of the aggregator may take."""
HAPPENINGS = {
    "kill devices": 8,
    "kill aggregator": 3,
    "kill broker": 1,
    "stop devices": 2,
    "stop aggregator": 1,
    "weather": 4,
    "set clock": 3,
    "copy store": 1,
    "fill disk": 2,
}
"""What happens, and how often compared to the others."""
JUMPS = (-400 * 86400.0, -7200.0, -30.0, 30.0, 7200.0, 400 * 86400.0)
"""Seconds by which a clock is set wrong."""
DUEL = 60.0
"""Seconds that two aggregators on copies of one store may take to find each other, on a machine that is busy."""
SENTENCE = "nother aggregator"
"""In what the one says that ends."""
DISK = 128 * 2**20
AGAIN = 20.0
"""Seconds until an aggregator is asked to end again: the second signal ends it at once, even if it is only slow."""
FULL = 0.8
"""Seconds that a disk stays full, on average."""


@dataclass(frozen=True, slots=True)
class Play:
    """What is to happen."""

    seconds: float = 60.0
    seed: int = 1
    devices: int = 8
    processes: int = 4
    broker: Literal["auto", "mosquitto", "embedded"] | BrokerProgram = "auto"
    drain: float = 60.0
    """Seconds after healing within which everything must be settled."""
    program: Sequence[str] = PROGRAM
    disk: bool = False
    """Whether files lie on a small disk that is filled now and then. That needs the right to mount."""
    happenings: Mapping[str, int] = field(default_factory=lambda: HAPPENINGS)
    beside: Callable[[LocalBroker], AbstractAsyncContextManager[object]] | None = None
    """What is entered when the broker runs, and left once all processes have ended."""


@dataclass(slots=True)
class Outcome:
    """What happened."""

    seed: int
    broker: str
    kills: int = 0
    killed: dict[str, int] = field(default_factory=dict)
    stops: int = 0
    weathers: int = 0
    clocks: int = 0
    """Clocks that were set."""
    duels: int = 0
    """Times that two aggregators were started on copies of one store."""
    full_disks: int = 0
    updates: int = 0
    """In the model at the end."""
    accepted: int = 0
    lost: int = 0
    doubled: int = 0
    drained: bool = False
    drain_seconds: float = 0.0
    recovery_ms: float | None = None
    """The median time from a start of the aggregator's process until it takes updates in again."""
    recoveries: int = 0
    crashes: list[str] = field(default_factory=list)
    """Ends of a process that nobody had asked for: bugs."""

    @property
    def good(self) -> bool:
        return self.drained and not (self.lost or self.doubled or self.crashes)

    def count(self, who: str) -> None:
        """Count a kill."""
        self.kills += 1
        self.killed[who] = self.killed.get(who, 0) + 1

    def balance(self, model: Path, pages: Path) -> None:
        """Compare the model with what the devices wrote down."""
        if not model.exists():
            self.crashes.append("the aggregator wrote no model at its end")
            return
        found = audit(model, pages)
        self.updates, self.accepted, self.lost, self.doubled = found.applied, *found[:3]


class Chaos:
    """One play, in a directory of its own."""

    def __init__(self, play: Play, directory: Path) -> None:
        self._play = play
        self._directory = directory
        self._random = Random(play.seed)
        self._healed = asyncio.Event()
        self._over = False
        self._starts: list[float] = []
        self._pause = PAUSE
        self._free = asyncio.Event()
        """Whether the aggregator may be started: not while two are started against each other."""
        self._free.set()
        self._disk = SmallDisk(directory / "disk", DISK) if play.disk else None
        self._files = directory / "disk" if play.disk else directory
        self._ahead = [(0.0, 0.0)]
        """Since when the aggregator's clock is ahead by how much."""
        self._clocks = {side: directory / f"clock-{side}" for side in ("aggregator", "devices")}
        per_device = min(max(1, int(PER_SECOND * play.seconds)), PLACES // play.devices)
        self._pace_of_devices = play.seconds / per_device
        self._books = Books(
            devices=play.devices,
            updates=per_device,
            federation="chaos",
            chunk=self._random.choice((4096, 256 * 1024)),
            checkpoint=200,
        )
        self.outcome = Outcome(play.seed, "")

    async def run(self) -> Outcome:
        """Play it to its end.

        Raises:
            BrokerUnreachable: there is none to be had.
        """
        try:
            return await self._run()
        finally:
            if self._disk is not None:
                self._disk.close()

    async def _run(self) -> Outcome:
        async with AsyncExitStack() as stack:
            broker = await stack.enter_async_context(local_broker(self._play.broker, directory=self._directory))
            self.outcome.broker = broker.kind
            port = broker.endpoint.port
            if self._play.beside is not None:
                await stack.enter_async_context(self._play.beside(broker))
            ways = [await stack.enter_async_context(Proxy(port, self._random).serving()) for _ in range(2)]
            addresses = (address(broker.endpoint, way.port) for way in ways)
            until = await stack.enter_async_context(self._cast(*addresses))
            await self._harm(broker, ways, until)
            await self._heal(broker, ways)
            await self._drain()
        await asyncio.to_thread(self.outcome.balance, self._directory / "model.safetensors", self._files / "devices")
        self._measure()
        return self.outcome

    # ------------------------------------------------------------------- the cast

    @asynccontextmanager
    async def _cast(self, for_server: str, for_devices: str) -> AsyncIterator[float]:
        """All processes, kept alive until they have done their part; none is left at the end. Gives when that is."""
        play, books = self._play, self._books
        self._for_server, self._store = for_server, self._files / "store"
        self._server = self._aggregator(self._store)
        each = -(-play.devices // play.processes)
        numbers = [range(start, min(start + each, play.devices)) for start in range(0, play.devices, each)]
        self._fleets: list[Actor] = []
        try:
            async with asyncio.TaskGroup() as tasks:
                self._serving = tasks.create_task(self._keep_server())
                self._pause = PAUSE * max(1.0, await self._started() / QUICK)
                until = time.time() + play.seconds
                options = ("--until", str(until), "--pace", str(self._pace_of_devices), "--patience", str(PATIENCE))
                self._fleets += [
                    fleet(
                        books,
                        for_devices,
                        self._directory,
                        some,
                        *options,
                        program=play.program,
                        pages=self._files / "devices",
                        environment={clock.VARIABLE: str(self._clocks["devices"])},
                    )
                    for some in numbers
                ]
                self._taking_part = [tasks.create_task(self._keep(actor)) for actor in self._fleets]
                self._tasks = tasks
                yield until
                for task in (self._serving, *self._taking_part):
                    task.cancel()
        finally:
            for actor in (self._server, *self._fleets):
                await actor.kill()

    async def _started(self) -> float:
        """Wait until the aggregator is connected; how many seconds that took."""
        began = time.monotonic()
        with suppress(TimeoutError):
            async with asyncio.timeout(STARTING):
                while not self._connections():  # noqa: ASYNC110 - another process writes them
                    await asyncio.sleep(0.05)
        return time.monotonic() - began

    def _aggregator(self, store: Path) -> Actor:
        environment = {clock.VARIABLE: str(self._clocks["aggregator"])}
        return aggregator(self._books, self._for_server, self._directory, self._play.program, store, environment)

    async def _keep(self, actor: Actor) -> None:
        """Start it again whenever it has ended, but at the end of its part."""
        while True:
            await actor.start()
            if await self._ended(actor):
                return

    async def _keep_server(self) -> None:
        """The same for the aggregator, which may be another one after a duel."""
        while True:
            await self._free.wait()
            if not self._server.running:
                self._starts.append(time.time())
                await self._server.start()
            if await self._ended(self._server):
                return

    async def _ended(self, actor: Actor) -> bool:
        """Wait for its end; whether it has done its part."""
        code = await actor.ended()
        if code not in (0, -signal.SIGKILL, USER_ERROR):
            self.outcome.crashes.append(f"{actor.name} ended with {code}: {actor.tail()}")
        if code:
            await asyncio.sleep(0.3 * self._random.random())
        return code == 0

    # ------------------------------------------------------------------ misfortunes

    async def _harm(self, broker: LocalBroker, ways: Sequence[Proxy], until: float) -> None:
        happenings = self._play.happenings
        names = [name for name in happenings if self._disk is not None or name != "fill disk"]
        weights = [happenings[name] for name in names]
        # On a machine that is very busy the time may be over before anything was killed: then nothing would be tried.
        while time.time() < until or not self.outcome.kills:
            await asyncio.sleep(2 * self._pause * self._random.random())
            (name,) = self._random.choices(names, weights)
            match name:
                case "weather":
                    self._random.choice(ways).change(Weather.by_chance(self._random))
                    self.outcome.weathers += 1
                case "kill broker":
                    broker.kill()
                    self.outcome.count("broker")
                    await asyncio.sleep(0.3 * self._random.random())
                    await start_again(broker)
                case "set clock":
                    side = self._random.choice(list(self._clocks))
                    self._set(side, self._random.choice((0.0, *JUMPS)))
                    self.outcome.clocks += 1
                case "fill disk":
                    await self._fill()
                case "copy store":
                    ways[0].change(Weather())
                    await self._duel()
                case _:
                    self._strike(name)

    def _strike(self, name: str) -> None:
        """Kill or stop a process."""
        what, _, who = name.partition(" ")
        actor = self._server if who == "aggregator" else self._random.choice(self._fleets)
        if what == "kill" and actor.send(signal.SIGKILL):
            self.outcome.count(who)
        elif what == "stop" and not actor.stopped and actor.send(signal.SIGSTOP):
            self.outcome.stops += 1
            self._tasks.create_task(self._wake(actor))

    def _set(self, side: str, ahead: float) -> None:
        """Set the clock of the aggregator's machine, or of the devices'."""
        clock.put(self._clocks[side], ahead)
        if side == "aggregator":
            self._ahead.append((time.time(), ahead))

    async def _fill(self) -> None:
        """Leave no room on the disk for a while."""
        assert self._disk is not None
        self.outcome.full_disks += 1
        try:
            await asyncio.to_thread(self._disk.fill)
            await asyncio.sleep(2 * FULL * self._random.random())
        finally:
            self._disk.empty()

    async def _duel(self) -> None:
        """Start two aggregators on copies of one store: one must end with a sentence, and the other goes on."""
        self._free.clear()
        try:
            await self._server.kill()
            self.outcome.duels += 1
            copy = self._files / f"store-{self.outcome.duels}"
            await asyncio.to_thread(shutil.copytree, self._store, copy, dirs_exist_ok=True)
            rivals = {store: self._aggregator(store) for store in (self._store, copy)}
            for rival in rivals.values():
                await rival.start()
                await asyncio.sleep(self._random.choice((0.0, 0.3, 2.0)))
            loser = await self._loser(rivals)
            (self._store, self._server), *_ = ((store, each) for store, each in rivals.items() if store != loser)
            await asyncio.to_thread(shutil.rmtree, loser)
        finally:
            self._free.set()

    async def _loser(self, rivals: Mapping[Path, Actor]) -> Path:
        """The store whose aggregator has ended for the other one."""
        waits = {asyncio.create_task(actor.ended()): store for store, actor in rivals.items()}
        try:
            done, _ = await asyncio.wait(waits, timeout=DUEL, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        ended = [waits[wait] for wait in done]
        if len(ended) != 1 or next(iter(done)).result() != USER_ERROR or SENTENCE not in self._server.tail(200):
            self.outcome.crashes.append(
                f"of two aggregators on copies of one store ended {len(ended)}: {self._server.tail()}"
            )
        loser = ended[0] if ended else next(iter(rivals))
        await rivals[loser].kill()
        return loser

    async def _wake(self, actor: Actor) -> None:
        pause = 1.5 * self._random.random()
        with suppress(TimeoutError):
            async with asyncio.timeout(pause):
                await self._healed.wait()
        if actor.stopped:
            actor.send(signal.SIGCONT)

    # -------------------------------------------------------------------- the end

    async def _heal(self, broker: LocalBroker, ways: Sequence[Proxy]) -> None:
        self._healed.set()
        for way in ways:
            way.change(Weather())
        for side in self._clocks:
            self._set(side, 0.0)
        if not broker.running:
            await start_again(broker)

    async def _drain(self) -> None:
        """Wait until all devices have settled everything, then end the aggregator in order."""
        began = time.monotonic()
        with suppress(TimeoutError):
            async with asyncio.timeout(self._play.drain):
                await asyncio.gather(*self._taking_part)
                self.outcome.drain_seconds = round(time.monotonic() - began, 2)
                while not self._serving.done():  # a start may just be under way, and miss the signal
                    self._server.send(signal.SIGTERM)
                    await asyncio.wait({self._serving}, timeout=AGAIN)
                self.outcome.drained = True

    def _measure(self) -> None:
        """From the aggregator's own log: when it was connected after each start but the first."""
        connected = self._connections()
        took = []
        for began, next_began in pairwise([*self._starts[1:], float("inf")]):
            took += [at - began for at in connected if began <= at < next_began][:1]
        self.outcome.recoveries = len(took)
        self.outcome.recovery_ms = round(1000 * statistics.median(took)) if took else None

    def _connections(self) -> list[float]:
        """When the aggregator was connected, by its log, whose clock was set now and then."""
        spans = list(pairwise([*self._ahead, (float("inf"), 0.0)]))
        return [
            event["time"] - ahead
            for event in self._server.events("connected")
            for (since, ahead), (until, _) in spans
            if since <= event["time"] - ahead < until
        ]


async def start_again(broker: LocalBroker) -> None:
    """Start a broker that was killed: its port may still be held for a moment by what was connected to it."""
    for _ in range(20):
        with suppress(BrokerUnreachable):
            await broker.start()
            return
        await asyncio.sleep(0.1)
    await broker.start()
