"""A device's part in a federation, without I/O, without arrays and without a clock.

Events in, actions out; `iot_client.shell` carries the actions out. Two state machines run side by side: the link to the
aggregator and the work (`iot_client.session.states`).

The session's promises: an update is stored before it is sent, it is sent with the same identity until it is settled,
and it is forgotten only on the aggregator's receipt. MQTT's own acknowledgements do not count.
"""

from collections.abc import Callable, Iterable

from midge.iot_client.session.events import (
    Action,
    AggregatorSeen,
    Announced,
    Base,
    ChunkDelivered,
    Connected,
    Discarded,
    Disconnected,
    Event,
    Fetched,
    FetchFailed,
    Greet,
    Hindered,
    Killed,
    LinkMeasured,
    NoteSite,
    NothingToSend,
    NotStored,
    Receipted,
    Renewed,
    SizeRefused,
    StoreUpdate,
    Summed,
    Tell,
    Trained,
    Withheld,
)
from midge.iot_client.session.sending import Sending
from midge.iot_client.session.situation import Situation
from midge.iot_client.session.states import LINKS, WORKS, Link, Work
from midge.iot_client.session.timers import Timer
from midge.iot_client.session.training_cycle import SessionSettings, TrainingCycle
from midge.wire.messages import MOST_TOKEN, AggregatorState, AggregatorStatus, Announcement, Receipt, Update

__all__ = ["LINKS", "WORKS", "DeviceSession", "Link", "SessionSettings", "Work", "reread"]

GREETING = 400
"""Approximate bytes of a READY status and its receipt."""
UNHEARD = 2.0
"""Seconds that a new connection waits for the aggregator's status before it sends READY without it."""
REREAD = 60.0
"""Minimum seconds after which an idle device reads the announcement again: see `reread`."""
_GONE = (AggregatorState.LOST, AggregatorState.STOPPED)


