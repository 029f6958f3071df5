"""Fitting of frame parts to the devices: cut again when their limits change, and reported to those that get none."""

import logging

from midge.aggregator.core import events as ev
from midge.aggregator.ingress.filter import IngressFilter
from midge.aggregator.ingress.roster import Roster
from midge.aggregator.model.model import REGISTERED, SERVED
from midge.aggregator.publish.model_publisher import ModelPublisher
from midge.aggregator.publish.outlet import Outlet
from midge.aggregator.publish.part_sizes import Refetches
from midge.wire.messages import NO_LINEAGE, Fetch
from midge.wire.plurals import counted

log = logging.getLogger("aggregator")

_NAMED = 100
"""Most devices for which a missing model is reported individually."""


class PartFitting:
    """The part size of one federation, and the fetches of its devices.

    Args:
        shelf: publishes the frames.
        ingress: the devices' budgets and `trouble` messages.
        roster: the devices' size limits.
        outlet: takes messages and events.
    """

    def __init__(self, shelf: ModelPublisher, ingress: IngressFilter, roster: Roster, outlet: Outlet) -> None:
        self._shelf, self._ingress, self._roster, self._outlet = shelf, ingress, roster, outlet
        self._refetches = Refetches()
        self._left_out: dict[str, str] = {}
        """Devices that get no model, each with the reported reason."""
        shelf.sizes = roster.sizes

    def look(self, now: float) -> None:
        """Cut again if that is due, and report which devices get no model."""
        sizes = self._roster.sizes
        changed = sizes.look(now)
        if changed is None:
            return
        if changed:
            much = "as large as the broker takes" if sizes.limit is None else f"of at most {sizes.limit:,} bytes"
            log.info("The model's parts are %s from now on, for the smallest of the online devices.", much)
            self._outlet.tell("parts", largest=sizes.limit, earlier=sizes.earlier)
            for post in self._shelf.recut():
                self._outlet.put(post)
        self._report_left_out(now)

    def _report_left_out(self, now: float) -> None:
        sizes = self._roster.sizes
        found = sizes.left_out()
        for device in self._left_out.keys() - found.keys():
            if self._roster.waits.get(device) == self._left_out.pop(device):
                del self._roster.waits[device]
        for device, _ in zip(found, range(_NAMED), strict=False):
            why = (
                f"it takes messages of at most {counted(found[device], 'byte')} and the model's parts have up to "
                f"{sizes.least:,}: give it a larger receive buffer, or the aggregator a smaller smallest_chunk"
            )
            if device not in self._left_out:
                log.warning("%s gets no model: %s.", device, why)
                self._outlet.tell("left_out", device=device, largest=found[device], least=sizes.least, why=why)
                self._ingress.troubles.tell(device, why, now)
            self._left_out[device] = self._roster.waits[device] = why

    def asked(self, asked: ev.FetchAsked, now: float) -> ev.FetchAsked | None:
        """The chunks of a fetch to publish: those in transit are free, the others are charged to the device."""
        fetch, device, parts = asked.fetch, asked.device, []
        name = fetch.version, span(fetch)
        if fetch.lineage == NO_LINEAGE:
            return None
        if why := self._shelf.lacks(fetch.lineage, *name):
            self._ingress.troubles.tell(device, why, now)
        elif (again := self._refetches.note(device, fetch)) is not None:
            self._report_again(device, fetch, again, now)
        for index, size in self._shelf.missed(*name, fetch.parts, now):
            if not self._ingress.admission.publishes(device, size, now):
                self._outlet.meters.dropped["over rate"] += 1
                self._ingress.troubles.tell(device, "more is fetched again by this device than its share", now)
                break
            self._shelf.repeat(*name, index, size, now)
            parts.append(index)
        return ev.FetchAsked(device, fetch.model_copy(update={"parts": tuple(parts)})) if parts else None

    def _report_again(self, device: str, fetch: Fetch, part: int, now: float) -> None:
        """Notify a device that fetched a part for the third time that the part probably does not fit."""
        size = self._shelf.part_bytes(fetch.version, span(fetch))
        why = (
            f"part {part} of version {fetch.version} was fetched 3 times, {size:,} bytes without its header: if the "
            f"device cannot receive as much, its hello must say so (largest, at least {self._roster.sizes.least:,})"
        )
        # One warning per `trouble`: a device that asks forever must not fill a log.
        if self._ingress.troubles.tell(device, why, now):
            log.warning("%s: %s.", device, why)
            self._outlet.tell("fetched_again", device=device, version=fetch.version, part=part, size=size, why=why)


def span(fetch: Fetch) -> int:
    """The span of the requested frame, as in the store."""
    return {"serve": SERVED, "registered": REGISTERED}.get(fetch.channel, fetch.span)
