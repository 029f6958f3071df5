"""Staleness weights: the weight of an update that was trained from an older model."""

from dataclasses import dataclass
from typing import Literal

from midge.wire.field_checks import NotNegative, Positive, check_fields

Kind = Literal["constant", "polynomial", "hinge", "relative"]


@dataclass(frozen=True, slots=True)
class Staleness:
    """The weight s(τ) of an update that is τ steps old (FedAsync, arXiv:1903.03934, section 5.2).

    Examples:
        >>> midge.fedbuff(10, staleness=midge.Staleness("hinge", a=10.0, b=4.0)).staleness(4)
        1.0
    """

    kind: Kind
    a: NotNegative = 0.5
    b: NotNegative = 4.0
    seconds: Positive | None = None
    """If set, τ is the time since the release of the update's base, in units of this many seconds."""

    def __post_init__(self) -> None:
        check_fields(self, "staleness")

    def __call__(self, tau: float) -> float:
        """The weight s(τ), with s(0) = 1."""
        match self.kind:
            case "constant":
                return 1.0
            case "polynomial" | "relative":
                return float((tau + 1) ** -self.a)
            case "hinge":
                return 1.0 if tau <= self.b else 1.0 / (self.a * (tau - self.b) + 1.0)

    def weight(self, steps: int, age: float, usual: float | None = None) -> float:
        """The weight of an update whose base is `steps` steps and `age` seconds old.

        `usual`, which `relative` needs, is the median staleness of its device's updates in steps; None if unknown.
        """
        if self.kind == "relative":
            return self(0.0 if usual is None else max(0.0, steps - usual) / max(usual, 1.0))
        return self(steps if self.seconds is None else age / self.seconds)


def constant() -> Staleness:
    """s(τ) = 1.

    Examples:
        >>> midge.constant()(100)
        1.0
    """
    return Staleness("constant")


def polynomial(a: float = 0.5, *, seconds: float | None = None) -> Staleness:
    """s(τ) = (τ + 1)^−a; τ in steps, or in units of `seconds`.

    Examples:
        >>> midge.polynomial(0.5)(3)
        0.5
    """
    return Staleness("polynomial", a=a, seconds=seconds)


def relative(a: float = 0.5) -> Staleness:
    """s(τ) = (1 + e)^−a with e = max(0, τ − τ̄) / max(τ̄, 1), where τ̄ is the device's own median staleness.

    An update that is late for its device counts less. One of a device that is always slow does not, because otherwise
    the model would neglect its data.
    """
    return Staleness("relative", a=a)


def hinge(a: float = 10.0, b: float = 4.0, *, seconds: float | None = None) -> Staleness:
    """s(τ) = 1 if τ ≤ b, otherwise 1 / (a·(τ − b) + 1); τ in steps, or in units of `seconds`.

    Examples:
        >>> midge.hinge(a=10.0, b=4.0)(5)
        0.09090909090909091
    """
    return Staleness("hinge", a=a, b=b, seconds=seconds)
