"""When a device sends its statistics, fetches a version and trains from it: once, if nothing is against it."""

import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from midge.iot_client.session.events import Action, Base, FetchModel, SendStatistics, Train, Unsuited
from midge.iot_client.session.sending import Sending
from midge.iot_client.session.situation import Situation
from midge.iot_client.session.states import WORKS, Link, Work
from midge.iot_client.session.suiting import unsuited
from midge.iot_client.session.timers import PATIENCE, Timer
from midge.wire.lineage import route
from midge.wire.messages import MICRO, OUTBOX_LIMIT, Announcement, FrameInfo, Settled, Update, Verdict
from midge.wire.participation import takes_part

KILLED = 30.0
"""Seconds without a training after its process was killed; doubled each time."""
DISK_FULL = 30.0
"""Seconds without a training after an update could not be stored: it would be for nothing; doubled each time."""
REFUSED = 30.0
"""Seconds after which the newest version may be trained from again, because the update from it was refused."""
REFETCH = 1.0
"""Seconds after which an announcement is read again that leads to no model; doubled each time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionSettings:
    """What a device's owner decides of its session."""

    patience: float = PATIENCE
    """Seconds before an update that was not answered is sent again; doubled each time."""
    outbox_bytes: int | None = None
    """Bytes of waiting updates at which training stops; None sets no limit."""
    features: tuple[str, ...] = ()
    """What the device calls its inputs, in order; empty if they have no names."""
    statistics_by_feature: bool = False
    """Whether its statistics of `input` have a channel for each of these."""
    rests: bool = True
    """Whether it pauses if the model does not move. Not if it trains only once enough rows are new."""
    micro: bool = False
    """Whether it holds one update at a time, whatever the plan says."""
    rereads: bool = True
    """Whether it reads the announcement again now and then: one may have been lost on its way."""


