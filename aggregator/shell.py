"""The interpreter of the core's actions: in a process, on virtual time and in tests.

Rules for every host:

1. All records of a batch are committed, in one transaction, before any other action of the batch is executed. So
   nothing is sent, applied or published that a power cut could undo.
2. The other actions are executed in the core's order, in which each follows its record.
3. Receipts are sent at the end of the batch, before the answers to the core are processed: they never wait for a step.
4. Answers to actions (`Decoded`, `Measured`, `Examined`) are returned to the core only here.

A host implements each action; it decides nothing.
"""

from collections import deque
from collections.abc import Sequence
from typing import Protocol

from midge.aggregator.core import events as ev
from midge.aggregator.core import records as rec
from midge.aggregator.core.core import AggregatorCore
from midge.wire.messages import Fetch, Settled, Update


class AggregatorHooks(Protocol):
    """The effects of an aggregator: a store and a broker, a virtual clock, or the lists of a test."""

    def decode(self, action: ev.Decode, now: float) -> ev.Decoded | ev.Undecodable:
        """Decode a body. Its delta is kept under the key until `journaled` or `drop`."""

    def commit(self, entries: Sequence[ev.Journal]) -> None:
        """Make records durable, all or none, with their bodies."""

    def journaled(self, record: rec.Record, key: int | None, now: float) -> None:
        """Process a durable record: hold an accepted update for its step, count, report."""

    def carry(self, record: rec.Record, now: float) -> None:
        """Execute a decision on the model, and publish the result."""

    def measure(self, lsns: Sequence[int]) -> ev.Measured:
        """Measure the deltas of durable updates."""

    def examine(self, lsns: Sequence[int]) -> ev.Examined:
        """Judge durable statistics by their values."""

    def announce(self) -> None:
        """Publish the announcement again."""

    def republish(self, fetch: Fetch) -> None:
        """Publish chunks of a frame again."""

    def reply(self, device: str, outbox: int, hi: int, settled: Sequence[Settled]) -> None:
        """Add to the receipt of an outbox: it is settled up to `hi`, with these verdicts."""

    def grant(self, device: str, update: Update, hi: int, now: float) -> None:
        """Grant a device chunks of an update, or answer with a temporary refusal."""

    def drop(self, key: int) -> None:
        """Drop a body."""

    def flush(self, now: float) -> None:
        """Queue the receipts of the batch."""


class AggregatorShell:
    """Drives one core on one host. It keeps no state between calls."""

    def __init__(self, core: AggregatorCore, host: AggregatorHooks) -> None:
        self.core = core
        self.host = host

    def handle(self, event: ev.Event, now: float) -> None:
        """Process one event, and execute the resulting actions."""
        self.carry_out(self.settle(event, now), now)

    def tick(self, now: float) -> None:
        """Execute the actions that are due."""
        self.carry_out(self.core.tick(now), now)

    def settle(self, event: ev.Event, now: float) -> list[ev.Action]:
        """Decide on an event, including its decoding; the actions may wait for others of the same batch."""
        waiting: deque[ev.Event] = deque([event])
        actions: list[ev.Action] = []
        while waiting:
            for action in self.core.handle(waiting.popleft(), now):
                if isinstance(action, ev.Decode):
                    # Decoded at once: the core refuses the next update of this outbox until it has decided this one.
                    waiting.appendleft(self.host.decode(action, now))
                else:
                    actions.append(action)
        return actions

    def carry_out(self, actions: Sequence[ev.Action], now: float) -> None:
        """Commit the records, execute the other actions in order, and return their answers to the core."""
        # Again for the actions that the answers cause: their records are a batch of their own.
        while True:
            answers = self._do(actions, now)
            # Before the answers are decided on: a receipt must not wait for a step of centred clipping.
            self.host.flush(now)
            if not answers:
                return
            actions = [action for answer in answers for action in self.core.handle(answer, now)]

    def _do(self, actions: Sequence[ev.Action], now: float) -> list[ev.Event]:
        host = self.host
        # One transaction for the batch: a disk sync costs a hundred times as much as the decision on an update, and an
        # action may depend on any record of its batch.
        entries = [action for action in actions if isinstance(action, ev.Journal)]
        if entries:
            host.commit(entries)
        answers: list[ev.Event] = []
        for action in actions:
            match action:
                case ev.Journal(record, key):
                    host.journaled(record, key, now)
                case ev.Reply(device, outbox, hi, settled):
                    host.reply(device, outbox, hi, settled)
                case ev.Drop(key):
                    host.drop(key)
                case ev.Carry(record):
                    host.carry(record, now)
                case ev.Announce():
                    host.announce()
                case ev.GrantChunks(device, update, hi):
                    host.grant(device, update, hi, now)
                # Decided on after the rest of the batch: until then, the model is behind the core's state.
                case ev.Measure(lsns):
                    answers.append(host.measure(lsns))
                case ev.Examine(lsns):
                    answers.append(host.examine(lsns))
                case ev.Republish(fetch):
                    host.republish(fetch)
                case ev.Decode():
                    raise AssertionError("decoding is done while settling")
        return answers
