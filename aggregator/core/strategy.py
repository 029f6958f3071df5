"""The strategy: when and how updates become the next model, as one plain value.

A `Strategy` holds numbers, never state; presets (`aggregator.core.presets`) are functions that return one. Every weight
computed from it is journaled, so a restart applies what was decided then, not what the configuration says now.

Notation: x the exact global model, p_v the model published as version v, Δ = trained − p_v, τ the staleness in steps
between v and now, K the buffer size, α and η the server's rate. A step is one reducer for all presets:

    u = β·h̄ + Σ a_i·(f_i·Δ_i − β·h_i) / N        a_i: weight, f_i: scale, h_i: the device's last delta, h̄: their mean
    x ← x + optimizer(η·u)                       N: Σ a_i, or K, or 1 if every update is a step
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

from midge.aggregator.core.buffered import Buffered
from midge.aggregator.core.gain_margin import SHARE
from midge.aggregator.core.optimizers import Decay, Optimizer
from midge.aggregator.core.participation_controller import Pace
from midge.aggregator.core.privacy import Privacy
from midge.aggregator.core.staleness import Staleness
from midge.wire.field_checks import Count, NotNegative, Positive, Range, Whole, check_fields
from midge.wire.masking import reach
from midge.wire.messages import OUTBOX_LIMIT, Plan, check_codecs

Form = Literal["delta", "mixing"]
Normalise = Literal["none", "count", "weight"]
Combine = Literal["mean", "trimmed", "centred"]
SPELT = {"centered": "centred"}
"""Other spellings of `combine`."""
Rate = Annotated[float, Range(gt=0, le=10)]
Fairness = Annotated[float, Range(ge=1)]
Calibration = Annotated[float, Range(ge=0, le=1)]
Staled = Annotated[Staleness, ", such as midge.polynomial(0.5)"]

GUARD = 1000.0
"""Most reference norms of an update in a step, under any strategy: ordinary training stays within ten, and a change of
the data by this factor is still followed at once."""

LARGEST_BUFFER = 50
"""Largest K that follows the number of devices."""
REACH = 1.25
"""Number of full deltas that concurrent trainings may add up to, before the fleet's delays are known."""
MIXED = 2.5
"""Largest sum of the weights of concurrent trainings in FedAsync's mixing form: above it, the digits task with 20 to
100 devices ended with a lower accuracy."""
GIVEN = 0.5 / SHARE
"""Largest configured rate, in multiples of the safe rate: half of the gain margin."""
DEVICES_PER_UPDATE = 5
"""Devices for each update of a buffer whose K follows their number."""
FEWEST_GROUPS = 5
"""Fewest groups of a robust step: the median of five bears two that are wrong."""
LATE_GROUPS = 3
"""Groups that suffice once a deadline has passed without another: devices train once from a version, so that those of
which there are too few for more groups would wait for ever. The median of three bears one that is wrong."""
_TRIMMED = 3
"""Fewest updates of which a trimmed mean leaves any out."""
_PAIR = 2
"""The floor of a release with which an attacker under two names can subtract what it sent, whatever that is."""


