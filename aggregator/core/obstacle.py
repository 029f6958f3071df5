"""Obstacles: the reason, in words for the operator, why a federation's model does not move."""

import math
import re
from dataclasses import dataclass
from typing import Literal

from midge.aggregator.core.release_schedule import ReleaseSchedule
from midge.aggregator.core.state import CoreState
from midge.aggregator.core.step_planner import StepPlanner
from midge.aggregator.core.strategy import Strategy
from midge.wire.plurals import counted

_TURNS_LEAST = 0.3
"""Least share of what all devices learn in one training by which the model should move: below it, learning takes more
than three times as long. The other presets stay above 0.36 with 2 to 200 devices."""
_ADAPTIVE_LEAST = 0.01
"""The same for an adaptive optimizer: its steps are short while the devices learn much, and do not shrink with that."""


@dataclass(frozen=True, slots=True)
class Obstacle:
    """An obstacle of one of three kinds: `held` and `statistics` stop the model, `slow` does not."""

    kind: Literal["statistics", "held", "slow"]
    why: str
    needs: int = 0
    """For `held`: number of distinct devices that it takes to end it."""
    holds: int = 0
    """For `held`: number of steps and releases until now; after another one it is another obstacle."""
    updates: int = 0
    """Number of updates of other devices that would end it."""
    due: float | None = None
    """For `statistics`: until when they are gathered, by the monotonic clock; None if that takes another device."""

    @property
    def cause(self) -> str:
        """The reason without its numbers, which change while it lasts."""
        return re.sub(r"\d+", "", self.why)


def obstacle(
    state: CoreState,
    steps: StepPlanner,
    releases: ReleaseSchedule,
    *,
    strategy: Strategy,
    live: int,
) -> Obstacle | None:
    """Too few devices or updates, or weights near zero; None if nothing is wrong.

    Args:
        state: the durable state.
        steps: what a step takes, and its gain.
        releases: what a release takes.
        strategy: of the federation.
        live: number of live devices.
    """
    if state.buffer and strategy.privacy is not None and strategy.deadline is None and live < strategy.size(live):
        return Obstacle(
            "held",
            f"A step takes the updates of {strategy.size(live)} distinct devices, and {live} are online: "
            "nothing is released before that (buffer_size of the private strategy).",
            needs=strategy.size(live),
            holds=state.step + state.version,
        )
    if state.buffer and live < strategy.fewest_devices:
        return Obstacle(
            "held",
            f"A step of groups takes {strategy.fewest_devices} distinct devices at least, and {live} are online: start "
            "others, or use groups=1 (groups and k_min of the strategy secure).",
            needs=strategy.fewest_devices,
            holds=state.step + state.version,
        )
    working = state.contributors | {item.device for item in state.buffer if not item.trivial}
    given = working or state.trivial | {item.device for item in state.buffer}
    floor = strategy.release_floor
    if given and len(given) < floor:
        idle = state.trivial | {item.device for item in state.buffer if item.trivial}
        others = f" ({len(idle)} sent next to nothing, or a repetition)" if working and idle else ""
        return Obstacle(
            "held",
            f"Only {len(given)} of at least {floor} distinct devices {'has' if len(given) == 1 else 'have'} "
            f"contributed since version {state.version}{others}, and a release never carries the work of fewer: start "
            "another device, or wait for one (release_floor of the strategy).",
            needs=floor,
            holds=state.version,
            updates=floor - len(given),
        )
    if lacking := steps.lacking:
        size = strategy.size(live)
        return Obstacle(
            "held",
            f"A step takes {counted(size, 'update')}, and {lacking} more must come: without a deadline there is no "
            "limit to that wait (buffer_size and deadline of the strategy).",
            holds=state.step + state.version,
            updates=lacking,
        )
    if 0 < releases.steps < strategy.release_every and (outstanding := releases.outstanding):
        return Obstacle(
            "held",
            f"Version {state.version + 1} takes {counted(strategy.release_every, 'step')}, and {releases.steps} can be "
            f"made without it: until updates of {counted(outstanding, 'device')} have come, or none has for long, "
            "nothing is released (release_every of the strategy).",
            holds=state.version,
            updates=outstanding,
        )
    gain = steps.turn_gain
    if gain is not None and strategy.adaptive and 0 < gain < _ADAPTIVE_LEAST:
        return Obstacle(
            "slow",
            f"One training of all {live} devices moves the model by 1/{2 ** round(-math.log2(gain))} of what they "
            "learned at most: an adaptive optimizer moves each value by the server's rate. Use a larger one.",
        )
    if gain is not None and not strategy.adaptive and 0 < gain < _TURNS_LEAST:  # 0 if no device is online
        return Obstacle(
            "slow",
            f"One training of all {live} devices moves the model by about 1/{2 ** round(-math.log2(gain))} of what "
            f"they learned, with {strategy.staleness.kind} staleness weights and this rate: it learns slowly. Use a "
            "larger rate, or weights that fall more slowly (polynomial, relative).",
        )
    return None


def scheduled(steps: StepPlanner, releases: ReleaseSchedule) -> tuple[float, str] | None:
    """When a version or a step is due that takes no further update, and why not before; None if there is none."""
    if releases.releasable and (at := releases.due) is not None:
        return at, "The next version is due in {} (release_interval and byte_rate of the strategy)."
    at = steps.due
    return None if at is None else (at, "A step waits for further updates, and is made in {} (deadline).")
