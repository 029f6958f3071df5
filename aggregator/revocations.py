"""Devices that the operator revoked: nothing is taken from them any more, and what waits of them is dropped."""

import logging
from contextlib import suppress

from midge.aggregator.core import events as ev
from midge.aggregator.processor import Processor
from midge.aggregator.publish.announcement_signer import Issuer
from midge.aggregator.publish.outlet import Outlet
from midge.aggregator.store.device_erasure import Names
from midge.wire import overview
from midge.wire.errors import WireError

log = logging.getLogger("aggregator")


class Revocations:
    """Of one federation: those that were ordered and are not yet carried out.

    Args:
        names: refuses a device from then on, durably.
        issuer: knows whether an order is signed.
        outlet: what is done is told there.
    """

    def __init__(self, names: Names, issuer: Issuer, outlet: Outlet) -> None:
        self._names, self._issuer, self._outlet = names, issuer, outlet
        self._ordered: dict[str, None] = {}

    def hear(self, payload: bytes) -> None:
        """Take from what an operator asks for who was revoked."""
        with suppress(WireError):
            if (revoked := overview.decode_ask(payload).revoked) and self._issuer.ordered(payload):
                self._ordered.update(dict.fromkeys(revoked))

    def carry_out(self, processor: Processor, now: float) -> None:
        """Do what was ordered, unless nothing can be decided now.

        Raises:
            StoreFull: there is no room to write that down; it is done later.
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
