"""Groups of masked updates: sums that were opened and wait for others, and the devices whose sums are out of line.

One device's update is never known here, so nothing that one device sends can be judged by itself. A step of several
sums has a robust rule instead (`aggregator.model.group_means`), and the mask helper deals the groups at random. So a
device that sends noise is in one group after another that lies far from the others, and an honest device is not.

For each device, the logarithm of a likelihood ratio is kept (Wald's sequential test): that of a sender of noise, whose
groups are out of line with a probability of `_HIT`, against that of an honest device, in whose case it is the rate of
all groups. The test is wrong about an honest device with a probability of at most e^−`SUSPECT`. A suspect's updates are
held back; its score decays with each step, so that it is tried again.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from midge.aggregator.core import records as rec
from midge.aggregator.core.buffered import Buffered

SUSPECT = 7.0
"""Score from which a device is a suspect: the test is wrong about one of 1,000 honest devices."""
_HIT = 0.95
"""Share of the groups of a sender of noise that are out of line."""
_FIRST, _LEAST, _MOST = 0.4, 0.1, 0.8
"""The rate of groups out of line before any is seen, and its bounds: it is estimated from few, and one that is taken
too low makes two bad groups look like proof."""
_LOWEST, _HIGHEST = -4.0, 12.0
"""Bounds of a score, so that a device which begins to send noise late is found soon, and a suspect is tried again."""
_MEMORY = 0.95
"""Decay of the rate for each step: of the last twenty."""
_FORGIVEN = 0.98
"""Decay of a suspect's score for each step: after some 27 steps at the most it is tried again."""


@dataclass(frozen=True, slots=True)
class OpenedGroup:
    """A sum that waits for others."""

    part: int
    """The slice that it covers."""
    factor: float
    """What brings it within the longest that honest devices can make."""
    charged: bool = False
    """Whether its devices were charged for its noise when it was opened."""


class OpenedGroups:
    """Sums that wait, by the lsn of their records, and the scores of devices. All of it follows from the journal."""

    def __init__(self) -> None:
        self.helper, self.dealt = b"", 0
        """The mask helper's store, and the number of its newest sum here."""
        self.open: dict[int, OpenedGroup] = {}
        self._scores: dict[str, float] = {}
        self._rate = _FIRST

    def count(self, record: rec.StepRecord | rec.OpenedSumRecord | rec.DropRecord) -> None:
        """Note which sum of the helper a record is of, if it is of one."""
        if record.dealt:
            self.helper, self.dealt = record.helper, record.dealt

    def take(self, record: rec.OpenedSumRecord, buffer: Sequence[Buffered]) -> list[Buffered]:
        """Add a sum; returns the buffer, in which its updates belong to it."""
        self.count(record)
        self.open[record.lsn] = OpenedGroup(record.part, record.factor, record.noise > 0)
        lsns = {lsn for lsn, _ in record.updates}
        return [replace(item, group=record.lsn) if item.lsn in lsns else item for item in buffer]

    def step(self, record: rec.StepRecord, taken: Iterable[Buffered]) -> None:
        """Remove the sums of a step, and judge its devices by their groups."""
        for lsn in record.groups:
            self.open.pop(lsn, None)
        rate = min(max(self._rate, _LEAST), _MOST)
        out, clean = math.log(_HIT / rate), math.log((1 - _HIT) / (1 - rate))
        bad = set(record.outliers)
        self._scores = {device: score * _FORGIVEN if score > 0 else score for device, score in self._scores.items()}
        for item in taken:
            score = self._scores.get(item.device, 0.0) + (out if item.group in bad else clean)
            self._scores[item.device] = min(max(score, _LOWEST), _HIGHEST)
        self._rate = _MEMORY * self._rate + (1 - _MEMORY) * len(bad) / len(record.groups)

    def keep(self, buffer: Iterable[Buffered]) -> None:
        """Remove sums of which no update waits any longer: they were dropped."""
        held = {item.group for item in buffer}
        self.open = {lsn: group for lsn, group in self.open.items() if lsn in held}

    def owes(self, group: int) -> bool:
        """Whether the step of a sum, or of none, is what charges its devices."""
        return group not in self.open or not self.open[group].charged

    def company(self, device: str, buffer: Iterable[Buffered]) -> list[int]:
        """Updates of other devices, by lsn, that cannot be in the model without one of this device in their sum."""
        buffer = list(buffer)
        shared = {item.group for item in buffer if item.group and item.device == device}
        return [item.lsn for item in buffer if item.group in shared and item.device != device]

    def suspect(self, device: str) -> bool:
        """Whether the groups of a device were out of line too often for an honest one."""
        return self._scores.get(device, 0.0) >= SUSPECT

    @property
    def suspects(self) -> list[str]:
        """The names of all suspects."""
        return [device for device in self._scores if self.suspect(device)]

    def forget(self, device: str) -> None:
        """Erase a device's score."""
        self._scores.pop(device, None)

    def dump(self) -> list[Any]:
        """Plain values for `load`."""
        opened = [[lsn, group.part, group.factor] for lsn, group in self.open.items()]
        charged = [lsn for lsn, group in self.open.items() if group.charged]
        return [opened, [[device, score] for device, score in self._scores.items()], self._rate, charged]

    def load(self, values: Sequence[Any]) -> None:
        """Restore from the result of `dump`; a checkpoint of an earlier Midge has fewer values."""
        added: list[Any] = [_FIRST, ()]
        opened, scores, rate, charged = [*values, *added[len(values) - 2 :]]
        self.open = {lsn: OpenedGroup(part, factor, lsn in charged) for lsn, part, factor in opened}
        self._scores, self._rate = dict(scores), rate
