"""A federation of sites in a world that kills gateways, brokers, devices and the root, and cuts the sites' lines.

Each site is a broker, a gateway and devices; a line with weather leads from the gateway to the root's broker. No broker
keeps anything on disk. Then the books must balance, as in `tests.harness.chaos`.
"""

import asyncio
import json
import signal
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from midge.broker.local.local_broker import LocalBroker, local_broker
from tests.harness.chaos import AGAIN, PATIENCE, PAUSE, PER_SECOND, QUICK, STARTING, Outcome, Play, start_again
from tests.harness.ledger import Books
from tests.harness.processes import Actor, address, aggregator, fleet, keep_running
from tests.harness.proxy import Proxy, Weather

HAPPENINGS = {
    "kill devices": 6,
    "kill gateway": 8,
    "kill root": 3,
    "kill a site's broker": 1,
    "kill the root's broker": 1,
    "stop gateway": 1,
    "cut line": 1,
    "weather": 4,
}
"""What happens, and how often compared to the others."""
PLACES = 40_000
"""In the model at most: a long run makes updates less often."""
CUT = 5.0
"""Seconds for which a line is cut, at most: the site's devices go on, and its gateway sums up what they give."""


def gateway(books: Books, name: str, above: str, below: str, directory: Path, *options: str) -> Actor:
    """The gateway of a site; its store is the folder `site` in a directory."""
    command = [sys.executable, "-P", "-m", "midge", "gateway", "run", "--json", "--plain", *options]
    command += ["--above", above, "--below", below, "--federation", books.federation]
    command += ["--name", name, "--store", str(directory / "site")]
    return Actor(name, command, directory / "gateway.log", {})


def caught_up(gateway: Actor) -> bool:
    """Whether the root has all that a gateway's devices gave, by the gateway's own log."""
    order = []
    for line in gateway.log.read_bytes().splitlines():
        with suppress(ValueError):  # the last line of a life may be cut short
            event = json.loads(line)
            if event.get("event") == "caught_up" or (event.get("event") == "update" and event.get("side") == "below"):
                order.append(event["event"])
    return bool(order) and order[-1] == "caught_up"


@dataclass(slots=True)
class Site:
    """One site."""

    broker: LocalBroker
    line: Proxy
    gateway: Actor
    devices: Actor


@dataclass(slots=True)
class _Cast:
    """All processes, and the tasks that keep them alive."""

    above: LocalBroker
    root: Actor
    sites: list[Site]
    taking_part: list[asyncio.Task[None]] = field(default_factory=list)
    """They end when all of a site's devices have done their part."""
    serving: list[asyncio.Task[None]] = field(default_factory=list)


