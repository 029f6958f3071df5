"""Follows a federation and mirrors it into MLflow, in a process of its own.

It observes the federation at its broker, as the live page does, and reads the registry from the store without a change
to it. So the aggregator knows nothing of MLflow, and a server of MLflow that is slow or away costs it nothing: what was
measured waits here, and is written later.
"""

import asyncio
import logging
import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from midge.aggregator.store.registered import RegistryReading, registered_in
from midge.aggregator.store.store import StoreError
from midge.broker import Connector
from midge.dashboard.intervals import Interval, MetricSpread
from midge.dashboard.observer import FederationObserver
from midge.dashboard.state import FederationState
from midge.model_export.mlflow_mirror import FederationSample, MlflowMirror
from midge.storage.daemon_thread import DaemonThreads
from midge.wire.topics import Topics

log = logging.getLogger("midge")

_WAITING = 2000
"""Samples that wait for MLflow at most: a week of them, at one in five minutes. Then the oldest are given up."""
_NAMES = 32
"""The devices' metrics that are followed, the most common ones: names come from devices."""
_LONGEST = 600.0
"""Seconds between two attempts at most."""
_LAST = 10.0
"""Seconds for the last attempt, at the end."""


class MlflowBridge:
    """A service that ends when it is stopped.

    Args:
        connect: the operator's connector.
        topics: of the federation.
        store: the aggregator's, if it is at hand: without it no version is registered.
        mirror: writes into MLflow.
        every: seconds between two samples.
        tell: takes a summary after each attempt.
    """

    def __init__(
        self,
        connect: Connector,
        topics: Topics,
        store: Path | None,
        mirror: MlflowMirror,
        *,
        every: float = 300.0,
        tell: Callable[[Mapping[str, Any]], None] = lambda _: None,
    ) -> None:
        self._connect, self._store, self._mirror, self._every, self._tell = connect, store, mirror, every, tell
        self._state = FederationState(topics, time.time())
        self._waiting: deque[FederationSample] = deque(maxlen=_WAITING)
        self._last: dict[str, float] = {}
        """The values of the newest sample."""
        self._stop, self._news = asyncio.Event(), asyncio.Event()
        self._threads, self._one = DaemonThreads(), threading.Lock()
        self.counts = Counter[str]()
        """Samples and versions that were written, samples that were given up, and failures of MLflow."""

    def stop(self) -> None:
        self._stop.set()

    async def serve(self) -> None:
        """Follow until stopped; what waits is then written once more, if MLflow answers."""
        observer = FederationObserver(self._state, self._connect, watched=lambda: False)
        tasks: list[asyncio.Task[Any]] = [
            asyncio.create_task(each) for each in (observer.run(), self._sampling(), self._writing())
        ]
        stopping = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait([*tasks, stopping], return_when=asyncio.FIRST_COMPLETED)
            for each in tasks:
                if each.done():
                    each.result()  # a bug ends it
        finally:
            for each in (*tasks, stopping):
                each.cancel()
            await asyncio.gather(*tasks, stopping, return_exceptions=True)
        self._sample()
        with suppress(TimeoutError):
            async with asyncio.timeout(_LAST):
                await self._write()

    # ---------------------------------------------------------------------- sampling

    async def _sampling(self) -> None:
        while True:
            await asyncio.sleep(self._every)
            self._sample()
            self._news.set()

    def _sample(self) -> None:
        """Note what was measured since the last sample."""
        now, found = time.time(), self._state.view.found
        self._state.tick(now)
        aggregator = found["aggregator"]
        if aggregator is None:
            return
        values = {**_counts(self._state.intervals.drained()), **_results(found)}
        new = {name: value for name, value in values.items() if value != self._last.get(name)}
        self._last = values
        self.counts["given_up"] += len(self._waiting) == _WAITING
        self._waiting.append(FederationSample(aggregator["lineage"], now, aggregator["version"], new))

    # ----------------------------------------------------------------------- writing

    async def _writing(self) -> None:
        """Write what waits, again and again until MLflow takes it."""
        pause = min(self._every, _LONGEST)
        while True:
            await self._news.wait()
            self._news.clear()
            if await self._write():
                pause = min(self._every, _LONGEST)
                continue
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST)
            self._news.set()

    async def _write(self) -> bool:
        """One attempt; whether it succeeded."""
        loop, ok, why = asyncio.get_running_loop(), True, ""
        try:
            await loop.run_in_executor(self._threads, self._write_all)
        except Exception as error:  # noqa: BLE001 - MLflow raises those of its database, its network and its disk
            ok, why = False, f"{type(error).__name__}: {error}".splitlines()[0][:300]
            self.counts["failures"] += 1
            log.warning("Not all could be written into MLflow (%s); %d samples wait.", why, len(self._waiting))
            self._mirror.forget()
        self._tell({"ok": ok, "why": why, "waiting": len(self._waiting), **self.counts})
        return ok

    def _write_all(self) -> None:
        """Write samples and versions. Blocks."""
        with self._one:  # the last attempt may find one that has not returned
            self._write_waiting()

    def _write_waiting(self) -> None:
        while self._waiting:
            sample = self._waiting[0]
            self._mirror.log(sample)
            with suppress(IndexError):
                if self._waiting[0] is sample:  # it was not given up meanwhile
                    self._waiting.popleft()
            self.counts["samples"] += 1
        if (reading := self._read()) is not None:
            self.counts["versions"] += self._mirror.register(reading)

    def _read(self) -> RegistryReading | None:
        """The registered versions, with the values of those that are new; None if they cannot be read now.

        Only while the aggregator serves: of a store at rest the lock is held meanwhile, and it could not start.
        """
        if self._store is None or not self._state.serves:
            return None
        try:
            return registered_in(
                self._store, lambda lineage, version: not self._mirror.complete(lineage.hex(), version)
            )
        except StoreError as error:
            log.warning("The registered versions cannot be read now: %s", error)
            return None


def _counts(total: Interval) -> dict[str, float]:
    """What happened since the last sample."""
    found = {
        "updates.accepted": total.accepted,
        "updates.refused": total.refused,
        "staleness.median": total.quantile(0.5),
        "staleness.p90": total.quantile(0.9),
        "bytes_per_second.up": total.up,
        "bytes_per_second.down": total.down,
        "devices.online": total.online,
        "version": total.version,
    }
    return {name: float(value) for name, value in found.items() if value is not None}


def _results(found: Mapping[str, Any]) -> dict[str, float]:
    """The aggregator's own evaluation, and the devices' results on their own data with the spread over devices."""
    results = {f"server.{name}": float(value) for name, value in found["metrics"].items() if math.isfinite(value)}
    measured = [each["metrics"] for each in found["devices"].values() if each.get("metrics")]
    names = Counter(name for each in measured for name in each)
    for name, devices in names.most_common(_NAMES):
        spread = MetricSpread.of(None, [each[name] for each in measured if name in each])
        for part, value in (("low", spread.low), ("median", spread.median), ("high", spread.high)):
            if value is not None:
                results[f"federated.{name}.{part}"] = float(value)
        results[f"federated.{name}.devices"] = float(devices)
    return results
