"""Who may send how much: token buckets for each device and for the fleet, and quarantine after repeated refusals.

Mosquitto has no limit on a client's messages a second, so that the aggregator must have one. What is over it is not
lost: it is refused for now, stays with its device, and comes again. Pure: no clock, no chance.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from midge.wire.messages import Verdict

OFFENCES = frozenset({Verdict.BAD_ENCODING, Verdict.NON_FINITE, Verdict.TOO_LARGE})
"""Verdicts that an honest device in good health does not get again and again. A stale or a large update is no offence:
a world that changes makes both."""
_LONGEST = 86_400.0
"""Seconds of one quarantine, at most: what a receipt's `retry_after` can say."""
_LOOK = 10.0
"""Seconds between two looks for devices that may be forgotten."""
_MESSAGES = 20
"""A device may send this many times more messages than updates: chunks of an update are messages too."""


@dataclass(frozen=True, slots=True)
class IngressLimits:
    """What is taken in at most. None takes everything."""

    rate: float | None = 50.0
    """Updates, offers, greetings, reports and the like of one device, a second."""
    burst: float = 200.0
    """How many of them may come at once."""
    fleet_rate: float | None = 5_000.0
    """Of all devices together."""
    fleet_burst: float = 20_000.0
    strikes: int | None = 10
    """Offences, less the updates accepted since, after which a device is in quarantine."""
    quarantine: float = 60.0
    """Seconds of the first quarantine; each following one lasts twice as long, each update accepted later halves it."""
    tracked: int = 100_000
    """Devices that are remembered, at most."""

    def __post_init__(self) -> None:
        for name in ("rate", "fleet_rate"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} is {value}: it must be above 0, or None for no limit.")
        for name in ("burst", "fleet_burst"):
            if not getattr(self, name) >= 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least 1, or nothing is ever taken.")
        if self.strikes is not None and self.strikes < 1:
            raise ValueError(f"strikes is {self.strikes}: it must be at least 1, or None for no quarantine.")
        if not 1 <= self.quarantine <= _LONGEST:
            raise ValueError(f"quarantine is {self.quarantine}: it must be 1 to {_LONGEST:g} seconds.")
        if self.tracked < 1:
            raise ValueError(f"tracked is {self.tracked}: it must be at least 1.")


@dataclass(slots=True)
class Bucket:
    """Tokens that come at a rate up to a burst, and one is spent for each thing taken in."""

    rate: float
    burst: float
    tokens: float
    filled: float
    """When the tokens were counted last."""

    def fill(self, now: float) -> float:
        self.tokens = min(self.burst, self.tokens + self.rate * max(0.0, now - self.filled))
        self.filled = now
        return self.tokens

    def spend(self, now: float) -> float:
        """Spend one; 0 where there was one, else how many seconds it takes until there is."""
        if self.fill(now) >= 1:
            self.tokens -= 1
            return 0.0
        return (1 - self.tokens) / self.rate


@dataclass(slots=True)
class Conduct:
    """What is remembered of one device."""

    things: Bucket | None
    messages: Bucket | None
    answers: Bucket
    strikes: int = 0
    term: float = 0.0
    """Seconds that the last quarantine lasted; 0 where there was none, or all is forgiven."""
    until: float = 0.0
    """When the quarantine ends."""

    def forgettable(self, now: float) -> bool:
        """Whether one who is new would be treated just the same."""
        full = all(bucket is None or bucket.fill(now) >= bucket.burst for bucket in (self.things, self.messages))
        return full and self.strikes == 0 and self.term == 0 and now >= self.until


@dataclass(frozen=True, slots=True)
class Refusal:
    """Not now."""

    verdict: Verdict
    why: str
    retry_after: float
    """Seconds."""
    told: bool
    """Whether the device is to be told; one that does not listen is not told each time."""


