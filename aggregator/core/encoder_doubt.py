"""Whether a device's encoder seems to lose, or to pile up, what it leaves out: seen by the lengths of its updates.

A codec that says few values is good only with error feedback, and feedback only if it is clipped: what is left out
otherwise grows beyond what is learned, and comes late. In a fleet of good encoders such a device's updates stay long
while the others' fall; in a fleet of bad ones all grow, and the model swings. The bounds on lengths and the damped rate
hold either way (`aggregator.core.standings`, `aggregator.core.growth_guard`); this is to tell the device. Pure.
"""

from collections.abc import Sequence
from statistics import median

ADVICE = "the encoder seems to lose what it leaves out; use int8:256, or keep feedback as the protocol says"
NO_FEEDBACK = "its codec leaves most values out and the device keeps none of them for its next update: use int8:256"
_UPDATES = 9
"""Updates of a device from which it is judged: three thirds, whose medians one odd update does not move."""
_LONG = 6.0
"""Times what it may expect, that its updates are always long: beyond it they count less, too."""
_GROWS = 1.5
"""Factor from third to third: a change of the world makes one jump, and is learned by the next."""
_FALLS = 2.0
"""Factor from the first third to the last that a good encoder's updates fall by if a fleet learns fast: its own median
lags behind then."""
_FAR = 4.0
"""Factor from the first third to the last that is growth: honest updates grow threefold as a fleet begins."""


def doubt(norms: Sequence[float], excess: float, damping: float) -> str:
    """Why a device's encoder is doubted, in words; empty if it is not.

    Args:
        norms: L2 norms of its last updates.
        excess: how many times what it may expect they are long.
        damping: what the server's rate is multiplied by because the fleet's updates grow.
    """
    if len(norms) < _UPDATES:
        return ""
    third = len(norms) // 3
    first, middle, last = (median(norms[at : at + third]) for at in (0, third, 2 * third))
    if excess > _LONG and last > first / _FALLS:
        return f"its updates are {excess:.0f} times as long as the others': {ADVICE}"
    grows = middle > _GROWS * first > 0 and last > _GROWS * middle
    if (grows and last > _FAR * first) or (damping < 1 and last > _GROWS * first > 0):
        return f"its updates grow, {last / first:.1f} times in the last {len(norms)}: {ADVICE}"
    return ""
