"""The aggregator of a federation that learns a small perceptron: `app` for `midge aggregate`."""

import json
import os

import midge

VARIABLE = "MIDGE_LEARNING"
"""Inputs, hidden units, outputs, task, codec and store, as JSON."""


def app() -> midge.Aggregator:
    """The aggregator, as MIDGE_LEARNING describes it; `--broker` says where."""
    said = json.loads(os.environ[VARIABLE])
    net = midge.MLP(said["inputs"], tuple(said["hidden"]), said["outputs"], said["task"])
    moments = {"input": said["inputs"], **({"target": 1} if said["task"] == "regression" else {})}
    plan = midge.Plan(codec=said["codec"], local_steps=6, batch_size=8, learning_rate=0.1)
    return midge.Aggregator(
        "mqtt://localhost",
        federation="learning",
        store=said["store"],
        initial=net.initial(),
        roles={name: "frozen" for name in net.initial() if name.endswith(("_mean", "_scale"))},
        moments=moments,
        statistics_devices=2,
        strategy=midge.fedbuff(2, plan=plan, pace=midge.Pace(rest=0)),
        chunk=1024,
    )
