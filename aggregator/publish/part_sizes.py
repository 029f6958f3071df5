"""How small the model's frames are cut: for the smallest of the devices that are there, down to a floor.

A message that is larger than a board's receive buffer is lost to it without a word, and it asks again for ever. So a
device says in its greeting what it takes. Small parts cost everybody messages: one device, or one liar, must not make a
fleet slow. So the size goes down in powers of two, at once but not often, never below the floor nor to more than `MOST`
parts a frame, and up again only once who needed it has been gone for a while. Pure: no clock.
"""

import math
from collections import OrderedDict
from collections.abc import Mapping

from midge.wire import chunks
from midge.wire.messages import Fetch

PART = 64 * 1024
"""Bytes of a frame's part, at most. A broker with one thread does nothing else while it copies one to a device, so
that large ones are what others' messages wait for; on the way up, each device has one at a time."""
MOST = 256
"""Parts of a frame that is cut for small devices, at most: each is a message to everybody."""
_AGAIN = 30.0
"""Seconds between two changes: each publishes all that is on offer again."""
_GONE = 600.0
"""Seconds for which parts stay small that no device needs: a board that starts again is soon back."""
_LOOK = 1.0
"""Seconds between two looks: one passes over all devices that said what they take."""
THRICE = 3
"""Times that one device asks for one part before a `trouble` says that it may not fit."""
_FOLLOWED = 1024
"""Devices whose fetches are followed."""


def count(size: int, most: int, limit: int | None) -> int:
    """Into how many parts a frame is cut, none above `most` bytes, nor above `limit` as far as `MOST` parts do."""
    plain = chunks.count(size, most)
    return plain if limit is None else max(plain, min(chunks.count(size, limit), MOST))


class PartSizes:
    """What the devices that are there take, and what follows.

    Args:
        floor: bytes of a part that no device can have them cut below.
        most: bytes that parts are cut to whoever is there; None sets no limit.
    """

    def __init__(self, floor: int = 1024, most: int | None = None) -> None:
        self.floor, self._most = floor, most
        self.limit = most
        """Bytes of a part that is cut for small devices; None if there are none."""
        self.earlier: int | None = None
        """What `limit` was before its last change."""
        self.needed = 0
        """Bytes of a part below which the frames on offer would make more than `MOST`."""
        self._stated: dict[str, int] = {}
        self._look_at = self._changed_at = -math.inf
        self._larger_since: float | None = None

    @property
    def least(self) -> int:
        """Bytes that a device must take to get the model."""
        return max(self.floor, self.needed)

    def hear(self, device: str, largest: int) -> None:
        """A device is there and takes messages with that many bytes of body; 0 if it has said nothing, or is gone."""
        if largest:
            self._stated[device] = largest
        else:
            self._stated.pop(device, None)

    def look(self, now: float) -> bool | None:
        """Whether the limit has changed; None if it was not time to look."""
        if now < self._look_at:
            return None
        self._look_at = now + _LOOK
        smallest = min(
            (each for each in self._stated.values() if self.floor <= each < (self._most or PART)), default=None
        )
        # In powers of two: of a fleet of all sorts of boards, few make a change.
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
        """Devices that take less than the least, each with what it takes."""
        return {device: largest for device, largest in self._stated.items() if largest < self.least}


class Refetches:
    """Which device asks for the same part again and again: of each, the newest frame that it asked for is followed."""

    def __init__(self) -> None:
        self._devices: OrderedDict[str, tuple[tuple[int, int, str], dict[int, int]]] = OrderedDict()

    def note(self, device: str, fetch: Fetch) -> int | None:
        """A device asks for parts; the number of one that it asks for the third time, or None."""
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
