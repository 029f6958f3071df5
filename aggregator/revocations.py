"""Revocation of devices by the operator: their messages are refused, and their waiting updates dropped."""

import logging
from contextlib import suppress

from midge.aggregator.core import events as ev
from midge.aggregator.processor import Processor
from midge.aggregator.publish.announcement_signer import AnnouncementSigner
from midge.aggregator.publish.outlet import Outlet
from midge.aggregator.store.device_erasure import Names
from midge.aggregator.store.model_orders import receive
from midge.wire import overview
from midge.wire.errors import WireError

log = logging.getLogger("aggregator")


class Revocations:
    """Ordered revocations of one federation that are not yet carried out.

    Args:
        names: refuses a device from then on, durably.
        issuer: verifies the signature of an order.
        outlet: results are reported there.
    """

    def __init__(self, names: Names, issuer: AnnouncementSigner, outlet: Outlet) -> None:
        self._names, self._issuer, self._outlet = names, issuer, outlet
        self._ordered: dict[str, None] = {}

    def hear(self, payload: bytes) -> None:
        """Take the revoked devices from an operator's request, and leave an order about versions where it is found."""
        with suppress(WireError):
            asked = overview.decode_ask(payload)
            if (asked.revoked or asked.order) and self._issuer.ordered(payload):
                self._ordered.update(dict.fromkeys(asked.revoked))
                if asked.order:
                    receive(self._names.directory, asked.order, self._issuer.dating.now())

    def carry_out(self, processor: Processor, now: float) -> None:
        """Carry out the orders, unless nothing can be decided now.

        Raises:
            StoreFull: there is no room to store that; it is done later.
        """
        core = processor.shell.core
        for device in list(self._ordered) if core.full is None else ():
            waiting = core.waiting_of(device)
            if self._names.withdraw(device):
                self._names.audit("revoked", device, "operator", updates=len(waiting))
            processor.shell.handle(ev.Revoked(device), now)
            processor.forget(device, now)
            del self._ordered[device]
            log.warning("%s is revoked: %d of its updates waited and are dropped.", device, len(waiting))
            self._outlet.tell("revoked", device=device, dropped=len(waiting))
