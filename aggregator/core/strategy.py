"""When and how updates become the next model: one plain value.

A `Strategy` holds numbers, never state; presets (`aggregator.core.presets`) are functions that return one. Every weight
that comes of it is journaled, so that a restart applies what was decided then, not what the configuration says now.

Notation: x the exact global model, p_v the model published as version v, Δ = trained − p_v, τ the staleness in steps
between v and now, K the buffer size, α and η the server's rate. A step is one reducer for all presets:

    u = β·h̄ + Σ a_i·(f_i·Δ_i − β·h_i) / N        a_i: weight, f_i: scale, h_i: the device's last delta, h̄: their mean
    x ← x + optimizer(η·u)                       N: Σ a_i, or K, or 1 where every update is a step
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from midge.aggregator.core.gain_margin import SHARE
from midge.aggregator.core.participation_controller import Pace
from midge.aggregator.core.privacy import Privacy
from midge.aggregator.core.staleness import Staleness
from midge.wire import codecs
from midge.wire.errors import WireError
from midge.wire.messages import OUTBOX_LIMIT, Plan

Form = Literal["delta", "mixing"]
Normalise = Literal["none", "count", "weight"]
Combine = Literal["mean", "trimmed", "centred"]
Kind = Literal["sgd", "adam", "amsgrad"]

GUARD = 1000.0
"""Reference norms that no update is longer than in a step, under any strategy: ordinary training stays within ten,
and a change of the world by that factor is still followed at once."""

LARGEST_BUFFER = 50
"""K, at most, where it follows the fleet."""
REACH = 1.25
"""How many full deltas the devices that train at a time add up to, before the fleet's delays are known."""
MIXED = 2.5
"""What the weights of all devices that train at a time add up to in FedAsync's mixing form, at most: from there on the
digits of 20 to 100 devices ended lower."""
GIVEN = 0.5 / SHARE
"""Times the safe rate that a rate which is given may be: half of the gain margin."""
DEVICES_PER_UPDATE = 5
"""How many devices stand behind each update of a buffer that follows the fleet."""


@dataclass(frozen=True, slots=True)
class Optimizer:
    """The server's optimiser: what becomes of the combined delta u.

    `sgd`: m ← β1·m + u; x ← x + η·m. `adam`: m ← β1·m + (1 − β1)·u, w ← β2·w + (1 − β2)·u², x ← x + η·m / (√w + ε),
    without bias correction (FedAdam, arXiv:2003.00295); `amsgrad` divides by the largest w so far.
    """

    kind: Kind = "sgd"
    beta1: float = 0.0
    beta2: float = 0.99
    epsilon: float = 1e-3
    delay_limit: int | None = None
    """Where set, η is divided by the largest staleness in a buffer that passes it (FADAS, arXiv:2407.18365)."""

    def __post_init__(self) -> None:
        one_of("the optimizer's kind", self.kind, Kind)
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1 and self.epsilon > 0):
            raise ValueError("an optimizer needs beta1 and beta2 from 0 to below 1, and an epsilon above 0.")


def one_of(name: str, value: object, allowed: object) -> None:
    """Refuse a value that is not one of a Literal's.

    Raises:
        ValueError: naming all of them.
    """
    if value not in get_args(allowed):
        raise ValueError(f"{name} is one of {', '.join(map(repr, get_args(allowed)))}, not {value!r}.")


def sgd(momentum: float = 0.0) -> Optimizer:
    """X ← x + η·m with m ← momentum·m + u. Momentum speeds up old mistakes too: keep η at most (1 − momentum) / 2."""
    return Optimizer("sgd", beta1=momentum)


def adam(
    beta1: float = 0.9, beta2: float = 0.99, epsilon: float = 1e-3, *, amsgrad: bool = False, delay: int | None = None
) -> Optimizer:
    """FedAdam, or with `amsgrad` and `delay` FADAS: the rate falls with the buffer's largest staleness beyond it."""
    return Optimizer("amsgrad" if amsgrad else "adam", beta1, beta2, epsilon, delay)


