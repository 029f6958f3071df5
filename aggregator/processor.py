"""Deliveries in, durable decisions and outgoing messages out: what happens between two looks at the network.

`process` reads what came, asks the core, commits every journal record in one transaction, and only then carries the
decisions out and hands over the receipts. It knows no connection and no loop; one thread calls it.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence

from aggregator import events as ev
from aggregator import records as rec
from aggregator.core import AggregatorCore
from aggregator.engine import Engine
from aggregator.intake import Further, Intake
from aggregator.meters import Meters
from aggregator.model import Contribution
from aggregator.outgoing import Post
from aggregator.receipts import Receipts
from aggregator.shelf import Shelf
from aggregator.store import Entry
from broker.connection import Delivery
from broker.failpoints import failpoint
from wire import codecs, messages
from wire.errors import WireError
from wire.messages import DeviceState, Hello, Report, Settled, Update, Verdict
from wire.schema import Vector
from wire.topics import Topics

log = logging.getLogger("aggregator")


class Processor:
    """One federation's decisions, made durable and carried out."""

    def __init__(
        self,
        core: AggregatorCore,
        engine: Engine,
        shelf: Shelf,
        topics: Topics,
        *,
        put: Callable[[Post], None],
        tell: Callable[..., None],
        memory: int,
        meters: Meters | None = None,
    ) -> None:
        self._core, self._engine, self._shelf, self._topics = core, engine, shelf, topics
        self._put, self._tell = put, tell
        self._meters = meters or Meters()
        self._intake = Intake(budget=memory, dropped=self._meters.dropped)
        self._decoded: dict[int, Vector] = {}
        self.devices: dict[str, Hello] = {}
        """The newest status of each device."""

    def take_up(self, core: AggregatorCore, engine: Engine, shelf: Shelf) -> None:
        """Go on with what was rebuilt from the store, after a batch that could not be written."""
        self._core, self._engine, self._shelf = core, engine, shelf
        self._decoded.clear()

    def process(self, deliveries: Sequence[Delivery], now: float) -> None:
        """Take a batch in. When this returns, what it decided is durable and its receipts wait to be sent."""
        actions: list[ev.Action] = []
        further: list[Further] = []
        for delivery in deliveries:
            try:
                event = self._read(delivery, now)
            except WireError as error:
                self._meters.dropped["malformed"] += 1
                self._tell("dropped", topic=delivery.topic, why=str(error))
                continue
            if isinstance(event, Further):
                further.append(event)
            elif event is not None:
                actions += self._settle(event, now)
        self.do([*actions, *self._core.tick(now)], now, further)

    # ------------------------------------------------------------------- reading

    def _read(self, delivery: Delivery, now: float) -> ev.Event | Further | None:
        origin = self._topics.origin(delivery.topic)
        match origin.sort:
            case "update":
                return self._intake.read(origin.device, delivery.payload, now)
            case "status":
                return self._greeted(origin.device, delivery)
            case "report":
                report, _ = messages.decode(Report, delivery.payload)
                if report.lineage == self._core.lineage:  # another lineage's versions are not ours
                    self._tell("report", device=origin.device, version=report.version, metrics=dict(report.metrics))
                return None

    def _greeted(self, device: str, delivery: Delivery) -> ev.Event | None:
        if not delivery.payload:
            self.devices.pop(device, None)
            return None
        hello, _ = messages.decode(Hello, delivery.payload)
        if hello.state is DeviceState.JOINING:
            return None
        before = self.devices.get(device)
        if before is None and len(self.devices) >= self._core.bounds.devices:
            raise WireError(f"more than {self._core.bounds.devices} devices have a status")
        self.devices[device] = hello
        if before is None or before.state is not hello.state:
            self._tell("device", device=device, state=hello.state.value)
        if delivery.retain or hello.state is not DeviceState.READY:
            return None
        return ev.Greeted(device, hello.outbox, hello.first)

    def _settle(self, event: ev.Event, now: float) -> list[ev.Action]:
        """What an event comes to, with its decoding done on the way."""
        waiting: deque[ev.Event] = deque([event])
        actions: list[ev.Action] = []
        while waiting:
            for action in self._core.handle(waiting.popleft(), now):
                if isinstance(action, ev.Decode):
                    waiting.appendleft(self._decode(action))
                else:
                    actions.append(action)
        return actions

    def _decode(self, action: ev.Decode) -> ev.Event:
        device, update, key = action.device, action.update, action.key
        try:
            self._decoded[key], norm = self._engine.model.decode(update, self._intake.body(key))
        except codecs.NonFinite as error:
            return ev.Undecodable(device, update, key, Verdict.NON_FINITE, str(error))
        except WireError as error:
            return ev.Undecodable(device, update, key, Verdict.BAD_ENCODING, str(error))
        return ev.Decoded(device, update, key, norm)

    # -------------------------------------------------------------------- doing

    def do(self, actions: Sequence[ev.Action], now: float, further: Sequence[Further] = ()) -> None:
        """Commit what is to be journaled, then do the rest in order."""
        entries = [
            Entry(action.record, None if action.key is None else bytes(self._intake.body(action.key)))
            for action in actions
            if isinstance(action, ev.Journal)
        ]
        if entries:
            began = time.perf_counter()
            self._engine.store.commit(entries)
            self._meters.commit_seconds.observe(time.perf_counter() - began)
        receipts = Receipts()
        for action in actions:
            match action:
                case ev.Journal(record, key):
                    self._journaled(record, key)
                case ev.Carry(record):
                    self._carry(record, now)
                case ev.Reply(device, outbox, hi, settled):
                    receipts.settle(device, outbox, hi, settled)
                    self._replied(device, settled)
                case ev.Grant(device, update, hi):
                    self._grant(receipts, device, update, hi, now)
                case ev.Drop(key):
                    self._intake.drop(key)
                    self._decoded.pop(key, None)
                case ev.Republish(fetch):
                    for post in self._shelf.again(fetch.version, fetch.span, fetch.parts):
                        self._put(post)
                case ev.Decode():
                    raise AssertionError("decoding is done while settling")
        for item in further:
            receipts.grant(item.device, item.outbox, self._core.hi(item.device, item.outbox), item.grant)
        told = list(receipts.posts(self._topics, now))
        if told:
            failpoint("receipts.before")
        for post in told:
            self._put(post)
        if told:
            failpoint("receipts.handed_over")

    def _journaled(self, record: rec.Record, key: int | None) -> None:
        if not isinstance(record, rec.UpdateRecord):
            return
        self._meters.verdicts[record.verdict] += 1
        if record.verdict == Verdict.ACCEPTED:
            self._meters.staleness.observe(record.staleness)
            assert key is not None
            self._engine.hold(record.lsn, Contribution(self._decoded[key], record.tensors, record.base))
        self._tell(
            "update",
            device=record.device,
            seq=record.seq,
            verdict=record.verdict,
            why=record.why,
            base=record.base,
            staleness=record.staleness,
            weight=record.weight,
            size=record.size,
        )

    def _replied(self, device: str, settled: Sequence[Settled]) -> None:
        """What left no record: repeats, and refusals for now."""
        for item in settled:
            if item.repeat:
                self._meters.verdicts["duplicate"] += 1
                self._tell("repeat", device=device, seq=item.seq, verdict=item.verdict.value)
            elif not item.verdict.final:
                self._meters.verdicts[item.verdict.value] += 1
                self._tell("held", device=device, seq=item.seq, verdict=item.verdict.value, why=item.why)

    def _carry(self, record: rec.Record, now: float) -> None:
        new = self._engine.carry(record)
        match record:
            case rec.StepRecord():
                failpoint("step.applied")
            case rec.ReleaseRecord():
                failpoint("release.computed")
                self._shelf.add(new)
                failpoint("release.stored")
                for post in self._shelf.release(new, now):
                    self._put(post)
                failpoint("release.handed_over")
                self._tell("release", version=record.version, step=record.step, devices=record.devices)
            case rec.FreezeRecord():
                self._tell("freeze", devices=len(record.statistics))

    def _grant(self, receipts: Receipts, device: str, update: Update, hi: int, now: float) -> None:
        try:
            grant = self._intake.open(device, update, self._shelf.chunk, now)
            why, again = "no room for it just now", 5.0
        except WireError as error:
            grant, why, again = None, str(error)[:400], 60.0
        if grant is None:
            settled = Settled(seq=update.seq, verdict=Verdict.BUSY, why=why, retry_after=again)
            receipts.settle(device, update.outbox, hi, (settled,))
        else:
            receipts.grant(device, update.outbox, hi, grant)
