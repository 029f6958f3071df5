"""A whole federation on one machine: a broker, the aggregator in a process of its own, a live fleet in this one."""

import asyncio
import json
import os
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TextIO

from broker import BrokerError, connector
from broker.local import local_broker
from sensor_fleet import record
from sensor_fleet.data import FleetData
from sensor_fleet.fleet import Fleet, Member
from sensor_fleet.models import FleetModel
from sensor_fleet.progress import Progress
from sensor_fleet.retained import clean
from sensor_fleet.setting import BrokerAddress, Setting
from wire.topics import Topics

Ending = Literal["target", "time", "interrupted"]

_LIBRARIES = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
_GOODBYE = 20.0
"""Seconds that the aggregator's process has to write its checkpoint."""


class DemoError(Exception):
    """The run cannot go on; the message says why."""


@dataclass(slots=True)
class Demo:
    """One run. Await `run()`; look at `progress`, `fleet` and `broker` from outside meanwhile."""

    setting: Setting
    directory: Path
    target: float | None = None
    seconds: float = 60.0
    broker: Literal["auto", "mosquitto", "embedded"] | BrokerAddress = "auto"
    on_event: Callable[[dict[str, Any]], None] | None = None
    progress: Progress = field(init=False)
    fleet: Fleet | None = field(init=False, default=None)
    loaded: tuple[FleetData, FleetModel] | None = field(init=False, default=None)
    about_broker: str = field(init=False, default="")
    _stop: asyncio.Event = field(init=False, default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.progress = Progress(target=self.target)

    def stop(self) -> None:
        """End the run cleanly, as Ctrl-C does. To be called in its loop."""
        self._stop.set()

    @property
    def elapsed(self) -> float:
        return time.time() - self.progress.began

    async def run(self) -> Ending:
        """Run until the target is held, the time is over, or `stop()`.

        Raises:
            ValueError: data, model or strategy that cannot be used.
            BrokerError: no broker to be had.
            DemoError: the aggregator ended by itself.
        """
        self.progress.began = time.time()
        data, model = self.loaded = self.setting.load()
        about = record.describe(
            self.setting, data, model, target=self.target, seconds=self.seconds, began=self.progress.began
        )
        record.write(self.directory, about)
        members = list(self._members(data, model))
        async with AsyncExitStack() as stack:
            metrics = stack.enter_context((self.directory / "metrics.jsonl").open("w"))
            devices = stack.enter_context((self.directory / "devices.jsonl").open("w"))
            broker = await stack.enter_async_context(self._broker())
            server = await stack.enter_async_context(self._server(broker))
            self.fleet = Fleet(
                connector(broker.endpoint()),
                members,
                federation=self.setting.federation,
                root=self.setting.root,
                world=self.setting.world(),
                outboxes=self.directory / "outboxes",
                on_event=lambda event: devices.write(json.dumps(event, default=str) + "\n"),
            )
            return await self._until_the_end(server, self.fleet, metrics)

    async def _until_the_end(self, server: Process, fleet: Fleet, metrics: TextIO) -> Ending:
        following = asyncio.create_task(self._follow(server, metrics))
        stopping = asyncio.create_task(self._stop.wait())
        serving = asyncio.create_task(fleet.serve())
        ending: Ending = "time"
        try:
            done, _ = await asyncio.wait(
                {following, stopping, serving},
                timeout=max(0.0, self.seconds - self.elapsed),
                return_when=asyncio.FIRST_COMPLETED,
            )
            for task in done:
                if task is not stopping:
                    await task  # raises what ended it
            if stopping in done:
                ending = "interrupted"
            if self.progress.reached:
                ending = "target"
            fleet.stop()
            await serving
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from group
        finally:
            serving.cancel()
            assert server.stdin is not None
            server.stdin.close()
            with suppress(TimeoutError, DemoError):
                async with asyncio.timeout(_GOODBYE):
                    if not following.done():
                        self._stop.clear()
                        await following
            stopping.cancel()
        return ending

    def _members(self, data: FleetData, model: FleetModel) -> list[Member]:
        members = []
        for number, (name, rows) in enumerate(data.devices.items()):
            engine = self.setting.engine_of(number)
            trainer = model.trainer(rows, engine, seed=self.setting.seed + number)
            members.append(Member(name, trainer, model.moments(rows), engine=engine))
        return members

    @asynccontextmanager
    async def _broker(self) -> AsyncIterator[BrokerAddress]:
        if isinstance(self.broker, BrokerAddress):
            self.about_broker = str(self.broker.endpoint())
            try:
                yield self.broker
            finally:
                with suppress(BrokerError):
                    await clean(connector(self.broker.endpoint()), Topics(self.setting.federation, self.setting.root))
            return
        directory = self.directory / "broker"
        directory.mkdir()
        async with local_broker(self.broker, directory=directory) as local:
            self.about_broker = local.describe()
            yield BrokerAddress(str(local.endpoint))

    @asynccontextmanager
    async def _server(self, broker: BrokerAddress) -> AsyncIterator[Process]:
        server = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",  # a file of the user's in this directory must not hide ours
            "-m",
            "sensor_fleet.server",
            stdin=PIPE,
            stdout=PIPE,
            env={**os.environ, **dict.fromkeys(_LIBRARIES, "1")},
            limit=2**20,
        )
        task = {"setting": self.setting.packed(), "broker": asdict(broker), "directory": str(self.directory)}
        assert server.stdin is not None
        try:
            server.stdin.write(json.dumps(task).encode() + b"\n")
            yield server
        finally:
            if server.returncode is None:
                try:
                    async with asyncio.timeout(5):
                        await server.wait()
                except TimeoutError:
                    server.kill()
                    await server.wait()

    async def _follow(self, server: Process, metrics: TextIO) -> None:
        """Take the aggregator's events in, until the target is held or its process ends.

        Raises:
            DemoError: it ended by itself.
        """
        assert server.stdout is not None
        reached = self.progress.reached
        async for line in server.stdout:
            event = json.loads(line)
            if event["event"] == "failed":
                raise DemoError(event["why"])
            self.progress.add(event)
            if event["event"] == "evaluation" and self.fleet is not None:
                event |= {"bytes_up": self.fleet.bytes_up, "bytes_down": self.fleet.bytes_down}  # what it took
            metrics.write(json.dumps(event) + "\n")
            if self.on_event is not None:
                self.on_event(event)
            if self.progress.reached and not reached:
                reached = True
                self.stop()
        if server.stdin is not None and not server.stdin.is_closing():
            raise DemoError("The aggregator's process ended by itself; its messages are above.")

    def outcome(self) -> dict[str, Any]:
        """The run in one flat object."""
        progress, fleet = self.progress, self.fleet
        return {
            "version": progress.version,
            "step": progress.step,
            progress.metric: progress.value,
            "seconds": round(self.elapsed, 2),
            "seconds_to_target": None if progress.seconds_to_target is None else round(progress.seconds_to_target, 2),
            "updates": dict(progress.updates),
            "dropped": progress.dropped,
            "bytes_up": fleet.bytes_up if fleet else 0,
            "bytes_down": fleet.bytes_down if fleet else 0,
            "staleness": progress.quantiles(),
            "devices": len(fleet.devices) if fleet else 0,
            "run": str(self.directory),
        }