@dataclass(frozen=True, slots=True)
class Strategy:
    """The rules for updates, steps and releases. Make one with a preset.

    Examples:
        >>> midge.balanced(combine="median")
        Traceback (most recent call last):
        ValueError: combine is 'median': it must be 'mean', 'trimmed' or 'centred'.
    """

    name: str
    staleness: Staled
    rate: Rate | None
    """α of FedAsync, η of the others. None follows the fleet's measured delays: see `mean_rate`."""
    bounded: bool = True
    """Whether the rate is limited by the fleet's delays, and damped while updates grow; otherwise it is as given."""
    form: Form = "delta"
    """What a step adds: deltas; or the difference to the whole models of the devices, as FedAsync does."""
    buffer_size: Count | None = 1
    """K, the number of updates in a step. None follows the fleet: one for every five live devices, 2 to 50. With
    `trimmed` at least 3."""
    normalise: Normalise = "none"
    """Divisor of the weighted sum of a step: none, the number of updates, or the sum of their weights."""
    deadline: Positive | None = None
    """Seconds after which a step is made from an incomplete buffer; None waits for K, or until every device that trains
    has given its update; a private step waits for K."""
    weigh_examples: bool = False
    """Whether an update is weighted by its number of rows."""
    weigh_devices: bool = True
    """Whether the updates of one device in a step share the weight of one, so that no device counts more often."""
    fairness: Fairness | None = None
    """Bound c of the participation correction r_i (`aggregator.core.participation_counts`); None disables it."""
    even_steps: bool = False
    """Whether deltas of unequal local steps are scaled to the typical number (FedNova, arXiv:2007.07481)."""
    steers_local_steps: bool = False
    """Whether the aggregator chooses the number of local steps by the round trip (`aggregator.core.local_work`), unless
    the plan sets one."""
    calibration: Calibration = 0.0
    """β, the weight of each device's cached delta in a step (1: CA2FL; between 0 and 1: FedStale)."""
    combine: Combine = "mean"
    """How the deltas of a step become one: their mean, a trimmed mean of each coordinate, or centred clipping."""
    trim: Annotated[float, Range(ge=0, lt=0.5)] = 0.0
    """For `trimmed`: the share of the buffer that is left out at either end, coordinate by coordinate."""
    count_rows: tuple[str, ...] = ()
    """Tensors of which each row is averaged over the updates that changed it, such as `embedding*`: patterns of names.
    Otherwise a row that one device in ten knows learns at a tenth of the rate."""
    clip: Positive | None = None
    """Multiple of the fleet's reference norm (`aggregator.core.fleet_statistics`) to which a delta is scaled down; None
    leaves that to `norm_limit`."""
    robust: bool = False
    """Whether devices that oppose most of the others count less (`aggregator.core.standings`), and the influence of
    each device is bounded (`aggregator.core.influence`)."""
    optimizer: Annotated[Optimizer, ", such as midge.adam()"] = field(default_factory=Optimizer)
    groups: Count = 1
    """In the mode secure, number of sums in a step; from 5 on, a robust rule combines them."""
    serve_decay: Decay = 0.0
    """Decay of the served moving average over versions; 0 serves the newest version itself."""
    serve_interval: NotNegative | None = None
    """Least seconds between two releases on the channel `serve`; None releases nothing there."""
    privacy: Privacy | None = None
    pace: Pace = field(default_factory=Pace)
    max_staleness: Whole = 1_000_000
    """Most steps since an update's base; an older one is refused as stale, and its device trains again."""
    max_age: Positive | None = None
    """Most seconds since the release of an update's base; an older one is refused as stale, unless its base is the
    newest version."""
    norm_limit: Annotated[float, Range(gt=1)] | None = 10.0
    """Multiple of the fleet's reference norm to which a delta is scaled down by strategies without `clip`. None leaves
    only the guard of 1,000 times the norm; with the mixing form, which has no clipping as published, not even that."""
    release_floor: Count = 2
    """Least number of distinct devices whose work a release carries. Above 2, devices whose updates are next to zero or
    repeat an earlier one do not count. Use at least 5 if strangers may join (docs/strategies.md)."""
    release_interval: NotNegative = 0.0
    """Least seconds between two releases."""
    byte_rate: NotNegative = 8e6
    """Bytes a second of all devices together, both ways: releases are spaced accordingly, and devices spread their
    fetches and updates. The default leaves a single-threaded broker 99 % of its time for others. 0 sets no limit."""
    release_every: Count = 1
    """Least number of steps between two releases; fewer if every device that trains has given its update, or after a
    silence: devices train once from each version."""
    relays: bool = False
    """Whether it is a gateway's: it makes no step and no release, but sums for the federation above."""
    plan: Plan = field(default_factory=Plan)

    def __post_init__(self) -> None:
        """Validate the values.

        Raises:
            ValueError: one is out of range, or they exclude each other.
        """
        object.__setattr__(self, "combine", SPELT.get(str(self.combine), self.combine))
        check_fields(self)
        if self.form == "mixing" and (self.buffer_size != 1 or (self.rate or 2) > 1):
            raise ValueError("the mixing form is FedAsync's: it needs buffer_size=1 and a rate of at most 1.")
        self._check_combination()
        if self.privacy is not None and (parts := self.unaccounted):
            raise ValueError(f"differential privacy cannot account for {', '.join(parts)}: leave them out.")
        if self.masked and (parts := self.unmaskable):
            raise ValueError(
                f"secure aggregation hides single devices' updates from {', '.join(parts)}: leave them out."
            )
        check_codecs(self.plan)

    def _check_combination(self) -> None:
        plain = self.calibration == 0 and self.optimizer == Optimizer() and self.combine == "mean"
        if self.form == "mixing" and not (plain and self.clip is None and self.fairness is None):
            raise ValueError("the mixing form mixes whole models: it goes with no optimizer, calibration or clip.")
        if self.single and (self.weigh_examples or self.combine != "mean"):
            raise ValueError("weigh_examples and combine compare updates of one step: they need a buffer of 2 or more.")
        if self.groups != 1 and (self.groups < FEWEST_GROUPS or not self.masked):
            raise ValueError(
                f"groups={self.groups} are sums of masked updates: secure(groups=...) takes at least {FEWEST_GROUPS}, "
                "of which two may be wrong, or 1 for none."
            )
        if self.count_rows and not (self.calibration == 0 and self.combine == "mean" and not self.single):
            raise ValueError("count_rows is a mean of rows: it goes with combine='mean' and a buffer of 2 or more.")
        if self.combine != "mean" and self.calibration:
            raise ValueError("calibration goes with combine='mean' only.")
        if (self.trim > 0) != (self.combine == "trimmed"):
            raise ValueError("trim belongs to combine='trimmed', which needs it above 0.")
        if self.combine == "trimmed" and (self.buffer_size or _TRIMMED) < _TRIMMED:
            raise ValueError(
                f"buffer_size is {self.buffer_size}: with combine='trimmed' it must be at least {_TRIMMED}, or None, "
                "because of fewer updates none is left out."
            )

    @property
    def steers_steps(self) -> bool:
        """Whether the aggregator chooses the local steps: the strategy says so, and the plan leaves them open."""
        plan = self.plan
        return self.steers_local_steps and (plan.local_steps or plan.epochs or plan.seconds) is None

    @property
    def unaccounted(self) -> list[str]:
        """Settings that differential privacy cannot account for, each with the reason."""
        assert self.privacy is not None
        parts = {
            "buffer_size=1 (noise on every single update)": self.single,
            "normalise='weight' (a divisor that depends on who came)": self.normalise != "count" and not self.masked,
            "honest (only in the mode secure do devices add the noise)": not self.masked and self.privacy.honest > 0,
            "weigh_examples (weights that depend on data)": self.weigh_examples,
            "fairness (weights that depend on who came)": self.fairness is not None,
            "even_steps (scales that depend on what devices say)": self.even_steps,
            "robust (weights that depend on other devices' data)": self.robust,
            "steers_local_steps (a published number that depends on what devices say)": self.steers_local_steps,
            "calibration (a cache of earlier deltas)": self.calibration > 0,
            f"combine={self.combine!r} (its sensitivity is not the clip norm)": self.combine != "mean",
            "count_rows (a divisor that depends on who changed a row)": bool(self.count_rows),
            "clip (a bound that depends on data; privacy has its own)": self.clip is not None,
            "norm_limit (a bound that depends on data)": self.norm_limit is not None,
            "plan.feedback (error feedback carries a delta into the next update)": self.plan.feedback,
        }
        return [name for name, is_so in parts.items() if is_so]

    @property
    def hides(self) -> bool:
        """Whether trivial updates count towards no release.

        Not with a floor of two: a device that knows its own update can subtract it, whatever it is, and of two devices
        one that has nothing to learn would stop the other. A private strategy must not depend on the devices' data, and
        the values of masked updates are unknown.
        """
        return self.release_floor > _PAIR and self.privacy is None and not self.masked

    @property
    def masked(self) -> bool:
        """Whether devices mask their updates, so that only sums can be decoded."""
        return self.plan.masking is not None

    @property
    def unmaskable(self) -> list[str]:
        """Settings that need the values of one device, each with the reason."""
        masking, size = self.plan.masking, self.buffer_size or 0
        assert masking is not None
        parts = {
            f"buffer_size={self.buffer_size} below {self.groups} times the plan's least={masking.least} "
            "(sets of the helper)": size < self.groups * masking.least,
            f"ring={masking.ring} (too small for {self.group_size} devices of ±{masking.levels})": (
                reach(self.group_size or 0, masking.levels, masking.noise, masking.honest) >= 2 ** (masking.ring - 1)
            ),
            "clip (the norm of one delta; devices clip themselves, to the plan's bound)": self.clip is not None,
            "norm_limit (the norm of one delta)": self.norm_limit is not None,
            "robust (the direction of one delta; this is what balanced compares)": self.robust,
            "count_rows (it counts the updates that changed a row)": bool(self.count_rows),
            f"combine={self.combine!r} (it compares single deltas)": self.combine != "mean",
            "calibration (a cache of single deltas)": self.calibration > 0,
            "form='mixing' (whole models of single devices)": self.form == "mixing",
            "even_steps (a factor for one delta)": self.even_steps,
            "fairness (a weight for one device; the helper computes the weights)": self.fairness is not None,
            "weigh_examples (devices do not say how many rows they have)": self.weigh_examples,
            "steers_local_steps (devices do not say how long they train)": self.steers_local_steps,
            "privacy without honest (the aggregator's noise; devices add theirs with secure(privacy=...))": (
                self.privacy is not None and (self.privacy.honest == 0 or masking.noise == 0)
            ),
            "plan.evaluate (results of one device)": self.plan.evaluate > 0,
            "plan.seconds (devices do not say how fast they are)": self.plan.seconds is not None,
            "class='micro' (those clients cannot mask)": self.plan.tier != "",
        }
        return [name for name, is_so in parts.items() if is_so]

    @property
    def group_size(self) -> int | None:
        """Number of devices in a sum of masked updates."""
        return None if self.buffer_size is None else self.buffer_size // self.groups

    @property
    def fewest_devices(self) -> int:
        """Number of distinct devices without which no step of groups is made; 0 without groups."""
        masking = self.plan.masking
        return LATE_GROUPS * masking.least if masking is not None and self.groups > 1 else 0

    @property
    def by_device(self) -> bool:
        """Whether one device fills at most half of a buffer: one that sends often must not fill it alone."""
        return self.robust or self.combine != "mean"

    @property
    def equal_influence(self) -> bool:
        """Whether the influence of each device is bounded (`aggregator.core.influence`).

        Not if the user wants devices to count by their rows, or by how often they send.
        """
        return self.robust and self.fairness is not None and not self.weigh_examples

    @property
    def most_waiting(self) -> int:
        """Most updates of one device that may wait for a step; its device keeps a further one until then.

        With trimming and centring it is one, because these have no weights that updates of one device could share.
        """
        return OUTBOX_LIMIT if self.combine == "mean" else 1

    @property
    def normalised(self) -> bool:
        """Whether a step divides by its weights; trimming and centring always do."""
        return self.normalise == "weight" or self.combine != "mean"

    @property
    def momentum(self) -> float:
        """β1 of an optimiser whose rate is a loop gain; 0 for adaptive ones, whose rate is none."""
        return self.optimizer.beta1 if self.optimizer.kind == "sgd" else 0.0

    @property
    def single(self) -> bool:
        """Whether every update is a step."""
        return self.buffer_size == 1

    def size(self, live: int) -> int:
        """K for a fleet in which `live` devices are online."""
        if self.buffer_size is not None:
            return self.buffer_size
        least = _TRIMMED if self.combine == "trimmed" else 2
        return min(max(round(live / DEVICES_PER_UPDATE), least), LARGEST_BUFFER)

    @property
    def norm_bound(self) -> float:
        """Most reference norms of a delta in a step."""
        if self.privacy is not None:
            return math.inf  # it has a bound of its own, which does not depend on data
        if self.form == "mixing":
            return self.norm_limit or math.inf  # Algorithm 1 of its paper has none
        return min(self.clip or math.inf, self.norm_limit or math.inf, GUARD)

    @property
    def sums(self) -> bool:
        """Whether a gateway's sum counts as all of its updates; otherwise it counts as one device's."""
        return self.combine == "mean" and not self.calibration and self.form == "delta"

    def admission_weight(self, tau: int, age: float, examples: int, usual: float | None = None) -> float:
        """The weight of an update by its staleness and, with `weigh_examples`, its rows.

        `usual` is the median staleness of its device's updates.
        """
        weight = self.staleness.weight(tau, age, usual)
        return weight * max(1, examples) if self.weigh_examples else weight

    def weights(self, buffered: Sequence[Buffered]) -> list[float]:
        """The weights of a step's updates; those of one device share its weight, those of a site are of its devices."""
        if self.single or not self.weigh_devices:
            return [item.weight for item in buffered]
        shares = Counter(item.device for item in buffered)
        return [item.weight if item.summed and self.sums else item.weight / shares[item.device] for item in buffered]

    @property
    def adaptive(self) -> bool:
        """Whether the optimiser divides by the size of its input: its rate is no loop gain then."""
        return self.optimizer.kind != "sgd"

    def step_rate(
        self, largest: int, live: int, safe: float | None, early: float = math.inf, size: int | None = None
    ) -> float:
        """The rate of a step of `size` updates, the stalest `largest` steps old, with `live` devices online."""
        limit = self.optimizer.delay_limit
        rate = self.mean_rate(live, safe, early, size)
        return rate / largest if limit is not None and largest > max(limit, 1) else rate

    def mean_rate(
        self, live: int, safe: float | None = None, early: float = math.inf, size: int | None = None
    ) -> float:
        """The server's rate with `live` devices online and the safe rate of `aggregator.core.gain_margin`, if known.

        Until it is known, the rate is at most `early`, which is estimated from a few updates. `size` is the number of
        updates in the step, None stands for K: a deadline makes smaller steps, and a gateway's sum counts as all of
        its own.

        While a device trains, the others move the model: n concurrent trainings, K to a step, add η·n/K full deltas
        before the first of them takes effect. Above about two the model may oscillate, for any K. A measured safe rate
        takes precedence, because devices of different speeds leave more room. A configured rate has the same bounds,
        unless `bounded` is False.
        """
        if self.rate is not None and (self.adaptive or not self.bounded):
            return self.rate
        if self.form == "mixing":
            return min(self.rate or 1.0, self.mixing_limit(live))
        if safe is not None:
            return safe if self.rate is None else min(self.rate, GIVEN * safe)
        busy = self.pace.concurrency or self.pace.cohort or live * self.pace.share
        reach = REACH / (1 + self.calibration)  # cached deltas repeat those of a training ago
        bound = min(1.0, reach * (self.size(live) if size is None else size) / max(busy, 1.0)) * (1 - self.momentum)
        bound = min(bound, early)
        return bound if self.rate is None else min(self.rate, bound)

    def mixing_limit(self, live: int) -> float:
        """The largest α at which `live` devices in turn do not swing the model, with the weight of that staleness.

        Mixing pulls x back to p_v, so it is stable at any rate; what is limited is each device's share of x.
        """
        return MIXED / (max(live, 1) * self.staleness(max(live - 1, 0)))

    def divisor(self, size: int) -> float:
        """A fixed divisor of the step's sum; 0 if it follows from the updates."""
        return float(size) if self.privacy is not None and not self.masked else 0.0


def trimmed_count(updates: int, trim: float) -> int:
    """Number of values of each coordinate that a trimmed mean leaves out at either end."""
    return min(math.ceil(trim * updates), (updates - 1) // 2)
