"""When and how updates become the next model: one plain value.

A `Strategy` holds numbers, never state; presets are functions that return one. Every weight that it computes is
journaled, so that a restart applies what was decided then, not what the configuration says now.

Notation: x the exact global model, p_v the model published as version v, Δ = trained − p_v, τ the staleness in steps
between v and now, K the buffer size, α and η_g the server's rate.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from wire import codecs
from wire.errors import WireError
from wire.messages import Plan

Form = Literal["delta", "mixing"]
Normalise = Literal["none", "count", "weight"]


@dataclass(frozen=True, slots=True)
class Staleness:
    """How much an update counts that is τ steps old (FedAsync, arXiv:1903.03934, section 5.2)."""

    kind: Literal["constant", "polynomial", "hinge"]
    a: float = 0.5
    b: float = 4.0

    def __call__(self, tau: int) -> float:
        """The weight s(τ), with s(0) = 1."""
        match self.kind:
            case "constant":
                return 1.0
            case "polynomial":
                return float((tau + 1) ** -self.a)
            case "hinge":
                return 1.0 if tau <= self.b else 1.0 / (self.a * (tau - self.b) + 1.0)


def constant() -> Staleness:
    """s(τ) = 1."""
    return Staleness("constant")


def polynomial(a: float = 0.5) -> Staleness:
    """s(τ) = (τ + 1)^−a."""
    if a < 0:
        raise ValueError("polynomial(a): a must not be negative, or old updates would count more than new ones.")
    return Staleness("polynomial", a=a)


def hinge(a: float = 10.0, b: float = 4.0) -> Staleness:
    """s(τ) = 1 where τ ≤ b, else 1 / (a·(τ − b) + 1)."""
    if a < 0 or b < 0:
        raise ValueError("hinge(a, b): neither may be negative.")
    return Staleness("hinge", a=a, b=b)


@dataclass(frozen=True, slots=True)
class Strategy:
    """What the aggregator does with updates. Make one with `fedasync()` or `fedbuff()`."""

    name: str
    staleness: Staleness
    rate: float
    """α of FedAsync, η_g of FedBuff."""
    form: Form = "delta"
    buffer_size: int = 1
    """K: updates for each step."""
    normalise: Normalise = "none"
    """What the weighted sum of a step is divided by: nothing, the number of updates, or the sum of their weights."""
    deadline: float | None = None
    """Seconds after which a step is made from an unfilled buffer; None waits for K."""
    max_staleness: int = 1000
    """Steps; an update older than this is refused as stale."""
    norm_limit: float | None = 10.0
    """An update is refused whose norm is beyond so many times the median of the last accepted ones; None lifts it."""
    release_floor: int = 2
    """A release carries the work of at least so many distinct devices."""
    release_interval: float = 0.0
    """Seconds between two releases, at least."""
    plan: Plan = field(default_factory=Plan)

    def __post_init__(self) -> None:
        """Refuse values that cannot work together.

        Raises:
            ValueError: naming the argument.
        """
        if not 0 < self.rate <= 10:
            raise ValueError(f"the server's rate must be above 0 and at most 10, not {self.rate}.")
        if self.buffer_size < 1 or self.release_floor < 1 or self.max_staleness < 0:
            raise ValueError("buffer_size and release_floor must be at least 1 and max_staleness at least 0.")
        if self.form == "mixing" and (self.buffer_size != 1 or self.rate > 1):
            raise ValueError("the mixing form is FedAsync's: it needs buffer_size=1 and a rate of at most 1.")
        if self.deadline is not None and self.deadline <= 0:
            raise ValueError("the deadline must be above 0 seconds, or None to wait for a full buffer.")
        if self.norm_limit is not None and self.norm_limit <= 1:
            raise ValueError("norm_limit must be above 1: a multiple of the median norm, or None for no limit.")
        try:
            codecs.parse(self.plan.codec)
        except WireError as error:
            raise ValueError(f"no device could follow the plan: {error}, such as int8:256.") from error

    def weights(self, buffered: Sequence[tuple[str, int]]) -> list[float]:
        """The weight of each update of a step, from its device and staleness; updates of one device share its weight.

        With K = 1 the weight holds the rate: α·s(τ). In a buffer it is s(τ) divided by the device's updates in it.
        """
        if self.buffer_size == 1:
            return [self.rate * self.staleness(tau) for _, tau in buffered]
        shares = Counter(device for device, _ in buffered)
        return [self.staleness(tau) / shares[device] for device, tau in buffered]

    @property
    def step_rate(self) -> float:
        """What multiplies the normalised sum of a step."""
        return 1.0 if self.buffer_size == 1 else self.rate


def fedasync(
    alpha: float = 0.6,
    staleness: Staleness | None = None,
    form: Form = "delta",
    *,
    max_staleness: int = 1000,
    norm_limit: float | None = 10.0,
    release_floor: int = 2,
    release_interval: float = 0.0,
    plan: Plan | None = None,
) -> Strategy:
    """Every update is a step (FedAsync, Xie, Koyejo, Gupta, arXiv:1903.03934).

    With α_τ = α·s(τ), the form `delta` is x ← x + α_τ·Δ; the published form, `mixing`, is
    x ← (1 − α_τ)·x + α_τ·(p_v + Δ), which also pulls x back towards the version that the device began from.
    """
    return Strategy(
        name="fedasync",
        staleness=staleness or polynomial(0.5),
        rate=alpha,
        form=form,
        max_staleness=max_staleness,
        norm_limit=norm_limit,
        release_floor=release_floor,
        release_interval=release_interval,
        plan=plan or Plan(),
    )


def fedbuff(
    buffer_size: int = 10,
    server_rate: float = 1.0,
    staleness: Staleness | None = None,
    normalise: Normalise = "count",
    *,
    deadline: float | None = 10.0,
    max_staleness: int = 1000,
    norm_limit: float | None = 10.0,
    release_floor: int = 2,
    release_interval: float = 0.0,
    plan: Plan | None = None,
) -> Strategy:
    """K updates are a step (FedBuff, Nguyen et al., AISTATS 2022, arXiv:2106.06639).

    x ← x + η_g · Σ s(τ_i)·Δ_i / K with s(τ) = 1/√(1+τ), as published; `normalise="weight"` divides by Σ s(τ_i)
    instead, which keeps the discounts relative within a buffer. A device that is in the buffer twice shares its weight.
    """
    if normalise == "none":
        raise ValueError('fedbuff(normalise=...) is "count", as published, or "weight".')
    return Strategy(
        name="fedbuff",
        staleness=staleness or polynomial(0.5),
        rate=server_rate,
        buffer_size=buffer_size,
        normalise=normalise if buffer_size > 1 else "none",
        deadline=deadline,
        max_staleness=max_staleness,
        norm_limit=norm_limit,
        release_floor=release_floor,
        release_interval=release_interval,
        plan=plan or Plan(),
    )
