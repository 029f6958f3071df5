"""How often devices of a healthy fleet keep an older model, and how many of them refuse a bad one.

`python -m benchmarks.keeping digits FILE.npz …`: 20 devices with unequal shares of the classes; each version carries
the updates of four of them. Every device tries every version on its own rows.
"""

import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from midge.iot_client.state.model_comparison import KEEP, KeepRule, ModelComparison
from midge.iot_client.training.fit import Recipe
from midge.iot_client.training.numpy_models import MLP
from midge.sensor_fleet.data import load
from midge.wire.messages import Plan

DEVICES, VERSIONS, TOGETHER = 20, 60, 4
RECIPE = Recipe(local_steps=20, learning_rate=0.05, batch_size=16)

Model = Mapping[str, npt.NDArray[np.float32]]
Own = tuple[npt.NDArray[Any], npt.NDArray[Any]]


def refuses(net: MLP, rule: KeepRule, own: Own, used: Model, new: Model) -> bool:
    """Whether a device refuses a model on its last rows."""
    count = min(len(own[1]), rule.rows) // rule.group * rule.group
    x, y = (values[len(values) - count :] for values in own)
    if not count or (y == y[0]).all():
        return False
    comparison = ModelComparison(rule)
    comparison.add(*((net.predict(model, x).argmax(1) != y).astype(float) for model in (used, new)))
    return comparison.refuses


def measure(source: str, margin: float, seed: int) -> None:
    """Print one run."""
    rng, rule = np.random.default_rng(seed), replace(KEEP, margin=margin)
    own: list[Own] = []
    for rows in load(source, devices=DEVICES, seed=seed).devices.values():
        order = rng.permutation(len(rows))
        own.append((np.reshape(rows.x, (len(rows), -1)).astype(np.float32)[order], rows.y[order]))
    pooled = np.concatenate([x for x, _ in own])
    net = MLP(pooled.shape[1], (32,), 10)
    model: dict[str, npt.NDArray[np.float32]] = {
        **net.initial(seed),
        "input_mean": pooled.mean(0),
        "input_scale": pooled.std(0) + np.float32(1e-3),
    }
    used, kept = [dict(model) for _ in own], 0
    for version in range(VERSIONS):
        fits = [
            net.trainer(*own[device], seed=int(device), recipe=RECIPE)(model, Plan(seed=version)).parameters
            for device in rng.choice(DEVICES, TOGETHER, replace=False)
        ]
        for name in net.shapes:
            step = sum(np.asarray(fit[name]) - model[name] for fit in fits) / (2 * TOGETHER)
            model[name] = np.asarray(model[name] + step, np.float32)
        for device, rows in enumerate(own):
            if refuses(net, rule, rows, used[device], model):
                kept += 1
            else:
                used[device] = dict(model)
    last = list(net.shapes)[-2]
    bad = sum(refuses(net, rule, rows, model, {**model, last: -model[last]}) for rows in own)
    score = np.mean([np.mean(net.predict(model, x).argmax(1) == y) for x, y in own])
    print(
        f"{source}, margin {margin:g}, seed {seed}: {kept / (DEVICES * VERSIONS):.2%} of trials keep the older model; "
        f"{bad} of {DEVICES} devices refuse a negated last layer; accuracy {score:.3f}, "
        f"{np.mean([min(len(y), rule.rows) for _, y in own]):.0f} rows",
        flush=True,
    )


if __name__ == "__main__":
    for data in sys.argv[1:] or ["digits"]:
        for share in (0.1, 0.0):
            for number in range(3):
                measure(data, share, number)
