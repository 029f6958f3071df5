"""The configuration of a gateway: an immutable value, checked when it is made."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from midge.aggregator.core.staleness import constant
from midge.aggregator.core.strategy import Strategy
from midge.broker.mqtt.connection import Connector
from midge.gateway.pace import SitePace
from midge.wire.field_checks import check_fields
from midge.wire.signing import PublicKey
from midge.wire.topics import DEFAULT_ROOT

Listener = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayConfig:
    """One site of one federation.

    Raises:
        ValueError: a value is out of range, or keys contradict each other.
    """

    above: Connector
    """Opens connections to the broker of the federation."""
    below: Connector
    """Opens connections to the broker of the site."""
    federation: str
    name: str
    """The site's name: the gateway is a device of that name in the federation."""
    store: str | Path
    """A directory of this gateway's own."""
    root: str = DEFAULT_ROOT
    """The topic root, at both brokers."""
    pace: SitePace = field(default_factory=SitePace)
    """When sums are sent."""
    codec: str | None = None
    """The codec of sums; None takes that of the federation's plan."""
    robust: bool = True
    """Whether the site weighs its own devices against each other, as the federation's default strategy does. False sums
    them as they are."""
    release_key: bytes | str | Path | None = None
    """The federation's public release key, PEM, pinned: nothing else is trusted from above."""
    signing_key: str | Path | None = None
    """The gateway's own private key, PEM. It signs sums to the federation, and receipts to the site's devices."""
    certificate: bytes = b""
    """The release key's statement of that key, for the site's devices (`midge gateway certify`)."""
    device_keys: Mapping[str, bytes | PublicKey] | str | Path | None = None
    """Public keys of the site's devices, as for an aggregator."""
    require_signed: bool = False
    """Refuse devices without a key there."""
    on_event: Listener | None = None
    """Called with a dict for each event of the gateway's two sides."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.release_key is not None and not (self.signing_key and self.certificate):
            raise ValueError(
                "Devices that pin the release key take receipts only from a key that it certified: give signing_key "
                "and certificate too (midge gateway certify)."
            )

    @property
    def directory(self) -> Path:
        """The directory of its store and its outbox."""
        return Path(self.store)

    def strategy(self, *, weigh_examples: bool) -> Strategy:
        """How updates are weighed in a sum."""
        return site_strategy(weigh_examples=weigh_examples, robust=self.robust)


def site_strategy(*, weigh_examples: bool = False, robust: bool = True) -> Strategy:
    """How a gateway weighs updates in a sum. Not by staleness: the federation weighs the sum by that."""
    return Strategy(
        name="gateway",
        staleness=constant(),
        rate=1.0,
        bounded=False,
        buffer_size=None,
        normalise="weight",
        weigh_examples=weigh_examples,
        weigh_devices=robust,
        robust=robust,
        norm_limit=10.0 if robust else None,
        relays=True,
    )
