"""A verified model, and how it is described in a file."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from midge.wire import lineage
from midge.wire.errors import WireError
from midge.wire.lineage import State
from midge.wire.topics import Alias, Channel


@dataclass(frozen=True, slots=True)
class VerifiedModel:
    """A verified model."""

    channel: Channel
    lineage: bytes
    version: int
    state: State
    features: tuple[str, ...] = ()
    """Names of its inputs, in order; none if they have no names."""
    generation: int = 0
    """The lineage's, when it was to be used."""
    alias: Alias | None = None
    """The name that stood for it, if it is used for that."""

    def same(self, other: "VerifiedModel") -> bool:
        """Whether both are one version of one generation."""
        return self.place == other.place

    def given_up_for(self, other: "VerifiedModel") -> bool:
        """Whether the operator took this one back: the training went on from elsewhere, or its trial has ended."""
        return self.place[:2] != other.place[:2] or (self.alias == "candidate" and not self.same(other))

    @property
    def place(self) -> tuple[bytes, int, int]:
        """What it is named by."""
        return self.lineage, self.generation, self.version


def about(model: VerifiedModel) -> dict[str, Any]:
    """The header of a model's file."""
    return {
        "channel": model.channel,
        "lineage": model.lineage,
        "generation": model.generation,
        "version": model.version,
        "features": list(model.features),
        "alias": model.alias or "",
    }


def verified(header: Mapping[str, Any], body: memoryview) -> VerifiedModel:
    """The model in a file. One of an earlier Midge names neither generation nor alias.

    Raises:
        WireError: it is damaged.
    """
    channel: Channel = "serve" if header.get("channel") == "serve" else "train"
    named = header.get("alias")
    alias: Alias | None = "champion" if named == "champion" else "candidate" if named == "candidate" else None
    try:
        features = tuple(str(name) for name in header.get("features", ()))
        generation, version = int(header.get("generation", 0)), int(header["version"])
        return VerifiedModel(
            channel, bytes(header["lineage"]), version, lineage.decode_snapshot(body), features, generation, alias
        )
    except (KeyError, TypeError, ValueError) as error:
        raise WireError("the file is broken") from error
