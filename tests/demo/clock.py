"""An event loop whose time jumps to the next timer when nothing else is to be done."""

import asyncio
import selectors
import time
from collections.abc import Coroutine
from concurrent.futures import Executor
from typing import Any, TypeVar
from unittest.mock import patch

T = TypeVar("T")

THREAD = 0.01
"""Virtual seconds that pass in a turn of the loop that waits for a thread, however long it really takes."""


class _Jumping(selectors.SelectSelector):
    """Never waits but for threads: what would be waited for is added to the clock."""

    passed = 0.0
    threads = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if self.threads and (timeout is None or timeout > 0):
            came = super().select(None)  # its end wakes the loop
            self.passed += THREAD if timeout is None else min(THREAD, timeout)
            return came
        assert timeout is not None, "nothing will ever happen: a test waits for what nobody does"
        self.passed += max(0.0, timeout)
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    """`time()` counts virtual seconds from 0."""

    def __init__(self) -> None:
        self._jumping = _Jumping()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.passed

    def run_in_executor(  # type: ignore[override]
        self, executor: Executor | None, func: Any, *args: Any
    ) -> "asyncio.Future[Any]":
        future = super().run_in_executor(executor, func, *args)
        self._jumping.threads += 1
        future.add_done_callback(self._back)
        return future

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 - asyncio's signature
        self._jumping.threads += 1
        try:
            await super().shutdown_default_executor()
        finally:
            self._jumping.threads -= 1

    def _back(self, _: "asyncio.Future[Any]") -> None:
        self._jumping.threads -= 1


def run_virtually(work: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run` on a virtual clock."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(work)


def live_virtually(work: Coroutine[Any, Any, T]) -> T:
    """The same, where what runs looks at the clocks of `time` too: they go with the loop's, from now on."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        loop = runner.get_loop()
        monotonic, wall = time.monotonic(), time.time()
        with (
            patch.object(time, "monotonic", lambda: monotonic + loop.time()),
            patch.object(time, "time", lambda: wall + loop.time()),
        ):
            return runner.run(work)
