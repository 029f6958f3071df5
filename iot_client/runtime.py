"""One run of a device: the session's actions on MQTT, a disk and a trainer.

One loop passes events to the session and has its actions done, in order; fetching and training run concurrently and
return as events. An update is on disk before it is sent.
"""

import asyncio
import logging
import math
import os
import random
import time
from collections.abc import Coroutine, Generator
from contextlib import suppress
from contextvars import Context
from itertools import count
from typing import Any, TypeVar

from midge.broker.mqtt.connection import BrokerError, ConnectionLost
from midge.iot_client.board.conditions import awaits_rows
from midge.iot_client.connection.connection_loop import ConnectionLoop
from midge.iot_client.connection.hello import hello_frame
from midge.iot_client.connection.model_fetcher import Fetcher, FetchError
from midge.iot_client.connection.prediction_feed import PredictionFeed
from midge.iot_client.connection.publisher import Publisher
from midge.iot_client.connection.sealed_updates import SealedUpdates
from midge.iot_client.connection.statistics_message import StatisticsSource
from midge.iot_client.data.samples import Samples
from midge.iot_client.intake_reports import report_intake
from midge.iot_client.model_trials import try_models
from midge.iot_client.parts import DeviceParts
from midge.iot_client.session import events as ev
from midge.iot_client.session.session import DeviceSession, SessionSettings
from midge.iot_client.session.states import Link
from midge.iot_client.shell import DeviceShell
from midge.iot_client.state.given import withdrawn
from midge.iot_client.state.outbox import OutboxFull
from midge.iot_client.training.fit import TrainingKilled
from midge.iot_client.training.training_task import TrainingTask
from midge.iot_client.training.update_encoder import EncodedUpdate, NoConsent, NoRows, TrainerError, Unfit
from midge.storage.failpoints import failpoint
from midge.wire.inputs import sayable
from midge.wire.lineage import State
from midge.wire.messages import Announcement, DeviceState, FrameInfo, Moment, Plan, Settled, Update, Verdict

log = logging.getLogger("iot_client")

T = TypeVar("T")

_FAILURES = 5
"""Failed trainings in a row that end the device: some minutes, as the pauses between them grow. A sensor bus that fails
now and then is no reason to end. A bug is, and mostly shows at once, so an error before the first successful
training ends the device."""
_SITE = "site"
"""Key in the outbox under which it records where its updates were sent."""
_SAY_WAITING = 30.0
"""Seconds without training after which the status gives the reason, so that an operator does not take it for a stall.
"""


class DeviceTasks(asyncio.TaskGroup):
    """The tasks of a device: if one fails, the last status says that the device was not just stopped."""

    def __init__(self, connections: ConnectionLoop) -> None:
        super().__init__()
        self._connections = connections

    def create_task(
        self,
        coro: Generator[Any, None, T] | Coroutine[Any, Any, T],
        *,
        name: str | None = None,
        context: Context | None = None,
    ) -> asyncio.Task[T]:
        """Start a task of the group."""
        task = super().create_task(coro, name=name, context=context)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._connections.failed |= not task.cancelled() and task.exception() is not None


