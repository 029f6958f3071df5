"""Rate limits: a budget for each device, fair shares of the fleet's capacity, and quarantine.

Mosquitto does not limit a client's message rate, so the aggregator must. Messages over the limit are not lost: they are
refused for now, stay with their device, and come again. Pure: no clock, no randomness.

A device has four budgets: messages, bytes that it sends, bytes that we publish for it, processor time. The cost of a
message is known only afterwards, so the last three are charged then, and a device in debt waits. The fleet's messages
and the processor are limited as a whole too, and shared fairly (`aggregator.ingress.fair_share`).

Names cost nothing if the broker lets everyone publish. So devices with an accepted update have their own part of the
table, and the lower half of the fleet's burst of messages is reserved for them.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated

from midge.aggregator.ingress.fair_share import FairShare
from midge.aggregator.token_bucket import TokenBucket
from midge.wire.field_checks import Count, Positive, Range, check_fields
from midge.wire.messages import Verdict

OFFENCES = frozenset({Verdict.BAD_ENCODING, Verdict.NON_FINITE, Verdict.TOO_LARGE})
"""Verdicts that a healthy honest device does not get repeatedly. A stale or a large update is no offence: a changing
world causes both."""
_LONGEST = 86_400.0
"""Most seconds of one quarantine: the limit of a receipt's `retry_after`."""
_LOOK = 10.0
"""Seconds between two searches for devices that may be forgotten."""
_EACH = 160e3
"""Size of message that the byte budget allows at the full message rate: at the defaults, 8 MB/s."""
_WORK_BURST, _WORK_LEAST = 1.0, 0.05
"""Seconds of the processor that may be used at once: by all devices before it counts as scarce, and at least by each.
"""
_MESSAGES = 20
"""A device may send this many times more messages than updates, because chunks are messages too."""
TROUBLE = 10.0
"""Least seconds between two `trouble` messages to one device."""
_TROUBLES, _TROUBLES_BURST = 10.0, 100.0
"""Rate a second and burst of `trouble` messages to all devices without an accepted update, because names cost nothing.
"""
_YOUNG = 1.0
"""Seconds for which a recently active name is not replaced by a new one."""
_LOOKED_AT = 64
"""Names examined, longest silent first, for one that is not quarantined."""


@dataclass(frozen=True, slots=True)
class IngressLimits:
    """Rate limits. None disables a limit."""

    rate: Positive | None = 50.0
    """Updates, offers, statuses, reports and the like of one device, a second. None disables all limits of single
    devices."""
    burst: Annotated[float, Range(ge=1)] = 200.0
    """Burst of them."""
    fleet_rate: Positive | None = 5_000.0
    """Rate of all devices together."""
    fleet_burst: Annotated[float, Range(ge=1)] = 20_000.0
    """Burst of them."""
    bytes_in: Positive | None = 8e6
    """Bytes a second that one device sends; more if `rate` and `burst` leave less than 160 kB for a message."""
    bytes_in_burst: Positive = 128 * 2.0**20
    """Burst of them."""
    bytes_out: Positive | None = 250e3
    """Bytes a second of the model that are published again because one device asks."""
    bytes_out_burst: Positive = 16 * 2.0**20
    """Burst of them."""
    work: Positive | None = 0.5
    """Share of the processor for messages, above which it is shared out: then each device has an equal part."""
    strikes: Count | None = 10
    """Offences, less the updates accepted since, after which a device is quarantined."""
    quarantine: Annotated[float, Range(ge=1, le=_LONGEST)] = 60.0
    """Seconds of the first quarantine; each later one lasts twice as long, each accepted update halves it."""
    tracked: Count = 100_000
    """Most devices that are remembered."""

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(slots=True)
class Conduct:
    """What is remembered of one device."""

    things: TokenBucket | None
    messages: TokenBucket | None
    answers: TokenBucket
    bytes_in: TokenBucket | None = None
    bytes_out: TokenBucket | None = None
    owed: float = 0.0
    """Seconds of the byte debt before its newest message."""
    share: TokenBucket | None = None
    """Its share of the fleet's messages."""
    work: TokenBucket | None = None
    """Its share of the processor's seconds."""
    looks: TokenBucket | None = None
    """Its share of the messages of unknown devices."""
    heard: float = 0.0
    """When its last message came."""
    strikes: int = 0
    term: float = 0.0
    """Seconds of the last quarantine; 0 if there was none, or all is forgiven."""
    until: float = 0.0
    """When the quarantine ends."""
    notified_at: float = float("-inf")
    """When it was last sent a `trouble`."""

    def forgettable(self, now: float) -> bool:
        """Whether a new device would be treated the same."""
        buckets = self.things, self.messages, self.bytes_in, self.bytes_out, self.share, self.work, self.looks
        full = all(bucket is None or bucket.fill(now) >= bucket.burst for bucket in buckets)
        quiet = now >= max(self.until, self.notified_at + TROUBLE)
        return full and quiet and self.strikes == 0 and self.term == 0


