"""Notices of what changes while a federation learns: updates scaled far down, rates that swing, other local steps."""

import math
from collections.abc import Callable, Sequence

from midge.aggregator.core.records import PaceRecord, StepRecord
from midge.aggregator.core.strategy import Strategy

_FAR = 0.1
"""Remaining fraction of an update in a step below which its device is out of scale, and its owner should know."""
_EVERY = 60.0
"""Least seconds between two notices of one device."""
_DEVICES = 10_000
"""Devices whose last notice is remembered."""


class StepNotices:
    """The notices of one federation; not durable."""

    def __init__(self, tell: Callable[..., None]) -> None:
        self._tell = tell
        self._notified_at: dict[str, float] = {}
        self._damping = 1.0
        self._local_steps = 0
        self._mixing_limit = math.inf

    def step(self, record: StepRecord, devices: Sequence[str], damping: float, now: float) -> None:
        """Check a step; `devices` are those of its updates, in its order."""
        for device, scale in zip(devices, record.scales, strict=False):
            if scale >= _FAR or now < self._notified_at.get(device, -_EVERY) + _EVERY:
                continue
            self._notified_at.pop(device, None)
            self._notified_at[device] = now
            if len(self._notified_at) > _DEVICES:
                del self._notified_at[next(iter(self._notified_at))]
            self._tell("clipped", device=device, step=record.step, scale=scale)
        if damping != self._damping:
            self._tell("damped" if damping < self._damping else "undamped", damping=damping, rate=record.rate)
            self._damping = damping

    def mixing(self, strategy: Strategy, live: int) -> None:
        """Check whether α swings the model with this number of devices; reported again when the limit is halved."""
        limit = strategy.mixing_limit(live) if strategy.form == "mixing" else math.inf
        if limit < min(strategy.rate or 0.0, self._mixing_limit / 2):
            self._mixing_limit = limit
            self._tell("alpha", rate=strategy.rate, limit=limit, devices=live, bounded=strategy.bounded)

    def pace(self, record: PaceRecord) -> None:
        """Report local steps that differ from those that were announced before."""
        if record.steps != self._local_steps:
            self._local_steps = record.steps
            self._tell("local_steps", steps=record.steps or None, recipe=record.recipe or None)
