"""Detection of faulty error feedback, from the lengths of a device's updates.

A codec that sends few values needs error feedback, and its residual must be clipped: otherwise it outgrows what is
learned, and is sent late. Among correct encoders, the updates of a faulty one stay long while the others' shrink; if
all are faulty, all grow, and the model oscillates. Bounds on norms and influence and the damped rate protect the model
in both cases (`aggregator.core.step_planner`, `aggregator.core.growth_guard`); this module finds what to report to the
device. Pure.
"""

from collections.abc import Sequence
from statistics import median

ADVICE = "the encoder seems to lose what it leaves out; use int8:256, or keep feedback as the protocol says"
EITHER = f"if their data does not change, {ADVICE}"
NO_FEEDBACK = "its codec leaves most values out and the device keeps none of them for its next update: use int8:256"
_UPDATES = 9
"""Updates of a device that a judgement takes: three thirds, whose medians no single outlier can move."""
_LONG = 6.0
"""Multiple of the reference norm."""
_GROWS = 1.5
"""Growth from third to third: a change of the data causes a single jump, and is learned by the next third."""
_FALLS = 2.0
"""Decrease from the first third to the last that clears a device: in a fleet that learns fast, even a correct encoder's
median lags behind the others."""
_FAR = 4.0
"""Growth from the first third to the last that is suspect: honest updates grow threefold while a fleet starts."""


def doubt(norms: Sequence[float], excess: float, damping: float) -> str:
    """The reason to suspect a device's encoder; empty if there is none.

    Args:
        norms: L2 norms of its last updates, the newest last.
        excess: their typical norm as a multiple of the fleet's reference norm.
        damping: factor of the server's rate, below 1 if the fleet's updates grow.
    """
    if len(norms) < _UPDATES:
        return ""
    third = len(norms) // 3
    first, middle, last = (median(norms[at : at + third]) for at in (0, third, 2 * third))
    if excess > _LONG and last > first / _FALLS:
        return f"its updates are {excess:.0f} times as long as the others': {ADVICE}"
    grows = middle > _GROWS * first > 0 and last > _GROWS * middle
    if grows and last > _FAR * first:
        return f"its updates grow, {last / first:.1f} times in the last {len(norms)}: {ADVICE}"
    if damping < 1 and last > _GROWS * first > 0:
        return f"its updates grow, {last / first:.1f} times in the last {len(norms)}, as most devices' do: {EITHER}"
    return ""
