"""A device's part in a federation, without I/O, without arrays and without a clock.

Events in, actions out. Two small machines run side by side: the link (is there somebody to talk to?) and the work (what
is the device doing?). Both are tables below, and the pictures in the docs are drawn from them.

What the session promises: an update is stored before it is sent, it is sent with the same identity until it is settled,
and it is forgotten only on the aggregator's receipt. MQTT's own acknowledgements do not count.
"""

import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum, auto

from iot_client.events import (
    Action,
    AggregatorSeen,
    Announced,
    Base,
    Connected,
    Disconnected,
    Event,
    Fetch,
    Fetched,
    FetchFailed,
    Forget,
    Greet,
    Hindered,
    Killed,
    LinkMeasured,
    NothingToSend,
    Offer,
    ReadAnnouncement,
    Receipted,
    Renew,
    Send,
    SendChunks,
    SendStatistics,
    Store,
    Tell,
    Train,
    Trained,
    Unsuited,
)
from iot_client.suiting import unsuited
from iot_client.timers import PATIENCE, Timer
from wire import chunks, sharing
from wire.lineage import route
from wire.messages import (
    OUTBOX_LIMIT,
    AggregatorState,
    AggregatorStatus,
    Announcement,
    FrameInfo,
    Receipt,
    Settled,
    Update,
    Verdict,
)
from wire.participation import takes_part


class Link(Enum):
    """Whether there is somebody to talk to."""

    DOWN = auto()
    GREETING = auto()
    """Connected; the aggregator has not yet said what it has of our outbox."""
    UP = auto()


class Work(Enum):
    """What the device is doing."""

    RESTING = auto()
    FETCHING = auto()
    TRAINING = auto()


LINKS: dict[tuple[Link, str], Link] = {
    (Link.DOWN, "connected"): Link.GREETING,
    (Link.GREETING, "receipt"): Link.UP,
    (Link.GREETING, "disconnected"): Link.DOWN,
    (Link.UP, "aggregator restarted"): Link.GREETING,
    (Link.UP, "outbox renewed"): Link.GREETING,
    (Link.UP, "disconnected"): Link.DOWN,
}
WORKS: dict[tuple[Work, str], Work] = {
    (Work.RESTING, "newer version"): Work.FETCHING,
    (Work.FETCHING, "disconnected"): Work.RESTING,
    (Work.FETCHING, "fetch failed"): Work.RESTING,
    (Work.FETCHING, "fetched"): Work.TRAINING,
    (Work.TRAINING, "trained"): Work.RESTING,
    (Work.TRAINING, "nothing to send"): Work.RESTING,
}


CHUNK = 256 * 1024
"""Bytes of body that are sent at once before an announcement says how many."""
GREETING = 400
"""Bytes of a greeting and its answer, about."""
IN_FLIGHT = 8
"""Updates that may wait for their receipt at once."""
UNHEARD = 2.0
"""Seconds that a new connection waits for the aggregator's status before it greets whoever may be there."""
KILLED = 30.0
"""Seconds without a training after its process was killed; doubled each time."""
REREAD = 60.0
"""Seconds after which a resting device reads the announcement again, at least: see `reread`."""


@dataclass(slots=True)
class Held:
    """An update in the outbox."""

    update: Update
    sent: bool = False
    """Whether it is under way on this connection."""
    ever_sent: bool = True
    """Whether it may have left the device at any time."""
    parts: int = 1
    """Of a large one: how it was cut when it was offered. It stays so, or the aggregator would start it over."""