class TrainingCycle:
    """Resting, fetching, training.

    Args:
        device: its name.
        situation: what it knows.
        sending: what waits in its outbox.
        settings: of its owner.
        jitter: a number in [0, 1), new at each call.
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
        """What of the device's own keeps it from training."""
        self.unready: str | None = None
        """Why statistics of the device's data are not worth sending yet."""
        self.unsuited: str | None = None
        """How the device's inputs differ from the model's."""
        self.suited = False
        """Whether they were once found to be the same."""
        self.base: Base | None = None
        """The model that the device holds."""
        self.target: Announcement | None = None
        """What is being fetched or trained from."""
        self.trained: Base | None = None
        """What it has trained from last, or needs no training."""
        self.statistics = Timer()
        self.refetch = Timer(REFETCH)
        self.disk_full = Timer(DISK_FULL)
        self.refused = Timer(REFUSED)
        self.killed = Timer(KILLED)
        self.interval = Timer()
        """Runs after a training has begun, if the announcement asks for a pause between two."""
        self._began = float("-inf")
        """When the last training began."""
        self.turn = Timer()
        """Runs until the turn of a fetch."""
        self._turn: tuple[float, float] | None = None
        """While a fetch waits for its turn: since when, and after which part of the time that all devices take."""
        self._fetch_began = float("-inf")
        self._update_size = 0
        """Bytes of the last update that was trained here."""

    @property
    def timers(self) -> tuple[Timer, ...]:
        """All of them."""
        return self.statistics, self.refetch, self.disk_full, self.refused, self.interval, self.killed, self.turn

    def tick(self, now: float) -> bool:
        """Let timers run out. Whether the announcement is to be read again."""
        if self.refused.is_due(now):
            self.trained = None
        again = self.refetch.is_due(now)
        for timer in self.timers:
            if timer.is_due(now):
                timer.due = None
        return again

    def disconnected(self) -> None:
        """A fetch ends with its connection; a training does not."""
        if self.work is Work.FETCHING:
            self._follow("disconnected")
        self._turn = None
        for timer in (self.statistics, self.refetch, self.turn):
            timer.stop()

    # ---------------------------------------------------------------------- beginning

    def next_thing(self, now: float) -> list[Action]:
        """Begin what can be begun: statistics, a fetch, a training."""
        announcement = self._situation.announcement
        if announcement is None or self._situation.link is not Link.UP:
            return []
        if announcement.phase == "statistics":
            return self._send_statistics(announcement, now)
        self.statistics.stop()  # they are pooled: the next generation asks from the start
        if self.work is not Work.RESTING or self.trained == Base.of(announcement) or self.refetch.due is not None:
            return []
        # What is trained while the aggregator takes nothing of this device comes late, behind what waits already.
        if self._outbox_full or self._sending.told_to_wait or self.disk_full.due is not None:
            return []
        if not self.may_train(announcement):
            return []
        return self._fetch(announcement, now)

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
        """Whether the federation asks this device to train from this version, and nothing of its own is against it."""
        if self.unsuited is not None or self.hindered is not None:
            return False
        if self.interval.due is not None or self.killed.due is not None or self._situation.paused:
            return False
        share = announcement.participation.share
        return takes_part(self._device, announcement.lineage, announcement.generation, announcement.version, share)

    def compare_inputs(self, announcement: Announcement) -> list[Action]:
        """See whether our inputs are the model's; tell once if they are not."""
        settings = self._settings
        before = self.unsuited
        self.unsuited = unsuited(settings.features, announcement, counted=settings.statistics_by_feature)
        if self.unsuited is None:
            self.suited = self.suited or bool(settings.features and announcement.features)
            return []
        return [] if self.unsuited == before else [Unsuited(self.unsuited)]

    # ----------------------------------------------------------------------- fetching

    def _fetch(self, announcement: Announcement, now: float) -> list[Action]:
        base = self.base
        have = base.version if base is not None and base.lineage == announcement.lineage else None
        if base is not None and base.generation != announcement.generation:
            have = None
        way = route(announcement.frames, have, announcement.version)
        if way is None:
            self.refetch.start(now, self._jitter())
            return []
        if way and (self._situation.muted is not None or not self._is_our_turn(announcement, way, now)):
            return []
        self._turn = None
        self.turn.stop()
        self._fetch_began = now
        self._follow("newer version")
        self.target = announcement
        if not way:
            return self.fetched(Base.of(announcement), now)
        return [FetchModel(announcement, way)]

    def _is_our_turn(self, announcement: Announcement, way: Iterable[FrameInfo], now: float) -> bool:
        """Whether to fetch now: all devices hear of a release, and all that fetch it share the rate.

        Those who fetch will train and send, and trainings take about as long: so the turn is for the update too.
        """
        size, parts = map(sum, zip(*((frame.size, frame.parts) for frame in way), strict=True))
        messages = 2 * parts + (2 if self._update_size else 0)
        share = announcement.participation.share
        spread = self._situation.spread(size + self._update_size, messages, share)
        if spread == 0:
            return True
        since, chance = self._turn = self._turn or (now, self._jitter())
        if now >= since + chance * spread:
            return True
        self.turn.due = since + chance * spread
        return False

    def fetched(self, base: Base, now: float) -> list[Action]:
        """The device holds this model: train from it, if it is the one that was asked for."""
        self.base = base
        target = self.target
        if self.work is not Work.FETCHING or target is None or Base.of(target) != base:
            return []  # the link broke meanwhile, and perhaps another fetch has begun
        self._follow("fetched")
        self.refetch.stop()
        self._began = now
        self.pause(target, now)
        seed = training_seed(self._device, target, self._sending.next)
        return [Train(target, target.plan.model_copy(update={"seed": seed}))]

    def pause(self, announcement: Announcement, now: float) -> None:
        """Keep the pause between two trainings that is asked for: a rest ends as soon as it is over for all."""
        asked = announcement.participation
        seconds = asked.pause if self._settings.rests else asked.interval
        # Without jitter: devices that began at different times stay apart, and the announced pause is kept.
        self.interval.due = self._began + seconds if now < self._began + seconds else None

    def fetch_failed(self, start_over: bool, now: float) -> None:
        """Try again after a while."""
        if start_over:
            self.base = None  # steps on it led to another digest: only a snapshot helps
        if self.work is Work.FETCHING:
            self._follow("fetch failed")
            self.refetch.start(now, self._jitter())

    # ----------------------------------------------------------------------- training

    def training_ended(self, update: Update | None) -> None:
        """A training has ended, with an update or without one that is worth sending."""
        self._follow("nothing to send" if update is None else "trained")
        assert self.target is not None
        self.trained = Base.of(self.target)  # a device trains once from each version
        if update is not None:
            self.killed.stop()
            self._update_size = update.size
        announcement = self._situation.announcement
        if announcement is not None and self.trained != Base.of(announcement):
            # When a training ends does not depend on others: only our own last fetch counts for the next turn.
            self._turn = self._fetch_began, 1.0

    def training_killed(self, now: float) -> None:
        """The process that trained is gone: none for a while, and less often each time."""
        self._follow("killed")
        self.killed.start(now, self._jitter())

    def settled(self, verdicts: Iterable[Settled], now: float) -> None:
        """A refused update leaves its version to be trained from again, after a while and with another seed.

        Otherwise a fleet could wait for ever: all devices have trained from the newest version, one was refused, and
        the others are too few for a step or a release.
        """
        for each in verdicts:
            if not each.verdict.final:
                continue
            if each.verdict is Verdict.ACCEPTED:
                self.refused.stop()
            elif not each.repeat:
                self.refused.start(now, self._jitter())

    def not_stored(self, now: float) -> None:
        """An update could not be stored: none is trained for a while."""
        self.disk_full.start(now, self._jitter())

    def _follow(self, event: str) -> None:
        """Follow the table. An event that a state does not know is a bug: KeyError."""
        self.work = WORKS[self.work, event]


def training_seed(device: str, announcement: Announcement, number: int) -> int:
    """The seed of a training: another one for each device, version and update.

    Args:
        device: its name.
        announcement: the version that is trained from.
        number: the seq of the update that will come of it.
    """
    version = f"{announcement.lineage.hex()}/{announcement.generation}/{announcement.version}"
    return zlib.crc32(f"{device}/{version}/{number}".encode())
