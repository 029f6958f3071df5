"""The aggregator of a federation whose devices are `learner.c`: which of four sums of twelve inputs is the largest.

`tests.c_client.learning:app`, for `midge aggregate`; it reads the variables LEARNING_STORE and LEARNING_CODEC.
"""

import os

import numpy as np

from midge.aggregator.config import AggregatorConfig
from midge.aggregator.core.presets import fedbuff
from midge.aggregator.service import Aggregator
from midge.broker import Endpoint, connector
from midge.iot_client.training.numpy_models import FROZEN, MLP
from midge.wire.messages import Plan

FEDERATION, DEVICES = "learning", 3
MODEL = MLP(inputs=12, hidden=(16,), outputs=4)


def app() -> Aggregator:
    """The aggregator; `midge aggregate --broker` names its broker."""
    initial = MODEL.initial(1)
    plan = Plan(codec=os.environ["LEARNING_CODEC"], learning_rate=0.2, epochs=2, batch_size=8)
    return Aggregator(
        AggregatorConfig(
            connector=connector(Endpoint.parse("mqtt://localhost:1883")),
            federation=FEDERATION,
            initial=initial,
            roles={name: "frozen" for name in FROZEN if name in initial},
            moments={"input": MODEL.inputs},
            statistics_devices=DEVICES,
            strategy=fedbuff(2, plan=plan, release_floor=1),
            store=os.environ["LEARNING_STORE"],
            chunk=512,
        )
    )


def accuracy(parameters: dict[str, np.ndarray]) -> float:
    """On rows that no device has."""
    values = np.random.default_rng(99).uniform(-1, 1, (2000, MODEL.inputs)).astype(np.float32)
    labels = values.reshape(-1, 3, 4).sum(axis=1).argmax(axis=1)
    return float(np.mean(MODEL.predict(parameters, 10 + 5 * values).argmax(axis=1) == labels))
