"""What keeps a federation's model from moving, in words for its operator."""

import math
from dataclasses import dataclass
from typing import Literal

from midge.aggregator.core.release_schedule import ReleaseSchedule
from midge.aggregator.core.state import CoreState
from midge.aggregator.core.step_planner import StepPlanner
from midge.aggregator.core.strategy import Strategy

_TURNS_LEAST = 0.3
"""Of what all devices learned in one training: a model that moves by less takes more than three times as long. The
other shipped rules stay above 0.36 with 2 to 200 devices."""


@dataclass(frozen=True, slots=True)
class Obstacle:
    """What is in the way, of one of three kinds: `held` and `statistics` stop the model, `slow` does not."""

    kind: Literal["statistics", "held", "slow"]
    why: str
    needs: int = 0
    """Of one that holds: distinct devices without which it does not go away."""


def obstacle(
    state: CoreState,
    steps: StepPlanner,
    releases: ReleaseSchedule,
    *,
    strategy: Strategy,
    live: int,
    unfit: str | None,
) -> Obstacle | None:
    """Too few devices, statistics that cannot be pooled, or weights near zero; None if nothing is in the way.

    Args:
        state: what the core remembers.
        steps: how far a step goes.
        releases: whether there is enough for one.
        strategy: what they are made by.
        live: how many devices are there.
        unfit: why the statistics that are here cannot be pooled; None if that is not so.
    """
    if unfit is not None:
        return Obstacle("statistics", f"The statistics cannot be pooled yet: {unfit}.")
    if len(state.statistics) == 1:
        return Obstacle(
            "statistics",
            "Only one device has sent its statistics; training begins with those of a second one: start another.",
        )
    if state.buffer and strategy.privacy is not None and strategy.deadline is None and live < strategy.size(live):
        return Obstacle(
            "held",
            f"A step takes the updates of {strategy.size(live)} distinct devices, and {live} are there: "
            "nothing is released before (buffer_size of the private strategy).",
            needs=strategy.size(live),
        )
    given = state.contributors | {item.device for item in state.buffer}
    floor = strategy.release_floor
    if len(given) < floor if state.buffer else given and not releases.releasable:
        return Obstacle(
            "held",
            f"Only {len(given)} of at least {floor} distinct devices {'has' if len(given) == 1 else 'have'} "
            f"contributed since version {state.version}, and a release never carries the work of fewer: start another "
            "device, or wait for one (release_floor of the strategy).",
            needs=floor,
        )
    gain = steps.turn_gain
    if gain is not None and 0 < gain < _TURNS_LEAST:  # 0 if no device is there
        return Obstacle(
            "slow",
            f"One training of all {live} devices moves the model by about 1/{2 ** round(-math.log2(gain))} of what "
            f"they learned, under {strategy.staleness.kind} staleness weights and this rate: it learns slowly. Use a "
            "larger rate, or weights that fall more slowly (polynomial, relative).",
        )
    return None
