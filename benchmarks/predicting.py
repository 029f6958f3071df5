"""Latency of `Device.predict`: microseconds for one row, by model, with the parameters as a device holds them."""

import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from midge.iot_client.data.samples import Samples
from midge.iot_client.state.prediction import Predicting
from midge.iot_client.state.verified_model import VerifiedModel
from midge.iot_client.training.numpy_models import MLP
from midge.iot_client.training.sample_trainer import SampleTrainer
from midge.wire.lineage import on_grid
from midge.wire.schema import Schema

MODELS = {
    "linear 8": MLP(8, (), 1, "regression"),
    "softmax 32-4": MLP(32, (), 4),
    "mlp 64-64-32-10": MLP(64, (64, 32), 10),
}


def using(net: MLP) -> tuple[Predicting, np.ndarray]:
    """A predictor of a device, and a row for it."""
    samples = Samples(None, [f"x{number}" for number in range(net.inputs)], "y", kind=net.task, rows=1)
    initial = net.initial()
    schema = Schema.of(initial, None)
    predicting = Predicting(None, SampleTrainer(samples).predict, lambda found, _schema: found)
    predicting.take(VerifiedModel("serve", bytes(16), 1, on_grid(schema.flatten(initial), schema, b"")), 0.0)
    return predicting, np.linspace(-1, 1, net.inputs, dtype=np.float32)


def rows(*, seconds: float = 0.5) -> Iterator[dict[str, Any]]:
    """A row for each model: the median and the 99th percentile of single predictions."""
    for name, net in MODELS.items():
        predicting, x = using(net)
        found, until = [], time.perf_counter() + seconds
        while time.perf_counter() < until:
            began = time.perf_counter()
            predicting(x)
            found.append(1e6 * (time.perf_counter() - began))
        median, slow = np.percentile(found, [50, 99])
        yield {"model": name, "predict_us": round(float(median), 1), "predict_p99_us": round(float(slow), 1)}
