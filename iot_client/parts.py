"""The shared parts of one device, made from its config before it serves."""

import logging
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from midge.iot_client.board.duty_cycle import DutyCycle
from midge.iot_client.board.hardware import stated
from midge.iot_client.board.training_constraints import TrainingConstraints
from midge.iot_client.board.usage_budget import Budget, Costs
from midge.iot_client.config import DeviceConfig, Listener
from midge.iot_client.connection.alias_channel import AliasChannel
from midge.iot_client.connection.identity import Identity
from midge.iot_client.connection.renewal import Renewal
from midge.iot_client.connection.serve_channel import Serving
from midge.iot_client.masking import Masker, unmasked_objection
from midge.iot_client.state.alias_models import AliasModel, AliasModels
from midge.iot_client.state.consent import Consent
from midge.iot_client.state.local_tensors import LocalTensors, Missing
from midge.iot_client.state.memory_outbox import AnyOutbox, outbox_at
from midge.iot_client.state.model_keeper import ModelKeeper
from midge.iot_client.state.prediction import Predicting
from midge.iot_client.state.site_tensors import SiteTensors
from midge.iot_client.state.verified_model import VerifiedModel
from midge.iot_client.training.throughput import Throughput
from midge.wire.inert import inert
from midge.wire.lineage import State
from midge.wire.messages import Announcement
from midge.wire.schema import Parameters
from midge.wire.topics import Topics

log = logging.getLogger("iot_client")

_LARGE = 2**20
"""Bytes of a transfer from which on progress is reported."""


@dataclass(slots=True)
class Counters:
    """Traffic and losses of a device so far."""

    bytes_up: int = 0
    """Payload bytes published."""
    bytes_down: int = 0
    """Payload bytes received."""
    killed: int = 0
    """Trainings whose process was killed."""


