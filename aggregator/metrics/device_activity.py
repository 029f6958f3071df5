"""What came of each device and of all since the process began: when, and with which verdict."""

from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice

from midge.wire.messages import Verdict

WINDOW = 300.0
"""Seconds that "the last minutes" are."""
_SLICE = 15.0
"""Seconds in which verdicts are counted together."""
_LOOKED_AT = 64
"""Names that are looked at for one to be forgotten."""
ALWAYS = 5
"""Refusals in a row from which a device counts as refused every time."""
_NOT_OF_THE_DEVICE = frozenset({Verdict.ACCEPTED, Verdict.BUSY, Verdict.PAUSED, Verdict.FORGOTTEN})
"""Verdicts that say nothing about what a device sends."""


@dataclass(slots=True)
class Activity:
    """Of one device. Times are seconds of the monotonic clock."""

    heard: float
    accepted: float | None = None
    updates: int = 0
    """Accepted."""
    refused: int = 0
    """Since the last one that was accepted."""
    verdict: str = ""
    why: str = ""
    version: int = 0
    """The newest that an update of it was trained from."""
    verdicts: dict[str, float] = field(default_factory=dict)
    """When each verdict was given last."""


class DeviceActivity:
    """Follow the devices of one federation.

    Args:
        most: devices that are followed.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._devices: dict[str, Activity] = {}
        self._slices: deque[tuple[float, Counter[str]]] = deque()
        self.accepted: float | None = None
        """When the last update was accepted; None if none was."""
        self.refused_always: dict[str, Activity] = {}
        """Devices whose updates are all refused, several in a row."""
        self._refused_since: set[str] = set()

    def __getitem__(self, device: str) -> Activity | None:
        return self._devices.get(device)

    def names(self) -> Iterable[str]:
        """All devices that were heard."""
        return self._devices.keys()

    @property
    def refused_since(self) -> int:
        """How many distinct devices were refused since an update was last accepted."""
        return len(self._refused_since)

    def heard(self, device: str, now: float) -> None:
        """A message of the device came."""
        known = self._devices.get(device)
        if known is not None:
            known.heard = now
        elif len(self._devices) < self._most or self._make_room():
            self._devices[device] = Activity(now)

    def settled(self, device: str, verdict: str, why: str, now: float, *, base: int = 0) -> bool:
        """An update got its verdict; whether the device is refused every time, and was not before."""
        self._count(verdict, now)
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
        """The device has gone: what it was refused is no news any more."""
        self.refused_always.pop(device, None)
        self._refused_since.discard(device)

    def forget(self, device: str) -> None:
        """Drop all that is known of a device."""
        self.leave(device)
        self._devices.pop(device, None)

    def verdicts(self, now: float) -> Mapping[str, int]:
        """How often each verdict was given in the last minutes. May be called from another thread, by copies."""
        found: Counter[str] = Counter()
        for began, counts in list(self._slices):
            if began >= now - WINDOW:
                found.update(dict(list(counts.items())))
        return found

    def devices(self, now: float) -> Mapping[str, int]:
        """How many distinct devices got each verdict in the last minutes."""
        recent = (
            verdict for known in self._devices.values() for verdict, at in known.verdicts.items() if at >= now - WINDOW
        )
        return Counter(recent)

    def _make_room(self) -> bool:
        """Forget a name of which nothing was accepted, of those that came first: names cost nothing."""
        for name in islice(self._devices, _LOOKED_AT):
            if not self._devices[name].updates:
                self.forget(name)
                return True
        return False

    def _count(self, verdict: str, now: float) -> None:
        if not self._slices or now >= self._slices[-1][0] + _SLICE:
            self._let_go(now)
            self._slices.append((now, Counter()))
        self._slices[-1][1][verdict] += 1

    def _let_go(self, now: float) -> None:
        while self._slices and self._slices[0][0] < now - WINDOW:
            self._slices.popleft()
