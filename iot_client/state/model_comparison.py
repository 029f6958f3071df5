"""Whether a new model is worse than the one in use, from their losses on a device's own rows.

The rows are the same for both, so that pairs are compared. Rows of a sensor follow each other closely and are alike:
each is no evidence of its own. So they are taken in groups of consecutive ones, as in the method of batch means (Law,
"Simulation Modeling and Analysis", section 9.5.3), and a group has one vote: whether the new model's mean loss in it
is larger by more than a margin. One row, however wrong, costs one vote at most.

The votes are judged by `wire.sign_test`, so they may be looked at whenever a group is complete: a model that is not
worse by more than the margin in more than half of the groups is ever refused with a probability of at most α.
"""

import math
from collections import deque
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt

from midge.wire.field_checks import NotNegative, Positive, Range, check_fields
from midge.wire.sign_test import e_value, trimmed_mean

GROUPS = 32
"""Groups into which the last rows are cut: enough for a small α, and few enough to be longer than a sensor's memory."""

Losses = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class KeepRule:
    """When a device keeps the model that it uses.

    Raises:
        ValueError: a number is out of range.

    Examples:
        >>> midge.KeepRule(margin=0.2).rows
        256
    """

    rows: Annotated[int, Range(ge=GROUPS, le=1_000_000)] = 256
    """Last rows on which both models are tried."""
    margin: NotNegative = 0.1
    """By which share the loss of the new one must be larger before it counts as worse."""
    alpha: Annotated[float, Range(ge=1e-6, le=0.2)] = 0.01
    """Greatest chance with which a model that is not worse is refused."""
    limit: Positive = 7 * 86_400.0
    """Seconds after which the newest model is used if no row came to try it on."""

    def __post_init__(self) -> None:
        check_fields(self, "keep")

    @property
    def group(self) -> int:
        """Rows in a group."""
        return self.rows // GROUPS

    @property
    def fewest(self) -> int:
        """The fewest groups that can decide: if the new model is worse in all of them."""
        return next(n for n in range(1, GROUPS + 1) if e_value(n, 0) * self.alpha >= 1)


KEEP = KeepRule()
"""The rule of a device that names none."""


class ModelComparison:
    """The groups of one new model and the one in use."""

    def __init__(self, rule: KeepRule) -> None:
        self._rule = rule
        self.worse = 0
        """Groups in which the new model is worse by more than the margin, of all."""
        self.better = 0
        """Groups in which it is not."""
        self._latest: deque[tuple[float, float, float]] = deque(maxlen=GROUPS)
        """Mean loss of both, and how much the new one is worse beyond the margin, of the last groups."""

    def add(self, used: npt.ArrayLike, new: npt.ArrayLike) -> None:
        """Add rows, oldest first.

        Args:
            used: the loss of the model in use on each, of shape (n,) for n rows that are whole groups.
            new: the loss of the new one.
        """
        size = self._rule.group
        for one, other in zip(_groups(used, size), _groups(new, size), strict=True):
            before, after, excess = _group(one, other, self._rule.margin)
            self.worse += excess > 0
            self.better += excess < 0
            self._latest.append((before, after, excess))

    @property
    def able(self) -> bool:
        """Whether there are enough groups to decide."""
        return len(self._latest) >= self._rule.fewest

    @property
    def excess(self) -> float:
        """By how much the new model is worse in the last groups beyond the margin: trimmed mean; NaN if it has none."""
        return trimmed_mean([excess for *_, excess in self._latest])

    @property
    def refuses(self) -> bool:
        """Whether the new model is significantly worse."""
        return e_value(self.worse, self.better) * self._rule.alpha >= 1 and self.excess > 0

    @property
    def no_longer_worse(self) -> bool:
        """Whether the last groups show it worse no more: a refusal needs evidence, its end only the lack of it."""
        return self.able and not self.excess > 0

    def words(self) -> str:
        """The figures, as text."""
        before, after = (trimmed_mean([each[place] for each in self._latest]) for place in (0, 1))
        rows = self._rule.group
        return (
            f"loss {after:.4g} instead of {before:.4g}, worse in {self.worse} of {self.worse + self.better} groups of "
            f"{rows} of the device's own rows"
        )


def _groups(losses: npt.ArrayLike, size: int) -> npt.NDArray[Any]:
    return np.asarray(losses, np.float64).reshape(-1, size)


def _group(used: Losses, new: Losses, margin: float) -> tuple[float, float, float]:
    """Mean loss of both in one group, and the excess of the new one's.

    A model without a finite loss where the other has one is worse there, by any measure; rows where both have none are
    left out.
    """
    known = np.isfinite(used) & np.isfinite(new)
    lost = int(np.count_nonzero(np.isfinite(used) & ~known)) - int(np.count_nonzero(np.isfinite(new) & ~known))
    before, after = (float(each[known].mean()) if known.any() else math.nan for each in (used, new))
    if lost:
        return before, after, math.copysign(math.inf, lost)
    excess = after - before - margin * abs(before)
    return before, after, excess if math.isfinite(excess) else 0.0
