"""The training cycle: sends statistics, fetches a version and trains from it once, if no constraint forbids it."""

import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from midge.iot_client.session.events import Action, Base, FetchModel, ReadAnnouncement, SendStatistics, Train, Unsuited
from midge.iot_client.session.sending import Sending
from midge.iot_client.session.situation import Situation
from midge.iot_client.session.states import WORKS, Link, Work
from midge.iot_client.session.suiting import unsuited
from midge.iot_client.session.timers import PATIENCE, Timer
from midge.iot_client.session.version_use import VersionUse
from midge.wire.lineage import route
from midge.wire.messages import MICRO, OUTBOX_LIMIT, Announcement, FrameInfo, Settled, Update, Verdict
from midge.wire.participation import takes_part

KILLED = 30.0
"""Seconds without training after its process was killed; doubled each time."""
DISK_FULL = 30.0
"""Seconds without training after an update could not be stored, since another would be lost too; doubled each time."""
REFUSED = 30.0
"""Seconds after which a device may train from the newest version again, because its update was refused."""
HINDERED = 3600.0
"""Seconds after which a device that may not train reads the announcement: it may allow more bytes or energy."""
REFETCH = 1.0
"""Seconds after which an announcement is read again whose model could not be fetched; doubled each time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionSettings:
    """The owner's settings of a device's session."""

    patience: float = PATIENCE
    """Seconds before an unanswered update is sent again; doubled each time."""
    outbox_bytes: int | None = None
    """Bytes of waiting updates at which training stops; None sets no limit."""
    features: tuple[str, ...] = ()
    """Names of the inputs, in order; empty if they have none."""
    statistics_by_feature: bool = False
    """Whether its statistics of `input` have a channel for each of these."""
    rests: bool = True
    """Whether it pauses if the model does not move. False if it trains only with enough new rows."""
    micro: bool = False
    """Whether it holds one update at a time, whatever the plan says."""
    objection: Callable[[Announcement], str | None] = lambda _: None
    """Why the owner's requirements forbid training under an announcement; None if they do not."""
    outgoing: Callable[[Update], Update | None] = lambda update: update
    """The header of an update as it is sent now, which is sealed; None while it cannot be sent."""
    rereads: bool = True
    """Whether it reads the announcement again now and then, because one may have been lost."""


