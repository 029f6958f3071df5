"""Verdicts and activity of each device and of all since the process began."""

from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice

from midge.wire.messages import Verdict

WINDOW = 300.0
"""Seconds of "the last minutes"."""
_SLICE = 15.0
"""Seconds whose verdicts are counted together."""
_LOOKED_AT = 64
"""Names that are examined for one to forget."""
ALWAYS = 5
"""Refusals in a row from which a device counts as always refused."""
_NOT_OF_THE_DEVICE = frozenset({Verdict.ACCEPTED, Verdict.BUSY, Verdict.PAUSED, Verdict.FORGOTTEN})
"""Verdicts that do not depend on what a device sends."""

_Slices = deque[tuple[float, Counter[str]]]
"""Numbers of verdicts, by the time when a slice began."""


@dataclass(slots=True)
class Activity:
    """The activity of one device. Times are seconds of the monotonic clock."""

    heard: float
    accepted: float | None = None
    updates: int = 0
    """Accepted updates."""
    refused: int = 0
    """Refusals since the last accepted update."""
    verdict: str = ""
    why: str = ""
    version: int = 0
    """The newest version that an update of it was trained from."""
    verdicts: dict[str, float] = field(default_factory=dict)
    """When each verdict was last given."""


class DeviceActivity:
    """Follows the devices of one federation.

    Args:
        most: most devices that are followed.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._devices: dict[str, Activity] = {}
        self._slices: _Slices = deque()
        self._refusals: _Slices = deque()
        """Those since an update was last accepted."""
        self.accepted: float | None = None
        """When the last update was accepted; None if none was."""
        self.refused_always: dict[str, Activity] = {}
        """Devices whose recent updates were all refused."""
        self._refused_since: set[str] = set()

    def __getitem__(self, device: str) -> Activity | None:
        return self._devices.get(device)

    def names(self) -> Iterable[str]:
        """All devices that have sent messages."""
        return self._devices.keys()

    @property
    def refused_since(self) -> int:
        """Number of distinct devices refused since an update was last accepted."""
        return len(self._refused_since)

    def heard(self, device: str, now: float) -> None:
        """Record a message of the device."""
        known = self._devices.get(device)
        if known is not None:
            known.heard = now
        elif len(self._devices) < self._most or self._make_room():
            self._devices[device] = Activity(now)

    def settled(self, device: str, verdict: str, why: str, now: float, *, base: int = 0) -> bool:
        """Record a verdict; return whether the device has just become always refused."""
        _count(self._slices, verdict, now)
        if verdict == Verdict.ACCEPTED:
            self._refusals.clear()
        else:
            _count(self._refusals, verdict, now)
        known = self._devices.get(device)
        if known is None:
            return False
        known.verdict, known.verdicts[verdict] = verdict, now
        known.version = max(known.version, base)
        if verdict == Verdict.ACCEPTED:
            known.accepted = self.accepted = now
            known.updates += 1
            known.refused, known.why = 0, ""
            self._refused_since.clear()
            self.refused_always.pop(device, None)
            return False
        known.why = why
        if verdict in _NOT_OF_THE_DEVICE:
            return False
        known.refused += 1
        self._refused_since.add(device)
        if known.refused < ALWAYS or device in self.refused_always:
            return False
        self.refused_always[device] = known
        return True

    def leave(self, device: str) -> None:
        """The device has left: its refusals are no longer of interest."""
        self.refused_always.pop(device, None)
        self._refused_since.discard(device)

    def forget(self, device: str) -> None:
        """Forget everything about a device."""
        self.leave(device)
        self._devices.pop(device, None)

    def verdicts(self, now: float) -> Mapping[str, int]:
        """Number of each verdict in the last minutes. May be called from another thread, because it copies."""
        return _sum(self._slices, now)

    def refusals(self, now: float) -> Mapping[str, int]:
        """The same since an update was last accepted."""
        return _sum(self._refusals, now)

    def devices(self, now: float) -> Mapping[str, int]:
        """Number of distinct devices per verdict in the last minutes."""
        recent = (
            verdict for known in self._devices.values() for verdict, at in known.verdicts.items() if at >= now - WINDOW
        )
        return Counter(recent)

    def _make_room(self) -> bool:
        """Forget a name without accepted updates, of the oldest ones, because names cost nothing."""
        for name in islice(self._devices, _LOOKED_AT):
            if not self._devices[name].updates:
                self.forget(name)
                return True
        return False


def _count(slices: _Slices, verdict: str, now: float) -> None:
    if not slices or now >= slices[-1][0] + _SLICE:
        while slices and slices[0][0] < now - WINDOW:
            slices.popleft()
        slices.append((now, Counter()))
    slices[-1][1][verdict] += 1


def _sum(slices: _Slices, now: float) -> Mapping[str, int]:
    found: Counter[str] = Counter()
    for began, counts in list(slices):
        if began >= now - WINDOW:
            found.update(dict(list(counts.items())))
    return found
