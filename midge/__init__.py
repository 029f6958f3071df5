"""Midge: asynchronous federated learning for fleets of small devices, over MQTT.

    midge.Device(url, federation=…, name=…, train=…, outbox=…).run()       a device
    midge.Aggregator(url, federation=…, initial=…, store=…).run()          the server

The names below are imported when they are first used: a device never loads what only the server needs.
"""

import importlib
from typing import TYPE_CHECKING, Any

from midge.extras import how_to_get
from midge.wire.inert import quieten_logs

if TYPE_CHECKING:
    from midge.aggregator.core.optimizers import adam, sgd
    from midge.aggregator.core.participation_controller import Pace
    from midge.aggregator.core.presets import balanced, ca2fl, fadas, fedasync, fedavg, fedbuff, private, secure
    from midge.aggregator.core.privacy import Privacy
    from midge.aggregator.core.staleness import Staleness, constant, hinge, polynomial
    from midge.aggregator.core.strategy import Strategy
    from midge.aggregator.registry.policy import RegistryPolicy
    from midge.iot_client.board import conditions
    from midge.iot_client.board.duty_cycle import Duty
    from midge.iot_client.board.usage_budget import Costs
    from midge.iot_client.connection.prediction_topic import PredictionTopic
    from midge.iot_client.data.csv_source import CsvRows
    from midge.iot_client.data.mqtt_source import SensorTopic
    from midge.iot_client.data.samples import Samples
    from midge.iot_client.masking_requirement import RequireSecure
    from midge.iot_client.state.model_comparison import KeepRule
    from midge.iot_client.training.autoencoder import Autoencoder
    from midge.iot_client.training.evaluation import Scores
    from midge.iot_client.training.fit import Fit, Recipe
    from midge.iot_client.training.numpy_models import MLP, Linear, Logistic
    from midge.iot_client.training.sample_trainer import SampleTrainer
    from midge.iot_client.training.subprocess_trainer import isolated
    from midge.iot_client.training.torch_trainer import torch_evaluator, torch_trainer
    from midge.public_aggregator import Aggregator
    from midge.public_device import Device
    from midge.public_local import local
    from midge.sensor_fleet.advice.advice import advise
    from midge.sensor_fleet.simulation.simulate import simulate
    from midge.wire.messages import StrictPlan as Plan
    from midge.wire.moments import Moments

quieten_logs()

__version__ = "0.1.0"

_MODULES = {"conditions": "midge.iot_client.board.conditions"}
_RENAMED = {"Plan": "StrictPlan"}
"""Names that differ in their home module."""
_HOMES = {
    "CsvRows": "midge.iot_client.data.csv_source",
    "Duty": "midge.iot_client.board.duty_cycle",
    "SampleTrainer": "midge.iot_client.training.sample_trainer",
    "Samples": "midge.iot_client.data.samples",
    "SensorTopic": "midge.iot_client.data.mqtt_source",
    "isolated": "midge.iot_client.training.subprocess_trainer",
    "Autoencoder": "midge.iot_client.training.autoencoder",
    "Costs": "midge.iot_client.board.usage_budget",
    "Linear": "midge.iot_client.training.numpy_models",
    "Logistic": "midge.iot_client.training.numpy_models",
    "MLP": "midge.iot_client.training.numpy_models",
    "KeepRule": "midge.iot_client.state.model_comparison",
    "Recipe": "midge.iot_client.training.fit",
    "Scores": "midge.iot_client.training.evaluation",
    "Aggregator": "midge.public_aggregator",
    "Device": "midge.public_device",
    "Fit": "midge.iot_client.training.fit",
    "Moments": "midge.wire.moments",
    "PredictionTopic": "midge.iot_client.connection.prediction_topic",
    "Pace": "midge.aggregator.core.participation_controller",
    "Plan": "midge.wire.messages",
    "Privacy": "midge.aggregator.core.privacy",
    "RegistryPolicy": "midge.aggregator.registry.policy",
    "Staleness": "midge.aggregator.core.staleness",
    "Strategy": "midge.aggregator.core.strategy",
    "adam": "midge.aggregator.core.optimizers",
    "balanced": "midge.aggregator.core.presets",
    "ca2fl": "midge.aggregator.core.presets",
    "constant": "midge.aggregator.core.staleness",
    "fadas": "midge.aggregator.core.presets",
    "fedasync": "midge.aggregator.core.presets",
    "fedavg": "midge.aggregator.core.presets",
    "fedbuff": "midge.aggregator.core.presets",
    "hinge": "midge.aggregator.core.staleness",
    "polynomial": "midge.aggregator.core.staleness",
    "private": "midge.aggregator.core.presets",
    "secure": "midge.aggregator.core.presets",
    "RequireSecure": "midge.iot_client.masking_requirement",
    "sgd": "midge.aggregator.core.optimizers",
    "simulate": "midge.sensor_fleet.simulation.simulate",
    "advise": "midge.sensor_fleet.advice.advice",
    "local": "midge.public_local",
    "torch_evaluator": "midge.iot_client.training.torch_trainer",
    "torch_trainer": "midge.iot_client.training.torch_trainer",
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
    "KeepRule",
    "Linear",
    "Logistic",
    "Moments",
    "Pace",
    "Plan",
    "PredictionTopic",
    "Privacy",
    "Recipe",
    "RegistryPolicy",
    "RequireSecure",
    "SampleTrainer",
    "Samples",
    "Scores",
    "SensorTopic",
    "Staleness",
    "Strategy",
    "__version__",
    "adam",
    "advise",
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
    "local",
    "polynomial",
    "private",
    "secure",
    "sgd",
    "simulate",
    "torch_evaluator",
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


def __dir__() -> list[str]:
    """The public names, including those not yet imported."""
    return sorted(__all__)
