"""Training in a process of its own: the same fit, meek, bounded, and killed without harm."""

import ctypes
import os
import platform
import resource
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from midge.broker.embedded.in_memory import Twin
from midge.iot_client.session import training_cycle
from midge.iot_client.training import subprocess_trainer as isolation
from midge.iot_client.training.fit import Fit, Parameters, Trainer, TrainingKilled, TrainingPlan
from midge.iot_client.training.subprocess_trainer import Isolated, TrainerFailed, isolated
from midge.wire.messages import Plan
from tests import needs
from tests.federation.live import Log, aggregator, approach, device, serving
from tests.waiting import until

PARAMETERS: Parameters = {
    "w": np.arange(6, dtype=np.float32).reshape(2, 3),
    "steps": np.int64(7) * np.ones((), np.int64),
    "mask": np.array([True, False]),
    "none": np.zeros((0, 3), np.float32),
}


def train(parameters: Parameters, plan: TrainingPlan) -> Fit:
    """Does what the plan's seed says: one process serves all tests that only look."""
    match plan.seed:
        case 1:
            raise ZeroDivisionError("no data today")
        case 2:
            return parameters  # type: ignore[return-value]
        case 3:
            begun(os.getpid()).touch()
            time.sleep(3600)
        case 4:
            np.ones(2**27, np.float64)
        case 5:
            ioprio_get = isolation._IOPRIO_SET.get(platform.machine(), 0) + 1  # so on every machine of the table
            found = {
                "pid": os.getpid(),
                "nice": os.nice(0),
                "io": ctypes.CDLL(None).syscall(ioprio_get, 1, 0) if sys.platform == "linux" else 0,
                "oom": Path("/proc/self/oom_score_adj").read_text() if sys.platform == "linux" else 0,
                "data": resource.getrlimit(resource.RLIMIT_DATA)[0],
            }
            return Fit(parameters, 1, metrics={name: float(value) for name, value in found.items()})
    return Fit({**parameters, "w": parameters["w"] * 2}, examples=5, steps=3, metrics={"loss": 0.5}, tensors=("w",))


def begun(pid: int) -> Path:
    """A file that is there once a process has begun the training that does not end by itself."""
    return Path(tempfile.gettempdir()) / f"midge-test-training-{pid}"


def refuse() -> Trainer:
    raise OSError("no such readings")


@pytest.fixture(scope="module")
def child() -> Iterator[Isolated]:
    trainer = isolated(train)
    yield trainer
    trainer.end_training()


def test_it_gives_what_the_trainer_would_in_this_process(child: Isolated) -> None:
    there, here = child(PARAMETERS, Plan()), train(PARAMETERS, Plan())
    assert {name: (value.dtype, value.shape) for name, value in there.parameters.items()} == {
        name: (value.dtype, value.shape) for name, value in here.parameters.items()
    }
    for name, value in here.parameters.items():
        np.testing.assert_array_equal(there.parameters[name], value)
    assert (there.examples, there.steps, there.metrics, there.tensors) == (5, 3, {"loss": 0.5}, ("w",))


@needs.linux
def test_it_gives_way_in_every_respect(child: Isolated) -> None:
    found = child(PARAMETERS, Plan(seed=5)).metrics
    assert found["pid"] != os.getpid()
    assert found["nice"] == min(19, os.nice(0) + isolation.NICE) and found["oom"] == isolation.OOM_SCORE
    if platform.machine() in isolation._IOPRIO_SET:
        assert int(found["io"]) >> 13 == 3


def test_what_the_trainer_raises_comes_with_its_traceback(child: Isolated) -> None:
    with pytest.raises(TrainerFailed, match=r"(?s)in train.*ZeroDivisionError: no data today"):
        child(PARAMETERS, Plan(seed=1))
    with pytest.raises(TrainerFailed, match=r"must return midge\.Fit"):
        child(PARAMETERS, Plan(seed=2))
    assert child(PARAMETERS, Plan()).examples == 5


def test_a_trainer_that_cannot_be_made_is_told() -> None:
    trainer = Isolated(refuse)
    with pytest.raises(TrainerFailed, match="no such readings"):
        trainer(PARAMETERS, Plan())
    trainer.end_training()


def _once_it_trains(child: Isolated, end: Callable[[int], None]) -> threading.Thread:
    """End the training that does not end by itself, when it has begun; its process is given."""

    def wait() -> None:
        until("a child", lambda: child._child is not None and child._child[0].pid is not None)
        assert child._child is not None
        pid = child._child[0].pid
        assert pid is not None
        until("its training", begun(pid).exists)
        begun(pid).unlink()
        end(pid)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def test_a_kill_costs_one_training_and_is_counted(child: Isolated) -> None:
    before = child.killed
    killing = _once_it_trains(child, lambda pid: os.kill(pid, signal.SIGKILL))
    with pytest.raises(TrainingKilled, match="SIGKILL"):
        child(PARAMETERS, Plan(seed=3))
    killing.join()
    assert child.killed == before + 1
    assert child(PARAMETERS, Plan()).examples == 5


@needs.linux
def test_memory_beyond_the_limit_costs_one_training_too() -> None:
    bounded = Isolated(partial(isolation._given, train), memory=400 * 2**20)
    assert bounded(PARAMETERS, Plan()).examples == 5
    with pytest.raises(TrainingKilled, match="out of memory"):
        bounded(PARAMETERS, Plan(seed=4))
    assert bounded.killed == 1 and bounded(PARAMETERS, Plan(seed=5)).metrics["data"] == 400 * 2**20
    bounded.end_training()


async def test_a_device_goes_on_when_what_trains_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_cycle, "KILLED", 0.1)
    twin, log = Twin(), Log()
    trainer = isolated(approach)
    a = device(twin, "a", log, tmp_path / "a", train=trainer)
    async with serving(aggregator(twin, tmp_path / "store", log), a, device(twin, "b", log)):
        await log.until(lambda: log.of("receipt", device="a"))
        while not a.killed:
            if trainer._child is not None:
                trainer._child[0].kill()  # SIGKILL, unless it has ended and was reaped: killed before it trained
            more = len(log.events) + 5
            await log.until(lambda least=more: len(log.events) >= least)  # type: ignore[misc]
        before = len(log.of("receipt", device="a"))
        await log.until(lambda: len(log.of("receipt", device="a")) > before + 2)
    assert log.of("killed_training", device="a")
    assert {each["verdict"] for each in log.of("receipt", device="a")} == {"accepted"}
    assert trainer._child is None or not trainer._child[0].is_alive()


def test_closing_ends_a_training_at_once(child: Isolated) -> None:
    trainer = isolated(train)
    closing = _once_it_trains(trainer, lambda _: trainer.end_training())
    with pytest.raises(TrainingKilled):
        trainer(PARAMETERS, Plan(seed=3))
    closing.join()
    assert trainer.killed == 0
