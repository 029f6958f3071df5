"""Merged steps: frames that lead over several versions at once, for devices that were away for a few.

A merged step of 2, 3, 4, 8 or 16 versions costs far less than its steps, because each place is said once. They slide:
one of 2 and one of 4 end at every version, one of 8 at every second, one of 3 and one of 16 at every fourth. So from
most versions of the last sixteen one or two frames lead to the newest. Each is the exact sum of two before it.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from midge.wire import lineage
from midge.wire.errors import WireError
from midge.wire.lineage import Integers

# Of a span: the versions that it ends at are multiples of the first, and its earlier part has the second's length.
_PARTS = {2: (1, 1), 3: (4, 2), 4: (1, 2), 8: (2, 4), 16: (4, 8)}
_KEPT = {1: 1, 2: 2, 4: 4, 8: 8}
"""Over how many versions back the frames of a span are needed to make longer ones."""
_ROOM = 2**26
"""Bytes of them that are kept as integers too, for reading a frame again costs as much as writing it."""
SPANS = (1, *_PARTS)
SMALL_STEPS = 2
"""Steps of a small model on offer."""


def listed(version: int, span: int, newest: int, *, small: bool = False) -> bool:
    """Whether a frame is worth a device's while, who goes from anywhere to the newest version.

    The short ones that end at a multiple of four lead a device which was away for long to where the long ones begin. Of
    a `small` model the newest steps are enough: there is a snapshot at each version.
    """
    age = newest - version
    if small:
        return span == 1 and age < SMALL_STEPS
    long = version % 4 == 0 and age < 32
    return {1: age < 8 or long, 2: age < 4 or long, 3: long, 4: age < 8, 8: age < 16, 16: long}.get(span, False)


class Merging:
    """The steps of the last few versions, and what becomes of them. All lie on one grid."""

    def __init__(self) -> None:
        self._recent: dict[tuple[int, int], bytes] = {}
        self._read: dict[tuple[int, int], npt.NDArray[np.signedinteger]] = {}
        """What some of them say, in as few bytes a value as hold it."""

    def clear(self) -> None:
        """Start over behind a keyframe: no step leads across it."""
        self._recent.clear()
        self._read.clear()

    def add(self, version: int, step: Integers, data: bytes, exponent: int) -> tuple[list[tuple[int, bytes]], bool]:
        """The merged frames that end at a version, by span, from its step as integers and as a frame.

        And whether each is there that could be: a sum beyond 32 bits is none.
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
        """What a frame says."""
        known = self._read.get((version, span))
        if known is not None:
            return known.astype(np.int32)
        return lineage.decode_step(self._recent[version, span], size)[0]

    # ---------------------------------------------------------------- checkpoints

    def dump(self) -> dict[str, np.ndarray[tuple[int], np.dtype[np.uint8]]]:
        """Arrays that `load` needs."""
        return {
            f"recent.{version}.{span}": np.frombuffer(data, np.uint8) for (version, span), data in self._recent.items()
        }

    @classmethod
    def load(cls, arrays: Mapping[str, np.ndarray[tuple[int, ...], np.dtype[np.uint8]]]) -> "Merging":
        """Take up what `dump` returned."""
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
