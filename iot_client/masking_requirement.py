"""What a device's owner requires of secure aggregation."""

import math
from dataclasses import dataclass
from pathlib import Path

from midge.storage.key_files import read_key
from midge.wire import signing
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
    k_min: int = 5
    """Fewest distinct devices in a sum that this device's update may be in; the helper keeps it."""
    noise: float = 0.0
    """Least noise of a sum, as a multiple of the largest norm of one device's delta in it; 0 requires none."""
    colluding: int = 0
    """t: devices of a sum that may disclose their shares of the noise, or send none, without harm to this one."""
    epsilon: float | None = None
    """Most ε that this device spends in all, by its own count, which is in its outbox; None sets no limit. Neither an
    aggregator nor a plan can raise it. A plan without noise is refused."""
    delta: float = 1e-5
    """δ of this ε."""
    ring: int = LEAST_RING
    """Fewest bits of the ring: in a smaller one, sums of few devices are not exact."""
    roster: bytes | None = None
    """The digest of the helper's roster, 16 bytes (`midge helper roster`); None leaves the roster to the helper."""

    def __post_init__(self) -> None:
        if self.k_min < 2:
            raise ValueError(
                f"k_min is {self.k_min}: a sum must have at least 2 devices, or it is one device's update."
            )
        if self.noise < 0 or not 0 <= self.colluding < self.k_min:
            raise ValueError("noise must not be negative, and colluding is from 0 to below k_min.")
        if (self.epsilon is not None and not 0 < self.epsilon < math.inf) or not 0 < self.delta < 1:
            raise ValueError("epsilon must be above 0, and delta between 0 and 1.")

    def read_key(self) -> PublicKey:
        """The pinned key.

        Raises:
            KeyUnusable: it is none, or its file cannot be read.
        """
        return signing.read_public(*read_key(self.helper_key, "the mask helper's key"))
