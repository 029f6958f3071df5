"""The configuration of a mask helper, and the roster of the devices that it knows."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from midge.broker.mqtt.connection import Connector
from midge.mask_helper.opening_keys import KEEP
from midge.wire import signing
from midge.wire.signing import KeyUnusable, PrivateKey, PublicKey
from midge.wire.topics import DEFAULT_ROOT, Topics, is_name

_SUFFIXES = (".pub", ".crt")


@dataclass(frozen=True, kw_only=True)
class HelperConfig:
    """A mask helper of one federation.

    Raises:
        ValueError: a value is out of range, or one key has two names.
    """

    connector: Connector
    """Opens connections to the broker."""
    federation: str
    """The federation's name."""
    directory: Path
    """Of its ledger and its opening keys."""
    key: PrivateKey
    """Signs what it sends. Devices and aggregator pin its public part."""
    release_keys: Sequence[PublicKey]
    """The aggregator's release key, or several: one of them signs deposits."""
    roster: Mapping[str, PublicKey]
    """The devices' public keys by name, from the party that runs the helper, not from the aggregator's."""
    least: int = 5
    """K_min: fewest distinct devices in a sum."""
    keep: float = KEEP
    """Seconds for which an opening key is kept after devices have stopped to seal to it."""
    root: str = DEFAULT_ROOT
    """The topic root."""
    post_quantum: bool = False
    """Whether devices seal seeds to keys of ML-KEM-768 and X25519: all need cryptography 50 or newer."""
    on_event: Callable[[dict[str, Any]], None] | None = field(default=None, compare=False)
    """Called with a dict for each event."""

    def __post_init__(self) -> None:
        _ = self.topics
        if self.least < 2:
            raise ValueError(
                f"k_min is {self.least}: a sum must have at least 2 devices, or it is one device's update."
            )
        if len({key.encoded for key in self.roster.values()}) < len(self.roster):
            raise ValueError("Two devices of the roster have the same key: they would count as two, and are one.")
        if len(self.roster) < self.least:
            raise ValueError(
                f"The roster has {len(self.roster)} devices and k_min is {self.least}: no sum can be made."
            )

    @property
    def topics(self) -> Topics:
        """The topics of the federation."""
        return Topics(self.federation, self.root)


def read_roster(directory: Path) -> dict[str, PublicKey]:
    """The public keys in a directory: `NAME.pub`, `NAME.crt`, or `NAME/device.crt`.

    Raises:
        KeyUnusable: one cannot be read, or there is none.
    """
    files = {path.stem: path for suffix in _SUFFIXES for path in sorted(directory.glob(f"*{suffix}"))}
    files |= {path.parent.name: path for path in sorted(directory.glob("*/device.crt"))}
    roster = {name: signing.read_public(path.read_bytes(), str(path)) for name, path in files.items() if is_name(name)}
    if not roster:
        raise KeyUnusable(f"{directory} holds no public key of a device: put NAME.pub or NAME.crt in it.")
    return roster
