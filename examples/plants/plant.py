"""A plant as one device: its processes train one model in parallel (torch DDP), and the first of them is the device.

torchrun --standalone --nproc-per-node 2 --max-restarts 1000 plant.py --plant 0 --url mqtt://localhost
"""

import argparse
from datetime import timedelta

import numpy as np
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

import midge
from midge.sensor_fleet.data import load

PLANTS = 3
BATCH = 32
"""Rows of a step, of all processes together."""
A_LONG_TIME = timedelta(days=365)
"""How long the other processes wait for work: the plant may be offline. A process that ends is noticed at once."""


class Net(nn.Module):
    """Images of 8 × 8 pixels, ten classes."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(256, 10)
        )

    def forward(self, x):
        return self.layers(x[:, None] / 16)


def images(rows) -> tuple[torch.Tensor, torch.Tensor]:
    """The images (n, 8, 8) and labels of rows."""
    return torch.from_numpy(rows.x.astype(np.float32).reshape(-1, 8, 8)), torch.from_numpy(rows.y.astype(np.int64))


class Parallel:
    """One process of a plant: it has its share of the rows, and takes the same steps as the others."""

    def __init__(self, x: torch.Tensor, y: torch.Tensor) -> None:
        self.rank, self.processes = distributed.get_rank(), distributed.get_world_size()
        self.net, self.examples = Net(), len(y)
        self._x, self._y = x[self.rank :: self.processes], y[self.rank :: self.processes]
        self._ddp = DistributedDataParallel(self.net)

    def lead(self, plan) -> int:
        """Train with all processes from the parameters that this one has; for `midge.torch_trainer`."""
        self._train(plan.learning_rate or 0.05, plan.local_steps or 20, plan.seed % 2**32)
        return self.examples

    def follow(self) -> None:
        """Train whenever the first process does, until it ends."""
        while self._train(0.0, 0, 0):
            pass

    def end(self) -> None:
        """Let the other processes end."""
        distributed.broadcast_object_list([None])

    def _train(self, rate: float, steps: int, seed: int) -> bool:
        work = [(rate, steps, seed)]
        distributed.broadcast_object_list(work)
        if work[0] is None:
            return False
        rate, steps, seed = work[0]
        for tensor in self.net.state_dict().values():
            distributed.broadcast(tensor, 0)
        optimiser = torch.optim.SGD(self._ddp.parameters(), lr=rate)
        rng = torch.Generator().manual_seed(seed + self.rank)
        for _ in range(steps):
            rows = torch.randint(len(self._y), (BATCH // self.processes,), generator=rng)
            optimiser.zero_grad()
            nn.functional.cross_entropy(self._ddp(self._x[rows]), self._y[rows]).backward()
            optimiser.step()
        return True


def main() -> None:
    """Take part, under torchrun."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plant", type=int, required=True)
    parser.add_argument("--url", required=True)
    parser.add_argument("--outbox", default=None)
    given = parser.parse_args()
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", timeout=A_LONG_TIME)
    rows = list(load("digits", devices=PLANTS).devices.values())[given.plant]
    parallel = Parallel(*images(rows))
    if parallel.rank:
        parallel.follow()
    else:
        name = f"plant-{given.plant}"
        train = midge.torch_trainer(parallel.net)(lambda _, plan: parallel.lead(plan))
        outbox = given.outbox or f"{name}.outbox"
        midge.Device(given.url, federation="plants", name=name, train=train, outbox=outbox).run()
        parallel.end()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
