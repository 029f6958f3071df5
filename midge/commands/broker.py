"""`midge broker`: run one for trials, create the files of a secure one, or check one."""

import argparse
import asyncio
import tempfile
from pathlib import Path
from typing import Literal

from midge.broker.mqtt.services import SERVICES
from midge.commands import checking, initialising, renewing
from midge.commands.parts import Problem, Subparsers
from midge.running import run_until_interrupted

_PORTS = 65_535


def register(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser("broker", help="run a broker for trials; create a secure one, or check one")
    actions = parser.add_subparsers(title="actions", required=True, metavar="ACTION")
    running = actions.add_parser(
        "run",
        help="run one until interrupted",
        description=(
            "Run a broker on this machine's loopback address, without passwords: Mosquitto if it is installed, "
            "otherwise the embedded one. For trying things out; a fleet needs a Mosquitto of its own."
        ),
    )
    running.add_argument("--port", type=int, default=1883, help="port on 127.0.0.1 (default: 1883; 0 takes a free one)")
    running.add_argument("--kind", choices=["auto", "mosquitto", "embedded"], default="auto", help="which broker")
    running.add_argument("--limits", choices=list(SERVICES), help="the embedded one, with this hosted broker's limits")
    running.set_defaults(run=run)
    initialising.register(actions)
    checking.register(actions)
    renewing.register(actions)


class _Broker:
    """A local broker as a service."""

    def __init__(
        self, kind: Literal["auto", "mosquitto", "embedded"], port: int, directory: Path, limits: str | None
    ) -> None:
        self._kind, self._port, self._directory, self._limits = kind, port, directory, limits
        self._stop = asyncio.Event()

    def stop(self) -> None:
        self._stop.set()

    async def serve(self) -> None:
        from midge.broker.local.local_broker import EmbeddedProgram, local_broker  # noqa: PLC0415

        limited = None if self._limits is None else EmbeddedProgram(options=("--limits", self._limits))
        async with local_broker(limited or self._kind, directory=self._directory, port=self._port) as broker:
            described = broker.describe()
            print(
                f"{described[0].upper()}{described[1:]}\nDevices and aggregators reach it at {broker.endpoint}. "
                "Ctrl-C ends it.",
                flush=True,
            )
            await self._stop.wait()


def run(args: argparse.Namespace) -> int:
    if not 0 <= args.port <= _PORTS:
        raise Problem(f"--port is {args.port}: a port is a number from 1 to {_PORTS}, or 0 for a free one.")
    if args.limits is not None and args.kind == "mosquitto":
        raise Problem("--limits are those of the embedded broker: leave --kind out.")
    with tempfile.TemporaryDirectory(prefix="midge-broker-") as directory:
        run_until_interrupted(_Broker(args.kind, args.port, Path(directory), args.limits))
    return 0
