"""Quality of the model: the operator's own evaluation of versions, and the devices' reports on their data."""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any

from midge.aggregator.config import Evaluate
from midge.aggregator.federation import FederationRuntime
from midge.aggregator.metrics.device_metrics import Spread
from midge.storage.daemon_thread import DaemonThreads

log = logging.getLogger("aggregator")

_REST = 3.0
"""Pause after an evaluation, in multiples of its duration: it takes a quarter of a core at most."""

_REPORTS_EVERY = 2.0
"""Least seconds between two reports of combined device metrics."""


class VersionEvaluator:
    """The evaluation of one aggregator; it never blocks the federation.

    Args:
        evaluate: from parameters to numbers by name; None disables it.
        tell: takes events.
    """

    def __init__(self, evaluate: Evaluate | None, tell: Callable[..., None]) -> None:
        self._evaluate, self._tell = evaluate, tell
        self._released = asyncio.Event()
        self.metrics: Mapping[str, float] = {}
        """Newest results."""
        self.metrics_version = 0
        """The version that they are of: after a failure not the newest one."""
        self.federated: Mapping[str, Spread] = {}
        """Newest combined results of the devices on their own data."""
        self._combined_at = float("-inf")
        self._failed = ""
        """The last reported failure; empty if the last evaluation succeeded."""
        self._alarm = ""

    @property
    def sayable(self) -> dict[str, float]:
        """The newest results that fit into a message: at most 32 finite numbers with names up to 64 characters."""
        fit = ((name, value) for name, value in self.metrics.items() if len(name) <= 64 and math.isfinite(value))
        return dict(islice(fit, 32))

    def alarms(self) -> tuple[str, ...]:
        """What is wrong with the newest evaluation; of a row of failures, the first."""
        return (self._alarm,) if self._alarm else ()

    def released(self) -> None:
        """Notify of a new version."""
        self._released.set()

    async def run(self, federation: FederationRuntime) -> None:
        """Evaluate the model that would be served now, until cancelled; versions that come too fast are skipped.

        An error of the user's function is reported and does not end the aggregator.
        """
        while (evaluate := self._evaluate) is not None:
            await self._released.wait()
            self._released.clear()
            version, step = federation.core.version, federation.core.step
            if not version or not federation.core.frozen:
                continue
            published = federation.engine.model.used().parameters()
            began = time.monotonic()
            try:
                self.metrics, self.metrics_version = await _evaluated(evaluate, published), version
                federation.registry.evaluated(version, self.metrics)
                federation.history.evaluated(self.metrics)
                await self._evaluate_registered(federation, evaluate)
            except Exception as error:
                why = f"{type(error).__name__}: {error}"
                if why != self._failed:  # it will fail on the next version as well
                    log.exception("evaluate() failed on version %d; the federation continues.", version)
                self._alarm = self._alarm if self._failed else f"evaluate() fails: {why}"
                self._failed = why
                self._tell("evaluation_failed", version=version, step=step, why=why)
            else:
                odd = ", ".join(name for name, value in self.metrics.items() if not math.isfinite(value))
                self._failed, self._alarm = "", f"evaluate() returns what is no finite number: {odd}" if odd else ""
                self._tell("evaluation", version=version, step=step, metrics=dict(self.metrics))
            await asyncio.sleep(_REST * (time.monotonic() - began))

    async def _evaluate_registered(self, federation: FederationRuntime, evaluate: Evaluate) -> None:
        """Evaluate what was registered since."""
        while (found := federation.registry.unmeasured(federation.core, federation.engine)) is not None:
            version, parameters = found
            federation.registry.evaluated(version, None)  # unless it succeeds
            federation.registry.evaluated(version, await _evaluated(evaluate, parameters))

    def combine(self, federation: FederationRuntime, now: float) -> None:
        """Report the combined results of devices on their own data, now and then."""
        reports = federation.reports
        if reports.new and now >= self._combined_at + _REPORTS_EVERY:
            self._combined_at = now
            self.federated = reports.combined()
            found = {name: spread.packed() for name, spread in self.federated.items()}
            federation.history.combined(self.federated, reports.devices)
            self._tell("federated_evaluation", version=federation.core.version, devices=reports.devices, metrics=found)


async def _evaluated(evaluate: Evaluate, parameters: Mapping[str, Any]) -> dict[str, float]:
    """The results. The end of the process does not wait for the function, and all that it raises is an `Exception`."""
    given = dict(parameters)
    return await asyncio.get_running_loop().run_in_executor(DaemonThreads(), lambda: _numbers(evaluate(given)))


def _numbers(found: object) -> dict[str, float]:
    if not isinstance(found, Mapping) or not all(isinstance(name, str) for name in found):
        raise TypeError(
            f"evaluate() returned {type(found).__name__}: return a dict of numbers, such as {{'rmse': 0.1}}"
        )
    return {name: float(value) for name, value in found.items()}