class DeviceSession:
    """Decides what a device does next.

    Args:
        device: its name.
        outbox: the identity of its outbox.
        held: the outbox's updates from before, in order.
        next_seq: the number of the next update.
        jitter: a random number in [0, 1), new at each call: spreads what many devices would do at once.
        settings: of its owner.
        sent: the highest seq that was ever sent; None if unknown.
        site: where that was sent: the site of a gateway, or empty for the federation's own aggregator.
    """

    def __init__(
        self,
        device: str,
        outbox: int,
        held: Iterable[Update],
        next_seq: int,
        jitter: Callable[[], float],
        *,
        settings: SessionSettings | None = None,
        sent: int | None = None,
        site: str = "",
    ) -> None:
        self._site = site
        self._settings = own = settings or SessionSettings()
        self._jitter = jitter
        self._situation = Situation()
        self._sending = Sending(
            self._situation,
            outbox,
            held,
            next_seq,
            jitter=jitter,
            patience=own.patience,
            sent=sent,
            as_sent=own.outgoing,
        )
        self._cycle = TrainingCycle(device, self._situation, self._sending, self._settings, jitter)
        self.versions = self._cycle.versions
        self._greeting = Timer()
        self._reread = Timer()
        self._announced_here = False
        """Whether this connection has brought an announcement."""
        self._fence = 0
        """The highest fencing token of an aggregator on this connection: one with a lower one was replaced."""

    # -------------------------------------------------------------------- state

    @property
    def link(self) -> Link:
        """State of the link to the aggregator."""
        return self._situation.link

    @property
    def work(self) -> Work:
        """State of the work."""
        return self._cycle.work

    @property
    def announcement(self) -> Announcement | None:
        """The newest announcement."""
        return self._situation.announcement

    @property
    def outbox(self) -> int:
        """The identity of its outbox."""
        return self._sending.outbox

    @property
    def first(self) -> int:
        """The lowest seq that it holds, or the next one if it holds none."""
        return self._sending.first

    @property
    def next(self) -> int:
        """The number of the next update."""
        return self._sending.next

    @property
    def holding(self) -> int:
        """Number of updates without a receipt."""
        return len(self._sending.held)

    @property
    def sent(self) -> int:
        """The highest seq that was ever sent, or is sent by the actions just returned."""
        return self._sending.sent

    @property
    def unsure(self) -> int:
        """Number of updates that renewals of the outbox left behind because they may have been settled."""
        return self._sending.unsure

    @property
    def hindered(self) -> str | None:
        """The device's own constraint that keeps it from training."""
        return self._cycle.hindered

    @property
    def muted(self) -> str | None:
        """The device's own constraint that keeps updates and models off its link."""
        return self._situation.muted

    @property
    def unready(self) -> str | None:
        """Why statistics of the device's data are not worth sending yet."""
        return self._cycle.unready

    @property
    def unsuited(self) -> str | None:
        """How the device's inputs differ from the model's."""
        return self._cycle.unsuited

    @property
    def suited(self) -> bool:
        """Whether its inputs once matched the model's."""
        return self._cycle.suited

    @property
    def pausing_until(self) -> float | None:
        """The end of its pause between two trainings; None if there is none."""
        return self._cycle.interval.due

    @property
    def waits_for_version(self) -> bool:
        """Whether it is idle, and would begin something with a newer version."""
        resting = self.work is Work.RESTING and self.link is not Link.DOWN
        return resting and self.pausing_until is None and self.hindered is None

    @property
    def at_rest(self) -> bool:
        """Whether nothing is left to settle, fetch or train from, as far as this connection has shown."""
        announcement = self.announcement
        if self.link is not Link.UP or self.work is not Work.RESTING or self.holding or not self._announced_here:
            return False
        if announcement is None or announcement.phase == "statistics":
            return False
        done = self._cycle.trained == Base.of(announcement)
        return done or self.muted is not None or not self._cycle.may_train(announcement)

    @property
    def deadline(self) -> float | None:
        """The next time at which `tick` has something to do."""
        # Nothing can be fetched or sent: timers that go on are looked at once there is a connection.
        if self.link is Link.DOWN:
            return None
        timers = (self._greeting, self._sending.resend, self._reread, *self._cycle.timers)
        return min((timer.due for timer in timers if timer.due is not None), default=None)

    # ---------------------------------------------------------------------- events

    def handle(self, event: Event, now: float) -> list[Action]:
        """Return the actions that follow from an event. `now` is seconds of a monotonic clock."""
        cycle = self._cycle
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
                return cycle.fetched(base, now)
            case FetchFailed(_, start_over):
                cycle.fetch_failed(start_over, now)
            case Trained(update, key):
                return self._trained(update, key, now)
            case Summed(update, key):
                return [StoreUpdate(self._sending.add(update), key), *self._sending.send(now)]
            case NothingToSend() | Discarded():
                cycle.training_ended(None, again=isinstance(event, Discarded))
                return cycle.begin_next(now)
            case Killed():
                cycle.training_killed(now)
            case Withheld():
                return self._sending.forget(self.next - 1)  # or they would be sent once the owner consents again
            case LinkMeasured(chunk):
                self._situation.link_chunk = chunk  # chunks in flight keep their size
            case SizeRefused(chunk):
                self._situation.packet = min(chunk, self._situation.packet or chunk)
                self._sending.send_again_soon(now)
            case ChunkDelivered():
                if self._sending.resend.due is not None:  # a slow link is no reason to offer the update again
                    self._sending.postpone(now)
            case NotStored():
                self._sending.drop_last()
                cycle.not_stored(now)
            case Renewed(outbox, held, next_seq):
                return self._renewed(outbox, held, next_seq, now)
            case Hindered(why, muted, unready):
                return self._hindered(why, muted, unready, now)
        return []

    def tick(self, now: float) -> list[Action]:
        """Return the actions that are due at this time."""
        actions: list[Action] = []
        # READY first: the receipt says what the aggregator has, and so what must be sent again.
        if self._greeting.is_due(now):
            actions += self._greet(now)
        if self._sending.resend.is_due(now):
            self._sending.resend.due = None
            actions += self._sending.send_again(now)
        if self._reread.is_due(now):
            self._reread.start(now, self._jitter(), reread(self.announcement))
            actions += self.versions.reread()
        return [*actions, *self._cycle.tick(now), *self._cycle.begin_next(now)]

    def _hindered(self, why: str | None, muted: str | None, unready: str | None, now: float) -> list[Action]:
        cycle, situation = self._cycle, self._situation
        if unready != cycle.unready:
            cycle.unready = unready
            cycle.statistics.stop()
        unmuted = situation.muted is not None and muted is None
        cycle.hindered, situation.muted = why, muted
        again = self._sending.send_again(now) if unmuted and self.holding else []
        return again + cycle.begin_next(now)

    # ------------------------------------------------------------------------ link

    def _connected(self, chunk: int | None, now: float) -> list[Action]:
        self._situation.follow("connected")
        self._announced_here, self._situation.packet = False, chunk
        # Drawn even if it is not used: otherwise the setting would change all later random numbers of a simulation.
        after = self._jitter()
        if self._settings.rereads:
            self._reread.start(now, after, reread(self.announcement))
        self._greeting.start(now, self._jitter(), UNHEARD)
        return []

    def _disconnected(self) -> list[Action]:
        if self.link is not Link.DOWN:
            self._situation.follow("disconnected")
        # Its status is retained, and comes again with the next connection: it may have changed by then.
        self._situation.aggregator, self._fence = None, 0
        self._cycle.disconnected()
        for timer in (self._greeting, self._sending.resend, self._reread):
            timer.stop()
        return []

    def _greet(self, now: float) -> list[Action]:
        self._greeting.start(now, self._jitter())
        return [Greet()]

    def _aggregator_seen(self, status: AggregatorStatus, now: float) -> list[Action]:
        if status.token <= MOST_TOKEN:
            self._fence = max(self._fence, status.token)
        if status.name != self._site and self.link is not Link.DOWN:
            return self._moved(status, now)
        before, self._situation.aggregator = self._situation.aggregator, status
        back = before is None or before.boot != status.boot or (before.state in _GONE and status.state not in _GONE)
        if self.link is Link.DOWN or not back:
            if before is not None and before.state is not status.state:
                self._sending.wait_for_turn(now)  # no longer paused, for all devices at once
                if not self._sending.held_back:  # updates answered with the pause are no longer in flight
                    return self._sending.send_again(now) + self._cycle.begin_next(now)
            return self._sending.send(now) + self._cycle.begin_next(now)
        self.versions.aggregator_restarted(now)
        if self.link is Link.UP:
            self._situation.follow("aggregator restarted")
        self._greeting.stop()
        # All devices see a restart at the same moment: each sends READY at a random time within the rate.
        if spread := self._situation.spread(GREETING, 2):
            self._greeting.due = now + self._jitter() * spread
            return []
        return self._greet(now)

    def _moved(self, status: AggregatorStatus, now: float) -> list[Action]:
        """Another aggregator answers here than the one that we sent to: what it may have settled is dropped.

        Sent again here, it would count twice.
        """
        self._site, sent = status.name, self._sending.sent
        # Renewed before the site is noted: if the device ends in between, it comes here again, with nothing sent.
        renewed = [self._sending.renew((), ())] if sent else []
        return [*renewed, NoteSite(status.name), *self._aggregator_seen(status, now)]

    # ---------------------------------------------------------------------- outbox

    def _receipted(self, receipt: Receipt, now: float) -> list[Action]:
        sending = self._sending
        if receipt.outbox != sending.outbox or self.link is Link.DOWN:
            return []  # of an identity before a renewal, or one that overtook the end of its connection
        # An aggregator that was replaced by another decides on a store that will be given up.
        if 0 < receipt.token < self._fence:
            return []
        if receipt.token <= MOST_TOKEN:
            self._fence = max(self._fence, receipt.token)
        ours = [settled for settled in receipt.settled if settled.seq in sending.held]
        undecided = sending.undecided(ours)
        ours = [settled for settled in ours if settled.seq not in undecided]
        actions: list[Action] = [Tell(settled) for settled in ours]
        self._cycle.settled(ours, now)
        greeted = self.link is Link.GREETING
        if greeted:
            self._situation.follow("receipt")
            self._greeting.stop()
        # Before anything is forgotten: updates that a restored copy holds under settled numbers were never sent, or
        # differ from those that were settled.
        if undecided or sending.was_restored(receipt.hi):
            return [*actions, sending.renew(undecided, {settled.seq for settled in ours if settled.verdict.final})]
        actions += sending.forget(receipt.hi)
        later = [settled.retry_after for settled in receipt.settled if not settled.verdict.final]
        if later:
            sending.hold_back(now, max(later))
            return actions
        if greeted:  # it may be another aggregator than the one that we sent to
            sending.wait_for_turn(now)
            again = [] if sending.held_back else sending.send_again(now)
            return actions + again + self._cycle.begin_next(now)
        actions += sending.grant(receipt.grants, now)
        # It settles and grants nothing: an update came out of order, because one before it was lost.
        if sending.held and not (receipt.settled or receipt.grants or sending.held_back):
            sending.send_again_soon(now)
            return actions
        return actions + sending.send(now) + self._cycle.begin_next(now)

    def _renewed(self, outbox: int, held: Iterable[Update], next_seq: int, now: float) -> list[Action]:
        self._sending.renewed(outbox, held, next_seq)
        self._situation.follow("outbox renewed")
        return self._greet(now)

    # ------------------------------------------------------------------------ work

    def _announced(self, announcement: Announcement, now: float) -> list[Action]:
        self._announced_here = True
        known = self.announcement
        same = known is not None and known.lineage == announcement.lineage
        # An old retained one, which the aggregator will replace. One that was issued later is not old: then the known
        # one was forged, or the store was restored.
        if same and known is not None and _order(announcement) < _order(known) and announcement.issued <= known.issued:
            return []
        if known is not None and announcement.epoch > known.epoch:
            self._fence = 0  # the operator's command, which overrides what was known before
        self._situation.announcement = announcement
        self._cycle.announced(announcement, now)
        waiting = self._sending.send(now) if known is None else []  # for a key to seal to
        return [*self._cycle.compare_inputs(announcement), *waiting, *self._cycle.begin_next(now)]

    def _trained(self, update: Update, key: int, now: float) -> list[Action]:
        self._cycle.training_ended(update)
        numbered = self._sending.add(update)
        return [StoreUpdate(numbered, key), *self._sending.send(now), *self._cycle.begin_next(now)]


def _order(announcement: Announcement) -> tuple[int, int, int]:
    return announcement.epoch, announcement.generation, announcement.version


def reread(announcement: Announcement | None) -> float:
    """Seconds after which an announcement is read again, because one may have been lost.

    An eighth of the pause between two trainings, if that is more than a minute: before the pause ends a newer version
    is of no use. Read each minute, announcements would be most of the traffic of a device that trains a few times a
    day.
    """
    return REREAD if announcement is None else max(REREAD, announcement.participation.pause / 8)
