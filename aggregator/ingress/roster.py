"""The newest status of each device: how many are online, and their names of the model's inputs."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import islice

from midge.aggregator.core import events as ev
from midge.aggregator.core.inputs import Inputs
from midge.aggregator.publish.outlet import Outlet
from midge.aggregator.publish.part_sizes import PartSizes
from midge.wire.messages import DeviceState, Hello

_LOOKED_AT = 64
"""Statuses that are examined for one that can be forgotten."""

log = logging.getLogger("aggregator")

_RETAINED = 30.0
"""Seconds in which a broker has sent all retained messages, even a slow one with many devices."""


class Roster:
    """The statuses of one federation's devices.

    Args:
        inputs: the model's names of its inputs; None compares nothing.
        outlet: changes are reported there.
        most: devices whose status is kept.
        sizes: follows the size limit of each device.
    """

    def __init__(self, inputs: Inputs | None, outlet: Outlet, most: int, sizes: PartSizes | None = None) -> None:
        self._inputs, self._outlet, self._most = inputs, outlet, most
        self.sizes = sizes or PartSizes()
        self.devices: dict[str, Hello] = {}
        self.waits: dict[str, str] = {}
        """Reasons why online devices do not train, from their status; an update ends them."""
        self._unconfirmed: set[str] = set()
        """Devices whose retained status has not been received on the current connection."""
        self._confirmed_by = math.inf
        self._forgotten = False
        self.known: Callable[[str], bool] = lambda _device: False
        """Whether an update of a device was ever accepted."""
        self.verifies: dict[str, str] = {}
        """Requested signature schemes of receipts, by device."""
        self.greeted: Callable[[str], None] = lambda _device: None
        """Called with one of these when it sends its status."""
        self.is_site: Callable[[str], bool] = lambda _device: False
        """Whether a name is that of a gateway."""
        self.is_shard: Callable[[str], bool] = lambda _device: False
        """Whether a name is that of a shard, whose devices are here themselves."""
        self._online = self._idle = 0
        self._unlike: Mapping[str, str] = {}

    def conditions(self) -> list[ev.Event]:
        """Events that inform a rebuilt core about the devices."""
        # Counted again: a test, or a restart, may have added statuses.
        self._online = sum(map(self._counted, self.devices))
        self._idle = sum(map(self._counted, self.waits))
        return [*self._compared(), self._number]

    def begin_connection(self, now: float, *, forgotten: bool = False) -> None:
        """Begin to check retained statuses: those that are not received again were removed meanwhile.

        Args:
            now: seconds of the monotonic clock.
            forgotten: whether the broker has lost all of them; then their devices are lost, and stay in the roster.
        """
        self._unconfirmed, self._confirmed_by, self._forgotten = set(self.devices), now + _RETAINED, forgotten

    def unconfirmed(self, now: float) -> tuple[list[str], list[str]]:
        """Devices whose status was not received again in time, reported once: those that are gone, and lost ones."""
        if now < self._confirmed_by:
            return [], []
        self._confirmed_by = math.inf
        found, self._unconfirmed = list(self._unconfirmed), set()
        lost = [device for device in found if self._forgotten and self.known(device)]
        return [device for device in found if device not in lost], lost

    def take(self, device: str, hello: Hello) -> list[ev.Event | ev.Announce]:
        """Process a status; return events for the core."""
        self._unconfirmed.discard(device)
        self.trains(device)
        before = self.devices.pop(device, None)
        found: list[ev.Event | ev.Announce] = []
        if before is None and len(self.devices) >= self._most:
            found += self._make_room()
        there = hello.state.live or hello.state is DeviceState.SLEEPING
        self.sizes.hear(device, hello.largest if there else 0)
        self.devices[device] = hello  # at the end: the longest silent are at the beginning
        if not (hello.verifies and there):
            self.verifies.pop(device, None)
        else:
            self.verifies[device] = hello.verifies
            if hello.state is DeviceState.READY:
                self.greeted(device)
        if hello.waits and hello.state.live:
            self.waits[device] = hello.waits
            self._idle += self._counted(device)
        # A device without names contradicts none: comparing all for each would make statuses of new names expensive.
        if hello.features if before is None else before.features != hello.features:
            found += self._named(device, hello)
        self._online += self._count(device, hello) - self._count(device, before)
        if before is None or before.state is not hello.state:
            self._outlet.tell("device", device=device, state=hello.state.value)
        return [*found, self._number]

    @property
    def _number(self) -> ev.DevicesOnline:
        """The number of online devices, and of those that do not train."""
        unlike = (device for device in self._unlike if device in self.devices and device not in self.waits)
        return ev.DevicesOnline(self._online, self._idle + sum(map(self._counted, unlike)))

    def _counted(self, device: str) -> int:
        return self._count(device, self.devices.get(device))

    def trains(self, device: str) -> Sequence[ev.Event]:
        """Process an update of a device: it no longer waits."""
        if self.waits.pop(device, None) is None:
            return ()
        self._idle -= self._counted(device)
        return (self._number,)

    def _count(self, device: str, hello: Hello | None) -> int:
        """The number of online devices that a status stands for: those of its site, if it is a gateway's."""
        if hello is None or not hello.state.live or self.is_shard(device):
            return 0
        return max(1, hello.devices) if self.is_site(device) else 1

    def _make_room(self) -> list[ev.Event]:
        """Forget the status of the longest silent device without an accepted update."""
        oldest = list(islice(self.devices, _LOOKED_AT))
        return self.leave(next((device for device in oldest if not self.known(device)), oldest[0]))

    def _named(self, device: str, hello: Hello) -> list[ev.Event | ev.Announce]:
        """Process a device's names of its inputs."""
        if self._inputs is None:
            return []
        first, before = self._inputs.hear(device, hello.features), self._unlike
        found: list[ev.Event | ev.Announce] = [*self._compared()]
        if first:
            self._outlet.tell("features", features=list(self._inputs.names))
            found.append(ev.Announce())
        for other in self._unlike.keys() - before.keys():
            log.warning("Nothing is taken from %s: %s.", other, self._unlike[other])
            self._outlet.tell("unlike", device=other, why=self._unlike[other])
        return found

    def adopt(self, names: Sequence[str]) -> list[ev.Event]:
        """Compare with the names of inputs that the federation's aggregator announces."""
        if self._inputs is None or self._inputs.names == tuple(names):
            return []
        self._inputs.adopt(names)
        return self._compared()

    def _compared(self) -> list[ev.Event]:
        if self._inputs is None:
            return []
        self._unlike = self._inputs.unlike(self.devices)
        return [ev.InputsCompared(self._inputs.names, self._unlike, self._inputs.contested(self.devices))]

    def leave(self, device: str) -> list[ev.Event]:
        """Forget the status of a device."""
        self.trains(device)
        gone = self.devices.pop(device, None)
        self.sizes.hear(device, 0)
        self.verifies.pop(device, None)
        self._online -= self._count(device, gone)
        undecided = self._inputs is not None and not self._inputs.names and gone is not None and bool(gone.features)
        compared = self._compared() if undecided or device in self._unlike else []
        return [*compared, self._number]

    def forget(self, device: str) -> list[ev.Event]:
        """Forget everything about a device."""
        if self._inputs is not None:
            self._inputs.forget(device)
        return self.leave(device)
