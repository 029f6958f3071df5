"""The durable numbers of what an aggregator issues: the epoch, the fencing token, the date of the last announcement."""

import logging
import time
from contextlib import suppress

from midge.aggregator.publish.announcement_signer import AnnouncementSigner
from midge.aggregator.publish.outlet import Outlet
from midge.aggregator.store.store import Store, StoreFull
from midge.wire.messages import MOST_TOKEN

log = logging.getLogger("aggregator")

MOST_EPOCH = 2**52
"""Milliseconds since 1970: an announced epoch above it is a lie, and a higher one must remain possible."""
_WRITE_ISSUED = 600.0
"""Least seconds between two writes of the date of the last announcement: clock errors that matter are larger."""


class IssuedNumbers:
    """Keeps these numbers of a signer in a store.

    Args:
        issuer: signs with them.
        store: open.
        outlet: takes events.
        raise_epoch: whether devices may follow to a lower version, or from another store to this one.
    """

    def __init__(self, issuer: AnnouncementSigner, store: Store, outlet: Outlet, *, raise_epoch: bool) -> None:
        self._issuer, self._store, self._outlet = issuer, store, outlet
        issuer.epoch = store.constant("epoch", _milliseconds)
        self._issued = float(store.constant("issued", lambda: 0.0))
        self.doubt = ""
        """Why the machine's clock is not trusted; empty if it is."""
        issuer.dating.resume(self._issued)
        if raise_epoch:
            issuer.dating.believe()
            self.raise_epoch(issuer.epoch + 1)
        issuer.token = 0
        self.before = int(store.constant("token", lambda: 0))
        """The highest fencing token of earlier starts of this store."""
        self.raise_token(0)

    def raise_epoch(self, least: int) -> None:
        """Announce in this epoch or a higher one from now on: the time, which only grows."""
        self._issuer.epoch = min(max(least, _milliseconds()), 2 * MOST_EPOCH)
        self._store.set_constant("epoch", self._issuer.epoch)

    def raise_token(self, seen: int) -> None:
        """Begin with a fencing token above that of every earlier start, or raise it above one that was seen."""
        issuer = self._issuer
        if not issuer.token:
            seen = max(seen, int(self._store.constant("token", lambda: 0)), int(1000 * issuer.dating.now()))
        if issuer.token <= seen:
            issuer.token = min(seen + 1, MOST_TOKEN)
            with suppress(StoreFull):  # the next start uses the time, which is higher
                self._store.set_constant("token", issuer.token)

    def report_clock(self) -> None:
        """Report a clock of this machine that is not trusted, once."""
        if (doubt := self._issuer.dating.doubt) and not self.doubt:
            log.warning("%s", doubt)
            self._outlet.tell("clock", why=doubt)
        self.doubt = doubt

    def write(self) -> None:
        """Store the date of the last announcement now and then, so that a later start can check its clock.

        Raises:
            StoreFull: there is no room for it.
        """
        if abs(self._issuer.dating.last - self._issued) >= _WRITE_ISSUED:
            self._issued = self._issuer.dating.last
            self._store.set_constant("issued", self._issued)


def _milliseconds() -> int:
    """Since 1970."""
    return int(1000 * time.time())
