"""The aggregator of a simulated fleet: a process of its own, or `app` for `midge aggregate`.

The process, `python -m midge.sensor_fleet.live.server`, is told what to serve as one JSON line on standard input, so
that no password stands in a command line; the end of the input is the sign to stop, so that no orphan stays. Its events
leave as JSON lines on standard output, the last one being `finished` or `failed`.

`app` reads the environment variable MIDGE_FLEET, such as `profile=farm devices=1000 speed_up=600`, by the names of
`sensor_fleet.virtual.ProfileFleet`.
"""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from midge.aggregator.config import AggregatorConfig, Listener
from midge.aggregator.model.export import write_model
from midge.aggregator.service import Aggregator
from midge.aggregator.store.store import StoreError
from midge.broker import BrokerError, Connector, Endpoint, connector
from midge.sensor_fleet.live.micro import CHUNK
from midge.sensor_fleet.profiles.hastened import hastened
from midge.sensor_fleet.setting import BrokerAddress, Setting
from midge.sensor_fleet.simulation.simulate import beginning
from midge.sensor_fleet.virtual import VARIABLE, ProfileFleet

MODEL: Final = "model.safetensors"
"""The exact model, at the end."""
SERVED: Final = "served.safetensors"
"""The model that users would get, at the end."""
_TOLD: Final = ("start", "stop", "evaluation", "release", "device", "failed", "finished")
"""Events of the aggregator of a profile's fleet that are told: its devices know the rest from their receipts."""


def make(
    fleet: ProfileFleet | Setting, connect: Connector, store: Path, listener: Listener | None = None
) -> Aggregator:
    """The aggregator of a fleet, which evaluates on the data's test rows.

    Statistics of a profile's fleet are pooled beforehand, as for a virtual one; those of a demo come from its devices.
    """
    options: dict[str, Any]
    if isinstance(fleet, ProfileFleet):
        _, data, model, strategy = fleet.loaded()
        strategy = hastened(strategy, fleet.speed_up)
        initial, roles = beginning(model, data)
        options = {"federation": fleet.federation}
    else:
        data, model = fleet.load()
        strategy, initial, roles = fleet.make_strategy(len(data.devices)), model.initial, model.roles
        options = {
            "federation": fleet.federation,
            "root": fleet.root,
            "moments": model.channels,
            "statistics_devices": max(2, (len(data.devices) + 1) // 2),
            "statistics_deadline": 5.0,
            **({"chunk": CHUNK} if fleet.micro else {}),
        }
    config = AggregatorConfig(
        connector=connect,
        initial=initial,
        roles=roles,
        strategy=strategy,
        store=store,
        evaluate=lambda parameters: model.evaluate(parameters, data.test),
        on_event=listener,
        **options,
    )
    return Aggregator(config)


def app() -> Aggregator:
    """The aggregator as MIDGE_FLEET describes it; at localhost unless `midge aggregate --broker` names another."""
    fleet = ProfileFleet.parse(os.environ.get(VARIABLE, ""))
    return make(fleet, connector(Endpoint.parse("mqtt://localhost:1883")), Path(fleet.store))


# ------------------------------------------------------------------------ the process


def tell(event: dict[str, Any]) -> None:
    """One event as a line."""
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


def of_task(task: Mapping[str, Any]) -> Aggregator:
    """The aggregator that a task describes: of a demo by its setting, of a profile's fleet by its words."""
    fleet = Setting.unpacked(task["setting"]) if "setting" in task else ProfileFleet.parse(task["fleet"])

    def some(event: dict[str, Any]) -> None:
        if event["event"] == "start":  # what a run before has decided and published, told or not
            event |= {"counts": dict(aggregator.core.counts), "digest": aggregator.model.state.digest().hex()}
        if isinstance(fleet, Setting) or event["event"] in _TOLD:
            tell(event)

    connect = connector(BrokerAddress(**task["broker"]).endpoint())
    aggregator = make(fleet, connect, Path(task["directory"]) / "store", some)
    return aggregator


async def serve(aggregator: Aggregator, directory: Path, lines: asyncio.StreamReader) -> None:
    """Serve until the input ends, then write the model."""
    watching = asyncio.create_task(lines.read())
    watching.add_done_callback(lambda _: aggregator.stop())
    try:
        await aggregator.serve()
    finally:
        watching.cancel()
    aggregator.export(directory / MODEL)


async def main() -> int:
    """Read what we are told, serve, and say how it ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one who started us, who then ends our input
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    line = await lines.readline()
    if not line:
        return 1  # who started us is gone already
    task = json.loads(line)
    directory = Path(task["directory"])
    try:
        aggregator = of_task(task)
        await serve(aggregator, directory, lines)
        if "fleet" in task:
            used = aggregator.model.used()
            write_model(directory / SERVED, used.parameters(), {"federation": aggregator.config.federation})
    except (BrokerError, StoreError, ValueError) as error:
        tell({"event": "failed", "why": str(error)})
        return 1
    moved = {"bytes_in": aggregator.meters.bytes_in, "bytes_out": aggregator.meters.bytes_out}
    tell({"event": "finished", **moved, "counts": dict(aggregator.core.counts)})
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