@dataclass(frozen=True, slots=True)
class Waiting:
    """An accepted update that waits for its step, as much as its weight in it depends on."""

    device: str
    staleness: int
    weight: float
    scale: float = 1.0
    norm: float = 0.0
    """L2, of the delta as it was sent."""
    agreement: float = 0.0
    """Cosine of the delta with the direction of most devices."""


@dataclass(frozen=True, slots=True)
class Strategy:
    """What the aggregator does with updates. Make one with a preset."""

    name: str
    staleness: Staleness
    rate: float | None
    """α of FedAsync, η of the others. None follows what is measured of the fleet: see `mean_rate`."""
    bounded: bool = True
    """Whether the rate is lowered to what the fleet's delays allow, if it is above that. False takes it as given."""
    form: Form = "delta"
    """What a step adds: deltas; or the difference to the whole models of the devices, as FedAsync does."""
    buffer_size: int | None = 1
    """K: updates for each step. None follows the fleet: one for every five devices that are there, 2 to 50."""
    normalise: Normalise = "none"
    """What the weighted sum of a step is divided by: nothing, the number of updates, or the sum of their weights."""
    deadline: float | None = None
    """Seconds after which a step is made from an unfilled buffer; None waits for K."""
    weigh_examples: bool = False
    """Whether an update counts by the number of the device's rows."""
    fairness: float | None = None
    """Bound c of the participation correction r_i (`aggregator.core.participation_counts`); None makes none."""
    even_steps: bool = False
    """Whether deltas of unequal local steps are scaled to the mean number (FedNova, arXiv:2007.07481)."""
    steers_local_steps: bool = False
    """Whether devices are asked for as many local steps as the journey of an update is worth
    (`aggregator.core.local_work`), unless the plan says how many."""
    calibration: float = 0.0
    """β: how much of each device's last delta stands in for what it will send (1: CA2FL; between: FedStale)."""
    combine: Combine = "mean"
    """How the deltas of a step become one: their mean, a trimmed mean of each coordinate, or centred clipping."""
    trim: float = 0.0
    """Of `trimmed`: the part of the buffer that is left out at either end, coordinate by coordinate."""
    clip: float | None = None
    """A delta is scaled down to this many times the fleet's reference norm (`aggregator.core.fleet_statistics`); None
    leaves that to `norm_limit`."""
    robust: bool = False
    """Whether updates that go against what most devices have learned count less (`aggregator.model.consensus`)."""
    optimizer: Optimizer = field(default_factory=Optimizer)
    serve_decay: float = 0.0
    """Of the moving average over versions that is served for use; 0 serves the newest version as it is."""
    serve_interval: float | None = None
    """Seconds at least between two releases on the channel `serve`; None releases nothing there."""
    privacy: Privacy | None = None
    pace: Pace = field(default_factory=Pace)
    max_staleness: int = 1_000_000
    """Steps; an update older than this is refused as stale, and its device trains again from the newest version."""
    max_age: float | None = None
    """Seconds since its base was released; an update older than this is refused as stale, unless it was trained from
    the newest version: that one is never too old."""
    norm_limit: float | None = 10.0
    """The bound of strategies without `clip`: a delta is scaled down to this many times the fleet's reference norm.
    None leaves only the guard of 1,000 times it, which nothing lifts."""
    release_floor: int = 2
    """The least number of distinct devices whose work a release carries."""
    release_interval: float = 0.0
    """Seconds between two releases, at least."""
    byte_rate: float = 8e6
    """Bytes a second that all devices together may move, both ways: releases are spaced so, and devices fetch and send
    in turn. The default leaves a broker with one thread to others for 99 hundredths of the time. 0 sets no limit."""
    release_every: int = 1
    """Steps between two releases, at least."""
    plan: Plan = field(default_factory=Plan)

    def __post_init__(self) -> None:
        """Refuse values that cannot work together.

        Raises:
            ValueError: naming the argument.
        """
        if str(self.combine) == "centered":
            object.__setattr__(self, "combine", "centred")
        one_of("form", self.form, Form)
        one_of("normalise", self.normalise, Normalise)
        one_of("combine", self.combine, Combine)
        if self.rate is not None and not 0 < self.rate <= 10:
            raise ValueError(f"the server's rate must be above 0 and at most 10, not {self.rate}.")
        smallest = min(self.buffer_size or 2, self.release_floor, self.release_every)
        if self.buffer_size == 0 or smallest < 1 or self.max_staleness < 0:
            raise ValueError(
                "buffer_size and release_floor must be at least 1, release_every too, and max_staleness at least 0."
            )
        if self.form == "mixing" and (self.buffer_size != 1 or (self.rate or 2) > 1):
            raise ValueError("the mixing form is FedAsync's: it needs buffer_size=1 and a rate of at most 1.")
        if self.deadline is not None and self.deadline <= 0:
            raise ValueError("the deadline must be above 0 seconds, or None to wait for a full buffer.")
        if self.norm_limit is not None and self.norm_limit <= 1:
            raise ValueError(
                "norm_limit must be above 1: a multiple of the reference norm, or None for the guard only."
            )
        if self.clip is not None and self.clip <= 0:
            raise ValueError("clip must be above 0: a multiple of the reference norm, or None.")
        if self.max_age is not None and self.max_age <= 0:
            raise ValueError("max_age must be above 0 seconds, or None for no limit.")
        if self.fairness is not None and self.fairness < 1:
            raise ValueError("fairness must be at least 1: how far a device's weight may be raised or lowered.")
        if not 0 <= self.calibration <= 1 or not 0 <= self.trim < 0.5 or not 0 <= self.serve_decay < 1:
            raise ValueError("calibration is from 0 to 1, trim from 0 to below 0.5, serve_decay from 0 to below 1.")
        if self.byte_rate < 0:
            raise ValueError("byte_rate must not be negative; 0 sets no limit.")
        if self.serve_interval is not None and self.serve_interval < 0:
            raise ValueError("serve_interval must not be negative; None serves nothing.")
        self._see_parts_fit()
        if self.privacy is not None and (parts := self.unaccounted):
            raise ValueError(f"differential privacy cannot account for {', '.join(parts)}: leave them out.")
        try:
            codecs.parse(self.plan.codec)
            codecs.parse(self.plan.micro_codec)
            if self.plan.narrow_codec:
                codecs.parse(self.plan.narrow_codec)
        except WireError as error:
            raise ValueError(f"no device could follow the plan: {error}, such as int8:256.") from error

    def _see_parts_fit(self) -> None:
        plain = self.calibration == 0 and self.optimizer == Optimizer() and self.combine == "mean"
        if self.form == "mixing" and not (plain and self.clip is None and self.fairness is None):
            raise ValueError("the mixing form mixes whole models: it goes with no optimizer, calibration or clip.")
        if self.single and (self.weigh_examples or self.combine != "mean"):
            raise ValueError("weigh_examples and combine compare updates of one step: they need a buffer of 2 or more.")
        if self.combine != "mean" and self.calibration:
            raise ValueError("calibration goes with combine='mean' only.")
        if (self.trim > 0) != (self.combine == "trimmed"):
            raise ValueError("trim belongs to combine='trimmed', which needs it above 0.")

    @property
    def steers_steps(self) -> bool:
        """Whether the aggregator chooses the local steps: the strategy does, and the plan leaves them open."""
        plan = self.plan
        return self.steers_local_steps and (plan.local_steps or plan.epochs or plan.seconds) is None

    @property
    def unaccounted(self) -> list[str]:
        """What differential privacy could not account for, by name."""
        parts = {
            "buffer_size=1 (noise on every single update)": self.single,
            "normalise='weight' (the divisor must not depend on who came)": self.normalise != "count",
            "weigh_examples (weights that depend on data)": self.weigh_examples,
            "fairness (weights that depend on who came)": self.fairness is not None,
            "even_steps (scales that depend on what devices say)": self.even_steps,
            "calibration (a cache of earlier deltas)": self.calibration > 0,
            f"combine={self.combine!r} (its sensitivity is not the clip norm)": self.combine != "mean",
            "clip (a bound that depends on data; privacy has its own)": self.clip is not None,
            "norm_limit (a bound that depends on data)": self.norm_limit is not None,
            "plan.feedback (error feedback carries a delta into the next update)": self.plan.feedback,
        }
        return [name for name, is_so in parts.items() if is_so]

    @property
    def by_device(self) -> bool:
        """Whether one device fills at most half of a buffer: one that sends often must not fill it alone."""
        return self.robust or self.combine != "mean"

    @property
    def most_waiting(self) -> int:
        """How many updates of one device may wait for a step; a further one is kept by its device until then.

        Trimming and centring have no weights that updates of one device could share, so each device has one there.
        """
        return OUTBOX_LIMIT if self.combine == "mean" else 1

    @property
    def normalised(self) -> bool:
        """Whether a step divides by its weights. Trimming and centring take a weighted mean, whatever is asked for."""
        return self.normalise == "weight" or self.combine != "mean"

    @property
    def momentum(self) -> float:
        """What the server's optimiser keeps of the last step, of those whose rate is a gain of the loop; 0 if none."""
        return self.optimizer.beta1 if self.optimizer.kind == "sgd" else 0.0

    @property
    def single(self) -> bool:
        """Whether every update is a step."""
        return self.buffer_size == 1

    def size(self, live: int) -> int:
        """K for a fleet in which `live` devices are online."""
        if self.buffer_size is not None:
            return self.buffer_size
        return min(max(round(live / DEVICES_PER_UPDATE), 2), LARGEST_BUFFER)

    @property
    def norm_bound(self) -> float:
        """How many reference norms a delta may be long in a step."""
        if self.privacy is not None:
            return math.inf  # it has a bound of its own, which does not depend on data
        return min(self.clip or math.inf, self.norm_limit or math.inf, GUARD)

    def admission_weight(self, tau: int, age: float, examples: int, usual: float | None = None) -> float:
        """The weight of an update by itself: its staleness and, if asked, its rows.

        `usual` is the median staleness of its device's updates.
        """
        weight = self.staleness.weight(tau, age, usual)
        return weight * max(1, examples) if self.weigh_examples else weight

    def weights(self, buffered: Sequence[Waiting]) -> list[float]:
        """The weights of a step's updates; those of one device share its weight."""
        if self.single:
            return [item.weight for item in buffered]
        shares = Counter(item.device for item in buffered)
        return [item.weight / shares[item.device] for item in buffered]

    def step_rate(self, largest: int, live: int, safe: float | None) -> float:
        """What multiplies u if a step's stalest update is `largest` steps old and `live` devices are online."""
        limit = self.optimizer.delay_limit
        rate = self.mean_rate(live, safe)
        return rate / largest if limit is not None and largest > max(limit, 1) else rate

    def mean_rate(self, live: int, safe: float | None = None) -> float:
        """The server's rate if `live` devices are online and `safe` is what `aggregator.core.gain_margin` has measured.

        While a device trains, the others move the model: n that train at a time, K to a step, add η·n/K full deltas
        before the first of them sees any. Beyond about two the model may swing, whatever K is. What is measured goes
        before: devices of unlike speeds leave more room. A rate that is given is bounded by the same, unless
        `bounded=False` is given with it.
        """
        if self.rate is not None and not (self.bounded and self.optimizer.kind == "sgd"):
            return self.rate  # adaptive optimizers divide by what they see: their rate is no gain of the loop
        if self.form == "mixing":
            # Mixing pulls back to p_v, so it settles at any rate. What is bounded is each device's part of the model.
            return min(self.rate or 1.0, MIXED / (max(live, 1) * self.staleness(max(live - 1, 0))))
        if safe is not None:
            return safe if self.rate is None else min(self.rate, GIVEN * safe)
        busy = self.pace.concurrency or self.pace.cohort or live * self.pace.share
        reach = REACH / (1 + self.calibration)  # cached deltas say again what was said a training ago
        bound = min(1.0, reach * self.size(live) / max(busy, 1.0)) * (1 - self.momentum)
        return bound if self.rate is None else min(self.rate, bound)

    def divisor(self, size: int) -> float:
        """A fixed divisor of the step's sum, or 0 where it follows from the updates."""
        return float(size) if self.privacy is not None else 0.0


def trimmed_count(updates: int, trim: float) -> int:
    """How many values of each coordinate a trimmed mean leaves out at either end."""
    return min(math.ceil(trim * updates), (updates - 1) // 2)