class DeviceSession:
    """What a device does next.

    Args:
        device: its name.
        outbox: the identity of its outbox.
        held: the updates that the outbox holds from before, in order.
        next_seq: what the next update will be numbered.
        jitter: a number in [0, 1), new at each call: spreads what many devices would do at once.
        patience: seconds before an update that was not answered is sent again; less and less often after that.
        room: bytes of updates that wait, from which on none is trained; None sets no limit.
        features: what the device calls its inputs, in order; none where it has no names.
        counted: whether its statistics of `input` have a channel for each of these.
    """

    def __init__(
        self,
        device: str,
        outbox: int,
        held: Iterable[Update],
        next_seq: int,
        jitter: Callable[[], float],
        *,
        patience: float = PATIENCE,
        room: int | None = None,
        features: Sequence[str] = (),
        counted: bool = False,
    ) -> None:
        self.device = device
        self._features, self._counted = tuple(features), counted
        self._most = room
        self.outbox = outbox
        self.next = next_seq
        self.link = Link.DOWN
        self.work = Work.RESTING
        self.announcement: Announcement | None = None
        self._held = {update.seq: Held(update) for update in held}
        self._jitter = jitter
        self._aggregator: AggregatorStatus | None = None
        self._packet: int | None = None
        """Bytes of body that fit into one packet of this connection; None where there is no limit."""
        self._link_chunk: int | None = None
        """Bytes of a chunk that the link bears, as far as is known; `iot_client.uplink`."""
        self._held_back = False
        """Whether the aggregator asked to wait: nothing is sent until the resend timer is due."""
        self._base: Base | None = None
        self._target: Announcement | None = None
        """What is being fetched or trained from."""
        self._trained: Base | None = None
        self._greeting = Timer()
        self._resend = Timer(patience)
        self._statistics = Timer()
        self._refetch = Timer(1.0)
        self._room = Timer(30.0)
        """Runs while the disk had no room for an update: no training, which would be for nothing."""
        self._again = Timer(30.0)
        """Runs while the update from the newest version was refused: then it may be trained from again."""
        self._reread = Timer()
        self._interval = Timer()
        """Runs after a training has begun, where the announcement asks for a pause between two."""
        self._turn: tuple[float, float] | None = None
        """While a fetch waits for its turn: since when, and after which part of the time that all devices take."""
        self._turning = Timer()
        """Runs until that turn."""
        self._fetch_began = float("-inf")
        self._update_size = 0
        """Bytes of the last update that was trained here."""
        self._killed = Timer(KILLED)
        """Runs after the process that trained was killed: no training until then, and less often each time."""
        self.hindered: str | None = None
        """What of the device's own keeps it from training."""
        self.muted: str | None = None
        """What of the device's own keeps updates and models off its link."""
        self.unready: str | None = None
        """Why statistics of the device's data are not worth sending yet."""
        self.unsuited: str | None = None
        """How the device's inputs differ from the model's."""
        self.suited = False
        """Whether they were once found to be the same."""
        self._told = False
        """Whether this connection has brought an announcement."""

    @property
    def first(self) -> int:
        """The lowest seq that we hold, or the next where we hold none."""
        return min(self._held, default=self.next)

    @property
    def holding(self) -> int:
        """How many updates wait for their receipt."""
        return len(self._held)

    @property
    def _crammed(self) -> bool:
        return self._most is not None and sum(held.update.size for held in self._held.values()) >= self._most

    @property
    def _chunk(self) -> int:
        """Bytes of body that are sent at once: what the aggregator asks for, or less where broker or link take less."""
        asked = CHUNK if self.announcement is None else self.announcement.chunk
        return min(bound for bound in (asked, self._packet, self._link_chunk) if bound is not None)

    def _cut(self, held: Held) -> int:
        """Into how many parts an update goes: as it went before, as long as a part is not twice what is right now."""
        if held.parts > 1 and chunks.part_size(held.update.size, held.parts) < 2 * self._chunk and self._allowed(held):
            return held.parts
        return chunks.count(held.update.size, self._chunk)

    def _allowed(self, held: Held) -> bool:
        asked = CHUNK if self.announcement is None else self.announcement.chunk
        return chunks.part_size(held.update.size, held.parts) <= min(asked, self._packet or asked)

    def moved(self, now: float) -> None:
        """A chunk has reached the broker: no reason to offer the update again for now."""
        if self._resend.due is not None:
            self._resend.stop()
            self._resend.start(now, self._jitter())

    # ---------------------------------------------------------------------- events

    def handle(self, event: Event, now: float) -> list[Action]:
        """What to do about an event. `now` is seconds of any clock that never goes back."""
        match event:
            case Connected(chunk):
                return self._connected(chunk, now)
            case Disconnected():
                return self._disconnected()
            case Announced(announcement):
                return self._announced(announcement, now)
            case AggregatorSeen(status):
                return self._aggregator_seen(status, now)
            case Receipted(receipt):
                return self._receipted(receipt, now)
            case Fetched(base):
                return self._fetched(base, now)
            case FetchFailed(_, start_over):
                return self._fetch_failed(start_over, now)
            case Trained(update, key):
                return self._trained_update(update, key, now)
            case NothingToSend():
                self._work("nothing to send")
                self._note_trained()
                self._go_on_at_own_pace()
                return self._next_thing(now)
            case Killed():
                self._work("nothing to send")
                self._killed.start(now, self._jitter())
                return []
            case LinkMeasured(chunk):
                self._link_chunk = chunk
                return []
            case Hindered(why, muted, unready):
                if unready != self.unready:
                    self.unready = unready
                    self._statistics.stop()
                return self._hindered(why, muted, now)

    def tick(self, now: float) -> list[Action]:
        """What the passing of time asks for."""
        actions: list[Action] = []
        if self._greeting.is_due(now):
            actions += self._greet(now)
        if self._resend.is_due(now):
            self._resend.due = None
            actions += self._send_again(now)
        if self._statistics.is_due(now):
            self._statistics.due = None
        if self._reread.is_due(now):
            self._reread.start(now, self._jitter(), reread(self.announcement))
            actions.append(ReadAnnouncement())
        if self._room.is_due(now):
            self._room.due = None
        if self._again.is_due(now):
            self._again.due, self._trained = None, None
        if self._refetch.is_due(now):
            self._refetch.due = None
            actions.append(ReadAnnouncement())
        if self._interval.is_due(now):
            self._interval.due = None
        if self._killed.is_due(now):
            self._killed.due = None
        if self._turning.is_due(now):
            self._turning.due = None
        return actions + self._next_thing(now)

    @property
    def at_rest(self) -> bool:
        """Whether nothing is left to settle, fetch or train from what this connection has brought."""
        announcement = self.announcement
        if self.link is not Link.UP or self.work is not Work.RESTING or self._held or not self._told:
            return False
        if announcement is None or announcement.phase == "statistics":
            return False
        return self._trained == Base.of(announcement) or self.muted is not None or not self._may_train(announcement)

    def _hindered(self, why: str | None, muted: str | None, now: float) -> list[Action]:
        free = self.muted is not None and muted is None
        self.hindered, self.muted = why, muted
        return (self._send_again(now) if free and self._held else []) + self._next_thing(now)

    @property
    def deadline(self) -> float | None:
        """When `tick` next has something to do."""
        if self.link is Link.DOWN:
            return None
        timers = (
            self._greeting,
            self._resend,
            self._statistics,
            self._refetch,
            self._reread,
            self._room,
            self._again,
            self._interval,
            self._killed,
            self._turning,
        )
        return min((timer.due for timer in timers if timer.due is not None), default=None)

    # ------------------------------------------------------------------------ link

    def _connected(self, chunk: int | None, now: float) -> list[Action]:
        self._link("connected")
        self._told = False
        self._packet = chunk
        self._reread.start(now, self._jitter(), reread(self.announcement))
        self._greeting.start(now, self._jitter(), UNHEARD)
        return []

    def _disconnected(self) -> list[Action]:
        if self.link is not Link.DOWN:
            self._link("disconnected")
        if self.work is Work.FETCHING:
            self._work("disconnected")
        self._aggregator = None
        self._turn = None
        for timer in (self._greeting, self._resend, self._statistics, self._refetch, self._reread, self._turning):
            timer.stop()
        return []

    def _greet(self, now: float) -> list[Action]:
        self._greeting.start(now, self._jitter())
        return [Greet()]

    def _aggregator_seen(self, status: AggregatorStatus, now: float) -> list[Action]:
        before, self._aggregator = self._aggregator, status
        gone = (AggregatorState.LOST, AggregatorState.STOPPED)
        back = before is None or before.boot != status.boot or (before.state in gone and status.state not in gone)
        if self.link is Link.DOWN or not back:
            if before is not None and before.state is not status.state:
                self._held_back = self._wait_to_send(now)  # paused no longer, and so for everybody
            return self._send(now) + self._next_thing(now)
        if self.link is Link.UP:
            self._link("aggregator restarted")
        self._greeting.stop()
        if spread := self._spread(GREETING, 2):
            self._greeting.due = now + self._jitter() * spread
            return []
        return self._greet(now)

    def _spread(self, size: int, messages: int, share: float = 1.0) -> float:
        """Seconds over which devices begin what all of them do, each with the given bytes and messages."""
        told = self.announcement
        return 0.0 if told is None else sharing.spread(told.byte_rate, told.devices * share, size, messages)

    # ---------------------------------------------------------------------- outbox

    def _receipted(self, receipt: Receipt, now: float) -> list[Action]:
        if receipt.outbox != self.outbox or self.link is Link.DOWN:
            return []
        actions: list[Action] = [Tell(settled) for settled in receipt.settled if settled.seq in self._held]
        self._heed(receipt.settled, now)
        greeted = self.link is Link.GREETING
        if greeted:
            self._link("receipt")
            self._greeting.stop()
        if self._put_back(receipt.hi):
            return [*actions, self._renew()]
        actions += self._forget(receipt.hi)
        later = [settled.retry_after for settled in receipt.settled if not settled.verdict.final]
        if later:
            self._held_back = True
            self._resend.start(now, self._jitter(), max(1.0, *later))
            return actions
        if greeted:  # whoever it was that we sent to before may not be there any more
            self._held_back = self._wait_to_send(now)
            return actions + ([] if self._held_back else self._send_again(now)) + self._next_thing(now)
        for grant in receipt.grants:
            if grant.seq in self._held and grant.parts and self.muted is None:
                held = self._held[grant.seq]
                update = self._identified(held.update).model_copy(update={"parts": held.parts})
                actions.append(SendChunks(update, grant.parts))
                self._resend.stop()
                self._resend.start(now, self._jitter())
        if self._held and not (receipt.settled or receipt.grants or self._held_back):
            self._resend.start(now, self._jitter(), 1.0)  # it misses something before what we sent
            return actions
        return actions + self._send(now) + self._next_thing(now)

    def _heed(self, settled: Iterable[Settled], now: float) -> None:
        """A refused update leaves its version to be trained from again, after a while and with other chance.

        Otherwise a fleet could wait for ever: everybody has trained from the newest version, one was refused, and the
        rest are too few for a step or a release.
        """
        for each in settled:
            if each.seq not in self._held or not each.verdict.final:
                continue
            if each.verdict is Verdict.ACCEPTED:
                self._again.stop()
            elif not each.repeat:
                self._again.start(now, self._jitter())

    def _put_back(self, hi: int) -> bool:
        """Whether the aggregator has settled what we never sent: then this outbox is an old copy of itself."""
        return hi >= self.next or any(seq <= hi and not held.ever_sent for seq, held in self._held.items())

    def _renew(self) -> Action:
        return Renew(tuple(seq for seq, held in self._held.items() if not held.ever_sent))

    def renewed(self, outbox: int, held: Iterable[Update], next_seq: int, now: float) -> list[Action]:
        """Take up the new identity that a Renew has made."""
        self.outbox, self.next = outbox, next_seq
        self._held = {update.seq: Held(update, ever_sent=False) for update in held}
        self._link("outbox renewed")
        self._resend.stop()
        return self._greet(now)

    def _forget(self, through: int) -> list[Action]:
        settled = [seq for seq in self._held if seq <= through]
        for seq in settled:
            del self._held[seq]
        if settled and not self._held_back:
            self._resend.stop()
        return [Forget(through)] if settled else []

    def _identified(self, update: Update) -> Update:
        """As it is sent now: what else we hold changes from one sending to the next."""
        return update.model_copy(update={"outbox": self.outbox, "first": self.first})

    def _wait_to_send(self, now: float) -> bool:
        """Whether what is held waits for a random time, because all devices may be about to send as much."""
        spread = self._spread(sum(held.update.size for held in self._held.values()), 2 * len(self._held))
        if spread:
            self._resend.due = now + self._jitter() * spread
        return spread > 0

    def _send_again(self, now: float) -> list[Action]:
        """Send all that is held, as if nothing had been sent."""
        self._held_back = False
        for held in self._held.values():
            held.sent = False
        return self._send(now)

    def _send(self, now: float) -> list[Action]:
        """Send what is held and not under way, in order; a large one goes alone and asks first."""
        status = self._aggregator
        if self.link is not Link.UP or self._held_back or (status and status.state is not AggregatorState.READY):
            return []
        if self.muted is not None:
            return []
        actions: list[Action] = []
        for seq in sorted(self._held)[:IN_FLIGHT]:
            held = self._held[seq]
            large = held.update.size > self._chunk
            if held.sent:
                if large:
                    break
                continue
            if large and seq != self.first:
                break
            held.sent = held.ever_sent = True
            update = self._identified(held.update)
            if large:
                held.parts = self._cut(held)
                actions.append(Offer(update.model_copy(update={"kind": "offer", "parts": held.parts})))
                break
            held.parts = 1
            actions.append(Send(update))
        if self._resend.due is None and any(held.sent for held in self._held.values()):
            self._resend.start(now, self._jitter())
        return actions

    # ------------------------------------------------------------------------ work

    def _announced(self, announcement: Announcement, now: float) -> list[Action]:
        self._told = True
        known = self.announcement
        same = known is not None and known.lineage == announcement.lineage
        if same and known is not None and _order(announcement) < _order(known):
            return []  # an old retained one: the aggregator will put its own in its place
        self.announcement = announcement
        self._refetch.due = None
        return [*self._compare_inputs(announcement), *self._next_thing(now)]

    def _compare_inputs(self, announcement: Announcement) -> list[Action]:
        """See whether our inputs are the model's; tell once where they are not."""
        before, self.unsuited = self.unsuited, unsuited(self._features, announcement, counted=self._counted)
        if self.unsuited is None:
            self.suited = self.suited or bool(self._features and announcement.features)
            return []
        return [] if self.unsuited == before else [Unsuited(self.unsuited)]

    def _next_thing(self, now: float) -> list[Action]:
        """Begin what can be begun: statistics, a fetch, a training."""
        announcement = self.announcement
        if announcement is None or self.link is not Link.UP:
            return []
        if announcement.phase == "statistics":
            if self.unready is not None or self.unsuited is not None:
                return []
            if announcement.moments and self._statistics.due is None:
                self._statistics.start(now, self._jitter())
                return [SendStatistics(announcement.lineage, announcement.moments)]
            return []
        self._statistics.stop()
        if self.work is not Work.RESTING or self._trained == Base.of(announcement) or self._refetch.due is not None:
            return []
        if self.holding >= OUTBOX_LIMIT or self._room.due is not None or self._crammed:
            return []
        if not self._may_train(announcement):
            return []
        return self._fetch(announcement, now)

    def _may_train(self, announcement: Announcement) -> bool:
        """Whether the federation asks this device to train from this version, and nothing of its own is against it."""
        if (
            self.unsuited is not None
            or self.hindered is not None
            or self._interval.due is not None
            or self._killed.due is not None
        ):
            return False
        if self._aggregator is not None and self._aggregator.state is AggregatorState.PAUSED:
            return False
        share = announcement.participation.share
        return takes_part(self.device, announcement.lineage, announcement.generation, announcement.version, share)

    def _fetch(self, announcement: Announcement, now: float) -> list[Action]:
        base = self._base
        have = base.version if base is not None and base.lineage == announcement.lineage else None
        if base is not None and base.generation != announcement.generation:
            have = None
        way = route(announcement.frames, have, announcement.version)
        if way is None:
            self._refetch.start(now, self._jitter())
            return []
        if way and (self.muted is not None or not self._is_our_turn(announcement, way, now)):
            return []
        self._turn = None
        self._turning.stop()
        self._fetch_began = now
        self._work("newer version")
        self._target = announcement
        if not way:
            return self._fetched(Base.of(announcement), now)
        return [Fetch(announcement, way)]

    def _is_our_turn(self, announcement: Announcement, way: Iterable[FrameInfo], now: float) -> bool:
        """Whether to fetch now: a release is news to everybody, and all that fetch it share the rate.

        Who fetches will train and send, and trainings take about as long: so the turn is for the update too.
        """
        size, parts = map(sum, zip(*((frame.size, frame.parts) for frame in way), strict=True))
        messages = 2 * parts + (2 if self._update_size else 0)
        spread = self._spread(size + self._update_size, messages, announcement.participation.share)
        if spread == 0:
            return True
        since, chance = self._turn = self._turn or (now, self._jitter())
        if now >= since + chance * spread:
            return True
        self._turning.due = since + chance * spread
        return False

    def _go_on_at_own_pace(self) -> None:
        """A training has ended, and whose training ends does not depend on others: only our own last fetch counts."""
        if self.announcement is not None and self._trained != Base.of(self.announcement):
            self._turn = self._fetch_began, 1.0

    def _fetched(self, base: Base, now: float) -> list[Action]:
        self._base = base
        target = self._target
        if self.work is not Work.FETCHING or target is None or Base.of(target) != base:
            return []  # the link broke meanwhile, and perhaps another fetch has begun
        self._work("fetched")
        self._refetch.stop()
        if target.participation.interval:
            self._interval.start(now, 0.5, target.participation.interval)
        identity = f"{self.device}/{target.lineage.hex()}/{target.generation}/{target.version}/{self.next}"
        return [Train(target, target.plan.model_copy(update={"seed": zlib.crc32(identity.encode())}))]

    def _fetch_failed(self, start_over: bool, now: float) -> list[Action]:
        if start_over:
            self._base = None
        if self.work is Work.FETCHING:
            self._work("fetch failed")
            self._refetch.start(now, self._jitter())
        return []

    def _trained_update(self, update: Update, key: int, now: float) -> list[Action]:
        self._work("trained")
        self._killed.stop()
        self._note_trained()
        numbered = update.model_copy(update={"outbox": self.outbox, "seq": self.next, "first": self.first})
        self._held[self.next] = Held(numbered, ever_sent=False)
        self.next += 1
        self._update_size = update.size
        self._go_on_at_own_pace()
        return [Store(numbered, key), *self._send(now), *self._next_thing(now)]

    def not_stored(self, now: float) -> None:
        """The last update could not be stored: its work is lost, its seq is free, and training waits for a while."""
        self.next -= 1
        del self._held[self.next]
        self._room.start(now, self._jitter())

    def _note_trained(self) -> None:
        """A device trains once from each version."""
        assert self._target is not None
        self._trained = Base.of(self._target)

    def _link(self, event: str) -> None:
        """Follow the table. An event that a state does not know is a mistake of ours: KeyError."""
        self.link = LINKS[self.link, event]

    def _work(self, event: str) -> None:
        """Follow the table. An event that a state does not know is a mistake of ours: KeyError."""
        self.work = WORKS[self.work, event]


def _order(announcement: Announcement) -> tuple[int, int]:
    return announcement.generation, announcement.version


def reread(announcement: Announcement | None) -> float:
    """Seconds after which an announcement is read again, for one may have been lost on its way.

    An eighth of the pause between two trainings, where that is more than a minute: nothing can be made of news before
    its end. Read each minute, they would be most of what a device receives that trains a few times a day.
    """
    return REREAD if announcement is None else max(REREAD, announcement.participation.interval / 8)
