"""`midge aggregate --shards N`: the processes that take updates in, each with the same command line as ours.

The command is run again for each shard, with its place in an environment variable, so that a program of the user, which
cannot be copied into another process, gives the same model and the same settings there.
"""

import asyncio
import json
import logging
import os
import random
import signal
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from midge.broker.local.process import dying_with_parent
from midge.broker.mqtt.connection import BrokerError
from midge.broker.mqtt.waiting import happened
from midge.commands.parts import Problem
from midge.running import Service, run_until_interrupted

if TYPE_CHECKING:
    from midge.aggregator.config import AggregatorConfig
    from midge.aggregator.service import Aggregator

log = logging.getLogger("midge")

PLACE = "MIDGE_SHARD"
"""The environment variable with a shard's place, as JSON."""
_BUG, _USER_ERROR, _AWAY = 1, 2, 75
"""Exit codes of a shard: of an exception; of what the user can correct; and of a broker that is away (EX_TEMPFAIL of
sysexits.h)."""
_SHORTEST, _LONGEST, _LASTING = 0.3, 30.0, 10.0
"""Seconds before a shard is started again, at first and at most; and of a life after which it begins with the first."""
_END = 20.0
"""Seconds after which a shard that was asked to end is killed: it sends what waits in half of that."""


def place_here() -> Mapping[str, Any] | None:
    """The place of the shard that this process is; None if it is none."""
    text = os.environ.get(PLACE)
    return None if text is None else json.loads(text)


def run_shard(config: "AggregatorConfig", place: Mapping[str, Any]) -> int:
    """Be one shard, until told to end or left alone; return the exit code."""
    from midge.gateway.shard import Shard  # noqa: PLC0415 - an extra
    from midge.gateway.shard_aggregator import ShardPlace  # noqa: PLC0415

    lineage = bytes.fromhex(place["lineage"])
    shard = Shard(config, ShardPlace(place["index"], place["number"], lineage, place["boot"]))
    try:
        run_until_interrupted(_Tethered(shard))
    except BrokerError as error:
        log.warning("%s: %s", shard.place.name, error)
        return _AWAY
    return 0


class _Tethered:
    """A service that ends with the process that started this one: then its standard input ends."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self.stop = service.stop

    async def serve(self) -> None:
        watching = asyncio.create_task(self._watch())
        try:
            await self._service.serve()
        finally:
            watching.cancel()

    async def _watch(self) -> None:
        reader = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        await reader.read()
        self.stop()


class ShardProcesses:
    """An aggregator with the processes of its shards. They are started once it serves, and end before it does.

    Args:
        aggregator: the root.
        service: what serves it: itself, or what shows it too.
    """

    def __init__(self, aggregator: "Aggregator", service: Service) -> None:
        self._aggregator, self._service = aggregator, service
        self._running: dict[int, Process] = {}
        self._asked: set[int] = set()
        """Shards that were told to end and shall be started again."""
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """End the shards, which give what they have, then the aggregator. In the loop of `serve`."""
        self._stopping.set()
        for process in self._running.values():
            _send(process, signal.SIGTERM)

    def restart(self) -> None:
        """Start the shards again, under the current settings."""
        for index, process in self._running.items():
            self._asked.add(index)
            _send(process, signal.SIGTERM)

    async def serve(self) -> None:
        """Serve until `stop()`.

        Raises:
            Problem: a shard cannot start.
            Exception: what ended the aggregator.
        """
        serving = asyncio.create_task(self._service.serve())
        waiting = [asyncio.create_task(self._aggregator.begun.wait()), asyncio.create_task(self._stopping.wait())]
        keeping: list[asyncio.Task[None]] = []
        try:
            await asyncio.wait({serving, *waiting}, return_when=asyncio.FIRST_COMPLETED)
            if not serving.done() and not self._stopping.is_set():
                keeping = [asyncio.create_task(self._keep(i)) for i in range(self._aggregator.config.shards)]
                while not serving.done() and not any(task.done() and task.exception() for task in keeping):
                    left = {serving, *(task for task in keeping if not task.done())}
                    if left == {serving}:
                        break
                    await asyncio.wait(left, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.stop()
            ended = await asyncio.gather(*keeping, return_exceptions=True)
            for task in waiting:
                task.cancel()
            self._service.stop()
            await serving
        for error in ended:
            if isinstance(error, BaseException):
                raise error

    async def _keep(self, index: int) -> None:
        """Start one shard again whenever it has ended."""
        pause, served = _SHORTEST, False
        while not self._stopping.is_set():
            began = time.monotonic()
            code = await self._life(index)
            if self._stopping.is_set():
                return
            served |= time.monotonic() >= began + _LASTING
            if code == _USER_ERROR or (code == _BUG and not served):
                raise Problem(f"shard-{index} cannot serve: its message is above.")
            if index in self._asked:
                self._asked.discard(index)
                continue
            pause = _SHORTEST if time.monotonic() >= began + _LASTING else pause
            self._aggregator.federation.shards.ended(index, code, self._aggregator.tell)
            await happened(self._stopping, pause * random.uniform(0.5, 1.0))  # noqa: S311 - spreads load
            pause = min(2 * pause, _LONGEST)

    async def _life(self, index: int) -> int:
        """One life of a shard: its exit code, or minus the signal."""
        root = self._aggregator
        place = {
            "index": index,
            "number": root.config.shards,
            "lineage": root.core.lineage.hex(),
            "boot": root.boot,
        }
        process = self._running[index] = await asyncio.create_subprocess_exec(
            *dying_with_parent([sys.executable, *sys.orig_argv[1:]]),
            stdin=PIPE,
            env={**os.environ, PLACE: json.dumps(place)},
            start_new_session=True,  # Ctrl-C is for us: the shards end first
        )
        try:
            if self._stopping.is_set():
                _send(process, signal.SIGTERM)
            ending = asyncio.create_task(self._stopping.wait())
            ended = asyncio.create_task(process.wait())
            await asyncio.wait({ending, ended}, return_when=asyncio.FIRST_COMPLETED)
            ending.cancel()
            with suppress(TimeoutError):
                async with asyncio.timeout(_END if self._stopping.is_set() else None):
                    return await asyncio.shield(ended)
            _send(process, signal.SIGKILL)
            return await ended
        finally:
            if process.stdin is not None:
                process.stdin.close()
            del self._running[index]


def _send(process: Process, number: signal.Signals) -> None:
    # Not by the process object: it looks first whether the child has ended, which confuses asyncio's own waiting.
    if process.returncode is None:
        with suppress(ProcessLookupError):
            os.kill(process.pid, number)
