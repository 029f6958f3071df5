"""Reads deliveries: what the core has to decide, and what follows from a message without its decision."""

from collections.abc import Callable, Sequence

from midge.aggregator.core import events as ev
from midge.aggregator.core.core import AggregatorCore
from midge.aggregator.ingress.filter import IngressFilter
from midge.aggregator.ingress.roster import Roster
from midge.aggregator.observations import Observations
from midge.aggregator.publish.outlet import Outlet
from midge.aggregator.publish.publish_queue import Post
from midge.broker.mqtt.connection import Delivery
from midge.wire.errors import WireError
from midge.wire.messages import NO_LINEAGE, DeviceState, Statistics
from midge.wire.topics import Origin, Topics

DROPPED = "dropped"
"""What `midge status` counts, beside verdicts, of messages that cannot be read: they get no receipt."""


class DeliveryReader:
    """Reads one federation's deliveries; a message that cannot be used is counted, and its sender informed.

    Args:
        core: decides; here it is only asked what it knows, and notified of devices that come and go.
        topics: of the federation.
        ingress: checks messages.
        roster: the devices' statuses.
        outlet: takes messages and events.
        observed: what operators are shown.
        announce: publishes the announcement again.
    """

    def __init__(
        self,
        core: AggregatorCore,
        topics: Topics,
        *,
        ingress: IngressFilter,
        roster: Roster,
        outlet: Outlet,
        observed: Observations,
        announce: Callable[[], None],
    ) -> None:
        self._core, self._topics = core, topics
        self._ingress, self._roster, self._outlet = ingress, roster, outlet
        self._observed, self._announce = observed, announce
        ingress.on_drop = self._dropped
        self._newest = 0, 0
        """Generation and version, as of an update that was ahead of those before."""

    def read(self, delivery: Delivery, now: float) -> ev.Event | ev.Reply | ev.GrantChunks | ev.ProofAsked | None:
        """What is to be decided on a delivery, or what the ingress filter has decided; None if there is nothing."""
        try:
            read = self._read(delivery, now)
        except WireError as error:
            # The connection discards an oversized payload, and delivers one byte in its place.
            why = str(error) if len(delivery.payload) != 1 else f"{error}; an oversized message is cut to one byte"
            self._outlet.meters.dropped["malformed"] += 1
            self._observed.drops.dropped(delivery.topic, why, now)
            device = self._topics.named(delivery.topic)
            if device and not delivery.retain:  # the sender of a retained message may have left long ago
                self._ingress.troubles.tell(device, f"a message is dropped: {why}", now)
                self._dropped(device, why, now)
            return None
        if isinstance(read, ev.StatisticsArrived) and (why := self._unwanted(read.statistics)):
            self._ingress.troubles.tell(read.device, why, now)
        return read

    def _dropped(self, device: str, why: str, now: float) -> None:
        """Record in a device's row that a message was dropped."""
        self._observed.activity.heard(device, now)
        self._observed.settled(device, DROPPED, why, now)

    def _unwanted(self, statistics: Statistics) -> str:
        """Why statistics cannot be used; empty if they can, or if they are only too late."""
        if self._core.full is not None:
            return f"its statistics cannot be stored now: {self._core.full}"
        asked = tuple((moment.name, moment.channels) for moment in self._core.moments)
        if asked and (statistics.lineage, statistics.names) == (self._core.lineage, asked):
            return ""
        return "its statistics are not those that the announcement of this lineage requests"

    def _read(self, delivery: Delivery, now: float) -> ev.Event | ev.Reply | ev.GrantChunks | ev.ProofAsked | None:
        try:
            origin = self._topics.origin(delivery.topic)
        except WireError:
            if not self._ingress.stray(delivery.topic, now, len(delivery.payload)):
                return None  # counted as a flood
            raise
        if origin.sort != "status" and not delivery.retain:
            self._observed.activity.heard(origin.device, now)
        try:
            match origin.sort:
                case "update":
                    if origin.device in self._roster.waits:
                        self.follow(self._roster.trains(origin.device), now)
                    found = self._ingress.update(origin.device, delivery.payload, now, self._core.hi)
                    if isinstance(found, ev.Arrived):
                        self._claimed(found)
                    return found
                case "status":
                    return self._status(origin, delivery, now)
                case "report":
                    self._report(origin.device, delivery.payload, now)
                    return None
        except WireError:
            self._ingress.malformed(origin.device, now)
            raise

    def _claimed(self, arrived: ev.Arrived) -> None:
        """Record the base of an update that is ahead of this store.

        If the announcement of a restored store comes before its status, a device greets with that version already.
        """
        update, core = arrived.update, self._core
        base = update.generation, update.base
        if base <= self._newest:
            return
        self._newest = core.generation, core.version
        if base > self._newest and update.lineage == core.lineage:
            self._observed.put_back.heard(arrived.device, *base)

    def _report(self, device: str, payload: bytes, now: float) -> None:
        report = self._ingress.report(device, payload, now)
        # The same version number of another lineage is another model.
        if report is not None and report.lineage == self._core.lineage:
            if self._core.strategy.privacy is not None:
                self._outlet.meters.dropped["private"] += 1  # no budget pays for showing it, or deciding by it
                return
            if report.devices and not self._core.bounds.is_site(device):
                report = report.model_copy(update={"devices": 0})
            self._observed.heard(device, report)
            self._outlet.tell("report", device=device, version=report.version, metrics=dict(report.metrics))
        elif report is not None and report.lineage != NO_LINEAGE:
            self._ingress.troubles.tell(
                device, "its report is dropped: it is of another lineage than the announced one", now
            )

    def _status(self, origin: Origin, delivery: Delivery, now: float) -> ev.Event | ev.Reply | None:
        device = origin.device
        withdrawn = self._ingress.known.withdrawn(device)
        if not delivery.payload:
            if not withdrawn:  # its status was cleared by us, and it may be connected all the same
                self._observed.activity.forget(device)
            self.follow(self._roster.leave(device), now)
            return None
        hello = self._ingress.status(device, delivery.payload, now)
        if hello is None or hello.state is DeviceState.JOINING:
            return None
        if not delivery.retain and hello.state is not DeviceState.LOST:  # the broker speaks for a lost one
            self._observed.activity.heard(device, now)
        # A retained status may be old, and its device waits for no answer, unless it missed ours.
        greets = hello.state is DeviceState.READY and (not delivery.retain or self._ingress.answers_retained)
        answer = self._ingress.greeting(device, hello, now) if greets else None
        if not hello.state.live and hello.state is not DeviceState.SLEEPING:
            self._observed.activity.leave(device)
        if isinstance(answer, ev.Greeted) and hello.lineage == self._core.lineage:
            self._observed.put_back.heard(device, hello.generation, hello.version)
        if not withdrawn:
            self.follow(self._roster.take(device, hello), now)
            return answer
        self._outlet.put(Post(delivery.topic, b""))  # a withdrawn device's name must not stay at the broker
        if not hello.state.live:
            self._observed.activity.forget(device)
        return answer

    def follow(self, changes: Sequence[ev.Event | ev.Announce], now: float) -> None:
        """Report changes of the roster to the core, which returns no actions for them."""
        for change in changes:
            if isinstance(change, ev.Announce):
                self._announce()
            else:
                self._core.handle(change, now)

    def drop_unconfirmed(self, now: float) -> None:
        """Drop statuses that were removed while we were disconnected, and note who did not come back."""
        gone, lost = self._roster.unconfirmed(now)
        for device in gone:
            self._observed.activity.forget(device)
            self.follow(self._roster.leave(device), now)
        for device in lost:
            hello = self._roster.devices[device]
            if hello.state.live:
                self._observed.activity.leave(device)
                self.follow(self._roster.take(device, hello.model_copy(update={"state": DeviceState.LOST})), now)