class DeviceRuntime:
    """What runs while a device serves; implements the hooks of its shell.

    Args:
        parts: of the device; the outbox is open.
        fetcher: collects the model's chunks; for benchmarks that share what they decode.
    """

    def __init__(self, parts: DeviceParts, *, fetcher: Fetcher | None = None) -> None:
        config = parts.config
        self.parts = parts
        self._statistics = StatisticsSource(parts)
        self._made: dict[int, EncodedUpdate] = {}
        """Encoded updates that are not stored yet, by key."""
        self.sealed = SealedUpdates(parts.identity, parts.outbox, lambda: self.session.announcement, self._made)
        self.session = DeviceSession(
            config.name,
            parts.outbox.identity,
            parts.outbox.held(),
            parts.outbox.next_seq,
            random.random,
            settings=SessionSettings(
                patience=config.patience,
                outbox_bytes=config.outbox_bytes,
                micro=config.micro,
                rests=not awaits_rows(config.conditions),
                features=sayable(config.feature_names),
                statistics_by_feature=self._statistics.of_samples,
                objection=parts.objection,
                outgoing=self.sealed.outgoing,
            ),
            sent=parts.outbox.sent,
            site=(parts.outbox.remembered(_SITE) or b"").decode(),
        )
        parts.opened()
        self.shell = DeviceShell(self.session, self)
        self._events: asyncio.Queue[ev.Event] = asyncio.Queue()
        self.put = self._events.put_nowait
        self.publisher = Publisher(parts, self.start, self.put)
        self._fetcher = fetcher or Fetcher(
            parts.topics, config.name, progress=lambda done, total: parts.tell.progress("down", done, total)
        )
        self.connections = ConnectionLoop(
            parts, self.session, self.publisher, self._fetcher, put=self.put, look=self.look
        )
        self._training_task = TrainingTask(parts, self.publisher, self.start, self.look, self.session)
        self.state: State | None = None
        """The newest model that was fetched."""
        self._keys = count(1)
        self._fetching: asyncio.Task[None] | None = None
        self._training: asyncio.Task[None] | None = None
        self._blocked: str | None = None
        """The reported reason why the device does not train."""
        self._blocked_since = 0.0
        self._failed: int | None = None
        """Failed trainings since the last success; None before the first success."""
        self._began, self._written_before = time.monotonic(), parts.budget.written
        self._reported_waiting = False
        """Whether the status gives the reason for not training."""

    async def run(self) -> None:
        """Take part until `connections.stop()`.

        Raises:
            BrokerError: the very first connection failed.
            DuplicateDeviceName: another live device has our name.
            TrainerError: the trainer's result is no update.
            Exception: what the trainer raised at its first training, or five times in a row.
        """
        samples, every = self.parts.config.samples, self.parts.config.look_every
        try:
            async with DeviceTasks(self.connections) as tasks:
                self._tasks = tasks
                beside = [tasks.create_task(self._act(), name="act")]
                beside += [tasks.create_task(each) for each in _beside(self, samples)]
                if every is not None and every < math.inf:
                    beside.append(tasks.create_task(self._look_regularly(every), name="look"))
                follow = self.parts.consent.follow(self.look, lambda: self.parts.waits)
                beside.append(tasks.create_task(follow, name="consent"))
                await self.connections.run()
                for task in (*beside, self._fetching, self._training):
                    if task is not None:
                        task.cancel()
        except BaseExceptionGroup as group:
            raise first_error(group) from None

    async def predict_on(self, why: str) -> None:
        """Continue what needs no outbox, until the device is stopped: the disk has failed, but the sensors work."""
        parts = self.parts
        async with asyncio.TaskGroup() as tasks:
            beside = [tasks.create_task(each) for each in _beside(self, parts.config.samples)]
            await asyncio.sleep(0)  # they have begun
            log.error("%s: %s It takes no part until it is started again; predictions go on.", parts.config.name, why)
            parts.tell("predicts_only", why=why)
            parts.waits = why
            await self.connections.stopped()
            for task in beside:
                task.cancel()

    def start(self, work: Coroutine[Any, Any, T], /) -> asyncio.Task[T]:
        """Start a task whose error ends the device."""
        return self._tasks.create_task(work)

    async def _act(self) -> None:
        """The main loop: passes one event at a time, and the passing of time, to the session."""
        loop = asyncio.get_running_loop()
        while True:
            deadline = self.session.deadline
            wait = None if deadline is None else loop.time() + max(0.0, deadline - time.monotonic())
            event: ev.Event | None = None
            with suppress(TimeoutError):
                async with asyncio.timeout_at(wait):
                    event = await self._events.get()
            if event is None:
                self.shell.tick(time.monotonic())
            else:
                self.shell.handle(event, time.monotonic())
            if isinstance(event, ev.Announced) and self.parts.identity.owes_details:
                self.greet()
            if isinstance(event, ev.Disconnected) and self._fetching is not None:
                self._fetching.cancel()
                self._fetching = None

    # ----------------------------------------------------------------------- constraints

    async def _look_regularly(self, every: float) -> None:
        while True:
            if not self.parts.duty.asleep:
                self.look()
            await asyncio.sleep(every)

    def look(self) -> None:
        """Check whether the device's own constraints keep it from training, or off its link. In the loop of `run`."""
        parts, session = self.parts, self.session
        announcement = session.announcement
        why = parts.blocked(announcement)
        muted = parts.constraints.muted()
        withheld = parts.consent.withheld()
        unready = withheld or self._statistics.unready(announcement)
        parts.count_wear()
        if withheld and session.holding:
            parts.outbox.verdicts |= withdrawn(session.sent, parts.outbox.next_seq)
            parts.tell("withheld", updates=session.holding)
            self.put(ev.Withheld())
        blocked = withheld or session.unsuited or unready or why
        now, parts.waits = time.monotonic(), blocked or ""
        if bool(blocked) != bool(self._blocked):
            self._blocked_since, self._reported_waiting = now, False
        if blocked and not self._reported_waiting and (withheld or now >= self._blocked_since + _SAY_WAITING):
            self._reported_waiting = True
            self.greet()
        if blocked != self._blocked:
            self._blocked = blocked
            parts.tell("hindered" if blocked else "unhindered", why=blocked or "")
            log.info("%s: %s", parts.config.name, f"training waits: {blocked}" if blocked else "training continues")
        if muted != session.muted:
            parts.tell("muted" if muted else "unmuted", why=muted or "")
            parts.serving.mute(muted is not None)
            parts.aliases.mute(muted is not None)
        if (why, muted, unready) != (session.hindered, session.muted, session.unready):
            self.put(ev.Hindered(why, muted, unready))

    def figures(self) -> dict[str, Any]:
        """Current figures of the device, as plain values (`iot_client.board.local_status`)."""
        session = self.session
        return {
            **self.parts.figures(),
            "pid": os.getpid(),
            "seconds": time.monotonic() - self._began,
            "aggregator": self.connections.aggregator,
            "written": self.parts.budget.written - self._written_before,
            "link": session.link.name.lower(),
            "work": session.work.name.lower(),
            "version": 0 if session.announcement is None else session.announcement.version,
            "holds": session.holding,
            "lost": self.parts.outbox.lost + session.unsure,
            "next": session.next,
        }

    # --------------------------------------------------------------------- hooks: messages

    def tell_unsuited(self, why: str) -> None:
        name, suits = self.parts.config.name, self.parts.suits(self.session.announcement)
        if self.parts.config.end_if_unsuited and suits and not self.session.suited:
            raise TrainerError(f"Device {name!r}: {why}.")
        log.warning("%s: no training: %s.", name, why)
        self.look()

    def greet(self) -> None:
        if self.session.link is not Link.DOWN:  # otherwise it greets once it is connected
            self._reported_waiting = bool(self.parts.waits)
            status = self.parts.topics.status(self.parts.config.name)
            self.publisher.send(status, hello_frame(self.parts, self.session, DeviceState.READY), retain=True)

    def read_announcement(self) -> None:
        self.start(self.publisher.read_again())

    def ignore_versions(self) -> None:
        self.start(self.publisher.ignore_versions())

    def follow_versions(self) -> None:
        self.start(self.publisher.follow_versions())

    def send_statistics(self, lineage: bytes, moments: tuple[Moment, ...]) -> None:
        announcement = self.session.announcement
        if self.parts.consent.withheld() or self._statistics.unready(announcement) is not None:
            self.look()
        elif (message := self._statistics.message(lineage, moments, announcement)) is not None:
            self.publisher.send(self.parts.topics.update(self.parts.config.name), message)

    def note_site(self, site: str) -> None:
        outbox = self.parts.outbox
        outbox.pending[_SITE] = site.encode()
        outbox.write_pending()
        log.info("%s: %s settles its updates now.", self.parts.config.name, f"the site {site}" if site else "the root")
        self.parts.tell("moved", site=site)

    def tell_settled(self, settled: Settled) -> None:
        self.parts.tell("receipt", outbox=self.parts.outbox.identity, **settled.model_dump())
        if settled.verdict.final:
            self.parts.outbox.verdicts[settled.seq] = settled.verdict.value
        if settled.verdict is Verdict.FORGOTTEN:
            self.parts.withdrawn = settled.why
            self.look()

    # ---------------------------------------------------------------------- hooks: updates

    def store(self, update: Update, key: int) -> bool:
        parts, made = self.parts, self._made.pop(key)
        try:
            stored, sent = self.sealed.stored(update, made.body), self.session.sent
            parts.outbox.store(*stored, made.residual, sent=sent, rho=made.rho)
            parts.identity.stored(time.monotonic())
        except OutboxFull as error:
            log.warning("%s: %s An update is lost, and none is trained for a while.", parts.config.name, error)
            parts.tell("full", why=str(error))
            return False
        left = 0 if made.residual is None else len(made.residual)
        parts.tell("stored", seq=update.seq, size=update.size, residual=left, written=parts.outbox.written)
        return True

    def send(self, update: Update) -> None:
        self.parts.outbox.note_sent(self.session.sent)
        self._publish_update(self.parts.identity.frame(update, self.sealed.body(update)))
        failpoint("update.handed_over")

    def offer(self, update: Update) -> None:
        self.parts.outbox.note_sent(self.session.sent)
        self._publish_update(self.parts.identity.frame(update))
        failpoint("update.offered")

    def _publish_update(self, payload: bytes) -> None:
        self.publisher.send(self.parts.topics.update(self.parts.config.name), payload)

    def send_chunks(self, update: Update, parts: tuple[int, ...]) -> None:
        self.publisher.send_chunks(update, parts, self.sealed.piece)

    def forget(self, through: int) -> None:
        parts = self.parts
        parts.tell("settled", outbox=parts.outbox.identity, through=through)
        failpoint("receipt.heard")
        try:
            parts.outbox.forget(through)
        except OutboxFull as error:
            log.warning("%s: %s A settled update stays in it for now.", parts.config.name, error)
        self.sealed.forget(through)
        failpoint("receipt.followed")

    def renew(self, keep: tuple[int, ...]) -> ev.Renewed:
        outbox, unsure = self.parts.outbox, self.session.unsure
        log.warning(
            "%s: the aggregator has settled updates that this outbox never sent: it was restored from a copy. It "
            "continues under a new identity with %s that were not settled; %s that may have been stay behind.",
            self.parts.config.name,
            updates(len(keep)),
            updates(unsure),
        )
        outbox.renew(keep, unknown=self.parts.masker is not None)
        self.sealed.renewed()
        failpoint("outbox.renewed")
        self.parts.tell("renewed", kept=len(keep), unsure=unsure)
        return ev.Renewed(outbox.identity, tuple(outbox.held()), outbox.next_seq)

    # ------------------------------------------------------------------------- hooks: work

    def fetch(self, announcement: Announcement, frames: tuple[FrameInfo, ...]) -> None:
        self._fetching = self.start(self._fetch(announcement, frames))

    async def _fetch(self, announcement: Announcement, frames: tuple[FrameInfo, ...]) -> None:
        connection, shared = self.publisher.connection, self.parts.config.versions
        if connection is None:
            return
        try:
            state = await self._fetcher.fetch(connection, announcement, frames, self.state)
        except ConnectionLost:
            return  # the reader notifies the session
        except (BrokerError, FetchError) as error:
            log.info("%s: %s", self.parts.config.name, error)
            self.parts.tell("fetch_failed", why=str(error))
            self.put(ev.FetchFailed(str(error), isinstance(error, FetchError) and error.start_over))
            return
        self.state = state = state if shared is None else shared.setdefault(announcement.digest, state)
        failpoint("model.fetched")
        self.put(ev.Fetched(ev.Base.of(announcement)))
        if self.parts.config.predict is not None:
            await asyncio.to_thread(self.parts.fetched, announcement, state)

    def train(self, announcement: Announcement, plan: Plan) -> None:
        self._training = self.start(self._train(announcement, plan))

    async def _train(self, announcement: Announcement, plan: Plan) -> None:
        assert self.state is not None
        parts = self.parts
        try:
            made = await self._training_task.train(self.state, announcement, plan)
        except TrainingKilled as error:
            parts.counters.killed += 1
            log.warning("%s: %s; it is tried again after a while.", parts.config.name, error)
            parts.tell("killed_training", why=str(error), killed=parts.counters.killed)
            self.put(ev.Killed(str(error)))
        except Unfit as error:
            log.warning("%s: nothing is sent: %s", parts.config.name, error)
            parts.tell("unfit", why=str(error))
            self.put(ended(error))
        except TrainerError:
            raise
        except Exception as error:
            if self._failed is None or self._failed + 1 >= _FAILURES:
                raise
            self._failed += 1
            log.exception("%s: the training failed, %d of %d times.", parts.config.name, self._failed, _FAILURES)
            why = f"{type(error).__name__}: {error}"
            parts.tell("trainer_failed", why=why, failed=self._failed)
            self.put(ev.Killed(why))
        else:
            self._failed = 0
            self.trained(made)

    def trained(self, made: EncodedUpdate) -> None:
        """Pass a trained update to the session."""
        key = next(self._keys)
        self._made[key] = made
        failpoint("update.trained")
        self.put(ev.Trained(made.update, key))


def _beside(runtime: DeviceRuntime, samples: Samples | None) -> list[Coroutine[Any, Any, None]]:
    """Tasks without a connection to the federation: the sources of samples, and predictions on them."""
    parts, found = runtime.parts, list[Coroutine[Any, Any, None]]()
    if parts.config.publish is not None:
        found.append(PredictionFeed(parts, lambda: runtime.session.unsuited).run())
    if samples is not None:
        found += [source.follow(samples) for source in parts.config.sources]
        found.append(report_intake(parts, runtime.greet))
    if parts.predicting.keeper is not None:
        found.append(try_models(parts, parts.predicting.keeper, runtime.greet))
    return found


def ended(error: Unfit) -> ev.Event:
    """What the session is informed of after a training without an update."""
    match error:
        case NoConsent():
            return ev.Discarded(str(error))
        case NoRows():  # tried again after a while: no newer version may come before there are some
            return ev.Killed(str(error))
        case _:
            return ev.NothingToSend(str(error))


def updates(count: int) -> str:
    """A number of updates, as text."""
    return f"{count} update{'' if count == 1 else 's'}"


def first_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first error in the group of a TaskGroup; a broker error only if there is no other."""
    _, others = group.split(BrokerError)
    error: BaseException = others or group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
