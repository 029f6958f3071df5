"""Midge: asynchronous federated learning for fleets of small devices, over MQTT.

    midge.Device(url, federation=…, name=…, train=…, outbox=…).run()       a device
    midge.Aggregator(url, federation=…, initial=…, store=…).run()          the server

The names below are imported when they are first used: a device never loads what only the server needs.
"""

import importlib
from typing import TYPE_CHECKING, Any

from midge.extras import how_to_get
from midge.shadowed import refuse_shadows

refuse_shadows()

if TYPE_CHECKING:
    from aggregator.strategy import Staleness, Strategy, constant, fedasync, fedbuff, hinge, polynomial
    from iot_client.fit import Fit
    from iot_client.torch_trainer import torch_trainer
    from midge.aggregator import Aggregator
    from midge.device import Device
    from wire.messages import Plan
    from wire.moments import Moments

__version__ = "0.1.0"

_HOMES = {
    "Aggregator": "midge.aggregator",
    "Device": "midge.device",
    "Fit": "iot_client.fit",
    "Moments": "wire.moments",
    "Plan": "wire.messages",
    "Staleness": "aggregator.strategy",
    "Strategy": "aggregator.strategy",
    "constant": "aggregator.strategy",
    "fedasync": "aggregator.strategy",
    "fedbuff": "aggregator.strategy",
    "hinge": "aggregator.strategy",
    "polynomial": "aggregator.strategy",
    "torch_trainer": "iot_client.torch_trainer",
}

__all__ = [
    "Aggregator",
    "Device",
    "Fit",
    "Moments",
    "Plan",
    "Staleness",
    "Strategy",
    "__version__",
    "constant",
    "fedasync",
    "fedbuff",
    "hinge",
    "polynomial",
    "torch_trainer",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'midge' has no attribute {name!r}")
    try:
        home = importlib.import_module(_HOMES[name])
    except ModuleNotFoundError as error:
        if (how := how_to_get(error)) is None:
            raise
        raise ModuleNotFoundError(how, name=error.name) from error
    return getattr(home, name)
