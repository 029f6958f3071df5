"""How far the standby is behind the store, and what follows from it: what is published, accepted and reported.

With `--sync`, what is published waits for the standby (`PublicationGate`); without, a standby that is away is only
reported.
"""

import logging
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from midge.aggregator.standby.gate import PublicationGate
from midge.aggregator.standby.policy import StandbyPolicy
from midge.storage.failpoints import failpoint
from midge.wire.standby import StandbyState

log = logging.getLogger("aggregator")

AWAY = 5.0
"""Seconds without a message of the standby until it is away."""
_MOST_PENDING = 10_000


class StandbyProgress:
    """The standby of one start of an aggregator, as far as it is known.

    Args:
        policy: whether there is to be a standby, and what waits for it.
        gate: holds what is published, with `--sync`.
        mark: the file of a store of which receipts do not wait.
        updates: the number of updates decided on so far.
        tell: takes events.
    """

    def __init__(
        self,
        policy: StandbyPolicy,
        gate: PublicationGate,
        mark: Path,
        updates: Callable[[], int],
        tell: Callable[..., None],
    ) -> None:
        self._policy, self._gate, self._mark = policy, gate, mark
        self._updates, self._tell = updates, tell
        self.name: str | None = None
        """The standby's host; None without a session."""
        self.heard_at = self._since = time.monotonic()
        self.expected = policy.follow or policy.sync
        """Whether there is meant to be a standby."""
        self._pending: deque[tuple[int, float, int]] = deque()
        """Transactions that the standby does not have: when each was committed, and the updates before it."""
        self._state = "none"
        self._alone = mark.exists()
        """Whether receipts do not wait, because there is no standby to wait for."""
        gate.closed = policy.sync and not self._alone
        gate.committed, gate.confirmed = 1, 0

    # ------------------------------------------------------------------- what happens

    def advance(self) -> int:
        """Number a transaction that the standby is to have."""
        self._gate.committed += 1
        if len(self._pending) < _MOST_PENDING:
            self._pending.append((self._gate.committed, time.monotonic(), self._updates()))
        return self._gate.committed

    def begin(self, name: str, now: float) -> None:
        """Record that a session begins. It may be with another host than the one before."""
        self.name, self._gate.confirmed = name, 0
        self.heard(now)

    def end(self) -> None:
        """Record that the session has ended."""
        self.name = None

    def heard(self, now: float) -> None:
        """Record a message of the standby."""
        self.heard_at, self.expected = now, True

    def confirm(self, transaction: int) -> None:
        """Record that the standby has everything up to a transaction."""
        if transaction <= self._gate.confirmed:
            return
        failpoint("copy.confirmed")
        self._gate.confirmed = transaction
        while self._pending and self._pending[0][0] <= transaction:
            self._pending.popleft()
        if not self._pending and transaction < self._gate.committed:  # more were pending than are listed
            self._pending.append((self._gate.committed, time.monotonic(), self._updates()))
        self._gate.look()

    def look(self, now: float) -> None:
        """Report a change of the state, and open or close the gate."""
        state = self._judged(now)
        if self._policy.alone_after is not None and state != "following" and not self._alone:
            if now - max(self.heard_at, self._since) > self._policy.alone_after:
                self._alone = True
                log.warning("The standby is away: receipts no longer wait for it.")
        elif state == "following" and self._alone:
            self._alone = False
            self._mark.unlink(missing_ok=True)
        self._gate.closed = self._policy.sync and not self._alone
        self._gate.look()
        if state != self._state and (state != "none" or self.expected):
            self._state = state
            self._tell("standby", state=state, why=self._words(state))

    # ------------------------------------------------------------------- what is known

    def away(self, now: float) -> bool:
        """Whether the standby is silent."""
        return now - self.heard_at > AWAY

    def _judged(self, now: float) -> str:
        if self.name is None:
            return "none"
        if self.away(now):
            return "away"
        return "following" if self._gate.confirmed else "copying"

    def state(self, now: float) -> StandbyState:
        """How far the standby is."""
        _, at, updates = self._pending[0] if self._pending else (0, now, self._updates())
        state = self._judged(now)
        return StandbyState(
            state=state,
            name=self.name or "",
            waits=self._policy.sync and not self._alone,
            seconds=max(0.0, now - at),
            number=self._gate.committed + 1 - self._pending[0][0] if self._pending else 0,
            updates=max(0, self._updates() - updates),
            why=self._words(state)[:400],
        )

    def _words(self, state: str) -> str:
        """What the operator should do, without figures: an alarm is reported again when its words change."""
        if state == "following" or not self.expected:
            return ""
        if state == "copying":
            return "The standby makes its copy of the store."
        waits = "receipts wait for it" if self._gate.closed else "what is receipted is on this host only"
        return f"No standby follows this store, so {waits}: start it again."

    def alarms(self) -> tuple[str, ...]:
        """What the operator should do about the standby."""
        now = time.monotonic()
        state = self._judged(now)
        why = self._words(state)
        return (why,) if why and state != "copying" and now - self._since > AWAY else ()

    @property
    def hold(self) -> str | None:
        """Why no updates are accepted; None if they are."""
        if not self._gate.closed or self._judged(time.monotonic()) == "following":
            return None
        return "receipts wait for the standby, which is away or makes its copy"
