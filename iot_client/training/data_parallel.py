"""Data-parallel training of one model over processes, with `torch.distributed` (gloo).

Each step's batch is split evenly: every process draws its part from its own shard of the rows, and gradients are
averaged by `DistributedDataParallel`. So the steps are those of one process with the whole batch.
"""

import multiprocessing
import pickle
import queue
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from midge.iot_client.training.fit import Parameters, Recipe
from midge.iot_client.training.torch_state import arrays, load
from midge.iot_client.training.torch_trainer import Normalised

_JOB: Final = "job"
"""The file with the job, from the process that starts the others."""
STARTS: Final = 120.0
"""Seconds in which all processes must have started: each imports torch."""


@dataclass(frozen=True, slots=True)
class Stage:
    """A model during training."""

    seconds: float
    """Of training, from the first step."""
    parameters: Parameters


@dataclass(frozen=True, slots=True)
class ParallelJob:
    """What all processes train: a module, from these starts, each with its seed."""

    module: Normalised
    x: npt.NDArray[np.float32]
    y: npt.NDArray[Any]
    starts: Sequence[tuple[Parameters, int]]
    recipe: Recipe
    """Its batch size is that of all processes together; it is rounded up to a multiple of their number."""
    steps: int
    stages: int = 20


def data_parallel(job: ParallelJob, processes: int, seconds: float = 600.0) -> list[list[Stage]]:
    """Train with a number of processes, of one thread each; the stages of every start.

    Raises:
        RuntimeError: a process failed, or did not answer in time; or the module cannot be pickled.
    """
    context = multiprocessing.get_context("spawn")
    results: Any = context.Queue()
    workers: list[Any] = []
    with TemporaryDirectory(prefix="midge-") as folder:
        # Through the pipe of a worker that dies at its start, only what the pipe holds could be sent.
        try:
            torch.save(job, Path(folder, _JOB))
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise RuntimeError(f"the module cannot be sent to another process: {error}") from error
        try:
            for rank in range(processes):
                worker = context.Process(target=_run, args=(rank, processes, folder, results), daemon=True)
                worker.start()
                workers.append(worker)
            return _result(results, workers, STARTS + seconds)
        finally:
            for worker in workers:
                worker.terminate()
                worker.join()


def _result(results: Any, workers: Sequence[Any], seconds: float) -> list[list[Stage]]:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            found = results.get(timeout=0.5)
        except queue.Empty:
            if any(worker.exitcode for worker in workers):
                raise RuntimeError(
                    "a process of the data-parallel training failed. A script that is not below "
                    "`if __name__ == '__main__':` would run in each of them"
                ) from None
            continue
        if isinstance(found, str):
            raise RuntimeError(found)  # noqa: TRY004 - the text of an error in another process
        stages: list[list[Stage]] = found
        return stages
    raise RuntimeError(f"the data-parallel training did not end within {seconds:.0f} s")


def _run(rank: int, processes: int, folder: str, results: Any) -> None:
    torch.set_num_threads(1)
    try:
        job: ParallelJob = torch.load(Path(folder, _JOB), weights_only=False)
        if processes > 1:
            distributed.init_process_group(
                "gloo", init_method=f"file://{Path(folder, 'meeting')}", rank=rank, world_size=processes
            )
        found = [_train(job, rank, processes, start, seed) for start, seed in job.starts]
    except Exception as error:  # the parent reports any error as text
        results.put(f"data-parallel training: {error}")
        raise
    if rank == 0:
        results.put(found)
    if processes > 1:
        distributed.barrier()  # rank 0 hosts the connections
        distributed.destroy_process_group()


class _Loss(nn.Module):
    """The loss as a forward pass, where `DistributedDataParallel` can average gradients."""

    def __init__(self, module: Normalised) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.module.loss(x, y)


def _train(job: ParallelJob, rank: int, processes: int, start: Parameters, seed: int) -> list[Stage]:
    load(job.module, start)
    job.module.train()
    loss: nn.Module = _Loss(job.module)
    if processes > 1:
        loss = DistributedDataParallel(loss)
    rows = np.random.default_rng(seed).permutation(len(job.y))[rank::processes]
    x, y = torch.from_numpy(job.x[rows]), torch.from_numpy(job.y[rows])
    follow = replace(job.recipe, batch_size=-(-job.recipe.batch_size // processes), local_steps=job.steps, epochs=None)
    optimiser = torch.optim.SGD([one for one in loss.parameters() if one.requires_grad], lr=follow.learning_rate)
    stages, spent, began = [], 0.0, time.perf_counter()
    marks = {round(job.steps * (number + 1) / job.stages) for number in range(job.stages)}
    for number, batch in enumerate(follow.batches(len(rows), np.random.default_rng((seed, rank))), 1):
        chosen = torch.from_numpy(batch)
        optimiser.zero_grad()
        loss(x[chosen], y[chosen]).backward()
        optimiser.step()
        if number in marks:
            spent += time.perf_counter() - began
            if rank == 0:
                stages.append(Stage(spent, {name: array.copy() for name, array in arrays(job.module).items()}))
            began = time.perf_counter()
    return stages
