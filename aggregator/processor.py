"""Deliveries in, durable decisions and outgoing messages out: what happens between two looks at the network.

`process` reads what came and has the shell (`aggregator.shell`) ask the core, commit and carry out, for which it is the
host: store, model and queue. It knows no connection and no loop; one thread calls it.
"""

import logging
import secrets
import time
from collections.abc import Callable, Sequence

import numpy as np

from aggregator import events as ev
from aggregator import records as rec
from aggregator.core import AggregatorCore
from aggregator.engine import Engine
from aggregator.federated import Reports
from aggregator.gate import Gate, open_gate
from aggregator.inputs import Inputs
from aggregator.intake import Intake
from aggregator.meters import Meters
from aggregator.model import SERVED
from aggregator.outgoing import Post
from aggregator.reassembly import UpdateReassembler
from aggregator.receipts import Encode, Receipts
from aggregator.shelf import Shelf
from aggregator.shell import Shell
from aggregator.statistics import FACTOR
from aggregator.step_notices import StepNotices
from aggregator.store import Entry
from broker.connection import Delivery
from storage.failpoints import failpoint
from wire import codecs
from wire.errors import WireError
from wire.messages import Chunk, DeviceState, Fetch, Hello, Settled, Update, Verdict
from wire.schema import Vector
from wire.topics import Topics

log = logging.getLogger("aggregator")

