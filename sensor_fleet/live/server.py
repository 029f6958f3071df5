"""The aggregator of a live fleet: `app` for `midge aggregate`, and a process of its own for `midge fleet --live`.

`app` reads the environment variable MIDGE_FLEET, such as `profile=farm devices=1000 speed_up=600`, by the names of
`sensor_fleet.live.setting.Live`. The process is told the same on standard input, as `sensor_fleet.server` is.
"""

import asyncio
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from aggregator.config import AggregatorConfig, Listener
from aggregator.export import write_model
from aggregator.service import Aggregator
from broker import Connector, Endpoint, connector
from sensor_fleet.live.setting import VARIABLE, Live
from sensor_fleet.server import main, tell
from sensor_fleet.setting import BrokerAddress
from sensor_fleet.simulation.simulate import beginning

SERVED: Final = "served.safetensors"
"""The model that users would get, at the end."""
_TOLD: Final = ("start", "stop", "evaluation", "release", "device", "failed", "finished")


def make(live: Live, connect: Connector, store: Path, listener: Listener | None = None) -> Aggregator:
    """The aggregator of a fleet in scaled time. Statistics are pooled beforehand, as for a virtual fleet."""
    _, data, model, strategy = live.loaded()
    initial, roles = beginning(model, data)
    config = AggregatorConfig(
        connector=connect,
        federation=live.federation,
        initial=initial,
        roles=roles,
        strategy=strategy,
        store=store,
        evaluate=lambda parameters: model.evaluate(parameters, data.test),
        on_event=listener,
    )
    return Aggregator(config)


def app() -> Aggregator:
    """The aggregator as MIDGE_FLEET describes it; at localhost unless `midge aggregate --broker` names another."""
    live = Live.parse(os.environ.get(VARIABLE, ""))
    return make(live, connector(Endpoint.parse("mqtt://localhost:1883")), Path(live.store))


def _of_task(task: Mapping[str, Any]) -> tuple[Aggregator, Callable[[], dict[str, Any]]]:
    """The aggregator that a task describes, and what to write and to tell once it has served."""
    directory = Path(task["directory"])
    endpoint = BrokerAddress(**task["broker"]).endpoint()

    def some(event: dict[str, Any]) -> None:
        if event["event"] in _TOLD:  # the devices know the rest from their receipts
            tell(event)

    live = Live.parse(task["fleet"])
    aggregator = make(live, connector(endpoint), directory / "store", some)

    def finish() -> dict[str, Any]:
        used = aggregator.model.used()
        write_model(directory / SERVED, used.parameters(), {"federation": live.federation})
        return {"counts": dict(aggregator.core.counts)}

    return aggregator, finish


if __name__ == "__main__":
    sys.exit(asyncio.run(main(_of_task)))
