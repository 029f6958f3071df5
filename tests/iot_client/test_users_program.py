"""The user's program beside the device: workers, threads, errors that pass, and an end in the middle of a training.

Seen to fail before the mend on: a forked worker deaf to SIGTERM whose signal ended the device; `daemonic processes are
not allowed to have children`; `set_wakeup_fd only works in main thread`; the first error of the trainer that ended the
device; and an end that waited for the training.
"""

import asyncio
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import CancelledError
from dataclasses import replace
from multiprocessing.pool import Pool
from pathlib import Path

import numpy as np
import pytest

from midge.broker.embedded.in_memory import Twin
from midge.iot_client.training.fit import Fit, Parameters, TrainingPlan
from midge.iot_client.training.subprocess_trainer import isolated
from midge.running import run_until_interrupted
from midge.storage.daemon_thread import DaemonThreads
from midge.wire.messages import Plan
from tests.federation.live import STRATEGY, Log, aggregator, approach, device, serving
from tests.waiting import LAST_RESORT, until

FORK = multiprocessing.get_context("fork")


class Work:
    """A service whose work runs in a thread, as a device's training does."""

    def __init__(self, work: object) -> None:
        self._work = work
        self.stopped = False
        self.result: object = None

    async def serve(self) -> None:
        self.result = await asyncio.to_thread(self._work)  # type: ignore[arg-type]

    def stop(self) -> None:
        self.stopped = True


def sleep() -> None:
    time.sleep(3600)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_worker_ends_by_a_signal_and_the_service_goes_on() -> None:
    def fork() -> list[int | None]:
        codes = []
        for _ in range(20):
            worker = FORK.Process(target=sleep)
            worker.start()
            assert worker.pid is not None
            os.kill(worker.pid, signal.SIGTERM)
            worker.join(20)
            codes.append(worker.exitcode)
            if worker.exitcode is None:
                worker.kill()
                worker.join()
        return codes

    service = Work(fork)
    assert not run_until_interrupted(service) and not service.stopped
    assert isinstance(service.result, list)
    assert service.result == [-signal.SIGTERM] * 20


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_pool_of_workers_ends_no_service() -> None:
    def pool() -> list[int]:
        found: list[int] = []
        for _ in range(5):
            with FORK.Pool(2) as workers:
                assert isinstance(workers, Pool)
                found += workers.map(abs, [-1, -2])
        return found

    service = Work(pool)
    assert not run_until_interrupted(service) and service.result == [1, 2] * 5


def train_with_workers(parameters: Parameters, plan: TrainingPlan) -> Fit:
    if plan.seed == 1:
        worker = multiprocessing.get_context("fork").Process(target=sleep)
        worker.start()
        assert worker.pid is not None
        return Fit(parameters, 1, metrics={"worker": float(worker.pid)})
    with multiprocessing.get_context("fork").Pool(2) as pool:
        return Fit(parameters, 1, metrics={"sum": float(sum(pool.map(abs, [-1, -2])))})


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] in "ZX"
    except FileNotFoundError:
        return True


def test_an_isolated_trainer_may_have_workers_and_they_end_with_it() -> None:
    trainer, parameters = isolated(train_with_workers), {"w": np.zeros(2, np.float32)}
    assert trainer(parameters, Plan()).metrics == {"sum": 3}
    worker = int(trainer(parameters, Plan(seed=1)).metrics["worker"])
    assert not gone(worker)
    trainer.end_training()
    until("the worker to end with the trainer", lambda: gone(worker))


def test_a_service_runs_beside_the_main_thread_and_is_stopped_from_there(tmp_path: Path) -> None:
    twin, log = Twin(), Log()
    app = device(twin, "a", log, tmp_path / "a")
    thread = threading.Thread(target=run_until_interrupted, args=(app,))
    thread.start()
    until("the device to connect", lambda: log.of("connected"))
    app.stop()
    thread.join(60)
    assert not thread.is_alive()


@pytest.mark.virtual
async def test_in_a_loop_that_runs_a_sentence_names_what_to_await() -> None:
    with pytest.raises(RuntimeError, match="await service"):
        run_until_interrupted(Work(sleep))


@pytest.mark.virtual
@pytest.mark.parametrize(
    "error", [OSError(121, "Remote I/O error"), ValueError("one row"), TimeoutError(), KeyError(3)]
)
async def test_an_error_that_passes_costs_one_training(tmp_path: Path, error: Exception) -> None:
    twin, log = Twin(), Log()
    failing = iter([False, True, False, True, True, False, True])

    def train(parameters: Parameters, plan: TrainingPlan) -> Fit:
        if next(failing, False):
            raise error
        return approach(parameters, plan)

    a, b = device(twin, "a", log, tmp_path / "a", train), device(twin, "b", log, tmp_path / "b")
    async with serving(aggregator(twin, tmp_path / "store", log), a, b):
        await log.until(lambda: len(log.of("receipt", device="a", verdict="accepted")) > 3)
    assert [each["failed"] for each in log.of("trainer_failed", device="a")] == [1, 1, 2, 1]
    assert type(error).__name__ in log.of("trainer_failed")[0]["why"]


@pytest.mark.virtual
async def test_an_error_that_stays_ends_the_device(tmp_path: Path) -> None:
    twin, log = Twin(), Log()

    def train(parameters: Parameters, plan: TrainingPlan) -> Fit:
        if log.of("trained", device="a"):
            raise KeyError("heat")
        return approach(parameters, plan)

    async with serving(aggregator(twin, tmp_path / "store", log), device(twin, "b", log, tmp_path / "b")):
        with pytest.raises(KeyError, match="heat"):
            await device(twin, "a", log, tmp_path / "a", train).serve()
    assert len(log.of("trainer_failed")) == 4


