"""How good the model is: by the operator's own evaluation of versions, and by what devices report of their data."""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping

from midge.aggregator.config import Evaluate
from midge.aggregator.federation import FederationRuntime
from midge.aggregator.metrics.device_metrics import Reports, Spread

log = logging.getLogger("aggregator")

_REST = 3.0
"""Times as long as an evaluation took that nothing is evaluated: it costs a quarter of a core at most."""

_REPORTS_EVERY = 2.0
"""Seconds at least between two tellings of what devices found."""


class VersionEvaluator:
    """Of one aggregator; never in the way of the federation.

    Args:
        evaluate: from parameters to numbers by name; None evaluates nothing.
        tell: takes events.
    """

    def __init__(self, evaluate: Evaluate | None, tell: Callable[..., None]) -> None:
        self._evaluate, self._tell = evaluate, tell
        self._released = asyncio.Event()
        self.metrics: Mapping[str, float] = {}
        """What was found last."""
        self.federated: Mapping[str, Spread] = {}
        """What devices found on their own data when it was last combined."""
        self._combined_at = float("-inf")
        self._failed = ""
        """How it failed last, as it was told; empty if it did not."""

    def released(self) -> None:
        """There is a new version."""
        self._released.set()

    async def run(self, federation: FederationRuntime) -> None:
        """Evaluate what would be released for use now, until cancelled; versions that come too fast are passed over.

        An error of the user's program is told and ends nothing.
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
                self.metrics = _numbers(await asyncio.to_thread(evaluate, published))
            except Exception as error:
                why = f"{type(error).__name__}: {error}"
                if why != self._failed:  # it will fail on the next version as well
                    log.exception("evaluate() failed on version %d; the federation goes on.", version)
                self._failed = why
                self._tell("evaluation_failed", version=version, step=step, why=why)
            else:
                self._failed = ""
                self._tell("evaluation", version=version, step=step, metrics=dict(self.metrics))
            await asyncio.sleep(_REST * (time.monotonic() - began))

    def combine(self, reports: Reports, version: int, now: float) -> None:
        """Tell what devices found on their own data, combined; now and then."""
        if reports.new and now >= self._combined_at + _REPORTS_EVERY:
            self._combined_at = now
            self.federated = reports.combined()
            found = {name: spread.packed() for name, spread in self.federated.items()}
            self._tell("federated_evaluation", version=version, devices=len(reports), metrics=found)


def _numbers(found: object) -> dict[str, float]:
    if not isinstance(found, Mapping) or not all(isinstance(name, str) for name in found):
        raise TypeError(
            f"evaluate() returned {type(found).__name__}: return a dict of numbers, such as {{'rmse': 0.1}}"
        )
    return {name: float(value) for name, value in found.items()}
