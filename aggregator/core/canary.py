"""Whether a candidate is better than the champion, from what devices measure of both on their own rows.

Each device of the canary's share measures both models on the same rows, so that pairs are compared: devices differ from
each other far more than two versions do (Demšar 2006, JMLR 7, section 3.1). A device counts once, by the sign of the
difference: so no metric's scale or distribution is assumed, and a device that lies has one vote.

The test is looked at after each device, and may end at any of them: no fixed-sample p-value allows that. So an e-value
is used. Under H0, at most half of the devices are better off (of those that are not equal), the likelihood ratio of
p > 1/2 against 1/2 is a supermartingale for each p, and so is its mean over p uniform in (1/2, 1]:

    e(k, n) = 2^(n+1) ∫ p^k (1 − p)^(n−k) dp   over 1/2 … 1   =   Σ_{i ≤ k} C(n+1, i) / ((n+1)·C(n, k))

for k of n devices better off. By Ville's inequality P(e ≥ 1/α at any time) ≤ α: peeking costs nothing (Ramdas,
Grünwald, Vovk, Shafer 2023, "Game-theoretic statistics and safe anytime-valid inference", Statistical Science 38;
the mixture is that of Robbins 1970, Annals of Mathematical Statistics 41). The same with k and n − k
exchanged says that a candidate is worse.

A sign says nothing of how much is lost where something is lost. So a candidate is promoted only if the mean of the
differences agrees, without the tenth that is best and the tenth that is worst: one device cannot turn that.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import comb
from typing import Any, Literal

Finding = Literal["better", "worse", "open"]
_TRIMMED = 0.1


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
            gains = sorted(self._gains.values())
            better, worse = sum(gain > 0 for gain in gains), sum(gain < 0 for gain in gains)
            evidence = e_value(better, worse), e_value(worse, better)
            self._evidence = TrialEvidence(len(gains), better, worse, *evidence, _trimmed_mean(gains))
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


def e_value(wins: int, losses: int) -> float:
    """The evidence against "a win is no more likely than a loss": exact, of whole numbers until the last division."""
    n = wins + losses
    term = total = 1
    for i in range(wins):  # C(n+1, i+1) from C(n+1, i): a large trial is judged each second
        term = term * (n + 1 - i) // (i + 1)
        total += term
    return _capped(total, (n + 1) * comb(n, wins))


def _capped(dividend: int, divisor: int) -> float:
    """The quotient, at most 10^12: more would say nothing, and may have no float."""
    return 1e12 if dividend >= 10**12 * divisor else dividend / divisor


def gain(candidate: Mapping[str, float], champion: Mapping[str, float], metric: str, *, lower: bool) -> float | None:
    """By how much a candidate is better in a metric; None if one of the two lacks it."""
    if metric not in candidate or metric not in champion:
        return None
    difference = champion[metric] - candidate[metric]
    return difference if lower else -difference


def _trimmed_mean(each: list[float]) -> float:
    out = int(_TRIMMED * len(each))
    kept = each[out : len(each) - out]
    return sum(kept) / len(kept) if kept else 0.0
