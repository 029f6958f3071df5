"""What a virtual aggregator is made with: its configuration, and its callbacks to devices and attackers."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from midge.aggregator.core.core import AggregatorCore, Bounds
from midge.aggregator.core.strategy import Strategy
from midge.sensor_fleet.simulation.clock import Clock
from midge.sensor_fleet.simulation.encoding import DecodedUpdate
from midge.wire.messages import AggregatorStatus, Fetch, Grant, Moment, Settled, Trouble, Update
from midge.wire.schema import Parameters, Schema

if TYPE_CHECKING:
    from midge.sensor_fleet.simulation.publisher import PublishedVersion
    from midge.sensor_fleet.simulation.server import Server

Reply = Callable[[str, int, int, tuple[Settled, ...]], None]
"""Called with device, outbox, its `hi` and the settled updates."""
Granted = Callable[[str, int, int, Grant], None]
"""Called with device, outbox, its `hi` and the chunks that it may send."""
ONE_CHUNK = 2**28
"""Chunk size in bytes at which every update fits into one message."""


class Tamper(Protocol):
    """Intercepts updates between devices and the aggregator, to simulate attackers."""

    def begin(self, server: "Server", clock: Clock) -> None:
        """Get access to the aggregator before the first message."""

    def sent(self, device: str, update: Update, decoded: DecodedUpdate) -> DecodedUpdate | None:
        """Return the update that the aggregator receives instead; None drops it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSetup:
    """The configuration of a virtual aggregator."""

    strategy: Strategy
    initial: Parameters
    schema: Schema
    seed: int
    places: Mapping[str, int]
    """Index of each device by name."""
    framed: bool
    """Whether versions are encoded as frames, whose bytes are counted."""
    chunk: int = ONE_CHUNK
    """Maximum size of a chunk's body in bytes."""
    largest: int | None = None
    """Receive buffer of the smallest device in bytes; None sets no limit."""
    memory: int = 2**30
    """Maximum bytes of updates that are being reassembled."""
    sites: Sequence[str] = ()
    """Names of gateways."""
    moments: Sequence[Moment] = ()
    statistics_devices: int = 5
    checkpoint: int | None = None
    """Journal records between checkpoints; None if the aggregator is never restarted."""

    def core(self) -> AggregatorCore:
        """A core with empty state."""
        return AggregatorCore(
            self.strategy,
            lineage=hashlib.sha256(f"simulation/{self.seed}".encode()).digest()[:16],
            schema_hash=self.schema.hash,
            moments=self.moments,
            statistics_devices=self.statistics_devices,
            bounds=replace(Bounds.of(self.schema), sites=tuple(self.sites)),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceCalls:
    """Callbacks by which the virtual aggregator reaches its devices."""

    reply: Reply
    released: Callable[["PublishedVersion"], None]
    granted: Granted | None = None
    republished: Callable[[Fetch], None] | None = None
    trouble: Callable[[str, Trouble], None] | None = None
    """Called with a device and a problem that no receipt reports: a dropped message, or a doubted encoder."""
    status: Callable[[AggregatorStatus], None] | None = None