@dataclass(frozen=True, slots=True)
class Refusal:
    """A temporary refusal."""

    verdict: Verdict
    why: str
    retry_after: float
    """Seconds."""
    answer: bool
    """Whether to answer; a device that does not stop is not answered each time."""


class Admission:
    """Decides on messages before any other work is done."""

    def __init__(self, limits: IngressLimits) -> None:
        self.proven: Callable[[str], bool] = lambda _device: False
        """Whether an update of a device was ever accepted: the aggregator's core knows it, also after restarts."""
        self.exempt: Callable[[str], bool] = lambda _device: False
        """Whether a name is that of a shard, which has limited its devices itself."""
        # Two tables, ordered by each device's last message.
        self._devices: dict[str, Conduct] = {}
        self._known: dict[str, Conduct] = {}
        """Devices with an accepted update: whatever other names come, these keep half of the room."""
        self._looked = -_LOOK
        self._troubles = TokenBucket.full(_TROUBLES, _TROUBLES_BURST, 0.0)
        self._second = 0
        self._active = {"all": [0, 0], "known": [0, 0]}
        """Number of active devices in this second and in the one before: of all, and of the known ones."""
        self.limit(limits, 0.0)

    def limit(self, limits: IngressLimits, now: float) -> None:
        """Apply these limits from now on: budgets begin full, and offences and quarantines stay."""
        self._limits = limits
        self._fleet = None if limits.fleet_rate is None else FairShare(limits.fleet_rate, limits.fleet_burst)
        self._strangers = None if limits.fleet_rate is None else FairShare(limits.fleet_rate, limits.fleet_burst)
        """All messages of unknown devices: names cost nothing, so a limit for each name is useless."""
        off = limits.work is None or limits.rate is None
        # The shares are of the whole processor: only devices that take more than others are held back.
        self._work = None if off else FairShare(limits.work or 1.0, _WORK_BURST, whole=1.0, least=_WORK_LEAST)
        for table in (self._devices, self._known):
            for device, old in table.items():
                kept = {name: getattr(old, name) for name in ("heard", "strikes", "term", "until", "notified_at")}
                table[device] = replace(self._new(now), **kept)

    def _sharing(self, device: str) -> int:
        """Number of devices that share: for a known device only known ones, because other names may be made up."""
        return max(1, *self._active["known" if device in self._known else "all"])

    def hears(self, device: str, now: float, size: int = 0) -> bool:
        """Whether a message of this size is processed at all. A flood must not cost more than this check."""
        if self.exempt(device):
            return True
        conduct = self._conduct(device, now)
        if conduct is None or not (conduct.messages is None or conduct.messages.spend(now) == 0):
            return False
        if self._strangers is not None and device not in self._known:
            own = conduct.looks = conduct.looks or self._strangers.own(self._sharing(device), now)
            if self._strangers.wait(own, 1.0, self._sharing(device), now):
                return False
            self._strangers.charge(own, 1.0, now)
        if conduct.bytes_in is not None:
            # Debt from this message itself does not count, or a large one would never be accepted.
            conduct.owed = conduct.bytes_in.debt(now)
            conduct.bytes_in.tokens -= size
        return True

    def refuses(self, device: str, now: float) -> Refusal | None:
        """Refuse a request for now, or charge for it."""
        if self.exempt(device):
            return None
        conduct = self._conduct(device, now)
        if conduct is None:
            return Refusal(Verdict.BUSY, "more devices send than this aggregator can track", 300.0, answer=False)
        answer = conduct.answers.fill(now) >= 1
        if now < conduct.until:
            refusal = Refusal(
                Verdict.QUARANTINED,
                f"too many of this device's updates were refused; it is quarantined for {conduct.until - now:.0f} s",
                min(_LONGEST, conduct.until - now),
                answer=answer,
            )
        else:
            wait, why = self._over(device, conduct, now)
            if wait == 0:
                return None
            refusal = Refusal(Verdict.BUSY, why, min(_LONGEST, max(1.0, wait)), answer=answer)
        conduct.answers.spend(now)
        return refusal

    def _over(self, device: str, conduct: Conduct, now: float) -> tuple[float, str]:
        """How long a device must wait, and why; otherwise the message is charged."""
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
        """Charge a device for the processor time of a message."""
        conduct = self._devices.get(device) or self._known.get(device)
        if conduct is not None and self._work is not None:
            conduct.work = conduct.work or self._work.own(self._sharing(device), now)
            self._work.charge(conduct.work, seconds, now)

    def publishes(self, device: str, size: int, now: float) -> bool:
        """Whether bytes may be published for a device; if so, they are charged."""
        if self.exempt(device):
            return True
        conduct = self._conduct(device, now)
        if conduct is None:
            return False
        limits = self._limits
        if limits.rate is None or limits.bytes_out is None:
            return True
        conduct.bytes_out = conduct.bytes_out or TokenBucket.full(limits.bytes_out, limits.bytes_out_burst, now)
        if conduct.bytes_out.fill(now) < 0:
            return False
        conduct.bytes_out.tokens -= size
        return True

    def may_notify(self, device: str, size: int, now: float) -> bool:
        """Whether a `trouble` may be sent to a device now; if so, the device is charged as for a fetch.

        For an unknown name nothing is stored.
        """
        conduct = self._devices.get(device) or self._known.get(device)
        if conduct is None or now < conduct.notified_at + TROUBLE:
            return False
        if not self.knows(device) and self._troubles.spend(now):
            return False
        conduct.notified_at = now
        return self.publishes(device, size, now)

    def offended(self, device: str, now: float) -> float:
        """Count an offence; return the seconds of the resulting quarantine, or 0."""
        conduct = None if self.exempt(device) else self._conduct(device, now)
        if conduct is None or self._limits.strikes is None or now < conduct.until:
            return 0.0
        conduct.strikes += 1
        if conduct.strikes < self._limits.strikes:
            return 0.0
        conduct.term = min(_LONGEST, max(self._limits.quarantine, 2 * conduct.term))
        conduct.until = now + conduct.term
        conduct.strikes //= 2  # on probation: half as many offences bring it back
        return conduct.term

    def accepted(self, device: str) -> None:
        """Follow an accepted update: a strike is forgiven, and the next quarantine is half as long."""
        conduct = self._devices.get(device) or self._known.get(device)
        if conduct is not None:
            if device not in self._known and self._has_room(self._known, conduct.heard):
                self._known[device] = self._devices.pop(device)
            conduct.strikes = max(0, conduct.strikes - 1)
            conduct.term = conduct.term / 2 if conduct.term > self._limits.quarantine else 0.0

    def forget(self, device: str) -> None:
        """Forget everything about a device."""
        self._devices.pop(device, None)
        self._known.pop(device, None)

    def knows(self, device: str) -> bool:
        """Whether an update of a device was accepted, here or by the core before a restart."""
        return device in self._known or self.proven(device)

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
        """Conduct of a new device, without shares that are still full."""
        limits, rate = self._limits, self._limits.rate
        conduct = Conduct(None, None, TokenBucket.full(1.0, 3.0, now), heard=-1.0)
        if rate is not None:
            conduct.things = TokenBucket.full(rate, limits.burst, now)
            conduct.messages = TokenBucket.full(_MESSAGES * rate, _MESSAGES * limits.burst, now)
            if limits.bytes_in is not None:
                burst = max(limits.bytes_in_burst, _EACH * limits.burst)
                conduct.bytes_in = TokenBucket.full(max(limits.bytes_in, _EACH * rate), burst, now)
        return conduct

    def _has_room(self, table: dict[str, Conduct], now: float) -> bool:
        """Make room for one more in a table: the longest silent go first."""
        most = self._limits.tracked - (0 if table is self._known else min(len(self._known), self._limits.tracked // 2))
        if table is self._known:
            most = max(1, most - min(len(self._devices), self._limits.tracked // 2))
        if len(table) < most:
            return True
        if now >= self._looked + _LOOK:  # a full search must not follow every message
            self._looked = now
            for device in [device for device, conduct in table.items() if conduct.forgettable(now)]:
                del table[device]
            if len(table) < most:
                return True
        oldest = [device for device, _ in zip(table, range(_LOOKED_AT), strict=False)]
        # A quarantined device stays if another can go, or it could end its quarantine by sending under other names.
        device = next((device for device in oldest if now >= table[device].until), oldest[0])
        if now - table[device].heard < _YOUNG:
            return False
        del table[device]
        return True
