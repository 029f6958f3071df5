"""Whether a candidate is better than the champion, from what devices measure of both on their own rows.

Each device of the canary's share measures both models on the same rows, so that pairs are compared: devices differ from
each other far more than two versions do (Demšar 2006, JMLR 7, section 3.1). A device counts once, by the sign of the
difference: so no metric's scale or distribution is assumed, and a device that lies has one vote.

The test is looked at after each device, and may end at any of them: so it is `wire.sign_test`. The same with wins and
losses exchanged says that a candidate is worse.

A sign says nothing of how much is lost where something is lost. So a candidate is promoted only if the mean of the
differences agrees, without the tenth that is best and the tenth that is worst: one device cannot turn that.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from midge.wire.sign_test import e_value, trimmed_mean

Finding = Literal["better", "worse", "open"]


@dataclass(frozen=True, slots=True)
class TrialEvidence:
    """What a trial says."""

    devices: int
    better: int
    worse: int
    e_better: float
    e_worse: float
    gain: float
    """Trimmed mean over devices."""

    def packed(self) -> dict[str, float]:
        """As plain values."""
        return {
            "devices": self.devices,
            "better": self.better,
            "worse": self.worse,
            "e_better": self.e_better,
            "e_worse": self.e_worse,
            "gain": self.gain,
        }


class CanaryTrial:
    """The pairs of one candidate and one champion, by device."""

    def __init__(self) -> None:
        self._gains: dict[str, float] = {}
        self._evidence: TrialEvidence | None = None
        """What they say, since the last change."""

    def __len__(self) -> int:
        return len(self._gains)

    def __contains__(self, device: str) -> bool:
        return device in self._gains

    def add(self, device: str, gain: float) -> None:
        """Count a device; its first pair stays."""
        self._gains.setdefault(device, gain)
        self._evidence = None

    def forget(self, device: str, alias: str) -> None:
        """Put another name in the place of a device's."""
        if device in self._gains:
            self._gains[alias] = self._gains.pop(device)

    def evidence(self) -> TrialEvidence:
        """What the pairs say."""
        if self._evidence is None:
            gains = self._gains.values()
            better, worse = sum(gain > 0 for gain in gains), sum(gain < 0 for gain in gains)
            evidence = e_value(better, worse), e_value(worse, better)
            self._evidence = TrialEvidence(len(gains), better, worse, *evidence, trimmed_mean(gains))
        return self._evidence

    def finding(self, alpha: float, least: int) -> Finding:
        """What can be concluded now.

        Args:
            alpha: chance at most of a wrong conclusion of either kind, at any time.
            least: devices that must have measured both.
        """
        found = self.evidence()
        if found.devices < least:
            return "open"
        if found.e_worse * alpha >= 1:
            return "worse"
        return "better" if found.e_better * alpha >= 1 and found.gain > 0 else "open"

    def dump(self) -> list[Any]:
        """Return what `load` takes."""
        return [list(pair) for pair in self._gains.items()]

    def load(self, state: Iterable[Any]) -> None:
        """Take up what `dump` returned."""
        self._gains, self._evidence = dict(state), None


def gain(candidate: Mapping[str, float], champion: Mapping[str, float], metric: str, *, lower: bool) -> float | None:
    """By how much a candidate is better in a metric; None if one of the two lacks it."""
    if metric not in candidate or metric not in champion:
        return None
    difference = champion[metric] - candidate[metric]
    return difference if lower else -difference
