"""Merged steps: frames that lead over several versions at once, for devices that missed a few.

A merged step of 2, 3, 4, 8 or 16 versions is much smaller than its steps, because each place is sent once. They
overlap: one of 2 and one of 4 end at every version, one of 8 at every second, one of 3 and one of 16 at every fourth.
So from most of the last sixteen versions one or two frames lead to the newest. Each is the exact sum of two earlier
ones.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from midge.wire import lineage
from midge.wire.errors import WireError
from midge.wire.lineage import Integers

_PARTS = {2: (1, 1), 3: (4, 2), 4: (1, 2), 8: (2, 4), 16: (4, 8)}
"""By span: its last version is a multiple of the first number; the second is the span of its earlier part."""
_KEPT = {1: 1, 2: 2, 4: 4, 8: 8}
"""By span: number of versions for which its frames are kept to make longer ones."""
_ROOM = 2**26
"""Most bytes of frames that are also kept as integers: decoding a frame costs as much as encoding it."""
SMALL_STEPS = 2
"""Number of steps offered for a small model."""


def listed(version: int, span: int, newest: int, *, small: bool = False) -> bool:
    """Whether a frame is useful to devices on their way from any version to the newest.

    The short ones that end at a multiple of four lead a device that was away for long to where the long ones begin. For
    a `small` model the newest steps suffice: there is a snapshot of each version.
    """
    age = newest - version
    if small:
        return span == 1 and age < SMALL_STEPS
    long = version % 4 == 0 and age < 32
    return {1: age < 8 or long, 2: age < 4 or long, 3: long, 4: age < 8, 8: age < 16, 16: long}.get(span, False)


class Merging:
    """The steps of the last few versions, and their sums. All lie on one grid."""

    def __init__(self) -> None:
        self._recent: dict[tuple[int, int], bytes] = {}
        self._read: dict[tuple[int, int], npt.NDArray[np.signedinteger]] = {}
        """Decoded integers of some of them, in the narrowest type."""

    def clear(self) -> None:
        """Start over after a keyframe: no step leads across it."""
        self._recent.clear()
        self._read.clear()

    def add(self, version: int, step: Integers, data: bytes, exponent: int) -> tuple[list[tuple[int, bytes]], bool]:
        """Add the step of a version, as integers and as a frame; return the merged frames that end at it, by span.

        Also returns whether all of them could be made: a sum may exceed 32 bits.
        """
        self._recent[version, 1] = data
        sums = {1: step}
        made: list[tuple[int, bytes]] = []
        whole = True
        for span, (every, first) in _PARTS.items():
            earlier = self._recent.get((version - (span - first), first))
            later = sums.get(span - first)
            if version % every or earlier is None or later is None:
                continue
            try:
                sums[span] = lineage.merge((self._integers(version - (span - first), first, step.size), later))
            except WireError:
                whole = False
                continue
            frame = lineage.encode_step(sums[span], exponent)
            made.append((span, frame))
            if span in _KEPT:
                self._recent[version, span] = frame
        self._recent = {
            (made_at, span): frame for (made_at, span), frame in self._recent.items() if version - made_at < _KEPT[span]
        }
        self._read |= {(version, span): narrowed(sums[span]) for span in _KEPT if (version, span) in self._recent}
        self._read = {name: values for name, values in self._read.items() if name in self._recent}
        while sum(values.nbytes for values in self._read.values()) > _ROOM:
            del self._read[next(iter(self._read))]
        return made, whole

    def _integers(self, version: int, span: int, size: int) -> Integers:
        """The integers of a frame."""
        known = self._read.get((version, span))
        if known is not None:
            return known.astype(np.int32)
        return lineage.decode_step(self._recent[version, span], size)[0]

    # ---------------------------------------------------------------- checkpoints

    def dump(self) -> dict[str, np.ndarray[tuple[int], np.dtype[np.uint8]]]:
        """Arrays for `load`."""
        return {
            f"recent.{version}.{span}": np.frombuffer(data, np.uint8) for (version, span), data in self._recent.items()
        }

    @classmethod
    def load(cls, arrays: Mapping[str, np.ndarray[tuple[int, ...], np.dtype[np.uint8]]]) -> "Merging":
        """Restore from the result of `dump`."""
        merging = cls()
        for name, data in arrays.items():
            first, _, rest = name.partition(".")
            if first == "recent":
                version, span = rest.split(".")
                merging._recent[int(version), int(span)] = data.tobytes()
        return merging


def narrowed(values: Integers) -> npt.NDArray[np.signedinteger]:
    """The same values in the narrowest type that holds them."""
    most = max(int(values.max(initial=0)), -int(values.min(initial=0)))
    return values.astype(np.int8 if most < 2**7 else np.int16 if most < 2**15 else np.int32)
