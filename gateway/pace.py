"""When a gateway sends a sum, and when it takes the next version; pure, so that simulations decide alike."""

import math
from dataclasses import dataclass

from midge.aggregator.core.core import AggregatorCore
from midge.wire.field_checks import Positive, Share, check_fields

_LEAST, _UNKNOWN = 1.0, 60.0
"""Seconds of patience at least, and while the devices' usual interval is unknown."""


@dataclass(frozen=True, slots=True)
class SitePace:
    """The pace of one site.

    Sums of more devices cost the line less; what waits for them is late for the others.
    """

    share: Share = 0.5
    """The share of the site's devices of which an update must wait."""
    patience: Positive | None = None
    """Seconds after which a sum of fewer is sent; None is half of the devices' usual interval."""

    def __post_init__(self) -> None:
        check_fields(self, "pace")

    def waits(self, core: AggregatorCore) -> float:
        """Seconds for which an update waits for others at most."""
        if self.patience is not None:
            return self.patience
        usual = core.site.interval
        return _UNKNOWN if usual is None else max(_LEAST, usual / 2)

    def due(self, core: AggregatorCore) -> float:
        """When a sum is due, by the core's clock; infinity if nothing waits."""
        waiting, since = core.site.waiting, core.site.since
        return math.inf if not waiting or since is None else self.ripe(core, waiting, since)

    def ripe(self, core: AggregatorCore, devices: int, since: float) -> float:
        """When what this number of the site's devices gave, the first at `since`, is passed on."""
        enough = devices >= self.share * max(core.steering.live, core.site.known)
        return -math.inf if enough else since + self.waits(core)

    def next_version(self, core: AggregatorCore, passed: float, *, gave: bool) -> float:
        """When the next version is taken: once the site gave a sum since the last one, or has nothing to give."""
        if gave:
            return -math.inf
        return math.inf if core.site.waiting or not core.steering.live else passed + self.waits(core)
