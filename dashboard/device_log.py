"""What an observer has seen of one device: times, its clock, its last states and receipts."""

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from midge.wire.inert import inert
from midge.wire.messages import Settled

KEPT = 24
"""Receipts and states of a device that are kept."""
_JITTER = 2.0
"""Seconds by which the same moment differs between two answers."""


@dataclass(slots=True)
class DeviceLog:
    """Times are seconds since 1970 by the observer's clock."""

    heard: int | None = None
    accepted: int | None = None
    skew: float | None = None
    """Seconds by which the device's clock is ahead, as it was when it last connected."""
    state: str = ""
    life: deque[tuple[int, str, str]] = field(default_factory=lambda: deque(maxlen=KEPT))
    """When it came into which state, and why."""
    receipts: deque[tuple[int, int, str, int, float, str]] = field(default_factory=lambda: deque(maxlen=KEPT))
    """Time, seq, verdict, staleness in steps, weight, reason."""

    def hear(self, at: float) -> None:
        """Record a sign of life."""
        if self.heard is None or at > self.heard + _JITTER:
            self.heard = int(at)

    def accept(self, at: float) -> None:
        """Record an accepted update."""
        if self.accepted is None or at > self.accepted + _JITTER:
            self.accepted = int(at)

    def settle(self, settled: Settled, now: float) -> None:
        """Record the verdict on an update."""
        self.hear(now)
        if settled.verdict == "accepted":
            self.accepted = int(now)
        why = inert(settled.why)
        self.receipts.append((int(now), settled.seq, settled.verdict.value, settled.staleness, settled.weight, why))

    def compare_clock(self, clock: object, now: float) -> None:
        """Record what the device's clock showed just now, in seconds since 1970; 0 is of one that was never set."""
        if isinstance(clock, int | float) and not isinstance(clock, bool) and math.isfinite(clock) and clock > 0:
            self.skew = round(clock - now, 1)

    def enter(self, state: str, why: str, now: float) -> str | None:
        """Record a state; return the one before if it differs, which is empty for the first one."""
        if state == self.state:
            return None
        before, self.state = self.state, state
        self.life.append((int(now), state, why))
        return before


def row(name: str, device: Mapping[str, Any], log: DeviceLog, metric: str) -> tuple[Any, ...]:
    """A device as a row of the table, in the order of `COLUMNS`."""
    capabilities = device.get("capabilities") or {}
    score = (device.get("metrics") or {}).get(metric)
    return (
        name,
        device["state"],
        log.heard,
        log.accepted,
        device.get("updates"),
        device.get("refused"),
        device["version"],
        None if score is None else float(f"{score:.6g}"),
        log.skew,
        share(capabilities.get("battery")),
        device.get("keeps") or None,
        inert(device.get("why") or device.get("waits") or "")[:160],
    )


COLUMNS = (
    "name",
    "state",
    "heard",
    "accepted",
    "updates",
    "refused",
    "version",
    "score",
    "skew",
    "battery",
    "keeps",
    "why",
)


def share(value: object) -> float | None:
    """A share from 0 to 1 that a device reports; None if it is none."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1 else None
