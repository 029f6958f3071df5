"""Reassembly of updates in chunks without their bytes, and trouble messages to their devices."""

import math
from collections import Counter
from collections.abc import Callable

from midge.aggregator.core import records as rec
from midge.aggregator.core.core import AggregatorCore
from midge.aggregator.ingress.rate_limits import TROUBLE
from midge.aggregator.ingress.reassembly import DISPLACED, UpdateReassembler
from midge.wire import codecs
from midge.wire.chunks import Assembly
from midge.wire.messages import Trouble


class _Counted(Assembly):
    """Reassembly state of an update without its bytes: those of a whole fleet would not fit into memory."""

    def add(self, part: int, data: object) -> bool:  # noqa: ARG002 - nothing to keep
        if not self.misses(part):
            return False
        self._pieces[part] = b""
        return True

    def whole(self) -> memoryview:
        return memoryview(b"")


class TroubleReporter:
    """Reports to devices what no receipt says, rate-limited as in production."""

    def __init__(self, call: Callable[[str, Trouble], None] | None) -> None:
        self._call = call
        self._told: dict[str, float] = {}

    def report(self, device: str, why: str, now: float) -> None:
        """Send a reason to a device, unless one was sent recently."""
        if why and self._call is not None and now >= self._told.get(device, -math.inf) + TROUBLE:
            self._told[device] = now
            self._call(device, Trouble(why=why[:400]))

    def report_doubt(self, core: AggregatorCore, record: rec.UpdateRecord, now: float) -> None:
        """Report to a device that its encoder is doubted, if its codec needs error feedback."""
        if codecs.parse(record.codec).feedback:
            self.report(record.device, core.encoder_doubt(record.device, now), now)


def counting_reassembler(memory: int, troubles: TroubleReporter, known: Callable[[str], bool]) -> UpdateReassembler:
    """A reassembler that counts chunks.

    Args:
        memory: maximum bytes of updates under way.
        troubles: reports to devices whose updates are displaced.
        known: whether a device has contributed before.
    """
    found = UpdateReassembler(budget=memory, dropped=Counter(), assembly=_Counted)
    found.known = known
    found.displaced = lambda device, now: troubles.report(device, DISPLACED, now)
    return found
