"""What a device's owner requires of secure aggregation."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from midge.storage.key_files import read_key
from midge.wire import signing
from midge.wire.field_checks import Count, NotNegative, Positive, Range, Whole, check_fields
from midge.wire.masking import LEAST_RING
from midge.wire.signing import PublicKey


@dataclass(frozen=True, slots=True, kw_only=True)
class RequireSecure:
    """A device that sends only masked updates, whatever a plan says.

    Raises:
        ValueError: a number is out of range.

    Examples:
        >>> midge.RequireSecure(helper_key="helper.pub", k_min=10).colluding
        0
    """

    helper_key: bytes | str | Path
    """The mask helper's public key, PEM, pinned: from the party that runs it, not from the aggregator's."""
    k_min: Annotated[int, Range(ge=2)] = 5
    """Fewest distinct devices in a sum that this device's update may be in; the helper keeps it."""
    noise: NotNegative = 0.0
    """Least noise of a sum, as a multiple of the largest norm of one device's delta in it; 0 requires none."""
    colluding: Whole = 0
    """t: devices of a sum that may disclose their shares of the noise, or send none, without harm to this one."""
    epsilon: Positive | None = None
    """Most ε that this device spends in all, by its own count, which is in its outbox; None sets no limit. Neither an
    aggregator nor a plan can raise it. A plan without noise is refused."""
    delta: Annotated[float, Range(gt=0, lt=1)] = 1e-5
    """δ of this ε."""
    ring: Count = LEAST_RING
    """Fewest bits of the ring: in a smaller one, sums of few devices are not exact."""
    roster: bytes | None = None
    """The digest of the helper's roster, 16 bytes (`midge helper roster`); None leaves the roster to the helper."""

    def __post_init__(self) -> None:
        check_fields(self, "secure")
        if self.colluding >= self.k_min:
            raise ValueError(f"colluding is {self.colluding}: it must be below k_min, which is {self.k_min}.")

    def read_key(self) -> PublicKey:
        """The pinned key.

        Raises:
            KeyUnusable: it is none, or its file cannot be read.
        """
        return signing.read_public(*read_key(self.helper_key, "the mask helper's key"))
