"""Two aggregators as processes, of which one serves and the other follows, and a ledger's devices, at one broker."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from midge.broker.local.local_broker import LocalBroker, local_broker
from tests.harness.ledger import Audit, Books, audit
from tests.harness.processes import Actor, aggregator, fleet
from tests.harness.proxy import Proxy
from tests.security.keys import write_keys

TAKEOVER = 3.0
"""Seconds of silence until the standby takes over: the least that is allowed."""
LOOK_EVERY = 0.05
PATIENCE = 240.0
"""Seconds of one scene: the last resort where one hangs."""


@dataclass
class Pair:
    """The cast of a scene."""

    directory: Path
    broker: LocalBroker
    ways: Mapping[str, Proxy]
    """The network of each host."""
    hosts: Mapping[str, Actor]
    devices: Actor

    async def starts(self, name: str, crash_at: str = "") -> None:
        await self.hosts[name].start(crash_at)

    async def until(self, name: str, event: str, count: int = 1, **fields: Any) -> dict[str, Any]:
        """Wait for an event of one host; the last one of these."""
        actor = self.hosts[name]
        async with asyncio.timeout(PATIENCE):
            while len(found := of(actor, event, **fields)) < count:
                assert actor.running, f"{name} has ended: {actor.tail()}"
                await asyncio.sleep(LOOK_EVERY)
        return found[-1]

    def follows_from_now(self, name: str) -> None:
        """Have a host's later starts follow the other one."""
        self.hosts[name]._command.append("--standby")

    async def following(self, name: str) -> None:
        """Wait until this host has everything, counted from its last start."""
        await self.until(
            name, "standby", len(of(self.hosts[name], "standby", state="following")) + 1, state="following"
        )

    async def serve_and_follow(self, first: str = "one", second: str = "two") -> None:
        """Start both, until the second has a copy."""
        await self.starts(first)
        await self.until(first, "connected", len(of(self.hosts[first], "connected")) + 1)
        await self.starts(second)
        await self.following(second)

    async def accepted(self, name: str, count: int = 1) -> float:
        """When this host has accepted an update again."""
        known = len(of(self.hosts[name], "update", verdict="accepted"))
        return float((await self.until(name, "update", known + count, verdict="accepted"))["time"])

    async def settled(self, *serving: str) -> Audit:
        """Wait until every device is done, end the aggregators, and audit the model of the one that serves."""
        async with asyncio.timeout(PATIENCE):
            code = await self.devices.ended()
        assert code == 0, self.devices.tail()
        for name in serving:
            self.hosts[name].send(signal.SIGTERM)
            async with asyncio.timeout(PATIENCE):
                assert await self.hosts[name].ended() == 0, self.hosts[name].tail()
        return audit(self.directory / "model.safetensors", self.directory / "devices")


def of(actor: Actor, event: str, **fields: Any) -> list[dict[str, Any]]:
    return [each for each in actor.events(event) if fields.items() <= each.items()]


@asynccontextmanager
async def pair(
    directory: Path,
    *,
    sync: bool,
    options: Sequence[str] = (),
    devices: int = 3,
    updates: int = 40,
    pace: float = 0.15,
    pad: int = 0,
    takeover: float = TAKEOVER,
    chunk: int = 256 * 1024,
) -> AsyncIterator[Pair]:
    """Both hosts with the same settings, each behind a network of its own; nothing is started but the broker."""
    directory.mkdir(exist_ok=True)  # noqa: ASYNC240 - at once
    private, _ = write_keys(directory)
    books = Books(devices=devices, updates=updates, federation=directory.name, checkpoint=40, pad=pad, chunk=chunk)
    words = ["--release-key", str(private), "--takeover-after", str(takeover), *(["--sync"] if sync else []), *options]
    async with local_broker("auto", directory=directory) as broker:
        port = broker.endpoint.port
        random = Random(1)
        async with Proxy(port, random).serving() as one, Proxy(port, random).serving() as two:
            ways = {"one": one, "two": two}
            hosts = {
                name: aggregator(
                    books,
                    f"mqtt://127.0.0.1:{way.port}",
                    directory,
                    store=directory / name,
                    name=name,
                    options=[*words, *(["--standby"] if name == "two" else [])],
                )
                for name, way in ways.items()
            }
            manner = ("--pace", str(pace), "--patience", "0.5")
            actor = fleet(books, f"mqtt://127.0.0.1:{port}", directory, range(devices), *manner)
            made = Pair(directory, broker, ways, hosts, actor)
            try:
                yield made
            finally:
                for each in (*hosts.values(), actor):
                    await each.kill()


def now() -> float:
    """Seconds since 1970, as the processes' events have them."""
    return time.time()
