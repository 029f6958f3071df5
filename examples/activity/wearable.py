"""A device: a phone or a watch that learns what its wearer does. Training is an ordinary torch loop."""

import os
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import nn

import midge
from midge.sensor_fleet.features import of_windows

INPUTS, ACTIVITIES = 153, 5
torch.set_num_threads(1)  # many devices on one machine, and small models


class Net(nn.Module):
    """A perceptron on features in time and frequency, that normalises them with the federation's statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("input_mean", torch.zeros(INPUTS))
        self.register_buffer("input_scale", torch.ones(INPUTS))
        self.layers = nn.Sequential(nn.Linear(INPUTS, 96), nn.ReLU(), nn.Linear(96, ACTIVITIES))

    def forward(self, x):
        z = (x - self.input_mean) / self.input_scale
        return self.layers(torch.where(torch.isfinite(z), z, 0.0))


@cache
def wearers(path: str | Path) -> dict[int, tuple[np.ndarray, np.ndarray, bool]]:
    """Each device's features (windows, INPUTS) and activities (windows,), and whether its wearer is of the test."""
    data = np.load(path)
    x, y, unit, split = (
        of_windows(data["x"].astype(np.float32)),
        data["y"].astype(np.int64),
        data["unit"],
        data["split"],
    )
    return {int(number): (x[unit == number], y[unit == number], bool(split[unit == number][0])) for number in set(unit)}


def device(number: int, x, y, url: str = "mqtt://localhost", outbox: str | None = None) -> midge.Device:
    """One wearable with its own windows."""
    rows, labels = torch.from_numpy(x), torch.from_numpy(y)

    @midge.torch_trainer(Net())
    def train(model, plan):
        optimiser = torch.optim.SGD(model.parameters(), lr=plan.learning_rate or 0.1)
        chance = torch.Generator().manual_seed(plan.seed % 2**32)
        for _ in range(plan.local_steps or 20):
            batch = torch.randint(len(rows), (32,), generator=chance)
            loss = nn.functional.cross_entropy(model(rows[batch]), labels[batch])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        return len(rows), {"loss": loss.item()}

    return midge.Device(
        url,
        federation="activity",
        name=f"wearable-{number}",
        train=train,
        moments={"input": midge.Moments.of(x)},
        outbox=outbox,
    )


def app() -> midge.Device:
    """For `SPSW=spsw_har.npz WEARABLE=7 midge device wearable:app`."""
    number = int(os.environ.get("WEARABLE", "0"))
    x, y, _ = wearers(os.environ["SPSW"])[number]
    return device(number, x, y, outbox=f"wearable-{number}.outbox")