class GatewayChaos:
    """One play with sites, in a directory of its own."""

    def __init__(self, play: Play, sites: int, directory: Path) -> None:
        self._play, self._directory = play, directory
        self._random = Random(play.seed)
        self._healed = asyncio.Event()
        self._pause = PAUSE
        self._each = -(-play.devices // sites)
        devices = self._each * sites
        updates = min(max(1, int(PER_SECOND * play.seconds)), PLACES // devices)
        self._pace = play.seconds / updates
        self._books = Books(devices=devices, updates=updates, federation="sites", checkpoint=200)
        self._numbers = [range(start, start + self._each) for start in range(0, devices, self._each)]
        self.outcome = Outcome(play.seed, "")

    async def run(self) -> Outcome:
        """Play it to its end.

        Raises:
            BrokerUnreachable: there is none to be had.
        """
        async with self._cast() as cast:
            await self._harm(cast)
            await self._heal(cast)
            await self._drain(cast)
        await asyncio.to_thread(
            self.outcome.balance, self._directory / "model.safetensors", self._directory / "devices"
        )
        return self.outcome

    # ------------------------------------------------------------------- the cast

    @asynccontextmanager
    async def _cast(self) -> AsyncIterator[_Cast]:
        """All processes, started in their order; none is left at the end."""
        books, folder = self._books, self._directory
        async with AsyncExitStack() as stack:
            above = await self._broker(stack, folder / "above")
            self.outcome.broker = above.kind
            root = aggregator(books, address(above.endpoint), folder, name="root", options=("--site", "site-*"))
            stack.push_async_callback(root.kill)
            sites = [await self._site(stack, above, number, some) for number, some in enumerate(self._numbers)]
            tasks = await stack.enter_async_context(asyncio.TaskGroup())
            cast = _Cast(above, root, sites)
            cast.serving.append(tasks.create_task(self._keep(root)))
            self._pause = PAUSE * max(1.0, await self._started(root) / QUICK)
            cast.serving += [tasks.create_task(self._keep(site.gateway)) for site in sites]
            cast.taking_part += [tasks.create_task(self._keep(site.devices)) for site in sites]
            yield cast
            for task in (*cast.serving, *cast.taking_part):
                task.cancel()

    async def _broker(self, stack: AsyncExitStack, folder: Path) -> LocalBroker:
        await asyncio.to_thread(folder.mkdir, parents=True)
        return await stack.enter_async_context(local_broker(self._play.broker, directory=folder))

    async def _site(self, stack: AsyncExitStack, above: LocalBroker, number: int, some: range) -> Site:
        """The broker and the line of a site, and its processes, not yet started."""
        folder = self._directory / f"site-{number}"
        broker = await self._broker(stack, folder / "broker")
        line = await stack.enter_async_context(Proxy(above.endpoint.port, self._random).serving())
        there, here = address(above.endpoint, line.port), address(broker.endpoint)
        ours = gateway(self._books, f"site-{number}", there, here, folder, "--patience", "0.2")
        options = ("--until", str(time.time() + self._play.seconds), "--pace", str(self._pace))
        devices = fleet(self._books, here, self._directory, some, *options, "--patience", str(PATIENCE))
        for actor in (ours, devices):
            stack.push_async_callback(actor.kill)
        return Site(broker, line, ours, devices)

    async def _started(self, root: Actor) -> float:
        """Wait until the root is connected; return how many seconds that took."""
        began = time.monotonic()
        with suppress(TimeoutError):
            async with asyncio.timeout(STARTING):
                while not root.events("connected"):  # noqa: ASYNC110 - another process writes them
                    await asyncio.sleep(0.05)
        return time.monotonic() - began

    async def _keep(self, actor: Actor) -> None:
        await keep_running(actor, self.outcome.crashes, self._random)

    # ------------------------------------------------------------------ misfortunes

    async def _harm(self, cast: _Cast) -> None:
        until = time.time() + self._play.seconds
        async with asyncio.TaskGroup() as waking:
            # On a machine that is very busy the time may be over before anything was killed: nothing would be tried.
            while time.time() < until or not self.outcome.kills:
                await asyncio.sleep(2 * self._pause * self._random.random())
                (name,) = self._random.choices(list(HAPPENINGS), list(HAPPENINGS.values()))
                site = self._random.choice(cast.sites)
                match name:
                    case "kill devices" if site.devices.send(signal.SIGKILL):
                        self.outcome.count("devices")
                    case "kill gateway" if site.gateway.send(signal.SIGKILL):
                        self.outcome.count("gateway")
                    case "kill root" if cast.root.send(signal.SIGKILL):
                        self.outcome.count("root")
                    case "kill a site's broker":
                        await self._kill(site.broker)
                    case "kill the root's broker":
                        await self._kill(cast.above)
                    case "stop gateway" if not site.gateway.stopped and site.gateway.send(signal.SIGSTOP):
                        self.outcome.stops += 1
                        waking.create_task(self._wake(site.gateway))
                    case "cut line":
                        self.outcome.weathers += 1
                        site.line.change(Weather(silent=True))
                        waking.create_task(self._mend(site.line))
                    case "weather":
                        self.outcome.weathers += 1
                        site.line.change(Weather.by_chance(self._random))
                    case _:
                        pass  # it does not run just now
            self._healed.set()

    async def _kill(self, broker: LocalBroker) -> None:
        broker.kill()
        self.outcome.count("broker")
        await asyncio.sleep(0.3 * self._random.random())
        await start_again(broker)

    async def _wake(self, actor: Actor) -> None:
        await self._for(1.5 * self._random.random())
        if actor.stopped:
            actor.send(signal.SIGCONT)

    async def _mend(self, line: Proxy) -> None:
        await self._for(CUT * self._random.random())
        line.change(Weather())

    async def _for(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._healed.wait()

    # -------------------------------------------------------------------- the end

    async def _heal(self, cast: _Cast) -> None:
        for site in cast.sites:
            site.line.change(Weather())
        for broker in (cast.above, *(site.broker for site in cast.sites)):
            if not broker.running:
                await start_again(broker)

    async def _drain(self, cast: _Cast) -> None:
        """Wait until all devices have settled everything, and the root has it; then end gateways and root in order."""
        began = time.monotonic()
        with suppress(TimeoutError):
            async with asyncio.timeout(self._play.drain):
                await asyncio.gather(*cast.taking_part)
                while not all(caught_up(site.gateway) for site in cast.sites):  # noqa: ASYNC110 - processes write it
                    await asyncio.sleep(0.1)
                self.outcome.drain_seconds = round(time.monotonic() - began, 2)
                root, *gateways = cast.serving
                await self._end([site.gateway for site in cast.sites], gateways)
                await self._end([cast.root], [root])
                self.outcome.drained = True

    async def _end(self, actors: Sequence[Actor], tasks: Sequence[asyncio.Task[None]]) -> None:
        """End processes in order; a start may just be under way, and miss the signal."""
        while waiting := [actor for actor, task in zip(actors, tasks, strict=True) if not task.done()]:
            for actor in waiting:
                actor.send(signal.SIGTERM)
            await asyncio.wait(tasks, timeout=AGAIN)
