"""A thread that the end of the process does not wait for: a training may take long after it is of no use any more."""

import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Executor, Future
from typing import Any, TypeVar

T = TypeVar("T")

_MEANS_MORE = (StopIteration, CancelledError)
"""What a future, or who awaits it, takes for something else than an error: it would be waited for, for ever. Thus also
all that is no `Exception`, such as what `sys.exit` raises."""


class DaemonThreads(Executor):
    """Each call in a daemon thread of its own. asyncio's default executor and those of the library join theirs."""

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> "Future[T]":
        future: Future[T] = Future()

        def work() -> None:
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

        threading.Thread(target=work, name="midge training", daemon=True).start()
        return future
