"""The aggregator: evaluates each model on images that no plant has."""

from pathlib import Path

import numpy as np
import torch
from plant import PLANTS, Net, images

import midge
from midge.sensor_fleet.data import load


def app(url: str = "mqtt://localhost", store: str | Path = "plants") -> midge.Aggregator:
    """For `midge aggregate server:app`."""
    x, y = images(load("digits", devices=PLANTS).test)
    net = Net()

    def evaluate(parameters) -> dict[str, float]:
        """The share of images whose class is recognised."""
        net.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in parameters.items()})
        with torch.no_grad():
            return {"accuracy": float((net(x).argmax(1) == y).double().mean())}

    return midge.Aggregator(url, federation="plants", initial=Net(), evaluate=evaluate, store=store)