@dataclass(slots=True)
class EventLog:
    """Passes events to the owner's listener, as dicts."""

    name: str
    listener: Listener | None
    _progress: tuple[str, int, int] | None = None

    def __call__(self, event: str, **fields: Any) -> None:
        """Emit an event."""
        if self.listener is not None:
            self.listener({"event": event, "device": self.name, "time": time.time(), **fields})

    def progress(self, way: str, done: int, total: int) -> None:
        """Report the progress of a large transfer, at most twenty times for each."""
        if total > _LARGE and (step := (way, total, 20 * done // total)) != self._progress:
            self._progress = step
            self("progress", way=way, done=done, total=total)


@dataclass(slots=True)
class DeviceParts:
    """The parts of a device, each with one purpose."""

    config: DeviceConfig
    topics: Topics
    outbox: AnyOutbox
    identity: Identity
    duty: DutyCycle
    budget: Budget
    constraints: TrainingConstraints
    personal: LocalTensors
    predicting: Predicting
    tell: EventLog
    kept: AliasModels
    consent: Consent = field(default_factory=lambda: Consent(None))
    masker: Masker | None = None
    """Masks updates; None if the owner does not require it."""
    serving: Serving = field(init=False)
    aliases: AliasChannel = field(init=False)
    renewal: Renewal | None = field(init=False)
    speed: Throughput = field(default_factory=Throughput)
    counters: Counters = field(default_factory=Counters)
    devices: int = 0
    """Of a gateway: the number of its devices that are online; 0 is a device."""
    waits: str = ""
    """Why the device does not train now, as in its status; empty if it does."""
    unscored: str = ""
    """Why the last evaluation on the device's own data failed; empty if it did not."""
    untrained: str = ""
    """Why the last training failed; empty if it did not."""
    used_name: tuple[str, int] = "", 0
    """The name whose version is used for predictions, and the version; empty if it is the newest."""
    withdrawn: str | None = None
    """The aggregator's reason for withdrawing the device, after which it never trains."""

    trouble: tuple[float, str] | None = None
    """When the aggregator last reported a problem with our messages, by the monotonic clock, and why."""

    def __post_init__(self) -> None:
        used = self.config.on_model is not None or self.config.predict is not None
        held = self.config.credentials
        self.renewal = None if held is None or not held.renewable else Renewal(held, self.tell)
        self.serving = Serving(self.topics, self.config.name, self._serve if used else None)
        self.aliases = AliasChannel(self.topics, self.config.name, self.kept, self._use)
        self.aliases.wanted = used
        if used:
            self.aliases.restore()

    @classmethod
    def of(cls, config: DeviceConfig) -> Self:
        """Make them. Files beside the outbox are read: local tensors, the month's usage, the model in use.

        Raises:
            KeyUnusable: a key cannot be read.
        """
        topics = Topics(config.federation, config.root)
        given = config.outbox
        outbox = outbox_at(given) if given is None or isinstance(given, str | Path) else given
        path = outbox.path

        def beside(suffix: str) -> Path | None:
            return None if path is None else path.with_name(f"{path.name}.{suffix}")

        local = config.local if config.local is not None else getattr(config.train, "local", None)
        site = SiteTensors(beside("site"), pinned=bool(config.release_key))
        personal = LocalTensors(beside("local.npz"), local, site)
        budget = Budget(beside("usage.json"), config.costs or Costs())
        duty, consent = DutyCycle(config.duty), Consent.beside(path)
        tell = EventLog(config.name, config.on_event)
        predicting = Predicting(beside("model"), config.predict, personal.join, config.feature_names)
        losses = config.losses if config.losses is not None else getattr(config.train, "losses", None)
        if config.keep is not None and config.samples is not None and losses is not None:
            predicting.keeper = ModelKeeper(
                config.name,
                beside("kept"),
                config.keep,
                samples=config.samples,
                losses=losses,
                join=predicting.joined,
                tell=tell,
            )
        predicting.restore()
        parts = cls(
            config=config,
            topics=topics,
            outbox=outbox,
            identity=Identity(topics, release_key=config.release_key, signing_key=config.signing_key),
            duty=duty,
            budget=budget,
            constraints=TrainingConstraints(
                (consent.withheld, duty.condition, *config.conditions, lambda: parts.withdrawn),
                budget,
                link_conditions=config.link_conditions,
            ),
            personal=personal,
            predicting=predicting,
            tell=tell,
            consent=consent,
            kept=AliasModels(path, config.name, stated(config.link, config.capabilities, micro=config.micro)),
            masker=None
            if config.secure is None
            else Masker(config.secure, config.federation, config.name, spent=lambda: outbox.spent),
        )
        return parts

    def fetched(self, announcement: Announcement, state: State) -> None:
        """Process a model that was fetched to train from; in a thread."""
        told = announcement
        model = VerifiedModel("train", told.lineage, told.version, state, told.features, told.generation)
        with suppress(Missing):  # the training reports it, with details
            self.predicting.take(model, time.monotonic())

    def opened(self) -> None:
        """Report what was wrong with the outbox when it was opened, or that its count of spent privacy begins."""
        if self.outbox.rotted:
            self.tell("rotted", why=self.outbox.rotted, lost=self.outbox.lost)
        if self.masker is not None and (why := self.masker.uncounted) is not None:
            log.warning("%s: %s.", self.config.name, why)
            self.tell("uncounted", why=why)

    def overspent(self, announcement: Announcement | None) -> str | None:
        """Why the owner's ε allows no update under this announcement; None if it does."""
        return None if self.masker is None or announcement is None else self.masker.overspent(announcement)

    def blocked(self, announcement: Announcement | None) -> str | None:
        """The device's own reason not to train now; None if there is none.

        Raises:
            Exception: whatever a condition raised.
        """
        asked = None if announcement is None else announcement.participation
        return self.overspent(announcement) or self.constraints.blocked(asked)

    def objection(self, announcement: Announcement) -> str | None:
        """Why the owner's requirements forbid training under this announcement; None if they do not."""
        masked = unmasked_objection(announcement) if self.masker is None else self.masker.objection(announcement)
        return masked or (self.identity.objection() if self.identity.pinned else None)

    def suits(self, announcement: Announcement | None) -> bool:
        """Whether the owner's requirements allow training; if not, a later announcement may be another one."""
        return announcement is None or self.objection(announcement) is None

    def _serve(self, parameters: Parameters, version: int) -> None:
        """Process a served model; in a thread."""
        if self.config.predict is not None and self.serving.state is not None:
            serving = self.serving
            model = VerifiedModel(
                "serve", serving.lineage, version, self.serving.state, serving.features, serving.generation
            )
            self.predicting.take(model, time.monotonic())
        if not self.kept.in_force() and not self.predicting.keeps:
            self._hand_over(parameters, version)

    def _use(self, chosen: AliasModel | None) -> None:
        """Use the version that a name stands for, or the newest; in a thread."""
        model = None if chosen is None else chosen.model
        with suppress(Missing):  # the training reports it, with details
            self.predicting.prefer(model)
        if self.predicting.keeps:
            return
        name, version = "" if chosen is None else chosen.alias.name, 0 if model is None else model.version
        if (name, version) == self.used_name:
            return  # named again, in another generation
        self.used_name = name, version
        self.tell("alias", alias=name, version=version)
        if model is not None:
            self._hand_over(model.state.parameters(), model.version)
        elif (served := self.serving.state) is not None:
            self._hand_over(served.parameters(), self.serving.version)

    def look_at_models(self) -> None:
        """Judge by the rows that came whether another model is to be used; in a thread."""
        with suppress(Missing):
            used = self.predicting.look() and self.predicting.model
            if used and used.channel == "serve":
                self._hand_over(used.state.parameters(), used.version)

    def _hand_over(self, parameters: Parameters, version: int) -> None:
        if self.config.on_model is not None:
            try:
                self.config.on_model(parameters, version)
            except Exception as error:  # the next model is useful all the same
                log.exception("%s: on_model() failed.", self.config.name)
                self.tell("on_model_failed", why=f"{type(error).__name__}: {error}", version=version)

    def troubled(self, why: str) -> None:
        """Record a problem that the aggregator has with our messages: it drops or doubts them."""
        self.trouble = time.monotonic(), inert(why)
        log.warning(
            "%s: the aggregator has a problem with what this device sends: %s", self.config.name, self.trouble[1]
        )
        self.tell("trouble", why=self.trouble[1])

    def figures(self) -> dict[str, Any]:
        """Figures of the device that do not depend on its session."""
        self.count_wear()
        return {
            "waits": self.waits,
            "keeps": self.predicting.keeps,
            "bytes_up": self.counters.bytes_up,
            "bytes_down": self.counters.bytes_down,
            "month": self.budget.packed(),
            "trouble": None if self.trouble is None else (time.monotonic() - self.trouble[0], self.trouble[1]),
            "intake": [] if self.config.samples is None else self.config.samples.received(),
            "expired": 0 if self.config.samples is None else self.config.samples.expired,
        }

    def spent(self, moved: int) -> None:
        """Count bytes that went over the link, in either direction."""
        self.budget.spend(moved=moved)

    def flush(self) -> None:
        """Write what was delayed: the power may fail."""
        self.personal.save()
        self.predicting.close()
        if self.config.samples is not None:
            self.config.samples.flush()
        self.count_wear()
        self.budget.save()

    def count_wear(self) -> None:
        """Count the bytes written to flash memory."""
        samples = 0 if self.config.samples is None else self.config.samples.written
        self.budget.wore(self.outbox.written + self.predicting.written + self.kept.written + samples)
