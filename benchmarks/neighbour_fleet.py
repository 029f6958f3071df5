"""Many devices in one process for benchmarks of the broker: real devices except for their work and their disks.

Each is an `iot_client.Device` with its own session, connection, fetcher and outbox. Three things are simplified, since
real devices have their own processor and disk, and these share the broker's: a frame is checked by its SHA-256 and
decoded once for all devices, nothing is trained (an update is random numbers), and the outbox is in memory.

Commands are lines on standard input, events are JSON lines on standard output:

- `contribute N`: the first N waiting devices send an update of their version; the others rest;
- `rest`: no device trains any more;
- `cut`: all connections break at once.
"""

import argparse
import asyncio
import json
import os
import resource
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from midge.broker import Endpoint, connector
from midge.broker.mqtt.paho_session import PahoSession
from midge.iot_client.config import DeviceConfig
from midge.iot_client.connection.model_fetcher import Fetcher
from midge.iot_client.device import Device
from midge.iot_client.parts import DeviceParts
from midge.iot_client.runtime import DeviceRuntime
from midge.iot_client.session import events as ev
from midge.iot_client.session.states import Link
from midge.iot_client.training.fit import Fit, Parameters, TrainingPlan
from midge.iot_client.training.update_encoder import EncodedUpdate, update_of
from midge.sensor_fleet.links import sever
from midge.wire.codecs import encode_delta
from midge.wire.errors import WireError
from midge.wire.lineage import State
from midge.wire.messages import Announcement, FrameInfo, Plan

NICE = 5
"""Niceness below the broker and the telemetry: in the field these devices do not share the broker's processor. A much
higher value would starve them on a busy machine and relieve the broker."""
_lock = threading.Lock()
_decoded: dict[bytes, State] = {}


def say(event: str, **fields: Any) -> None:
    print(json.dumps({"event": event, "at": time.monotonic(), **fields}), flush=True)


class LightFetcher(Fetcher):
    """Checks each frame; only the first device to have one decodes it."""

    def _apply(self, announcement: Announcement, way: Sequence[FrameInfo], state: State | None) -> State:
        with _lock:
            if announcement.digest not in _decoded:
                _decoded[announcement.digest] = super()._apply(announcement, way, state)
                while len(_decoded) > 3:
                    del _decoded[next(iter(_decoded))]
                return _decoded[announcement.digest]
            found = _decoded[announcement.digest]
        for frame in way:
            data = self._assemblies[frame.version, frame.span].finish()
            if not data:
                raise WireError("an empty frame")
        return found


class LightRuntime(DeviceRuntime):
    """Reports when it holds a version, and waits for a command."""

    def __init__(self, parts: DeviceParts) -> None:
        super().__init__(parts, fetcher=LightFetcher(parts.topics, parts.config.name))
        self.told: asyncio.Future[bool] | None = None
        self.version = 0

    def train(self, announcement: Announcement, plan: Plan) -> None:  # noqa: ARG002 - trains nothing
        self.start(self._stand_in(announcement))

    async def _stand_in(self, announcement: Announcement) -> None:
        name = self.parts.config.name
        self.version = announcement.version
        say("holds", device=name, version=announcement.version)
        self.told = asyncio.get_running_loop().create_future()
        if not await self.told:
            self.put(ev.NothingToSend("a stand-in"))
            return
        self.trained(await asyncio.to_thread(_made, announcement, self.state, name))


class SeenDevice(Device):
    """A device that a benchmark looks into, and whose connection it breaks."""

    runtime: DeviceRuntime | None = None

    def _begin(self, parts: DeviceParts) -> DeviceRuntime:
        self.runtime = DeviceRuntime(parts)
        return self.runtime

    @property
    def up(self) -> bool:
        """Whether the aggregator has answered it."""
        return self.runtime is not None and self.runtime.session.link is Link.UP

    @property
    def connection(self) -> PahoSession | None:
        """Its connection; None if there is none."""
        found = None if self.runtime is None else self.runtime.publisher.connection
        assert found is None or isinstance(found, PahoSession)
        return found

    def cut(self) -> None:
        """Break the connection, as the network does."""
        if self.connection is not None:
            sever(self.connection, self.name)


