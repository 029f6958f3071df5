"""Daemon threads for the owner's functions, such as a training: the end of the process does not wait for them."""

import atexit
import logging
import multiprocessing.util
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Executor, Future
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")

_MEANS_MORE = (StopIteration, CancelledError)
"""Exceptions that a future or its awaiter interprets, so that it would wait forever. Likewise everything that is no
`Exception`, such as what `sys.exit` raises."""

exit_code = 0
"""Exit code of the process if a training still runs then; set by code that knows a better one."""
interrupted = False
"""Whether a signal ends the process: the whole process group gets it, and killed workers may have left locks."""

_running: set[object] = set()
"""Calls that have not returned."""
_forking = threading.Lock()
"""Held while a process forks, and from the end on: a pool replaces a lost worker."""
_BORN = 0.05
"""Seconds until a forked child is in the library's list, generously."""


class DaemonThreads(Executor):
    """Runs each call in a daemon thread of its own. asyncio's default executor and those of the library join theirs."""

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> "Future[T]":
        future: Future[T] = Future()

        def work() -> None:
            try:
                if not future.set_running_or_notify_cancel():
                    return
                try:
                    result = fn(*args, **kwargs)
                except BaseException as error:  # noqa: BLE001 - raised where the call is awaited
                    if isinstance(error, _MEANS_MORE) or not isinstance(error, Exception):
                        failed = RuntimeError(f"{type(error).__name__}: {error}".removesuffix(": "))
                        failed.__cause__, error = error, failed
                    future.set_exception(error)
                else:
                    future.set_result(result)
            finally:
                _running.discard(future)

        _running.add(future)
        threading.Thread(target=work, name="midge training", daemon=True).start()
        return future


def _leave() -> None:
    """End the process at once if a training still runs, or if a signal ended it and there are workers.

    Workers may be gone already, for Ctrl-C and systemd signal the whole group, and have left locks that the library
    would wait for at exit, forever. A pool that waits for its next training has replaced them since.
    """
    if not _running and not (interrupted and multiprocessing.active_children()):
        return
    _forking.acquire()  # never released
    time.sleep(_BORN)
    for child in multiprocessing.active_children():
        child.kill()
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    os._exit(1 if getattr(sys, "last_value", None) is not None else exit_code)


def _forked() -> None:
    _running.clear()
    _forking.release()


atexit.register(_leave)
os.register_at_fork(before=_forking.acquire, after_in_parent=_forking.release, after_in_child=_forked)
