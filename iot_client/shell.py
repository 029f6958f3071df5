"""The interpreter of a device session's actions.

The session decides, the shell runs the actions in order, and its hooks perform them: on MQTT and a disk, on a virtual
clock, or in a test that kills the process between any two actions. So the order of durable effects is written only
once: an update that could not be stored is not sent.
"""

from collections.abc import Callable, Iterable
from typing import Protocol

from midge.iot_client.session import events as ev
from midge.iot_client.session.session import DeviceSession
from midge.wire.messages import Announcement, FrameInfo, Moment, Plan, Settled, Update


class DeviceHooks(Protocol):
    """The effects of a device. None waits: what takes time begins here and returns as an event."""

    def tell_unsuited(self, why: str) -> None:
        """Report that the device's inputs are not those of the model."""

    def greet(self) -> None:
        """Publish the status READY."""

    def read_announcement(self) -> None:
        """Read the retained messages again: the aggregator's status and the announcement."""

    def ignore_versions(self) -> None:
        """Unsubscribe from announcements."""

    def follow_versions(self) -> None:
        """Subscribe to announcements again; `Announced` follows."""

    def send_statistics(self, lineage: bytes, moments: tuple[Moment, ...]) -> None:
        """Send the normalisation statistics of the device's data."""

    def fetch(self, announcement: Announcement, frames: tuple[FrameInfo, ...]) -> None:
        """Fetch frames and apply them; `Fetched` or `FetchFailed` follows."""

    def train(self, announcement: Announcement, plan: Plan) -> None:
        """Train from the held model; `Trained`, `NothingToSend` or `Killed` follows."""

    def store(self, update: Update, key: int) -> bool:
        """Make an update durable with the body under `key`. False if there is no room."""

    def send(self, update: Update) -> None:
        """Send a stored update with its body."""

    def offer(self, update: Update) -> None:
        """Send a stored update's header, to ask which chunks the aggregator wants."""

    def send_chunks(self, update: Update, parts: tuple[int, ...]) -> None:
        """Send chunks of a stored update; `ChunkDelivered` follows each."""

    def forget(self, through: int) -> None:
        """Remove every update up to a number from the outbox."""

    def renew(self, keep: tuple[int, ...]) -> ev.Renewed:
        """Begin a new outbox identity that holds these updates, numbered from 1."""

    def note_site(self, site: str) -> None:
        """Record on the disk which site's gateway settles what is sent from here on."""

    def tell_settled(self, settled: Settled) -> None:
        """Report a verdict to the owner."""


class DeviceShell:
    """A session and the hooks that perform its actions.

    Args:
        session: decides.
        hooks: perform the actions.
        before: called before each action, for tests that end the device there.
    """

    __slots__ = ("_before", "hooks", "session")

    def __init__(self, session: DeviceSession, hooks: DeviceHooks, *, before: Callable[[], None] | None = None) -> None:
        self.session, self.hooks, self._before = session, hooks, before

    def handle(self, event: ev.Event, now: float) -> None:
        """Perform the actions that follow from an event."""
        self._perform(self.session.handle(event, now), now)

    def tick(self, now: float) -> None:
        """Perform the actions that are due."""
        self._perform(self.session.tick(now), now)

    def _perform(self, actions: Iterable[ev.Action], now: float) -> None:
        hooks, not_stored = self.hooks, None
        for action in actions:
            if self._before is not None:
                self._before()
            match action:
                case ev.Send(update) | ev.Offer(update) if update.seq == not_stored:
                    pass  # an update that is not stored must not be sent
                case ev.StoreUpdate(update, key):
                    if not hooks.store(update, key):
                        not_stored = update.seq
                        self.handle(ev.NotStored(), now)
                case ev.Send(update):
                    hooks.send(update)
                case ev.Offer(update):
                    hooks.offer(update)
                case ev.SendChunks(update, parts):
                    hooks.send_chunks(update, parts)
                case ev.Forget(through):
                    hooks.forget(through)
                case ev.Renew(keep):
                    self.handle(hooks.renew(keep), now)
                case ev.NoteSite(site):
                    hooks.note_site(site)
                case ev.FetchModel(announcement, frames):
                    hooks.fetch(announcement, frames)
                case ev.Train(announcement, plan):
                    hooks.train(announcement, plan)
                case ev.Greet():
                    hooks.greet()
                case ev.ReadAnnouncement():
                    hooks.read_announcement()
                case ev.IgnoreVersions():
                    hooks.ignore_versions()
                case ev.FollowVersions():
                    hooks.follow_versions()
                case ev.SendStatistics(lineage, moments):
                    hooks.send_statistics(lineage, moments)
                case ev.Tell(settled):
                    hooks.tell_settled(settled)
                case ev.Unsuited(why):
                    hooks.tell_unsuited(why)