class LightDevice(SeenDevice):
    """A device that sends on command, and whose actions are counted."""

    runtime: LightRuntime | None = None

    def __init__(self, url: str, name: str, federation: str) -> None:
        super().__init__(
            DeviceConfig(
                connector=connector(Endpoint.parse(url)),
                federation=federation,
                name=name,
                train=_never,
                outbox=None,
                on_event=self._hear,
                keepalive=300,
                conditions=(lambda: self.rests,),
            )
        )
        self.rests: str | None = None
        """Why it trains no more, and so fetches nothing."""
        self.accepted = self.refused = self.connects = 0

    def _begin(self, parts: DeviceParts) -> LightRuntime:
        self.runtime = LightRuntime(parts)
        return self.runtime

    def _hear(self, event: dict[str, Any]) -> None:
        self.connects += event["event"] == "connected"
        if event["event"] == "receipt":
            final = event["verdict"] == "accepted"
            self.accepted += final
            self.refused += not final and event["verdict"] not in ("busy", "paused")

    def go_on(self, *, contribute: bool) -> bool:
        """Whether it was waiting."""
        told = None if self.runtime is None else self.runtime.told
        if told is None or told.done():
            return False
        told.set_result(contribute)
        return True


def _never(_parameters: Parameters, _plan: TrainingPlan) -> Fit:
    raise AssertionError("a stand-in does not train")


def _made(announcement: Announcement, state: State | None, name: str) -> EncodedUpdate:
    """An update of random numbers, by the plan's codec."""
    assert state is not None
    rng = np.random.default_rng(sum(name.encode()))
    delta = rng.normal(0, 1e-3, state.schema.size).astype(np.float32)
    codec = announcement.plan.codec
    body = encode_delta(delta, state.schema, codec, seed=1)
    return EncodedUpdate(update_of(announcement, codec, body, examples=1, steps=1), body, None)


async def serve(devices: list[LightDevice], ramp: float) -> None:
    """Run the devices until standard input ends."""
    loop = asyncio.get_running_loop()
    commands = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    async with asyncio.TaskGroup() as tasks:
        serving = []
        for device in devices:
            serving.append(tasks.create_task(device.serve()))
            await asyncio.sleep(ramp)
        counting = tasks.create_task(_count(devices))
        while line := (await commands.readline()).split():
            match line:
                case [b"contribute", number]:
                    left = int(number)
                    for device in devices:
                        left -= device.go_on(contribute=left > 0) and left > 0
                case [b"rest"]:
                    for device in devices:
                        device.rests = "the benchmark has what it wants"
                        device.look()  # at once, not at the next check
                case [b"cut"]:
                    for device in devices:
                        device.cut()
            say(line[0].decode())
        counting.cancel()
        used = resource.getrusage(resource.RUSAGE_SELF)
        moved = sum(device.bytes_down for device in devices), sum(device.bytes_up for device in devices)
        say("end", cpu=used.ru_utime + used.ru_stime, down=moved[0], up=moved[1], peak_mb=used.ru_maxrss / 1024)
        os._exit(0)


async def _count(devices: list[LightDevice]) -> None:
    before: dict[str, int] = {}
    while True:
        found = {
            "up": sum(device.up for device in devices),
            "accepted": sum(device.accepted for device in devices),
            "refused": sum(device.refused for device in devices),
            "holding": sum(device.holding for device in devices),
            "connects": sum(device.connects for device in devices),
            "bytes_down": sum(device.bytes_down for device in devices),
        }
        if found != before:
            say("count", **found)
            before = found
        await asyncio.sleep(0.1)


def main() -> None:
    """Run a fleet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("devices", type=int)
    parser.add_argument("--federation", default="bench")
    parser.add_argument("--ramp", type=float, default=0.002, help="seconds between the starts of two devices")
    arguments = parser.parse_args()
    os.nice(NICE)
    names = [f"d{number}" for number in range(arguments.devices)]
    asyncio.run(serve([LightDevice(arguments.url, name, arguments.federation) for name in names], arguments.ramp))


if __name__ == "__main__":
    main()