def test_an_end_does_not_wait_for_the_training(tmp_path: Path) -> None:
    begun, over = threading.Event(), threading.Event()

    def train(parameters: Parameters, plan: TrainingPlan) -> Fit:
        begun.set()
        over.wait(300)
        return approach(parameters, plan)

    async def work() -> None:
        twin, log = Twin(), Log()
        async with serving(aggregator(twin, tmp_path / "store", log)):
            app = device(twin, "a", log, tmp_path / "a", train)
            async with serving(app):
                await log.until(begun.is_set)
            assert log.of("training", device="a") and not log.of("trained", device="a")

    try:
        asyncio.run(work())  # it would hang until `over`
        assert not over.is_set()
    finally:
        over.set()


LEAVES = """
import multiprocessing, threading, time
from midge.storage import daemon_thread
begun = threading.Event()
def train():
    with multiprocessing.get_context("fork").Pool(1) as pool:
        pool._inqueue._rlock.acquire(False)  # else a worker has it, and keeps it when it is killed
        print([child.pid for child in multiprocessing.active_children()][0], flush=True)
        begun.set()
        time.sleep(3600)
daemon_thread.DaemonThreads().submit(train)
begun.wait()
daemon_thread.exit_code = 3
{last}
"""


@pytest.mark.parametrize(("last", "code"), [("", 3), ("raise ValueError('of the program')", 1)])
def test_the_end_of_the_process_waits_for_no_training_and_no_workers(last: str, code: int) -> None:
    """Seen to fail: Ctrl-C, which all of a group get, left the process at its exit in `Pool.terminate`, deaf."""
    words = [sys.executable, "-W", "ignore", "-c", LEAVES.format(last=last)]
    found = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert (found.returncode, "of the program" in found.stderr) == (code, bool(last))
    until("its worker to end", lambda: gone(int(found.stdout)))


RESTS = """
import asyncio, multiprocessing, os, signal
from midge.storage import daemon_thread
from midge.running import run_until_interrupted
class Service:
    def __init__(self):
        self.over = None
    async def serve(self):
        self.over = asyncio.Event()
        self.pool = multiprocessing.get_context("fork").Pool(1)
        self.pool.map(abs, [1])
        (worker,) = multiprocessing.active_children()
        worker.kill()  # it waits for work, and so leaves the lock of the queue behind
        worker.join()
        while not (found := [each.pid for each in multiprocessing.active_children() if each.pid != worker.pid]):
            await asyncio.sleep(0.01)
        print(found[0], flush=True)
        os.kill(os.getpid(), signal.SIGTERM)
        await self.over.wait()
    def stop(self):
        self.over.set()
service = Service()
run_until_interrupted(service)
"""


def test_a_pool_that_waits_for_its_next_training_holds_no_end_up() -> None:
    """Once, after SIGTERM to a group, a device said that it has left and stayed with its replaced workers for good."""
    found = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", RESTS], capture_output=True, text=True, timeout=60, check=False
    )
    assert found.returncode == 0, found.stderr
    until("its worker to end", lambda: gone(int(found.stdout)))


@pytest.mark.parametrize("error", [StopIteration(), SystemExit(0), KeyboardInterrupt(), CancelledError()])
async def test_what_a_future_takes_for_more_than_an_error_is_one(error: BaseException) -> None:
    """Seen to fail: `next()` on an exhausted iterator left the device in its training for ever."""

    def train() -> None:
        raise error

    with pytest.raises(RuntimeError, match=type(error).__name__):
        async with asyncio.timeout(LAST_RESORT):
            await asyncio.get_running_loop().run_in_executor(DaemonThreads(), train)


@pytest.mark.virtual
async def test_an_async_function_in_disguise_is_awaited(tmp_path: Path) -> None:
    twin, log = Twin(), Log()

    async def train(rate: float, parameters: Parameters, plan: TrainingPlan) -> Fit:
        await asyncio.sleep(0)
        return approach(parameters, plan)

    a = device(twin, "a", log, tmp_path / "a", lambda parameters, plan: train(0.1, parameters, plan))
    async with serving(aggregator(twin, tmp_path / "store", log), a, device(twin, "b", log)):
        await log.until(lambda: log.of("receipt", device="a", verdict="accepted"))


@pytest.mark.virtual
async def test_a_training_on_no_rows_is_tried_again_after_a_while(tmp_path: Path) -> None:
    twin, log = Twin(), Log()
    rows = iter([0, 0, 5])

    def train(parameters: Parameters, plan: TrainingPlan) -> Fit:
        return Fit(approach(parameters, plan).parameters, next(rows, 5))

    a = device(twin, "a", log, tmp_path / "a", train)
    async with serving(aggregator(twin, tmp_path / "store", log), a, device(twin, "b", log)):
        await log.until(lambda: log.of("receipt", device="a", verdict="accepted"))
    assert len(log.of("unfit", device="a")) == 2 and "no rows" in log.of("unfit")[0]["why"]


@pytest.mark.virtual
async def test_an_error_of_on_model_costs_one_model(tmp_path: Path) -> None:
    twin, log, models = Twin(), Log(), iter(range(100))

    def use(parameters: Parameters, version: int) -> None:
        if next(models) == 0:
            raise KeyError("heat")
        log({"event": "used", "version": version})

    server = aggregator(twin, tmp_path / "store", log, strategy=replace(STRATEGY, serve_interval=0.0))
    async with serving(server, device(twin, "a", log, on_model=use), device(twin, "b", log)):
        await log.until(lambda: log.of("used"))
    assert log.of("on_model_failed")[0]["why"] == "KeyError: 'heat'"
