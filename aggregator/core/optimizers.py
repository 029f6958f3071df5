"""The server's optimisers, which turn the combined delta of a step into its change of the model."""

from dataclasses import dataclass
from typing import Literal, get_args

Kind = Literal["sgd", "adam", "amsgrad"]


@dataclass(frozen=True, slots=True)
class Optimizer:
    """The server's optimiser, applied to the combined delta u.

    `sgd`: m ← β1·m + u; x ← x + η·m. `adam`: m ← β1·m + (1 − β1)·u, w ← β2·w + (1 − β2)·u², x ← x + η·m / (√w + ε),
    without bias correction (FedAdam, arXiv:2003.00295); `amsgrad` divides by the largest w so far.
    """

    kind: Kind = "sgd"
    beta1: float = 0.0
    beta2: float = 0.99
    epsilon: float = 1e-3
    delay_limit: int | None = None
    """If set, η is divided by the largest staleness in a buffer if that is above it (FADAS, arXiv:2407.18365)."""

    def __post_init__(self) -> None:
        one_of("the optimizer's kind", self.kind, Kind)
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1 and self.epsilon > 0):
            raise ValueError("an optimizer needs beta1 and beta2 from 0 to below 1, and an epsilon above 0.")


def one_of(name: str, value: object, allowed: object) -> None:
    """Check that a value is one of a Literal's.

    Raises:
        ValueError: it is not; all allowed ones are named.
    """
    if value not in get_args(allowed):
        raise ValueError(f"{name} is one of {', '.join(map(repr, get_args(allowed)))}, not {value!r}.")


def sgd(momentum: float = 0.0) -> Optimizer:
    """X ← x + η·m with m ← momentum·m + u. Momentum amplifies delayed updates too: keep η ≤ (1 − momentum) / 2.

    Examples:
        >>> midge.fedbuff(10, 0.4, optimizer=midge.sgd(momentum=0.5)).optimizer.beta1
        0.5
    """
    return Optimizer("sgd", beta1=momentum)


def adam(
    beta1: float = 0.9, beta2: float = 0.99, epsilon: float = 1e-3, *, amsgrad: bool = False, delay: int | None = None
) -> Optimizer:
    """FedAdam; with `amsgrad` and `delay` FADAS: the rate decreases with a buffer's largest staleness above `delay`.

    Examples:
        >>> midge.fedbuff(10, 0.01, optimizer=midge.adam(beta2=0.999)).optimizer.kind
        'adam'
    """
    return Optimizer("amsgrad" if amsgrad else "adam", beta1, beta2, epsilon, delay)
