"""Two aggregators as processes, of which one serves and the other follows, and a ledger's devices, at one broker."""

import asyncio
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from midge.broker.local.local_broker import LocalBroker, local_broker
from midge.broker.local.mosquitto import find_mosquitto
from midge.broker.local.process import dying_with_parent, free_port
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
    broker: LocalBroker | None
    ways: Mapping[str, Proxy]
    """The network of each host."""
    hosts: Mapping[str, Actor]
    fleets: list[Actor]

    async def devices_start(self) -> None:
        for each in self.fleets:
            await each.start()

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
        for each in self.fleets:
            async with asyncio.timeout(PATIENCE):
                assert await each.ended() == 0, each.tail()
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
    devices: int = 3,
    updates: int = 40,
    pace: float = 0.15,
    takeover: float = TAKEOVER,
    ports: Mapping[str, int] | None = None,
    only: range | None = None,
) -> AsyncIterator[Pair]:
    """Both hosts with the same settings, each behind a network of its own; nothing is started but the broker.

    With `ports`, each host has a broker of its own, and the devices in `only` are at that of the second one.
    """
    directory.mkdir(exist_ok=True)  # noqa: ASYNC240 - at once
    private, _ = write_keys(directory)
    books = Books(devices=devices, updates=updates, federation=directory.name, checkpoint=40)
    words = ["--release-key", str(private), "--takeover-after", str(takeover), *(["--sync"] if sync else [])]
    async with AsyncExitStack() as stack:
        broker = None
        if ports is None:
            broker = await stack.enter_async_context(local_broker("auto", directory=directory))
            ports = dict.fromkeys(("one", "two"), broker.endpoint.port)
        ways = {name: await stack.enter_async_context(Proxy(port, Random(1)).serving()) for name, port in ports.items()}
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
        fleets = [fleet(books, f"mqtt://127.0.0.1:{ports['two']}", directory, only or range(devices), *manner)]
        if only is not None:
            fleets.append(fleet(books, f"mqtt://127.0.0.1:{ports['one']}", directory, range(only[0]), *manner))
        try:
            yield Pair(directory, broker, ways, hosts, fleets)
        finally:
            for each in (*hosts.values(), *fleets):
                await each.kill()


@asynccontextmanager
async def two_brokers(directory: Path) -> AsyncIterator[tuple[Mapping[str, int], Proxy]]:
    """Two Mosquittos that pass everything on to each other, and the network between them."""
    binary = find_mosquitto()
    assert binary is not None
    async with AsyncExitStack() as stack:
        ports = {}
        for name in ("one", "two"):
            (directory / name).mkdir(parents=True)
            broker = await stack.enter_async_context(local_broker("mosquitto", directory=directory / name))
            ports[name] = broker.endpoint.port
        between = await stack.enter_async_context(Proxy(ports["two"], Random(1)).serving())
        lines = [f"listener {free_port()} 127.0.0.1", "allow_anonymous true", "persistence false"]
        for name, port in (("one", ports["one"]), ("two", between.port)):
            lines += [f"connection {name}", f"address 127.0.0.1:{port}", "topic midge/# both 1", "restart_timeout 1"]
            lines += ["cleansession true", "keepalive_interval 5", "try_private true", "notifications false"]
        (directory / "bridge.conf").write_text("\n".join(lines) + "\n")
        command = dying_with_parent([str(binary), "-c", str(directory / "bridge.conf")])
        with (directory / "bridge.log").open("wb") as log:
            bridge = await asyncio.create_subprocess_exec(*command, stdout=log, stderr=log)
        try:
            yield ports, between
        finally:
            bridge.terminate()
            await bridge.wait()