_AT_ONCE = 64 * 2**20
"""Bytes of decoded updates that wait for one commit; one update may be more. Behind it, up to K wait for their step."""


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
        gate: Gate | None = None,
        encode_receipt: Encode | None = None,
        inputs: Inputs | None = None,
        statistics_factor: float | None = FACTOR,
    ) -> None:
        self._core, self._engine, self._shelf, self._topics = core, engine, shelf, topics
        self._put, self._tell = put, tell
        self._meters = meters or Meters()
        self._intake = Intake(
            UpdateReassembler(
                budget=memory,
                dropped=self._meters.dropped,
                progress=lambda device, done, total: tell("progress", device=device, way="up", done=done, total=total),
            )
        )
        self._gate = gate or open_gate(topics, self._meters.dropped, tell)
        self._encode_receipt = encode_receipt
        self._inputs, self._factor = inputs, statistics_factor
        self._off: tuple[tuple[str, str], ...] = ()
        """Devices whose statistics are off, as they were last told."""
        self._notices = StepNotices(tell)
        self._decoded: dict[int, tuple[Vector, Vector | None]] = {}
        """The deltas of updates, each with the sketch of its direction."""
        self._receipts = Receipts()
        """What the batch under way tells devices."""
        self.shell = Shell(core, self)
        """Asks the core, and carries out what it decides on this host."""
        self.reports = Reports()
        """What devices found on their own data."""
        self.devices: dict[str, Hello] = {}
        """The newest status of each device."""
        self._online = 0
        """How many of them are there."""

    def take_up(self, core: AggregatorCore, engine: Engine, shelf: Shelf) -> None:
        """Go on with what was rebuilt from the store, after a batch that could not be written."""
        self._core, self._engine, self._shelf = core, engine, shelf
        self.shell, self._receipts = Shell(core, self), Receipts()
        self._come_online(sum(hello.state.live for hello in self.devices.values()) - self._online, 0.0)
        self._compare_inputs(0.0)
        self._decoded.clear()

    def process(self, deliveries: Sequence[Delivery], now: float) -> None:
        """Take a batch in. When this returns, what it decided is durable and its receipts wait to be sent.

        It is done in portions where its updates together would be large: a few bytes can be a vector of megabytes.
        """
        actions: list[ev.Action] = []
        portion = max(1, _AT_ONCE // max(1, 4 * self._engine.model.schema.size))
        for delivery in deliveries:
            if len(self._decoded) >= portion:
                self.shell.carry_out(actions, now)
                actions = []
            try:
                read = self._read(delivery, now)
            except WireError as error:
                self._meters.dropped["malformed"] += 1
                self._tell("dropped", topic=delivery.topic, why=str(error))
                continue
            if isinstance(read, ev.Reply | ev.Grant):
                actions.append(read)  # decided on the way in: nothing is to be asked of the core
            elif read is not None:
                actions += self.shell.settle(read, now)
        self.shell.carry_out([*actions, *self._core.tick(now)], now)

    # ------------------------------------------------------------------- reading

    def _read(self, delivery: Delivery, now: float) -> ev.Event | ev.Reply | ev.Grant | None:
        origin = self._topics.origin(delivery.topic)
        try:
            match origin.sort:
                case "update":
                    return self._update(origin.device, delivery.payload, now)
                case "status":
                    return self._greeted(origin.device, delivery, now)
                case "report":
                    report = self._gate.report(origin.device, delivery.payload, now)
                    if report is not None and report.lineage == self._core.lineage:  # another's versions are not ours
                        self.reports.take(origin.device, report)
                        self._tell("report", device=origin.device, version=report.version, metrics=dict(report.metrics))
                    return None
        except WireError:
            self._gate.malformed(origin.device, now)
            raise

    def _update(self, device: str, payload: bytes, now: float) -> ev.Event | ev.Reply | ev.Grant | None:
        admitted = self._gate.update(device, payload, now, self._core.hi)
        if admitted is None or isinstance(admitted, ev.Reply):
            return admitted
        message, body = admitted
        event = self._intake.take(device, message, body, now)
        if isinstance(event, Update):
            return ev.Grant(device, event, self._core.hi(device, event.outbox))
        if isinstance(event, ev.Arrived) and isinstance(message, Chunk):
            reply = self._gate.whole(device, event.update, self._intake.body(event.key), self._core.hi)
            if reply is not None:
                self._intake.drop(event.key)
                return reply
        return event

    def _greeted(self, device: str, delivery: Delivery, now: float) -> ev.Event | ev.Reply | None:
        if not delivery.payload:
            self._leave(device, now)
            return None
        hello = self._gate.status(device, delivery.payload, now)
        if hello is None or hello.state is DeviceState.JOINING:
            return None
        greets = hello.state is DeviceState.READY and not delivery.retain
        answer = self._gate.greeting(device, hello, now) if greets else None
        if self._gate.withdrawn(device):
            if delivery.retain:
                self._put(Post(delivery.topic, b""))  # its name must not stay at the broker
            return answer
        before = self.devices.get(device)
        if before is None and len(self.devices) >= self._core.bounds.devices:
            raise WireError(f"more than {self._core.bounds.devices} devices have a status")
        self.devices[device] = hello
        if before is None or before.features != hello.features:
            self._hear_inputs(device, hello, now)
        alive = before is not None and before.state.live
        self._come_online(int(hello.state.live) - int(alive), now)
        if before is None or before.state is not hello.state:
            self._tell("device", device=device, state=hello.state.value)
        return answer

    def _leave(self, device: str, now: float) -> None:
        """Forget the status of a device."""
        gone = self.devices.pop(device, None)
        if gone is not None and gone.state.live:
            self._come_online(-1, now)
        if device in self._core.unlike:
            self._compare_inputs(now)

    def _come_online(self, devices: int, now: float) -> None:
        """Count devices that have come, or gone if it is negative."""
        self._online += devices
        self._core.handle(ev.DevicesOnline(self._online), now)

    def _hear_inputs(self, device: str, hello: Hello, now: float) -> None:
        """Follow what a device calls its inputs."""
        if self._inputs is None:
            return
        first = self._inputs.hear(device, hello.features)
        before = set(self._core.unlike)
        self._compare_inputs(now)
        if first:
            self._tell("features", features=list(self._core.features))
            self._put(self._shelf.announcement())
        for other in self._core.unlike.keys() - before:
            log.warning("Nothing is taken from %s: %s.", other, self._core.unlike[other])
            self._tell("unlike", device=other, why=self._core.unlike[other])

    def _compare_inputs(self, now: float) -> None:
        if self._inputs is not None:
            self._core.handle(ev.InputsCompared(self._inputs.names, self._inputs.unlike(self.devices)), now)

    def forget(self, device: str, now: float) -> None:
        """Drop what is here of a device, and what the broker keeps of it."""
        if self._inputs is not None:
            self._inputs.forget(device)
        self._leave(device, now)
        self._intake.reassembler.forget(device)
        self._gate.admission.forget(device)
        self.reports.forget(device)
        self._put(Post(self._topics.status(device), b""))

    def decode(self, action: ev.Decode, now: float) -> ev.Decoded | ev.Undecodable:  # noqa: ARG002 - of the shell's hook
        """Open an update's seal and decode it."""
        device, update, key = action.device, action.update, action.key
        self.reports.trained(device, update.seconds)
        try:
            update, body = self._gate.opened(device, update, self._intake.body(key))
            self._intake.replace(key, body)  # the journal keeps what can be decoded again without a key
            delta, norm = self._engine.model.decode(update, body)
        except codecs.NonFinite as error:
            return ev.Undecodable(device, update, key, Verdict.NON_FINITE, str(error))
        except WireError as error:
            return ev.Undecodable(device, update, key, Verdict.BAD_ENCODING, str(error))
        direction = self._engine.direction(self._core.strategy, delta, norm)
        self._decoded[key] = delta, direction
        return ev.Decoded(device, update, key, norm, self._engine.agreement(direction))

    # ------------------------------------------------------------ carrying out: the shell's host

    def commit(self, entries: Sequence[ev.Journal]) -> None:
        """Write records into the journal."""
        began = time.perf_counter()
        self._engine.store.commit([Entry(action.record, self._body(action)) for action in entries])
        self._meters.commit_seconds.observe(time.perf_counter() - began)

    def measure(self, lsns: Sequence[int]) -> ev.Measured:
        """Measure deltas on the model."""
        return ev.Measured(self._engine.measure(lsns))

    def announce(self) -> None:
        """Announce the newest version again."""
        self._put(self._shelf.announcement())

    def republish(self, fetch: Fetch) -> None:
        """Publish chunks of a frame again."""
        span = SERVED if fetch.channel == "serve" else fetch.span
        for post in self._shelf.again(fetch.version, span, fetch.parts):
            self._put(post)

    def drop(self, key: int) -> None:
        """Forget a body and what was decoded from it."""
        self._intake.drop(key)
        self._decoded.pop(key, None)

    def flush(self, now: float) -> None:
        """Put the receipts of the batch into the queue."""
        told, self._receipts = list(self._receipts.posts(self._topics, now, self._encode_receipt)), Receipts()
        if not told:
            return
        failpoint("receipts.before")
        for post in told:
            self._put(post)
        failpoint("receipts.handed_over")

    def examine(self, lsns: Sequence[int]) -> ev.Examined:
        """Judge statistics, and tell of devices that are not like the others."""
        names = {"input": self._core.features}
        event, found = self._engine.examine(lsns, self._core.moments, factor=self._factor, names=names)
        if found.off != self._off:
            self._off = found.off
            for device, why in found.off:
                log.warning("The statistics of %s are not like the others': %s", device, why)
                self._tell("statistics_off", device=device, why=why)
        if found.constant and not event.wait:
            log.warning("These channels never changed, and are not scaled: %s", ", ".join(found.constant[:20]))
            self._tell("statistics_constant", channels=list(found.constant))
        return event

    def _body(self, action: ev.Journal) -> bytes | memoryview | None:
        if action.noise:
            drawn = np.random.default_rng(secrets.randbits(256)).standard_normal(self._engine.model.schema.size)
            return (action.noise * drawn).astype("<f4").tobytes()
        return None if action.key is None else self._intake.body(action.key)

    def journaled(self, record: rec.Record, key: int | None, now: float) -> None:
        """Count and tell an update, and hold it for its step if it was accepted."""
        if not isinstance(record, rec.UpdateRecord):
            return
        self._gate.judged(record.device, record.verdict, now)
        self._meters.verdicts[record.verdict] += 1
        if record.verdict == Verdict.ACCEPTED:
            self._meters.staleness.observe(record.staleness)
            assert key is not None
            self._engine.hold(record, *self._decoded[key])
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

    def reply(self, device: str, outbox: int, hi: int, settled: Sequence[Settled]) -> None:
        """Add to a receipt; what left no record, repeats and refusals for now, is told here."""
        self._receipts.settle(device, outbox, hi, settled)
        for item in settled:
            if item.repeat:
                self._meters.verdicts["duplicate"] += 1
                self._tell("repeat", device=device, seq=item.seq, verdict=item.verdict.value)
            elif not item.verdict.final or item.verdict is Verdict.FORGOTTEN:
                self._meters.verdicts[item.verdict.value] += 1
                self._tell("held", device=device, seq=item.seq, verdict=item.verdict.value, why=item.why)

    def carry(self, record: rec.Record, now: float) -> None:
        """Carry a decision out on the model, store what it made, and publish it."""
        senders = self._engine.senders(record) if isinstance(record, rec.StepRecord) else ()
        new = self._engine.carry(record)
        match record:
            case rec.StepRecord():
                self._notices.step(record, senders, self._core.growth.damping, now)
                failpoint("step.applied")
            case rec.ReleaseRecord():
                failpoint("release.computed")
                self._shelf.add(new)
                failpoint("release.stored")
                announced = 0
                for post in self._shelf.release(new, now):
                    self._put(post)
                    announced = len(post.payload) if post.topic == self._topics.announcement() else announced
                step = min((len(frame.data) for frame in new if frame.version == record.version), default=0)
                self._core.handle(ev.ReleasePublished(announced, step), now)
                failpoint("release.handed_over")
                self._tell("release", version=record.version, step=record.step, devices=record.devices)
            case rec.ServeRecord():
                self._shelf.add(new)
                failpoint("serve.stored")
                for post in self._shelf.serve(now):
                    self._put(post)
                self._tell("serve", version=record.version, step=record.step)
            case rec.FreezeRecord():
                self._tell("freeze", devices=len(record.statistics))

    def grant(self, device: str, update: Update, hi: int, now: float) -> None:
        """Grant chunks of an update, or say why there is no room."""
        answer = self._intake.reassembler.grant(device, update, self._shelf.chunk, now)
        if isinstance(answer, Settled):
            self._receipts.settle(device, update.outbox, hi, (answer,))
        else:
            self._receipts.grant(device, update.outbox, hi, answer)