class Admission:
    """Decides on messages before anything is done with them."""

    def __init__(self, limits: IngressLimits) -> None:
        self._limits = limits
        self._devices: dict[str, Conduct] = {}
        self._looked = -_LOOK
        self._fleet = None if limits.fleet_rate is None else _full(limits.fleet_rate, limits.fleet_burst, 0.0)

    def hears(self, device: str, now: float) -> bool:
        """Whether a message is looked at at all. Costs a dictionary's look-up: a flood must cost us no more."""
        conduct = self._conduct(device, now)
        return conduct is not None and (conduct.messages is None or conduct.messages.spend(now) == 0)

    def refuses(self, device: str, now: float) -> Refusal | None:
        """Whether a thing that asks for a decision is refused for now; else it is paid for."""
        conduct = self._conduct(device, now)
        if conduct is None:
            return Refusal(Verdict.BUSY, "more devices send than this aggregator can follow", 300.0, told=False)
        told = conduct.answers.fill(now) >= 1
        if now < conduct.until:
            refusal = Refusal(
                Verdict.QUARANTINED,
                f"too many of this device's updates were refused; it is heard again in {conduct.until - now:.0f} s",
                min(_LONGEST, conduct.until - now),
                told=told,
            )
        else:
            wait = 0.0 if conduct.things is None else conduct.things.spend(now)
            why = f"more than {self._limits.rate} a second from this device"
            if wait == 0 and self._fleet is not None:
                wait = self._fleet.spend(now)
                why = f"more than {self._limits.fleet_rate} a second from all devices"
            if wait == 0:
                return None
            refusal = Refusal(Verdict.BUSY, why, min(_LONGEST, max(1.0, wait)), told=told)
        conduct.answers.spend(now)
        return refusal

    def offended(self, device: str, now: float) -> float:
        """Count an offence; the seconds of the quarantine that it brought, or 0."""
        conduct = self._conduct(device, now)
        if conduct is None or self._limits.strikes is None or now < conduct.until:
            return 0.0
        conduct.strikes += 1
        if conduct.strikes < self._limits.strikes:
            return 0.0
        conduct.term = min(_LONGEST, max(self._limits.quarantine, 2 * conduct.term))
        conduct.until = now + conduct.term
        conduct.strikes //= 2  # out on probation: half as many bring it back
        return conduct.term

    def pleased(self, device: str) -> None:
        """An update was accepted: a strike is forgiven, and the next quarantine is half as long."""
        conduct = self._devices.get(device)
        if conduct is not None:
            conduct.strikes = max(0, conduct.strikes - 1)
            conduct.term = conduct.term / 2 if conduct.term > self._limits.quarantine else 0.0

    def forget(self, device: str) -> None:
        """Remember nothing of a device."""
        self._devices.pop(device, None)

    def quarantined(self, now: float) -> Iterator[str]:
        """Who is in quarantine."""
        return (device for device, conduct in self._devices.items() if now < conduct.until)

    def _conduct(self, device: str, now: float) -> Conduct | None:
        conduct = self._devices.get(device)
        if conduct is None:
            if len(self._devices) >= self._limits.tracked:
                self._make_room(now)
                if len(self._devices) >= self._limits.tracked:
                    return None
            limits = self._limits
            conduct = self._devices[device] = Conduct(
                None if limits.rate is None else _full(limits.rate, limits.burst, now),
                None if limits.rate is None else _full(_MESSAGES * limits.rate, _MESSAGES * limits.burst, now),
                _full(1.0, 3.0, now),
            )
        return conduct

    def _make_room(self, now: float) -> None:
        """Forget those who have long been silent. A look at all of them must not come with every message."""
        if now < self._looked + _LOOK:
            return
        self._looked = now
        forgettable = [device for device, conduct in self._devices.items() if conduct.forgettable(now)]
        for device in forgettable:
            del self._devices[device]


def _full(rate: float, burst: float, now: float) -> Bucket:
    return Bucket(rate, burst, burst, now)
