"""Many devices of a soak in one process: real devices of `midge broker init`, over TLS with their own certificates.

    python -m benchmarks.soak_fleet FOLDER URL FIRST COUNT INTERVAL [--outboxes DIR]

Session, connection, verification of signatures, fetcher and codec are those of a device. A training is a pause, after
which the model is pulled towards one with a little noise; devices of one process share the decoded versions, and their
outboxes are in memory, unless a folder is given.

Commands are lines on standard input, events are JSON lines on standard output:

- `cut SHARE`: the connections of a share of the devices break at once;
- `count`: `up` devices that the aggregator has answered, at each change.
"""

import argparse
import asyncio
import logging
import os
import socket
import struct
import sys
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from benchmarks.hostile_fleet import at, say
from benchmarks.neighbour_fleet import NICE, SeenDevice
from benchmarks.neighbour_processes import may_go_first
from midge.broker import Connection, connector
from midge.broker.mqtt.paho_session import PahoSession
from midge.broker.provisioning.bundles import Bundle
from midge.iot_client.config import DeviceConfig
from midge.iot_client.training.fit import Fit, Parameters, TrainingPlan
from midge.sensor_fleet.live.limits import measured
from midge.sensor_fleet.live.versions import SharedVersions

NOISE, PULL, KINDS = 0.02, 0.05, 16
"""Noise of each value, the part of the distance to one that a training covers, and noises that are drawn in advance."""
EVERY, COUNTS = 0.1, 20
"""Seconds between two looks at the devices, and looks between two at their sockets."""
HEADERS = 52
"""Bytes of a segment's headers: IPv4 (20), TCP (20) and its time stamps (12, RFC 7323)."""
_ACKED = struct.Struct("<QQII")
"""`tcpi_bytes_acked` and the three fields that follow it in `struct tcp_info` (linux/tcp.h), from byte 120."""


def moved(sock: socket.socket) -> int:
    """Bytes of a TCP connection in both directions, with its headers (Linux)."""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 192)
    acked, received, out, came = _ACKED.unpack_from(info, 120)
    return int(acked + received + HEADERS * (out + came))


def weighed(connection: Connection | None) -> int:
    """Bytes of a connection so far; 0 if there is none."""
    watched = connection.client.socket() if isinstance(connection, PahoSession) else None
    if watched is None or watched.fileno() < 0:
        return 0
    with socket.socket(fileno=os.dup(watched.fileno())) as raw:  # below TLS
        return moved(raw)


class SoakDevice(SeenDevice):
    """A device of a bundle."""

    def __init__(self, bundle: Bundle, fleet: "SoakFleet", outbox: Path | None) -> None:
        self.accepted = self.refused = self.connects = 0
        self._fleet, self._trained = fleet, False
        self._ended = self._newest = 0
        """Bytes of earlier connections, and of the current one when it was last looked at."""
        self._watched: Connection | None = None
        super().__init__(
            DeviceConfig(
                connector=connector(bundle.endpoint),
                federation=bundle.topics.federation,
                name=bundle.name,
                train=self._train,
                outbox=outbox,
                on_event=self._hear,
                release_key=bundle.release_key,
                versions=fleet.versions,
                wait=True,
            )
        )

    async def _train(self, parameters: Parameters, _plan: TrainingPlan) -> Fit:
        fleet = self._fleet
        # The first one takes up to an interval: a fleet trains at all times, not in bursts.
        longest = fleet.interval if not self._trained else fleet.interval / 8
        self._trained = True
        await asyncio.sleep(longest * fleet.random.random())
        w = parameters["w"]
        noise = fleet.noise(w.size)
        return Fit({"w": w + np.float32(PULL) * (1 - w) + noise}, examples=32, steps=10)

    def _hear(self, event: dict[str, Any]) -> None:
        self.connects += event["event"] == "connected"
        if event["event"] == "receipt":
            self.accepted += event["verdict"] == "accepted"
            self.refused += event["verdict"] not in ("accepted", "busy", "paused")

    def weigh(self) -> None:
        """Look at the connection's bytes."""
        connection = self.connection
        if connection is not self._watched:
            self._ended, self._newest, self._watched = self._ended + self._newest, 0, connection
        self._newest = weighed(connection) or self._newest

    @property
    def wire(self) -> int:
        """Bytes of all connections so far."""
        return self._ended + self._newest


class SoakFleet:
    """The devices of one process."""

    def __init__(self, folders: list[Path], url: str, interval: float, outboxes: Path | None) -> None:
        self.interval, self.random = interval, Random(folders[0].name)
        self.versions = SharedVersions()
        self._noise: list[Any] = []
        self._rng = np.random.default_rng(1)
        self.devices = [
            SoakDevice(at(folder, url), self, None if outboxes is None else outboxes / f"{folder.name}.outbox")
            for folder in folders
        ]

    def noise(self, size: int) -> Any:
        """Noise of a training."""
        while len(self._noise) < KINDS:
            self._noise.append(self._rng.normal(0, NOISE, size).astype(np.float32))
        return self._noise[self.random.randrange(KINDS)]

    async def serve(self, ramp: float) -> None:
        """Run the devices until standard input ends."""
        commands = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
        tasks = []
        counting = asyncio.create_task(self._count())
        for device in self.devices:
            tasks.append(asyncio.create_task(device.serve()))
            await asyncio.sleep(ramp)
        while line := (await commands.readline()).split():
            share = float(line[1])
            for device in self.random.sample(self.devices, round(share * len(self.devices))):
                device.cut()
        for device in self.devices:
            device.stop()
        await asyncio.wait(tasks, timeout=20)
        counting.cancel()
        failed = [task for task in tasks if task.done() and task.exception() is not None]
        say("end", failed=len(failed), why=repr(failed[0].exception()) if failed else "")

    async def _count(self) -> None:
        before: dict[str, int] = {}
        looks = 0
        while True:
            looks += 1
            if looks % COUNTS == 0:
                for device in self.devices:
                    device.weigh()
            found = {
                "up": sum(device.up for device in self.devices),
                "accepted": sum(device.accepted for device in self.devices),
                "refused": sum(device.refused for device in self.devices),
                "connects": sum(device.connects for device in self.devices),
                "payload": sum(device.bytes_down + device.bytes_up for device in self.devices),
                "wire": sum(device.wire for device in self.devices),
            }
            if found["up"] != before.get("up") or looks % COUNTS == 0:
                say("count", **found)
                before = found
            await asyncio.sleep(EVERY)


def main() -> None:
    """Run some devices."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("url")
    parser.add_argument("first", type=int)
    parser.add_argument("count", type=int)
    parser.add_argument("interval", type=float)
    parser.add_argument("--outboxes", type=Path)
    parser.add_argument("--ramp", type=float, default=0.005, help="seconds between the starts of two devices")
    args = parser.parse_args()
    if not may_go_first():  # then the broker and the telemetry cannot have priority
        os.nice(NICE)
    measured()  # raises the limit of open files
    logging.basicConfig(level=logging.ERROR)  # a broker that is away is counted, not logged
    folders = sorted(path for path in args.folder.iterdir() if path.is_dir())[args.first : args.first + args.count]
    asyncio.run(SoakFleet(folders, args.url, args.interval, args.outboxes).serve(args.ramp))


if __name__ == "__main__":
    main()
