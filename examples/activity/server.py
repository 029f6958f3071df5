"""The aggregator: evaluates each model on the wearables of people who never train."""

import os
from pathlib import Path

import numpy as np
import torch
from wearable import INPUTS, Net, wearers

import midge


def app(
    url: str = "mqtt://localhost", store: str | Path = "activity", data: str | Path | None = None
) -> midge.Aggregator:
    """For `SPSW=spsw_har.npz midge aggregate server:app`."""
    unseen = [(x, y) for x, y, test in wearers(data or os.environ["SPSW"]).values() if test]
    x, y = torch.from_numpy(np.concatenate([x for x, _ in unseen])), np.concatenate([y for _, y in unseen])

    @midge.torch_evaluator(Net())
    def evaluate(net) -> dict[str, float]:
        """The share of windows whose activity is told right."""
        return {"accuracy": float(np.mean(net(x).argmax(1).numpy() == y))}

    return midge.Aggregator(
        url,
        federation="activity",
        initial=Net(),
        moments={"input": INPUTS},
        statistics_devices=20,
        evaluate=evaluate,
        store=store,
    )
