"""How a federation handles the versions that it registers."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from midge.wire.field_checks import Positive, Range, Share, check_fields
from midge.wire.participation import check_where


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryPolicy:
    """What is registered by rule, how many versions are kept, and how a candidate is tried.

    Raises:
        ValueError: a value is out of range.

    Examples:
        >>> midge.RegistryPolicy(every=86_400.0, share=0.2).keep
        16
    """

    keep: Annotated[int, Range(ge=3)] = 16
    """Versions that are kept at most. The oldest that no name stands for goes first; champion, candidate and the
    champion before stay."""
    every: Positive | None = None
    """Least seconds after which the newest release is registered by rule: as the champion if there is none, otherwise
    as the candidate, unless another one is tried. None registers by order only."""
    share: Share = 0.1
    """Of the devices that use a candidate, if the order does not say."""
    where: Mapping[str, str] = field(default_factory=dict)
    """Capabilities of the devices of which the share is taken, each with its value, if the order does not say; empty
    means all devices."""
    metric: str = "loss"
    """The devices' metric by which a candidate is compared."""
    lower: bool = True
    """Whether a lower value of it is better."""
    devices: Annotated[int, Range(ge=2)] = 20
    """Devices that must have measured both versions before anything is concluded."""
    alpha: Annotated[float, Range(gt=0, lt=1)] = 0.05
    """Chance at most of promoting a candidate that is not better, and of withdrawing one that is not worse."""
    decides: bool = True
    """Whether a candidate is promoted or withdrawn by rule; otherwise by order only."""
    patience: Positive = 7 * 86_400.0
    """Seconds after which an undecided candidate is withdrawn by rule."""

    def __post_init__(self) -> None:
        check_fields(self)
        check_where(self.where)
