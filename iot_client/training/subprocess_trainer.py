"""Training in a child process: of low priority, bounded in memory, and safe to kill.

The device's process holds the outbox and the promises; it is small, so that the kernel does not kill it when memory
runs out. The child trains at a low priority, does I/O only when no other process does, and has a memory limit.
Parameters go through a pipe as a header in msgpack followed by raw bytes.
"""

import atexit
import ctypes
import multiprocessing
import os
import platform
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from midge.iot_client.training.fit import Fit, Parameters, Trainer, TrainingKilled, TrainingPlan
from midge.iot_client.training.update_encoder import TrainerError, checked
from midge.wire import frames
from midge.wire.messages import Plan

Load = Callable[[], Trainer]
"""Makes the trainer, in the child. It is pickled: a function of a module, or a `partial` of one."""

NICE = 10
OOM_SCORE = 800
"""Added to the process's oom_score, of 1000: the kernel kills it before anything else of ours."""
_IOPRIO_SET = {"x86_64": 251, "aarch64": 30, "riscv64": 30, "armv6l": 314, "armv7l": 314, "i686": 289}
"""Numbers of the system call by machine: the C library has no function for it."""
_IDLE_CLASS = 3 << 13
"""IOPRIO_CLASS_IDLE; ioprio_set(2)."""
_PR_SET_PDEATHSIG = 1
_PATIENCE = 5.0


class TrainerFailed(RuntimeError):
    """The trainer raised; its traceback is the message."""


class Misfit(TrainerFailed, TrainerError):
    """The trainer's result is not an update, or the parameters do not fit its model; the message says why."""


class Isolated:
    """A trainer that runs in a child process, for `Device(train=…)`. The child is kept between trainings.

    Args:
        load: makes the trainer there.
        memory: most bytes of data of the child, its libraries' included; None sets no limit.
        nice: added to its niceness.
    """

    def __init__(self, load: Load, *, memory: int | None = None, nice: int = NICE) -> None:
        self._load, self._memory, self._nice = load, memory, nice
        self._child: tuple[multiprocessing.process.BaseProcess, Connection] | None = None
        self._lock = threading.Lock()
        self.killed = 0
        """Number of lost trainings."""
        self._closed = False

    def __call__(self, parameters: Parameters, plan: TrainingPlan) -> Fit:
        """Train in the child, and wait for it.

        Raises:
            TrainingKilled: the process was killed, or ran out of memory.
            TrainerFailed: the trainer raised.
            Misfit: its result is no update, or the parameters do not fit its model.
        """
        try:
            answer, arrays = self._ask(parameters, plan)
        except (EOFError, OSError) as error:
            raise self._kill_error() from error
        match answer:
            case {"fit": fit}:
                tensors = fit.pop("tensors")
                return Fit(arrays, tensors=None if tensors is None else tuple(tensors), **fit)
            case {"memory": words}:
                self._end()
                self.killed += 1
                raise TrainingKilled(f"the training ran out of memory: {words}")
            case {"misfit": words}:
                raise Misfit(words)
        raise TrainerFailed(str(answer.get("error", answer)).rstrip())

    def end_training(self) -> None:
        """Kill the child. A running training ends with `TrainingKilled`."""
        self._closed = True
        self._end()

    def _ask(self, parameters: Parameters, plan: TrainingPlan) -> tuple[dict[str, Any], Parameters]:
        with self._lock:
            if self._closed:
                raise EOFError
            if self._child is None or not self._child[0].is_alive():
                self._child = self._begin()
            _, pipe = self._child
        asked = plan.model_dump() if isinstance(plan, Plan) else Plan().model_dump()
        _send(pipe, {"plan": asked}, parameters)
        return _receive(pipe)

    def _begin(self) -> tuple[multiprocessing.process.BaseProcess, Connection]:
        # Spawned: a fork of a process with threads and an event loop can hang, and would share its memory.
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        # No daemon process, because those may have no children: a trainer may have workers. So we must end it.
        child = context.Process(
            target=_serve, args=(theirs, self._load, self._memory, self._nice), name="midge training", daemon=False
        )
        child.start()
        atexit.register(self._end)
        theirs.close()
        return child, ours

    def _kill_error(self) -> TrainingKilled:
        code = None
        with self._lock:
            if self._child is not None:
                child, pipe = self._child
                child.join(_PATIENCE)
                _kill_group(child)
                code, self._child = child.exitcode, None
                pipe.close()
        if not self._closed:
            self.killed += 1
        if code is not None and code < 0:
            with suppress(ValueError):
                return TrainingKilled(f"the process that trained was killed by {signal.Signals(-code).name}")
        return TrainingKilled(f"the process that trained ended with code {code}")

    def _end(self) -> None:
        with self._lock:
            child = self._child
        atexit.unregister(self._end)
        if child is not None:
            _kill_group(child[0])
            child[0].kill()
            child[0].join(_PATIENCE)


