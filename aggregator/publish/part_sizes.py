"""Part size of frames: chosen for the smallest online device, down to a floor.

A message larger than a board's receive buffer is lost silently, and the board requests it again forever. So a device
reports its limit in its status. Small parts cost all devices messages: a single device, or a liar, must not slow the
fleet down. So the size is lowered in powers of two, at once but not often, never below the floor nor to more than
`MOST` parts a frame, and raised only after the device that needed it has been gone for a while. Pure: no clock.
"""

import math
from collections import OrderedDict
from collections.abc import Mapping

from midge.wire import chunks
from midge.wire.messages import Fetch

PART = 64 * 1024
"""Most bytes of a frame's part. A single-threaded broker does nothing else while it copies a part to a device, so large
parts delay others' messages. Chunks of updates may be larger: each device has only one in flight."""
MOST = 256
"""Most parts of a frame for small devices: each is a message to every device."""
_AGAIN = 30.0
"""Least seconds between two changes, each of which publishes all offered frames again."""
_GONE = 600.0
"""Seconds for which parts stay small after no device needs them: a restarted board is soon back."""
_LOOK = 1.0
"""Seconds between two checks, each of which visits all devices with limits."""
THRICE = 3
"""Fetches of one part by one device after which a `trouble` says that it may not fit."""
_FOLLOWED = 1024
"""Devices whose fetches are followed."""


def count(size: int, most: int, limit: int | None) -> int:
    """Number of parts of a frame: none above `most` bytes, nor above `limit` as far as `MOST` parts allow."""
    plain = chunks.count(size, most)
    return plain if limit is None else max(plain, min(chunks.count(size, limit), MOST))


class PartSizes:
    """The limits of the online devices, and the resulting part size.

    Args:
        floor: least bytes of a part, whatever the devices' limits are.
        most: most bytes of a part for all devices; None sets no limit.
    """

    def __init__(self, floor: int = 1024, most: int | None = None) -> None:
        self.floor, self._most = floor, most
        self.limit = most
        """Bytes of a part for small devices; None if there are none."""
        self.earlier: int | None = None
        """Value of `limit` before its last change."""
        self.needed = 0
        """Bytes of a part below which the offered frames would have more than `MOST` parts."""
        self._stated: dict[str, int] = {}
        self._look_at = self._changed_at = -math.inf
        self._larger_since: float | None = None

    @property
    def least(self) -> int:
        """Bytes that a device must accept to get the model."""
        return max(self.floor, self.needed)

    def hear(self, device: str, largest: int) -> None:
        """Record the limit of an online device, in bytes of body; 0 if it has none, or has left."""
        if largest:
            self._stated[device] = largest
        else:
            self._stated.pop(device, None)

    def look(self, now: float) -> bool | None:
        """Whether the limit has changed; None if no check was due."""
        if now < self._look_at:
            return None
        self._look_at = now + _LOOK
        smallest = min(
            (each for each in self._stated.values() if self.floor <= each < (self._most or PART)), default=None
        )
        # In powers of two, so that few boards of a mixed fleet cause a change.
        wanted = self._most if smallest is None else max(self.floor, 1 << (smallest.bit_length() - 1))
        if wanted == self.limit:
            self._larger_since = None
            return False
        if wanted is not None and (self.limit is None or wanted < self.limit):
            return now >= self._changed_at + _AGAIN and self._change(wanted, now)
        self._larger_since = now if self._larger_since is None else self._larger_since
        return now >= self._larger_since + _GONE and self._change(wanted, now)

    def _change(self, wanted: int | None, now: float) -> bool:
        self.earlier, self.limit = self.limit, wanted
        self._changed_at, self._larger_since = now, None
        return True

    def left_out(self) -> Mapping[str, int]:
        """Devices with less than the least, each with its limit."""
        return {device: largest for device, largest in self._stated.items() if largest < self.least}


class Refetches:
    """Detects repeated fetches of the same part: for each device, its newest frame is followed."""

    def __init__(self) -> None:
        self._devices: OrderedDict[str, tuple[tuple[int, int, str], dict[int, int]]] = OrderedDict()

    def note(self, device: str, fetch: Fetch) -> int | None:
        """Record a fetch; return the index of a part that was requested for the third time, or None."""
        name = fetch.version, fetch.span, fetch.channel
        known = self._devices.pop(device, None)
        times = {} if known is None or known[0] != name else known[1]
        thrice = None
        for part in set(fetch.parts):
            times[part] = times.get(part, 0) + 1
            if times[part] >= THRICE:
                thrice, times[part] = part, 0
        self._devices[device] = name, times
        if len(self._devices) > _FOLLOWED:
            self._devices.popitem(last=False)
        return thrice
