"""One training: from the held model to an encoded update, or the reason why there is none."""

import asyncio
import contextvars
import inspect
import logging
import time
from collections.abc import Callable
from dataclasses import replace

from midge.iot_client.config import DeviceConfig
from midge.iot_client.connection.hello import hello_frame
from midge.iot_client.connection.publisher import Publisher, StartTask
from midge.iot_client.parts import DeviceParts
from midge.iot_client.session.session import DeviceSession
from midge.iot_client.state.alias_models import AliasModel
from midge.iot_client.state.local_tensors import Missing
from midge.iot_client.training.evaluation import Evaluating
from midge.iot_client.training.fit import Fit, Parameters, TrainingKilled, TrainingPlan
from midge.iot_client.training.update_encoder import (
    EncodedUpdate,
    NoConsent,
    NoFit,
    TrainerError,
    Unfit,
    checked,
    make_update,
    with_site,
)
from midge.storage.daemon_thread import DaemonThreads
from midge.wire.inert import inert
from midge.wire.lineage import State
from midge.wire.messages import Announcement, DeviceState, Plan, Report

log = logging.getLogger("iot_client")


class TrainingTask:
    """Trains, and encodes the result.

    Args:
        parts: of the device.
        publisher: publishes evaluations, and unsubscribes from announcements during a training.
        start: starts tasks that run during a training.
        look: called once a training has ended, which may have used up a budget.
        session: knows the newest announcement; only read here.
    """

    def __init__(
        self,
        parts: DeviceParts,
        publisher: Publisher,
        start: StartTask,
        look: Callable[[], None],
        session: DeviceSession,
    ) -> None:
        self._parts, self._publisher, self._start, self._look = parts, publisher, start, look
        self._session = session
        evaluate = parts.config.evaluate if parts.masker is None else None  # results of one device
        self._evaluating = Evaluating(evaluate)
        self._working = asyncio.Lock()
        """The user's functions are called one at a time: they may share a model."""
        if evaluate is not None:
            parts.aliases.measure = self._measure

    async def train(self, state: State, announcement: Announcement, plan: Plan) -> EncodedUpdate:
        """Train from a state. If there is no update, the device's status says why.

        Raises:
            TrainingKilled: the process that trained was killed.
            Unfit: the result is not worth sending.
            TrainerError: the result is no update, or the model has local tensors without values.
            Exception: whatever the trainer raised.
        """
        try:
            made = await self._train(state, announcement, plan)
        except NoConsent:
            raise  # the owner's decision is no failure
        except (TrainingKilled, Unfit, TrainerError) as error:
            self._ended(str(error))
            raise
        except Exception as error:
            self._ended(f"{type(error).__name__}: {error}")
            raise
        self._ended("")
        return made

    async def _train(self, state: State, announcement: Announcement, plan: Plan) -> EncodedUpdate:
        parts = self._parts
        name = parts.config.name
        self._check_consent()
        if (why := parts.overspent(announcement)) is not None:
            self._look()
            raise Unfit(why)
        parts.tell("training", version=announcement.version)
        try:
            parameters = parts.personal.join(state.parameters(), state.schema)
        except Missing as error:
            raise TrainerError(f"Device {name!r}: {error}") from error
        async with self._working:
            await self._evaluate(parameters, announcement)
        many = self._session.versions.many
        ignoring = self._start(self._publisher.ignore_while_training()) if many else None
        started = time.monotonic()
        try:
            async with self._working:
                started = time.monotonic()
                fit = await fitted(parts.config, parameters, parts.speed.scaled(plan))
        except TrainingKilled:
            self._start(self._publisher.follow_after_training(ignoring))
            raise
        finally:
            seconds = time.monotonic() - started
            parts.budget.spend(trained=seconds)
            parts.duty.trained(time.monotonic())
            self._look()
        self._start(self._publisher.follow_after_training(ignoring))
        self._check_consent()
        parts.speed.record(fit.steps, fit.steps * (plan.batch_size or 1), seconds)
        parts.personal.keep(fit.parameters, state.schema, started)
        parts.predicting.refresh()
        try:
            made = await asyncio.to_thread(
                make_update,
                fit,
                state,
                announcement,
                seconds,
                left=parts.outbox.residual(),
                seed=plan.seed,
                narrow=parts.config.link == "narrow",
                micro=parts.config.micro,
                mask=None if parts.masker is None else parts.masker.mask,
            )
            # Not of a masked update: the gateway would read what the mask hides.
            if parts.masker is None and parts.identity.site_size == state.schema.site_size > 0:
                made = with_site(made, fit.parameters, state.schema)
            made = replace(made, update=parts.identity.to_be_sealed(made.update, announcement))
        except TrainerError as error:
            raise TrainerError(f"Device {name!r}: {error}") from error
        self._check_consent()
        parts.tell("trained", version=announcement.version, seconds=seconds)
        return made

    def _check_consent(self) -> None:
        """End a training of which nothing may be given, also one that consent was withdrawn during.

        Raises:
            NoConsent: the owner has withdrawn it.
        """
        if (why := self._parts.consent.withheld()) is not None:
            self._look()
            raise NoConsent(why)

    async def _evaluate(self, parameters: Parameters, announcement: Announcement) -> None:
        """Evaluate on the device's own data if that is due, and publish the results."""
        try:
            report = await self._evaluating.report(parameters, announcement, time.monotonic())
        except Exception as error:  # noqa: BLE001 - it trains on
            self._unevaluated(error, announcement.version)
            return
        if report is not None:
            self.publish(report, announcement)

    def _unevaluated(self, error: Exception, version: int) -> None:
        """Report an evaluation that failed: the device trains on."""
        parts, why = self._parts, f"{type(error).__name__}: {error}"
        log.error("%s: version %d could not be evaluated.", parts.config.name, version, exc_info=error)
        parts.tell("evaluation_failed", version=version, why=why)
        self._score_missing(inert(why))

    def _score_missing(self, why: str) -> None:
        """Have the device's status say why its score is missing or old; empty if it is not."""
        before, self._parts.unscored = self._parts.unscored, why
        if why != before:
            self._publish_status()

    def _ended(self, why: str) -> None:
        """Have the device's status say why its last training failed; empty if it did not."""
        before, self._parts.untrained = self._parts.untrained, inert(why)
        if self._parts.untrained != before:
            self._publish_status()

    def _publish_status(self) -> None:
        parts = self._parts
        status = parts.topics.status(parts.config.name)
        self._publisher.send(status, hello_frame(parts, self._session, DeviceState.READY), retain=True)

    def publish(self, report: Report, announcement: Announcement | None) -> None:
        """Publish results on the device's own data."""
        parts = self._parts
        if parts.consent.withheld() is not None:
            return
        parts.tell("evaluated", version=report.version, examples=report.examples, metrics=dict(report.metrics))
        self._score_missing("")
        report = parts.identity.hide(report, announcement)
        self._publisher.send(parts.topics.report(parts.config.name), parts.identity.frame(report))

    async def _measure(self, kept: AliasModel) -> bool:
        """Evaluate a registered version on the device's own data, and publish the results."""
        parts, state, announcement = self._parts, kept.state, self._session.announcement
        if state is None or announcement is None or announcement.plan.evaluate == 0:
            return False
        try:
            parameters = parts.personal.join(state.parameters(), state.schema)
            told = announcement.model_copy(update={"version": kept.alias.version})
            async with self._working:
                report = await self._evaluating.scores(parameters, told)
        except Exception as error:  # noqa: BLE001 - it trains on, and reports on what it trains from
            self._unevaluated(error, kept.alias.version)
            return True
        self.publish(report, announcement)
        return True


async def fitted(config: DeviceConfig, parameters: Parameters, plan: TrainingPlan) -> Fit:
    """Call the user's `train`, in a thread unless it is a coroutine function. A stopping device does not wait for it.

    Raises:
        NoFit: it returned something other than a `Fit`.
        Exception: whatever it raised, with the device's name as a note.
    """
    try:
        if inspect.iscoroutinefunction(config.train):
            fit = await config.train(parameters, plan)
        else:
            run = contextvars.copy_context().run
            loop = asyncio.get_running_loop()
            fit = await loop.run_in_executor(DaemonThreads(), run, config.train, parameters, plan)
            fit = await fit if inspect.isawaitable(fit) else fit
    except Exception as error:
        error.add_note(f"(raised by train() of device {config.name!r})")
        raise
    try:
        return checked(fit)
    except NoFit as error:
        raise NoFit(f"Device {config.name!r}: {error}.") from error