class TrainingCycle:
    """Resting, fetching, training.

    Args:
        device: its name.
        situation: of federation and link.
        sending: the updates in its outbox.
        settings: of its owner.
        jitter: a random number in [0, 1), new at each call.
    """

    def __init__(
        self,
        device: str,
        situation: Situation,
        sending: Sending,
        settings: SessionSettings,
        jitter: Callable[[], float],
    ) -> None:
        self._device, self._situation, self._sending = device, situation, sending
        self._settings, self._jitter = settings, jitter
        self.work = Work.RESTING
        self.hindered: str | None = None
        """The device's own constraint that keeps it from training."""
        self.unready: str | None = None
        """Why statistics of the device's data are not worth sending yet."""
        self.unsuited: str | None = None
        """How the device's inputs differ from the model's."""
        self.suited = False
        """Whether they once matched."""
        self.base: Base | None = None
        """The model that the device holds."""
        self.target: Announcement | None = None
        """The announcement whose model is being fetched or trained from."""
        self.trained: Base | None = None
        """The model that it trained from last, or need not train from."""
        self.statistics = Timer()
        self.refetch = Timer(REFETCH)
        self.disk_full = Timer(DISK_FULL)
        self.refused = Timer(REFUSED)
        self.killed = Timer(KILLED)
        self.interval = Timer()
        """Runs after a training has begun, if the announcement asks for a pause between two."""
        self.versions = VersionUse()
        self._began = float("-inf")
        """When the last training began."""
        self.slot_timer = Timer()
        """Runs until the device's fetch slot."""
        self._fetch_slot: tuple[float, float] | None = None
        """While a fetch waits for its slot: since when, and after which part of the time that all devices take."""
        self._fetch_began = float("-inf")
        self._update_size = 0
        """Bytes of the last update that was trained here."""

    @property
    def timers(self) -> tuple[Timer, ...]:
        """All of them."""
        waits = self.statistics, self.refetch, self.disk_full, self.refused, self.interval, self.killed, self.slot_timer
        return *waits, self.versions.again

    def tick(self, now: float) -> list[Action]:
        """Let timers expire; read announcements again, if one of them asks for it."""
        if self.refused.is_due(now):
            self.trained = None
        actions = self.versions.follow() if self.versions.again.is_due(now) else []
        if self.refetch.is_due(now):
            actions.append(ReadAnnouncement())
        # Not `stop`: a back-off goes on until what it waits for succeeds.
        for timer in self.timers:
            if timer.is_due(now):
                timer.due = None
        return actions

    def disconnected(self) -> None:
        """End a fetch with its connection; a training continues."""
        if self.work is Work.FETCHING:
            self._follow("disconnected")
        self._fetch_slot = None
        self.versions.disconnected()
        for timer in (self.statistics, self.refetch, self.slot_timer):
            timer.stop()

    # ------------------------------------------------------------------------- starting

    def begin_next(self, now: float) -> list[Action]:
        """Begin what is possible: statistics, a fetch, or a training."""
        announcement = self._situation.announcement
        if announcement is None or self._situation.link is not Link.UP:
            return []
        if announcement.phase == "statistics":
            return self._send_statistics(announcement, now)
        self.statistics.stop()  # they are pooled: the next generation asks from the start
        if self.work is not Work.RESTING:
            return []
        if (listening := self._listen(announcement, now)) is not None:
            return listening
        if self.trained == Base.of(announcement) or self.refetch.due is not None:
            return []
        # What is trained while the aggregator accepts nothing from this device is late, behind what waits already.
        if self._outbox_full or self._sending.told_to_wait or self.disk_full.due is not None:
            return []
        if not self.may_train(announcement):
            return []
        return self._fetch(announcement, now)

    def _listen(self, announcement: Announcement, now: float) -> list[Action] | None:
        """Listen to announcements if a version is of use, and not otherwise; None if the newest is known and of use."""
        # Not while the pause is longer because the model rests: that may end with any version.
        until = self._began + announcement.participation.interval
        if self.hindered is not None:
            until = max(until, now + HINDERED)
        if now < until:
            return self.versions.ignore(until)
        return self.versions.follow() or ([] if self.versions.outdated else None)

    @property
    def _outbox_full(self) -> bool:
        limit, announcement = self._settings.outbox_bytes, self._situation.announcement
        micro = self._settings.micro or (announcement is not None and announcement.plan.tier == MICRO)
        most = 1 if micro else OUTBOX_LIMIT
        return len(self._sending.held) >= most or (limit is not None and self._sending.size >= limit)

    def _send_statistics(self, announcement: Announcement, now: float) -> list[Action]:
        if self.unready is not None or self.unsuited is not None:
            return []
        if announcement.moments and self.statistics.due is None:
            self.statistics.start(now, self._jitter())
            return [SendStatistics(announcement.lineage, announcement.moments)]
        return []

    def may_train(self, announcement: Announcement) -> bool:
        """Whether the federation asks this device to train from this version, and no constraint forbids it."""
        if self.unsuited is not None or self.hindered is not None:
            return False
        if self.interval.due is not None or self.killed.due is not None or self._situation.paused:
            return False
        share = announcement.participation.share
        return takes_part(self._device, announcement.lineage, announcement.generation, announcement.version, share)

    def announced(self, announcement: Announcement, now: float) -> None:
        """Record an announcement that is not old."""
        self.refetch.due = None  # not `stop`: the back-off goes on until a fetch succeeds
        self.versions.read()
        self.pause(announcement, now)

    def compare_inputs(self, announcement: Announcement) -> list[Action]:
        """Check whether our inputs are the model's; report a difference once."""
        settings = self._settings
        before = self.unsuited
        differs = unsuited(settings.features, announcement, counted=settings.statistics_by_feature)
        self.unsuited = differs or settings.objection(announcement)
        if self.unsuited is None:
            self.suited = self.suited or bool(settings.features and announcement.features)
            return []
        return [] if self.unsuited == before else [Unsuited(self.unsuited)]

    # ----------------------------------------------------------------------- fetching

    def _fetch(self, announcement: Announcement, now: float) -> list[Action]:
        base, have = self.base, None
        # No step leads from a model of another generation, although its versions have lower numbers.
        if base is not None and (base.lineage, base.generation) == (announcement.lineage, announcement.generation):
            have = base.version
        way = route(announcement.frames, have, announcement.version)
        if way is None:
            self.refetch.start(now, self._jitter())
            return []
        if way and (self._situation.muted is not None or not self._in_fetch_slot(announcement, way, now)):
            return []
        self._fetch_slot = None
        self.slot_timer.stop()
        self._fetch_began = now
        self._follow("newer version")
        self.target = announcement
        if not way:
            return self.fetched(Base.of(announcement), now)
        return [FetchModel(announcement, way)]

    def _in_fetch_slot(self, announcement: Announcement, way: Iterable[FrameInfo], now: float) -> bool:
        """Whether to fetch now: all devices hear of a release at once, and those that fetch it share the rate.

        Those who fetch will train and send, and trainings take about the same time: so the slot is for the update too.
        """
        size, parts = map(sum, zip(*((frame.size, frame.parts) for frame in way), strict=True))
        messages = 2 * parts + (2 if self._update_size else 0)
        share = announcement.participation.share
        spread = self._situation.spread(size + self._update_size, messages, share)
        if spread == 0:
            return True
        # Drawn once for a fetch: drawn again for each version, a device could be overtaken for ever.
        since, chance = self._fetch_slot = self._fetch_slot or (now, self._jitter())
        if now >= since + chance * spread:
            return True
        self.slot_timer.due = since + chance * spread
        return False

    def fetched(self, base: Base, now: float) -> list[Action]:
        """The device holds this model: train from it, if it is the requested one."""
        self.base = base
        target = self.target
        if self.work is not Work.FETCHING or target is None or Base.of(target) != base:
            return []  # the link broke meanwhile, and perhaps another fetch has begun
        self._follow("fetched")
        self.refetch.stop()
        self._began = now
        self.versions.trains(target)
        self.pause(target, now)
        seed = training_seed(self._device, target, self._sending.next)
        return [Train(target, target.plan.model_copy(update={"seed": seed}))]

    def pause(self, announcement: Announcement, now: float) -> None:
        """Start the requested pause between two trainings: an extra rest ends as soon as it is over for all."""
        asked = announcement.participation
        seconds = asked.pause if self._settings.rests else asked.interval
        # Without jitter: devices that began at different times stay apart, and the announced pause is kept.
        self.interval.due = self._began + seconds if now < self._began + seconds else None

    def fetch_failed(self, start_over: bool, now: float) -> None:
        """Retry with back-off."""
        if start_over:
            self.base = None  # steps on it led to another digest: only a snapshot helps
        if self.work is Work.FETCHING:
            self._follow("fetch failed")
            self.refetch.start(now, self._jitter())

    # ----------------------------------------------------------------------- training

    def training_ended(self, update: Update | None, *, again: bool = False) -> None:
        """End a training, with an update or without one worth sending; with `again` the version stays untrained."""
        self._follow("nothing to send" if update is None else "trained")
        assert self.target is not None
        if not again:
            self.trained = Base.of(self.target)  # a device trains once from each version
        if update is not None:
            self.killed.stop()
            self._update_size = update.size
        announcement = self._situation.announcement
        if announcement is not None and self.trained != Base.of(announcement):
            # The end of a training does not depend on others: only our own last fetch counts for the next slot.
            self._fetch_slot = self._fetch_began, 1.0

    def training_killed(self, now: float) -> None:
        """The training process was killed: pause, with back-off."""
        self._follow("killed")
        self.killed.start(now, self._jitter())

    def settled(self, verdicts: Iterable[Settled], now: float) -> None:
        """After a refused update, allow another training from its version, after a while and with another seed.

        Otherwise a fleet could wait forever: all devices have trained from the newest version, one was refused, and the
        others are too few for a step or a release.
        """
        for each in verdicts:
            if not each.verdict.final:
                continue
            if each.verdict is Verdict.ACCEPTED:
                self.refused.stop()
            elif not each.repeat:
                self.refused.start(now, self._jitter())

    def not_stored(self, now: float) -> None:
        """An update could not be stored: train none for a while."""
        self.disk_full.start(now, self._jitter())

    def _follow(self, event: str) -> None:
        """Follow the transition table. An event that a state does not have is a bug: KeyError."""
        self.work = WORKS[self.work, event]


def training_seed(device: str, announcement: Announcement, number: int) -> int:
    """The seed of a training: different for each device, version and update.

    Args:
        device: its name.
        announcement: the version that is trained from.
        number: the seq of the resulting update.
    """
    version = f"{announcement.lineage.hex()}/{announcement.generation}/{announcement.version}"
    return zlib.crc32(f"{device}/{version}/{number}".encode())
