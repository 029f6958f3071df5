"""Maintenance of a federation's store: checkpoints, withdrawals, and retention of names."""

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Protocol

from midge.aggregator.config import AggregatorConfig
from midge.aggregator.core.core import AggregatorCore
from midge.aggregator.engine import Engine
from midge.aggregator.publish.outlet import Outlet
from midge.aggregator.store.device_erasure import Names, asked, done, forget, give_back_account

CHECKPOINT_SECONDS = 300.0
_RESTING = 6 * 3600.0
"""Interval of checkpoints while fewer than a tenth of their records have come: in an idle federation, they would be
most of the writes."""
_QUICK = 100.0
"""Records a second from which on the clock times checkpoints, because everything waits while one is written: with 1,000
records, one in ten seconds …"""
_MOST = 10
"""… with at most this many times the records, which a restart has to replay."""
_LOOK_FOR_REQUESTS = 2.0
"""Seconds between two checks for withdrawal requests of the operator."""
_LOOK_FOR_SILENCE = 3600.0
"""Seconds between two checks for devices that were silent for the retention period."""
_SILENT_AT_ONCE = 500
"""Most silent devices that are forgotten by one check, because everything waits for it: about a quarter of a second."""


class Forgetful(Protocol):
    """Holds more of a device than the store does."""

    def forget(self, device: str, now: float) -> None:
        """Remove everything about a device."""


class Upkeep:
    """Maintenance of one open store.

    Args:
        names: of the devices in the store.
        outlet: results are reported there.
        lsn: of the newest checkpoint.
        now: seconds of a monotonic clock.
        config: intervals.
        wall: seconds since 1970; a clock that is a year ahead must not cause every device to be erased.
    """

    def __init__(
        self,
        names: Names,
        outlet: Outlet,
        lsn: int,
        now: float,
        config: AggregatorConfig,
        *,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._wall = wall
        self._names, self._outlet = names, outlet
        self.checkpoint_records, self._retention = config.checkpoint_records, config.retention
        self._checkpointed = lsn, now
        """Newest record in a checkpoint, and when it was written."""
        self._looked_for_requests, self.looked_for_silence = -math.inf, now  # a clock may be wrong just after a start

    def tend(self, core: AggregatorCore, engine: Engine, forgetful: Forgetful, now: float) -> None:
        """Do what is due.

        Raises:
            StoreFull: there is no room for it.
        """
        if self._due(core.lsn, now):
            self._write(core, engine)
            self._checkpointed = core.lsn, now
        if now - self._looked_for_requests >= _LOOK_FOR_REQUESTS:
            self._looked_for_requests = now
            self._forget_asked(core, engine, forgetful, now)
        if now - self.looked_for_silence >= _LOOK_FOR_SILENCE:
            self.looked_for_silence = now
            self._forget_silent(core, engine, forgetful, now)

    @property
    def checkpointed(self) -> int:
        """The newest record in a checkpoint: a restart replays what follows."""
        return self._checkpointed[0]

    def close(self, core: AggregatorCore, engine: Engine) -> None:
        """Leave a store that opens without a replay."""
        self._names.write_heard(self._wall(), core.version)
        if core.lsn > self._checkpointed[0]:
            engine.checkpoint(core)

    def _due(self, lsn: int, now: float) -> bool:
        before, since = self._checkpointed
        new = lsn - before
        quick = now - since < self.checkpoint_records / _QUICK
        many = new >= self.checkpoint_records * (_MOST if quick else 1)
        few = 10 * new < self.checkpoint_records
        return many or (new > 0 and now - since >= (_RESTING if few else CHECKPOINT_SECONDS))

    def _write(self, core: AggregatorCore, engine: Engine) -> None:
        self._names.write_heard(self._wall(), core.version)
        engine.checkpoint(core)

    def _forget_asked(self, core: AggregatorCore, engine: Engine, forgetful: Forgetful, now: float) -> None:
        """Process requests in the store's directory: refuse at once, erase when no update waits any more."""
        directory = engine.store.directory
        for request in asked(directory):
            if request.readmit:
                give_back_account(engine.store, core, self._names, request.device)
                if self._names.readmit(request.device):
                    self._names.audit("readmitted", request.device, request.by)
                    self._outlet.tell("readmitted", device=request.device)
                done(directory, request.device)
                continue
            if self._names.withdraw(request.device):
                self._names.audit("withdrawn", request.device, request.by)
                forgetful.forget(request.device, now)
                self._outlet.tell("withdrawn", device=request.device)
            # An update with a receipt is applied first: it was promised to count once.
            if not core.waits(request.device):
                counted = self._forget([request.device], core, engine, forgetful, now)
                self._names.audit("erased", request.device, request.by, **counted)
                done(directory, request.device)
                self._outlet.tell("erased", device=self._names.alias(request.device), **counted)

    def _forget_silent(self, core: AggregatorCore, engine: Engine, forgetful: Forgetful, now: float) -> None:
        if self._retention is None or core.strategy.privacy is not None:
            return  # a private budget is spent permanently, so its devices must stay known
        known = self._names.silent(self._wall() - self._retention, core.version)
        free = (device for device in known if not core.waits(device) and not core.charged(device))
        silent = list(islice(free, _SILENT_AT_ONCE))
        if silent:
            # Without a record of what was received, a repeated update would count twice: so it must be stale.
            before = 1 + max(known[device] for device in silent)
            counted = self._forget(silent, core, engine, forgetful, now, before=before)
            self._names.audit_all("erased after silence", silent, "retention")
            self._outlet.tell("silent", devices=len(silent), **counted)

    def _forget(
        self,
        devices: Sequence[str],
        core: AggregatorCore,
        engine: Engine,
        forgetful: Forgetful,
        now: float,
        *,
        before: int = 0,
    ) -> Counter[str]:
        counted = forget(engine, core, self._names, devices, before)
        self._checkpointed = core.lsn, now
        for device in devices:
            forgetful.forget(device, now)
        return counted
