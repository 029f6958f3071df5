"""Evaluation on the device's own held-out data: numbers leave the device, rows do not."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import isfinite

from midge.storage.daemon_thread import DaemonThreads
from midge.wire.messages import Announcement, Report
from midge.wire.schema import Parameters


@dataclass(frozen=True, slots=True)
class Scores:
    """Results of an evaluation: finite numbers by name, and the number of rows.

    Examples:
        >>> midge.Scores(examples=100, metrics={"accuracy": 0.93}).examples
        100
    """

    examples: int
    metrics: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.examples < 0:
            raise ValueError(f"an evaluation has {self.examples} examples; they cannot be negative")


Evaluate = Callable[[Parameters], Scores]


class Evaluating:
    """Evaluates a model before training from it, no more often than the plan asks."""

    def __init__(self, evaluate: Evaluate | None) -> None:
        self._evaluate = evaluate
        self._at: float | None = None

    async def report(self, parameters: Parameters, announcement: Announcement, now: float) -> Report | None:
        """The report on a version; None if it is not due.

        Raises:
            TypeError: the function returned something other than `Scores`.
            Exception: whatever the function raised.
        """
        pause = announcement.plan.evaluate
        if self._evaluate is None or pause == 0 or (self._at is not None and now - self._at < pause):
            return None
        self._at = now
        return await self.scores(parameters, announcement)

    async def scores(self, parameters: Parameters, announcement: Announcement) -> Report:
        """The report on a version.

        Raises:
            TypeError: the function returned something other than `Scores`.
            Exception: whatever the function raised.
        """
        assert self._evaluate is not None
        scores = await asyncio.get_running_loop().run_in_executor(DaemonThreads(), self._evaluate, parameters)
        if not isinstance(scores, Scores):
            raise TypeError(
                f"evaluate() returned {type(scores).__name__}; it must return midge.Scores(examples, metrics)."
            )
        finite = {name[:64]: float(value) for name, value in list(scores.metrics.items())[:32] if isfinite(value)}
        return Report(
            lineage=announcement.lineage,
            version=announcement.version,
            examples=int(scores.examples),
            metrics=finite,
        )
