"""Ways to train one model for a fleet, and what was measured of each."""

from dataclasses import dataclass
from typing import Any, Final, Literal

Name = Literal["pooled", "data-parallel", "federated", "hybrid", "alone"]
Reach = Literal["nowhere", "site", "anywhere"]
"""Where a device's rows may go."""


@dataclass(frozen=True, slots=True)
class Exposure:
    """What leaves a device on one way, and who sees it."""

    leaves: str
    seen_by: str
    reach: Reach
    """Where rows must be allowed to go."""
    order: int
    """0 exposes least."""


EXPOSURES: Final[dict[Name, Exposure]] = {
    "alone": Exposure("nothing", "only the device", "nowhere", 0),
    "federated": Exposure(
        "model updates, counts of rows, and statistics of the inputs; no row",
        "the aggregator sees each device's update, or with the secure strategy only sums of at least k_min devices; "
        "the broker sees updates unless they are sealed",
        "nowhere",
        1,
    ),
    "hybrid": Exposure(
        "rows, to the other machines of the site; updates of the site, to the aggregator",
        "the site's machines see its devices' rows; the aggregator sees one update for a whole site",
        "site",
        2,
    ),
    "data-parallel": Exposure(
        "every row", "each machine of the cluster sees its shard of the rows, and gradients of all", "anywhere", 3
    ),
    "pooled": Exposure("every row", "the machine that trains sees the rows of all devices", "anywhere", 4),
}
TITLES: Final[dict[Name, str]] = {
    "pooled": "Pooled on one machine",
    "data-parallel": "Distributed, data-parallel",
    "federated": "Federated",
    "hybrid": "Hybrid: sites that federate",
    "alone": "Each device alone",
}


@dataclass(frozen=True, slots=True)
class Score:
    """A metric over the seeds."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> "Score":
        return cls(sum(values) / len(values), min(values), max(values))


@dataclass(frozen=True, slots=True)
class WayRow:
    """One way as measured. Bytes and joules are sums over all devices until the end of the budget."""

    way: Name
    score: Score
    """On the test rows, which no way trains on."""
    own: Score
    """Mean over the devices, each on rows of its own that it kept out of training."""
    worst: Score
    """The same, mean over the tenth of the devices that it serves worst."""
    seconds: float
    """Until the score was within a point of the last one; of federated and hybrid, by the profile's clock."""
    bytes: float
    """Payload over the devices' links, both ways."""
    inside: float
    """Bytes between machines of a cluster or of a site."""
    joules: float
    """Of the devices, by the profile."""
    monthly_bytes: float
    """Of a device, in 30 days of going on like this."""
    monthly_joules: float
    steps: float
    """Mini-batches of the same size, of all devices, sites or machines together."""

    @property
    def exposure(self) -> Exposure:
        return EXPOSURES[self.way]

    @property
    def title(self) -> str:
        return TITLES[self.way]

    def packed(self, metric: str) -> dict[str, Any]:
        """The row as plain values; `accuracy` is missing of a regression, which has `rmse`."""
        exposure = self.exposure
        return {
            "way": self.way,
            metric: self.score.mean,
            "spread": [self.score.low, self.score.high],
            "own": self.own.mean,
            "worst": self.worst.mean,
            "worst_spread": [self.worst.low, self.worst.high],
            "seconds": self.seconds,
            "bytes": self.bytes,
            "inside_bytes": self.inside,
            "joules": self.joules,
            "monthly_bytes": self.monthly_bytes,
            "monthly_joules": self.monthly_joules,
            "steps": self.steps,
            "exposure": {"leaves": exposure.leaves, "seen_by": exposure.seen_by, "rows_go": exposure.reach},
        }
