"""Who may send how much, and make how much work: a budget for each device, shares of the fleet's, and quarantine.

Mosquitto has no limit on a client's messages a second, so that the aggregator must have one. What is over it is not
lost: it is refused for now, stays with its device, and comes again. Pure: no clock, no chance.

A device's budget has four currencies: messages, bytes that it sends, bytes that we publish for it, processor time. What
a message costs is known when it is done, so the last three are charged afterwards, and a device in debt waits. Two of
them are scarce for all together: the fleet's messages and the processor. They are shared fairly over devices. Each has
an equal share of what there is, and more only of what others leave: while half of the burst is there, no device is held
to its share; below that, none gets more than it. So one that asks for ten times its share costs itself.

Names cost nothing where a broker lets all publish. So a device of which an update was accepted has room of its own
in the table, and of the fleet's messages the lower half of the burst.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from midge.wire.messages import Verdict

OFFENCES = frozenset({Verdict.BAD_ENCODING, Verdict.NON_FINITE, Verdict.TOO_LARGE})
"""Verdicts that an honest device in good health does not get again and again. A stale or a large update is no offence:
a world that changes makes both."""
_LONGEST = 86_400.0
"""Seconds of one quarantine, at most: what a receipt's `retry_after` can say."""
_LOOK = 10.0
"""Seconds between two looks for devices that may be forgotten."""
_EACH = 160e3
"""Bytes of a message that a device's budget of bytes has room for at least, at the default rate 8 MB/s."""
_WORK_BURST, _WORK_LEAST = 1.0, 0.05
"""Seconds of the processor that may be used at once: by all before it counts as scarce, and by each device at least."""
_MESSAGES = 20
"""A device may send this many times more messages than updates: chunks of an update are messages too."""
_EVENTS, _EVENTS_BURST = 20.0, 2_000.0
"""Events of devices of which nothing was ever accepted: a fleet's first start has some for each device."""
_OF_STRANGERS = frozenset({"device", "held", "repeat", "quarantine", "report"})
TROUBLE = 10.0
"""Seconds between two messages that tell one device what was dropped of it."""
_TROUBLES, _TROUBLES_BURST = 10.0, 100.0
"""Such messages to all devices of which nothing was ever accepted, a second and at once: names cost nothing."""
_YOUNG = 1.0
"""Seconds for which a name that was just heard is not forgotten for a new one."""
_LOOKED_AT = 64
"""Names that are looked at, longest silent first, for one that is not in quarantine."""


