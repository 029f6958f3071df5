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
    from aggregator.pace import Pace
    from aggregator.presets import balanced, ca2fl, fadas, fedasync, fedavg, fedbuff, private
    from aggregator.privacy import Privacy
    from aggregator.staleness import Staleness, constant, hinge, polynomial
    from aggregator.strategy import Strategy, adam, sgd
    from iot_client import conditions
    from iot_client.autoencoder import Autoencoder
    from iot_client.budget import Costs
    from iot_client.csv_rows import CsvRows
    from iot_client.duty import Duty
    from iot_client.evaluating import Scores
    from iot_client.fit import Fit, Recipe
    from iot_client.isolation import isolated
    from iot_client.numpy_models import MLP, Linear, Logistic
    from iot_client.sample_trainer import SampleTrainer
    from iot_client.samples import Samples
    from iot_client.sensor_topic import SensorTopic
    from iot_client.torch_trainer import torch_trainer
    from midge.aggregator import Aggregator
    from midge.device import Device
    from sensor_fleet.simulation.simulate import simulate
    from wire.messages import StrictPlan as Plan
    from wire.moments import Moments

__version__ = "0.1.0"

_MODULES = {"conditions": "iot_client.conditions"}
_RENAMED = {"Plan": "StrictPlan"}
"""Names under which a home has them, if they differ."""
_HOMES = {
    "CsvRows": "iot_client.csv_rows",
    "Duty": "iot_client.duty",
    "SampleTrainer": "iot_client.sample_trainer",
    "Samples": "iot_client.samples",
    "SensorTopic": "iot_client.sensor_topic",
    "isolated": "iot_client.isolation",
    "Autoencoder": "iot_client.autoencoder",
    "Costs": "iot_client.budget",
    "Linear": "iot_client.numpy_models",
    "Logistic": "iot_client.numpy_models",
    "MLP": "iot_client.numpy_models",
    "Recipe": "iot_client.fit",
    "Scores": "iot_client.evaluating",
    "Aggregator": "midge.aggregator",
    "Device": "midge.device",
    "Fit": "iot_client.fit",
    "Moments": "wire.moments",
    "Pace": "aggregator.pace",
    "Plan": "wire.messages",
    "Privacy": "aggregator.privacy",
    "Staleness": "aggregator.staleness",
    "Strategy": "aggregator.strategy",
    "adam": "aggregator.strategy",
    "balanced": "aggregator.presets",
    "ca2fl": "aggregator.presets",
    "constant": "aggregator.staleness",
    "fadas": "aggregator.presets",
    "fedasync": "aggregator.presets",
    "fedavg": "aggregator.presets",
    "fedbuff": "aggregator.presets",
    "hinge": "aggregator.staleness",
    "polynomial": "aggregator.staleness",
    "private": "aggregator.presets",
    "sgd": "aggregator.strategy",
    "simulate": "sensor_fleet.simulation.simulate",
    "torch_trainer": "iot_client.torch_trainer",
}

__all__ = [
    "MLP",
    "Aggregator",
    "Autoencoder",
    "Costs",
    "CsvRows",
    "Device",
    "Duty",
    "Fit",
    "Linear",
    "Logistic",
    "Moments",
    "Pace",
    "Plan",
    "Privacy",
    "Recipe",
    "SampleTrainer",
    "Samples",
    "Scores",
    "SensorTopic",
    "Staleness",
    "Strategy",
    "__version__",
    "adam",
    "balanced",
    "ca2fl",
    "conditions",
    "constant",
    "fadas",
    "fedasync",
    "fedavg",
    "fedbuff",
    "hinge",
    "isolated",
    "polynomial",
    "private",
    "sgd",
    "simulate",
    "torch_trainer",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(_MODULES[name])
    if name not in _HOMES:
        raise AttributeError(f"module 'midge' has no attribute {name!r}")
    try:
        home = importlib.import_module(_HOMES[name])
    except ModuleNotFoundError as error:
        if (how := how_to_get(error)) is None:
            raise
        raise ModuleNotFoundError(how, name=error.name) from error
    return getattr(home, _RENAMED.get(name, name))
