"""Tell of steps in which a device's update was scaled far down, and of a rate that is damped."""

from collections.abc import Callable, Sequence

from midge.aggregator.core.records import StepRecord

_FAR = 0.1
"""Of an update, that a step leaves: below this its device is out of scale, and its owner should know."""
_EVERY = 60.0
"""Seconds between two notices of one device."""
_DEVICES = 10_000
"""Devices whose last notice is remembered."""


class StepNotices:
    """Of one federation; nothing of it is durable."""

    def __init__(self, tell: Callable[..., None]) -> None:
        self._tell = tell
        self._told: dict[str, float] = {}
        self._damping = 1.0

    def step(self, record: StepRecord, devices: Sequence[str], damping: float, now: float) -> None:
        """Look at a step whose updates are of these devices, in its order."""
        for device, scale in zip(devices, record.scales, strict=False):
            if scale >= _FAR or now < self._told.get(device, -_EVERY) + _EVERY:
                continue
            self._told.pop(device, None)
            self._told[device] = now
            if len(self._told) > _DEVICES:
                del self._told[next(iter(self._told))]
            self._tell("clipped", device=device, step=record.step, scale=scale)
        if damping != self._damping:
            self._tell("damped" if damping < self._damping else "undamped", damping=damping, rate=record.rate)
            self._damping = damping
