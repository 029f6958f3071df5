"""The server's optimisers, which turn the combined delta of a step into its change of the model."""

from dataclasses import dataclass
from typing import Annotated, Literal

from midge.wire.field_checks import Positive, Range, Whole, check_arguments, check_fields

Kind = Literal["sgd", "adam", "amsgrad"]
Decay = Annotated[float, Range(ge=0, lt=1)]


@dataclass(frozen=True, slots=True)
class Optimizer:
    """The server's optimiser, applied to the combined delta u.

    `sgd`: m ← β1·m + u; x ← x + η·m. `adam`: m ← β1·m + (1 − β1)·u, w ← β2·w + (1 − β2)·u², x ← x + η·m / (√w + ε),
    without bias correction (FedAdam, arXiv:2003.00295); `amsgrad` divides by the largest w so far.
    """

    kind: Kind = "sgd"
    beta1: Decay = 0.0
    beta2: Decay = 0.99
    epsilon: Positive = 1e-3
    delay_limit: Whole | None = None
    """If set, η is divided by the largest staleness in a buffer if that is above it (FADAS, arXiv:2407.18365)."""

    def __post_init__(self) -> None:
        check_fields(self, "optimizer")


def sgd(momentum: Decay = 0.0) -> Optimizer:
    """X ← x + η·m with m ← momentum·m + u. Momentum amplifies delayed updates too: keep η ≤ (1 − momentum) / 2.

    Examples:
        >>> midge.fedbuff(10, 0.4, optimizer=midge.sgd(momentum=0.5)).optimizer.beta1
        0.5
    """
    check_arguments(sgd, locals())
    return Optimizer("sgd", beta1=momentum)


def adam(
    beta1: Decay = 0.9,
    beta2: Decay = 0.99,
    epsilon: Positive = 1e-3,
    *,
    amsgrad: bool = False,
    delay: Whole | None = None,
) -> Optimizer:
    """FedAdam; with `amsgrad` and `delay` FADAS: the rate decreases with a buffer's largest staleness above `delay`.

    Examples:
        >>> midge.fedbuff(10, 0.01, optimizer=midge.adam(beta2=0.999)).optimizer.kind
        'adam'
    """
    check_arguments(adam, locals())
    return Optimizer("amsgrad" if amsgrad else "adam", beta1, beta2, epsilon, delay)
