"""The referee's model: each version is the one before plus a part of the device's update, with its frames."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from midge.wire import chunks, frames, lineage
from midge.wire.lineage import Integers, State
from midge.wire.messages import Announcement, FrameInfo, Part, Plan
from midge.wire.schema import Schema, Vector
from midge.wire.steps import encode_step
from midge.wire.topics import Topics

LARGEST = 2**18
"""Bytes of a chunk's body if the device sets no limit."""
_STEP_BITS = 12
"""Bits of a step's integers: the model moves little, whatever a device sends."""


@dataclass(frozen=True, slots=True)
class OfferedFrame:
    """A frame at the broker: over `span` versions to `version`, cut in `parts`."""

    version: int
    span: int
    data: bytes
    parts: int

    @property
    def info(self) -> FrameInfo:
        return FrameInfo(self.version, self.span, len(self.data), self.parts)


@dataclass(slots=True)
class RefereedModel:
    """All versions of one lineage."""

    topics: Topics
    name: bytes
    states: dict[int, State] = field(default_factory=dict)
    version: int = 0
    largest: int = LARGEST
    """Most bytes of a chunk's body: the device's limit."""

    @classmethod
    def begin(
        cls, topics: Topics, name: bytes, parameters: Mapping[str, Any], roles: Mapping[str, str]
    ) -> "RefereedModel":
        """Begin with the given model as version 1."""
        schema = Schema.of(parameters, roles)
        state = lineage.on_grid(schema.flatten(parameters), schema, schema.freeze(parameters))
        return cls(topics, name, {1: state}, 1)

    @property
    def schema(self) -> Schema:
        return self.states[self.version].schema

    def advance(self, delta: Vector | None = None) -> int:
        """Make the next version: half of a delta, or a change of a few values."""
        state = self.states[self.version]
        if delta is None or not delta.any():
            step: Integers = np.zeros(state.integers.size, np.int32)
            step[:: max(1, step.size // 3)] = 1
        else:
            wanted = np.rint(np.ldexp(delta.astype(np.float64) / 2, -state.exponent))
            step = np.clip(wanted, -(2**_STEP_BITS), 2**_STEP_BITS).astype(np.int32)
            step[0] += 1  # it moves, however small the delta is
        self.version += 1
        self.states[self.version] = state.advance(step)
        return self.version

    def snapshot(self, parts: int = 1, version: int | None = None) -> OfferedFrame:
        """The whole model."""
        number = version or self.version
        return self._offered(number, 0, lineage.encode_snapshot(self.states[number]), parts)

    def step(self, span: int = 1, parts: int = 1, version: int | None = None) -> OfferedFrame:
        """A step to a version from `span` before."""
        number = version or self.version
        after, before = self.states[number], self.states[number - span]
        difference = (after.integers.astype(np.int64) - before.integers).astype(np.int32)
        return self._offered(number, span, encode_step(difference, after.exponent), parts)

    def _offered(self, version: int, span: int, data: bytes, parts: int) -> OfferedFrame:
        """A frame in as many parts as requested, or more if the device's limit requires it."""
        wanted = max(parts, chunks.count(len(data), self.largest))
        size = chunks.part_size(len(data), wanted)
        return OfferedFrame(version, span, data, chunks.count(len(data), size))

    def cut(self, frame: OfferedFrame, *, claimed: bytes | None = None) -> list[tuple[str, bytes]]:
        """Topics and payloads of a frame's chunks; `claimed` is the frame that their headers name, if another."""
        sha256 = chunks.checksum(frame.data if claimed is None else claimed)
        size = chunks.part_size(len(frame.data), frame.parts)
        return [
            (
                self.topics.part(frame.version, frame.span, index),
                frames.encode(
                    Part(
                        lineage=self.name,
                        generation=0,
                        version=frame.version,
                        span=frame.span,
                        part=index,
                        parts=frame.parts,
                        sha256=sha256,
                    ),
                    body,
                ),
            )
            for index, body in enumerate(chunks.cut(frame.data, size))
        ]

    def announcement(self, offered: Sequence[OfferedFrame], **fields: Any) -> Announcement:
        """The announcement of the newest version, with these frames."""
        state = self.states[self.version]
        fixed = {
            "version": self.version,
            "step": self.version,
            "phase": "training",
            "schema_hash": state.schema.hash,
            "digest": state.digest(),
            "frames": tuple(frame.info for frame in offered),
            "plan": Plan(revision=1),
            "chunk": max(256, self.largest),
        }
        return Announcement(federation=self.topics.federation, lineage=self.name, generation=0, **{**fixed, **fields})
