"""The aggregator's messages about itself: its status, the federation's health, its claim to be the only one."""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from midge.wire.messages.fields import U32, U63, Id, Message, Sentence, Word


class AggregatorState(StrEnum):
    """Whether the aggregator accepts messages."""

    READY = "ready"
    PAUSED = "paused"
    STOPPED = "stopped"
    LOST = "lost"

    @property
    def serves(self) -> bool:
        """Whether its process is running."""
        return self in (AggregatorState.READY, AggregatorState.PAUSED)


class HealthState(StrEnum):
    """Whether a federation learns."""

    LEARNING = "learning"
    WAITING = "waiting"
    """No fault and no updates: no device is online, or those online have no new data."""
    STALLED = "stalled"
    """Devices are online, and no update was accepted for three of their usual intervals."""
    HELD = "held"
    """Updates are accepted, but a step or a release is held back."""
    PAUSED = "paused"
    FULL = "full"
    """The store's disk is full."""

    @property
    def alarming(self) -> bool:
        """Whether the operator must act."""
        return self in (HealthState.STALLED, HealthState.HELD, HealthState.FULL)


class Health(Message):
    """Whether the federation learns; sent if the state or the alarms change, and on request."""

    state: Annotated[HealthState, Field(strict=False)]
    since: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Seconds since 1970 at which the state began."""
    accepted: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Seconds since 1970 of the last accepted update; 0 if none since the aggregator started."""
    why: Sentence = ""
    verdicts: Annotated[dict[Word, U63], Field(max_length=32)] = {}  # noqa: RUF012 - pydantic copies it
    """Number of times that each verdict was given in the last minutes."""
    devices: Annotated[dict[Word, U63], Field(max_length=32)] = {}  # noqa: RUF012
    """Number of distinct devices per verdict."""
    alarms: Annotated[tuple[Sentence, ...], Field(max_length=16)] = ()
    """Problems for the operator although others learn, such as a device that is refused every time."""

    @property
    def alarming(self) -> bool:
        """Whether a monitor should raise an alarm."""
        return bool(self.alarms) or self.state.alarming


class AggregatorStatus(Message):
    """The aggregator's retained status. Devices hold back their outbox unless it is READY."""

    kind: Literal["aggregator"] = "aggregator"
    state: Annotated[AggregatorState, Field(strict=False)]
    boot: U63
    """Random bits of this start: at a new value, devices send their status again."""
    lineage: Id
    generation: U32 = 0
    version: U63 = 0
    step: U63 = 0
    why: Sentence = ""
    health: Health | None = None
    """None if the aggregator is older than this field."""
    token: U63 = 0
    """Higher than that of every earlier start; see `Receipt.token`."""
    name: Word = ""
    """The name of the site whose gateway this is; empty is the federation's own aggregator. An update is settled only
    where it was first sent."""
    vouch: Annotated[bytes, Field(max_length=2048)] = b""
    """The federation's statement of the gateway's keys: a `SiteCertificate` in its envelope."""
    seal_key: Annotated[bytes, Field(max_length=1216)] = b""
    """The public key of the day that devices seal to; trusted only if the status is signed."""
    number: U63 = 0
    """Counts these keys: within one `token`, a lower one is older."""
    site_size: U32 = 0
    """Of a gateway: bytes of a site's tensors that it takes after the delta of an update; 0 if it takes none."""


class Claim(Message):
    """An aggregator's question whether another one serves its federation, or the answer: there must be only one."""

    kind: Literal["claim"] = "claim"
    boot: U63
    lineage: Id
    token: U63
    number: U63 = 0
    """Random bits of a question; 0 in an answer."""
    to: U63 = 0
    """The number of the question that is answered, so that an answer cannot be replayed or guessed."""