@dataclass(frozen=True, slots=True)
class IngressLimits:
    """What is taken in at most. None takes everything."""

    rate: float | None = 50.0
    """Updates, offers, greetings, reports and the like of one device, a second. None sets no limit of one device in
    any currency."""
    burst: float = 200.0
    """How many of them may come at once."""
    fleet_rate: float | None = 5_000.0
    """Of all devices together."""
    fleet_burst: float = 20_000.0
    bytes_in: float | None = 8e6
    """Bytes that one device sends, a second; more where `rate` and `burst` leave less than 160 kB for a message."""
    bytes_in_burst: float = 128 * 2.0**20
    bytes_out: float | None = 250e3
    """Bytes of the model that are published again because one device asks, a second."""
    bytes_out_burst: float = 16 * 2.0**20
    work: float | None = 0.5
    """Share of the processor that messages keep busy before it is shared out: then each device has an equal part."""
    strikes: int | None = 10
    """Offences, less the updates accepted since, after which a device is in quarantine."""
    quarantine: float = 60.0
    """Seconds of the first quarantine; each following one lasts twice as long, each update accepted later halves it."""
    tracked: int = 100_000
    """Devices that are remembered, at most."""

    def __post_init__(self) -> None:
        for name in ("rate", "fleet_rate", "bytes_in", "bytes_out", "work"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} is {value}: it must be above 0, or None for no limit.")
        for name in ("burst", "fleet_burst"):
            if not getattr(self, name) >= 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least 1, or nothing is ever taken.")
        for name in ("bytes_in_burst", "bytes_out_burst"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be above 0, or nothing is ever taken.")
        if self.strikes is not None and self.strikes < 1:
            raise ValueError(f"strikes is {self.strikes}: it must be at least 1, or None for no quarantine.")
        if not 1 <= self.quarantine <= _LONGEST:
            raise ValueError(f"quarantine is {self.quarantine}: it must be 1 to {_LONGEST:g} seconds.")
        if self.tracked < 1:
            raise ValueError(f"tracked is {self.tracked}: it must be at least 1.")


@dataclass(slots=True)
class Bucket:
    """Tokens that come at a rate up to a burst. What is charged afterwards may leave a debt."""

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

    def debt(self, now: float) -> float:
        """Seconds until nothing is owed."""
        return 0.0 if self.fill(now) >= 0 else -self.tokens / self.rate


class FairShare:
    """What all devices together may spend, max-min fair: by equal shares when it is scarce.

    Args:
        rate: what may be spent before it is scarce.
        burst: of that, at once.
        whole: what the shares add up to, if that is more.
        least: what each device may spend at once, if its share of the burst is less.
    """

    def __init__(self, rate: float, burst: float, *, whole: float | None = None, least: float = 1.0) -> None:
        self.all = _full(rate, burst, 0.0)
        self._whole, self._least = whole or rate, least

    def own(self, active: int, now: float) -> Bucket:
        """A share that nothing was spent of."""
        return _full(self._whole / active, max(self._least, self.all.burst / active), now)

    def wait(self, own: Bucket, cost: float, active: int, now: float, *, reserved: bool = False) -> float:
        """Seconds that a device waits until it may spend; 0 if it may now.

        Args:
            own: what the device has of its share.
            cost: what it is about to spend; 0 if that is only known afterwards.
            active: how many devices share.
            now: the time.
            reserved: whether it must leave the lower half of the burst to others, whatever its share is.
        """
        everyone = self.all
        if everyone.fill(now) < cost:
            return (cost - everyone.tokens) / everyone.rate
        own.rate, own.burst = self._whole / active, max(self._least, everyone.burst / active)
        own.fill(now)
        least = everyone.burst / 2 if reserved else 0.0
        left = everyone.tokens - cost
        if left >= (least + everyone.burst) / 2:
            return 0.0
        if left < least:
            return (least - left) / everyone.rate
        return 0.0 if own.tokens >= cost else (cost - own.tokens) / own.rate

    def charge(self, own: Bucket, cost: float, now: float) -> None:
        """Spend. A debt is at most a burst: what others had left over need not be paid back."""
        self.all.fill(now)
        self.all.tokens = max(0.0, self.all.tokens - cost)
        own.fill(now)
        own.tokens = max(-own.burst, own.tokens - cost)


@dataclass(slots=True)
class Conduct:
    """What is remembered of one device."""

    things: Bucket | None
    messages: Bucket | None
    answers: Bucket
    bytes_in: Bucket | None = None
    bytes_out: Bucket | None = None
    owed: float = 0.0
    """Seconds of the debt in bytes that was there before its newest message."""
    share: Bucket | None = None
    """Of the fleet's messages."""
    work: Bucket | None = None
    """Of the processor's seconds."""
    looks: Bucket | None = None
    """Of the messages of any sort of devices that are not known."""
    heard: float = 0.0
    """When it was heard last."""
    strikes: int = 0
    term: float = 0.0
    """Seconds that the last quarantine lasted; 0 where there was none, or all is forgiven."""
    until: float = 0.0
    """When the quarantine ends."""
    told: float = float("-inf")
    """When it was last told that something of it was dropped."""

    def forgettable(self, now: float) -> bool:
        """Whether one who is new would be treated just the same."""
        buckets = self.things, self.messages, self.bytes_in, self.bytes_out, self.share, self.work, self.looks
        full = all(bucket is None or bucket.fill(now) >= bucket.burst for bucket in buckets)
        quiet = now >= max(self.until, self.told + TROUBLE)
        return full and quiet and self.strikes == 0 and self.term == 0


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
        self.proven: Callable[[str], bool] = lambda _device: False
        """Whether an update of a device was ever accepted: the aggregator's core knows it, over restarts too."""
        # Two tables, in the order in which their devices were heard last.
        self._devices: dict[str, Conduct] = {}
        self._known: dict[str, Conduct] = {}
        """Of devices of which an update was accepted: however many other names come, these keep half of the room."""
        self._looked = -_LOOK
        self._fleet = None if limits.fleet_rate is None else FairShare(limits.fleet_rate, limits.fleet_burst)
        self._strangers = None if limits.fleet_rate is None else FairShare(limits.fleet_rate, limits.fleet_burst)
        """Messages of any sort of devices that are not known: names cost nothing, so a limit for each name is none."""
        self._troubles = _full(_TROUBLES, _TROUBLES_BURST, 0.0)
        off = limits.work is None or limits.rate is None
        # The shares are of the whole processor: only who takes more than others would is held back.
        self._work = None if off else FairShare(limits.work or 1.0, _WORK_BURST, whole=1.0, least=_WORK_LEAST)
        self._second = 0
        self._active = {"all": [0, 0], "known": [0, 0]}
        """How many devices were heard in this second and in the one before: of all, and of those that are known."""

    def _sharing(self, device: str) -> int:
        """Among how many a device shares: if it is known, only among such, for others are as many as they say."""
        return max(1, *self._active["known" if device in self._known else "all"])

    def hears(self, device: str, now: float, size: int = 0) -> bool:
        """Whether a message of this size is looked at at all. A flood must cost us no more than this."""
        conduct = self._conduct(device, now)
        if conduct is None or not (conduct.messages is None or conduct.messages.spend(now) == 0):
            return False
        if self._strangers is not None and device not in self._known:
            own = conduct.looks = conduct.looks or self._strangers.own(self._sharing(device), now)
            if self._strangers.wait(own, 1.0, self._sharing(device), now):
                return False
            self._strangers.charge(own, 1.0, now)
        if conduct.bytes_in is not None:
            # What is owed for this message is not held against it, or a large one would never be taken.
            conduct.owed = conduct.bytes_in.debt(now)
            conduct.bytes_in.tokens -= size
        return True

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
            wait, why = self._over(device, conduct, now)
            if wait == 0:
                return None
            refusal = Refusal(Verdict.BUSY, why, min(_LONGEST, max(1.0, wait)), told=told)
        conduct.answers.spend(now)
        return refusal

    def _over(self, device: str, conduct: Conduct, now: float) -> tuple[float, str]:
        """How long a device must wait, and why in words; otherwise a message is paid for."""
        limits, active = self._limits, self._sharing(device)
        if conduct.bytes_in is not None and conduct.owed:
            return conduct.bytes_in.debt(now), f"more than {limits.bytes_in:.3g} bytes a second from this device"
        if self._work is not None:
            conduct.work = conduct.work or self._work.own(active, now)
            if wait := self._work.wait(conduct.work, 0.0, active, now):
                return wait, "this device's messages take more of the processor than its share"
        if conduct.things is not None and (wait := conduct.things.spend(now)):
            return wait, f"more than {limits.rate} a second from this device"
        if self._fleet is not None:
            own = conduct.share = conduct.share or self._fleet.own(active, now)
            reserved = bool(self._known) and device not in self._known
            if wait := self._fleet.wait(own, 1.0, active, now, reserved=reserved):
                return wait, f"more than {limits.fleet_rate} a second from all devices"
            self._fleet.charge(own, 1.0, now)
        return 0.0, ""

    def worked(self, device: str, seconds: float, now: float) -> None:
        """Charge a device for processor time that a message of it took."""
        conduct = self._devices.get(device) or self._known.get(device)
        if conduct is not None and self._work is not None:
            conduct.work = conduct.work or self._work.own(self._sharing(device), now)
            self._work.charge(conduct.work, seconds, now)

    def publishes(self, device: str, size: int, now: float) -> bool:
        """Whether bytes may be published for a device; then they are paid for."""
        conduct = self._conduct(device, now)
        if conduct is None:
            return False
        limits = self._limits
        if limits.rate is None or limits.bytes_out is None:
            return True
        conduct.bytes_out = conduct.bytes_out or _full(limits.bytes_out, limits.bytes_out_burst, now)
        if conduct.bytes_out.fill(now) < 0:
            return False
        conduct.bytes_out.tokens -= size
        return True

    def tells(self, device: str, size: int, now: float) -> bool:
        """Whether a `trouble` may be sent to a device now; if so, the device pays for it as for what it fetches.

        Nothing is kept for it of a name of which nothing else is kept.
        """
        conduct = self._devices.get(device) or self._known.get(device)
        if conduct is None or now < conduct.told + TROUBLE:
            return False
        if not self.knows(device) and self._troubles.spend(now):
            return False
        conduct.told = now
        return self.publishes(device, size, now)

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
        conduct = self._devices.get(device) or self._known.get(device)
        if conduct is not None:
            if device not in self._known and self._has_room(self._known, conduct.heard):
                self._known[device] = self._devices.pop(device)
            conduct.strikes = max(0, conduct.strikes - 1)
            conduct.term = conduct.term / 2 if conduct.term > self._limits.quarantine else 0.0

    def forget(self, device: str) -> None:
        """Remember nothing of a device."""
        self._devices.pop(device, None)
        self._known.pop(device, None)

    def knows(self, device: str) -> bool:
        """Whether an update of a device was accepted, as far as is remembered."""
        return device in self._known or self.proven(device)

    def quarantined(self, now: float) -> Iterator[str]:
        """Who is in quarantine."""
        for table in (self._devices, self._known):
            yield from (device for device, conduct in table.items() if now < conduct.until)

    def _conduct(self, device: str, now: float) -> Conduct | None:
        table = self._devices if device in self._devices else self._known
        conduct = table.pop(device, None)
        if conduct is None:
            table = self._known if self.proven(device) else self._devices
            if not self._has_room(table, now):
                return None
            conduct = self._new(now)
        table[device] = conduct  # at the end: the longest silent are at the beginning
        if int(now) != self._second:
            for counts in self._active.values():
                counts[:] = 0, counts[0] if int(now) == self._second + 1 else 0
            self._second = int(now)
        if int(conduct.heard) != self._second:
            self._active["all"][0] += 1
            self._active["known"][0] += table is self._known
        conduct.heard = now
        return conduct

    def _new(self, now: float) -> Conduct:
        """Who is new, without what it has not spent anything of."""
        limits, rate = self._limits, self._limits.rate
        conduct = Conduct(None, None, _full(1.0, 3.0, now), heard=-1.0)
        if rate is not None:
            conduct.things = _full(rate, limits.burst, now)
            conduct.messages = _full(_MESSAGES * rate, _MESSAGES * limits.burst, now)
            if limits.bytes_in is not None:
                burst = max(limits.bytes_in_burst, _EACH * limits.burst)
                conduct.bytes_in = _full(max(limits.bytes_in, _EACH * rate), burst, now)
        return conduct

    def _has_room(self, table: dict[str, Conduct], now: float) -> bool:
        """Make room for one more in a table: those who have long been silent go first."""
        most = self._limits.tracked - (0 if table is self._known else min(len(self._known), self._limits.tracked // 2))
        if table is self._known:
            most = max(1, most - min(len(self._devices), self._limits.tracked // 2))
        if len(table) < most:
            return True
        if now >= self._looked + _LOOK:  # a look at all of them must not come with every message
            self._looked = now
            for device in [device for device, conduct in table.items() if conduct.forgettable(now)]:
                del table[device]
            if len(table) < most:
                return True
        oldest = [device for device, _ in zip(table, range(_LOOKED_AT), strict=False)]
        # One in quarantine stays if another can go, or it would be out by sending under other names.
        device = next((device for device in oldest if now >= table[device].until), oldest[0])
        if now - table[device].heard < _YOUNG:
            return False
        del table[device]
        return True


class StrangerEvents:
    """Passes events on, of devices that are not known only some, with the number of the others."""

    def __init__(self, tell: Callable[..., None], clock: Callable[[], float]) -> None:
        self._tell, self._clock = tell, clock
        self.known: Callable[[str], bool] = lambda _device: True
        self._bucket = Bucket(_EVENTS, _EVENTS_BURST, _EVENTS_BURST, clock())
        self._untold = 0

    def __call__(self, event: str, **fields: Any) -> None:
        if event in _OF_STRANGERS and not self.known(fields["device"]):
            if self._bucket.spend(self._clock()):
                self._untold += 1
                return
            if self._untold:
                self._tell("untold", events=self._untold)
                self._untold = 0
        self._tell(event, **fields)


def _full(rate: float, burst: float, now: float) -> Bucket:
    return Bucket(rate, burst, burst, now)
