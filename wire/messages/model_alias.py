"""The message that says which registered version of the model a name stands for."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from midge.wire.messages.announcement import Announcement, FrameInfo
from midge.wire.messages.fields import U32, U63, Id, Message, Names, Where, Word
from midge.wire.participation import matches, takes_part


class ModelAlias(Message):
    """Which registered version of the model a name stands for. Retained, in an envelope."""

    kind: Literal["alias"] = "alias"
    name: Literal["champion", "candidate"]
    federation: Word
    lineage: Id
    generation: U32
    """The newest generation of the lineage, not that of the version."""
    number: U63
    """Rises with each decision on the names. In order of (epoch, generation, number), a lower one is old."""
    version: U63 = 0
    """0: the name stands for none."""
    schema_hash: Annotated[bytes, Field(max_length=16)] = b""
    digest: Annotated[bytes, Field(max_length=16)] = b""
    """Digest of the registered state."""
    size: Annotated[int, Field(ge=0, le=2**40)] = 0
    """Bytes of its snapshot."""
    parts: Annotated[int, Field(ge=1, le=2**20)] = 1
    """Number of chunks of its snapshot."""
    share: Annotated[float, Field(ge=0, le=1)] = 1.0
    """The share of the devices that use it: those that `wire.participation.takes_part` chooses by `number`. 0 if
    `where` says which."""
    where: Where = {}  # noqa: RUF012 - pydantic copies it
    """If not empty, only devices with these capabilities use it; `wire.participation.matches` compares them."""
    where_share: Annotated[float, Field(ge=0, le=1)] = 1.0
    """The share of those devices that use it."""
    chunk: Annotated[int, Field(ge=256, le=2**28)] = 256 * 1024
    """Most bytes of body in a chunk."""
    issued: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Seconds since 1970 at the aggregator."""
    expires: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Seconds since 1970; 0 is never."""
    epoch: U63 = 0
    """Raised by the operator, and with each new store."""
    byte_rate: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Bytes a second of all devices together, both ways; 0 sets no limit."""
    devices: U32 = 0
    """Number of devices that share it, about; 0 if unknown."""
    features: Names = ()
    """Names of the model's inputs, in order; empty if unknown."""

    @property
    def order(self) -> tuple[int, int, int]:
        """Orders what was published under one name."""
        return self.epoch, self.generation, self.number

    def chooses(self, device: str, capabilities: Mapping[str, str | int | float | bool]) -> bool:
        """Whether a device with these capabilities is to use it."""
        if not matches(capabilities, self.where):
            return False
        share = self.where_share if self.where else self.share
        return takes_part(device, self.lineage, 0, self.number, share)

    def announcement(self) -> Announcement:
        """The version as an announcement, by which it is fetched and verified."""
        return Announcement(
            channel="serve",
            federation=self.federation,
            lineage=self.lineage,
            generation=self.generation,
            version=self.version,
            step=0,
            phase="training",
            schema_hash=self.schema_hash,
            digest=self.digest,
            frames=(FrameInfo(self.version, 0, self.size, self.parts),),
            chunk=self.chunk,
            byte_rate=self.byte_rate,
            devices=self.devices,
            features=self.features,
        )