def _kill_group(child: multiprocessing.process.BaseProcess) -> None:
    """Kill the child's process group: otherwise its workers would stay."""
    with suppress(OSError):
        if child.pid is not None and child.pid != os.getpgrp():
            os.killpg(child.pid, signal.SIGKILL)


def isolated(train: Trainer, *, memory: int | None = None, nice: int = NICE) -> Isolated:
    """Run a trainer of a module in a child process. In a script, `run()` must be below `if __name__ == "__main__"`.

    Args:
        train: a function of a module, or another picklable trainer.
        memory: most bytes of data of the process; None sets no limit.
        nice: added to its niceness.

    Examples:
        >>> trainer = midge.isolated(midge.Linear(2).trainer(np.zeros((4, 2)), np.zeros(4, int)), memory=2**30)
        >>> trainer.killed
        0
    """
    return Isolated(partial(_given, train), memory=memory, nice=nice)


def _given(train: Trainer) -> Trainer:
    return train


# ---------------------------------------------------------------------- over the pipe


def _send(pipe: Connection, header: dict[str, Any], arrays: Parameters) -> None:
    """Send a header, and each array as raw bytes after it."""
    plain = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    about = [(name, array.dtype.str, array.shape) for name, array in plain.items()]
    pipe.send_bytes(frames.pack({**header, "arrays": about}))
    for array in plain.values():
        if array.size:
            pipe.send_bytes(array.reshape(-1).view(np.uint8).data)


def _receive(pipe: Connection) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Receive what `_send` sent.

    Raises:
        EOFError: the other side is gone.
    """
    header: dict[str, Any] = frames.unpack(pipe.recv_bytes())
    arrays = {}
    for name, dtype, shape in header.pop("arrays"):
        array = np.empty(shape, np.dtype(dtype))
        if array.size:
            pipe.recv_bytes_into(array.reshape(-1).view(np.uint8).data)
        arrays[name] = array
    return header, arrays


# ------------------------------------------------------------------------ the child


def _serve(pipe: Connection, load: Load, memory: int | None, nice: int) -> None:
    """Train on each request, until the other side is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the device's process
    os.setpgid(0, 0)  # one process group with all that the trainer starts, so that it can be killed together
    step_back(nice)
    try:
        train = load()
        limit_memory(memory)
    except Exception:  # noqa: BLE001 - reported where the training was requested
        with suppress(EOFError, OSError):
            pipe.recv_bytes()
            _send(pipe, {"error": traceback.format_exc()}, {})
        return
    with suppress(EOFError, OSError):
        while True:
            asked, parameters = _receive(pipe)
            _send(pipe, *_answer(train, parameters, Plan.model_validate(asked["plan"])))


def _answer(train: Trainer, parameters: Parameters, plan: Plan) -> tuple[dict[str, Any], Parameters]:
    try:
        fit = checked(train(parameters, plan))
        plain = {
            "examples": fit.examples,
            "steps": fit.steps,
            "metrics": dict(fit.metrics),
            "tensors": None if fit.tensors is None else list(fit.tensors),
        }
    except MemoryError as error:
        return {"memory": str(error) or "no more is allowed"}, {}
    except TrainerError as error:
        return {"misfit": str(error)}, {}
    except BaseException:  # noqa: BLE001 - reported where the training was requested; sys.exit must not end the process
        return {"error": traceback.format_exc()}, {}
    return {"fit": plain}, fit.parameters


def step_back(nice: int) -> None:
    """Lower the priority of this process: processor, disk, memory; and end with the device.

    Forbidden steps are skipped.
    """
    with suppress(OSError):
        os.nice(nice)
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:  # noqa: PTH123
        file.write(str(OOM_SCORE))
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            libc = ctypes.CDLL(None)
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if (number := _IOPRIO_SET.get(platform.machine())) is not None:
                libc.syscall(number, 1, 0, _IDLE_CLASS)


def limit_memory(memory: int | None) -> None:
    """Limit private memory: beyond it an allocation fails. Address space that is only reserved does not count."""
    if memory is not None:
        import resource  # noqa: PLC0415 - not on every system

        resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
