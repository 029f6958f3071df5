"""Processing of deliveries, one batch at a time, into durable decisions and outgoing messages.

`process` takes a batch; the shell (`aggregator.shell`) asks the core, commits and executes, with the processor as its
host: store, model and queue. It knows no connection and no event loop; one thread calls it.
"""

import hashlib
import logging
import secrets
import time
from collections.abc import Sequence

import numpy as np

from midge.aggregator.core import events as ev
from midge.aggregator.core import records as rec
from midge.aggregator.core.core import AggregatorCore
from midge.aggregator.core.encoder_doubt import NO_FEEDBACK
from midge.aggregator.core.update_admission import OTHER_BASE
from midge.aggregator.delivery_reader import DeliveryReader
from midge.aggregator.engine import Engine
from midge.aggregator.ingress.filter import IngressFilter
from midge.aggregator.ingress.roster import Roster
from midge.aggregator.observations import Observations
from midge.aggregator.publish.model_publisher import ModelPublisher
from midge.aggregator.publish.outlet import Outlet
from midge.aggregator.publish.part_fitting import PartFitting, span
from midge.aggregator.publish.publish_queue import Post
from midge.aggregator.publish.receipts import Encode, Receipts
from midge.aggregator.shell import AggregatorShell
from midge.aggregator.store.store import Entry
from midge.broker.mqtt.connection import Delivery
from midge.storage.failpoints import failpoint
from midge.wire import codecs, frames
from midge.wire.errors import WireError
from midge.wire.messages import Fetch, Settled, Update, Verdict
from midge.wire.noise import rounded_gaussian
from midge.wire.topics import Topics

log = logging.getLogger("aggregator")

_AT_ONCE = 10 * 2**20
"""Most bytes of decoded updates that wait for one commit, unless a single one is larger; after it, up to K wait for
their step. More would save little: a commit takes some milliseconds, as does the decoding of one megabyte."""


class Processor:
    """One federation's decisions, made durable and executed.

    Args:
        engine: the model and its store.
        shelf: publishes what the engine makes; it belongs to the same core.
        topics: of the federation.
        ingress: checks messages.
        roster: the devices' statuses.
        outlet: takes messages and events.
        encode_receipt: signs receipts; None leaves them unsigned.
        observed: state of an earlier processor of the same process; None if there was none.
    """

    def __init__(
        self,
        engine: Engine,
        shelf: ModelPublisher,
        topics: Topics,
        *,
        ingress: IngressFilter,
        roster: Roster,
        outlet: Outlet,
        encode_receipt: Encode | None = None,
        observed: Observations | None = None,
    ) -> None:
        self._engine, self._shelf, self._topics = engine, shelf, topics
        self._ingress, self._roster, self._outlet = ingress, roster, outlet
        self._bodies = ingress.bodies
        self._encode_receipt = encode_receipt
        self._observed = observed or Observations(outlet.tell)
        self._now = 0.0
        """Arrival time of the current batch."""
        self._core: AggregatorCore = shelf.core
        ingress.admission.proven = roster.known = self._core.contributed
        self.fitting = PartFitting(shelf, ingress, roster, outlet)
        self.reader = DeliveryReader(
            self._core,
            topics,
            ingress=ingress,
            roster=roster,
            outlet=outlet,
            observed=self._observed,
            announce=self.announce,
        )
        self._receipts = Receipts()
        """Receipts of the current batch."""
        self.shell = AggregatorShell(self._core, self)
        """Asks the core, and executes its decisions on this host."""
        self._portion = max(1, _AT_ONCE // max(1, 4 * engine.model.schema.size))
        """Most updates whose deltas may wait for one commit."""
        # Bodies read for an earlier core were not decided on: their messages are read again, or retransmitted.
        self._bodies.clear()
        # A new core knows no conditions, and the roster reports only changes of them.
        for event in roster.conditions():
            self._core.handle(event, 0.0)

    def process(self, deliveries: Sequence[Delivery], now: float) -> None:
        """Process a batch. When this returns, its decisions are durable and its receipts are queued.

        It is split if its updates together would be large: a few bytes can decode to megabytes.
        """
        actions: list[ev.Action] = []
        self._now = now
        clock, admission = time.thread_time, self._ingress.admission
        began = clock()
        for delivery in deliveries:
            if self._bodies.decoded >= self._portion:
                self.shell.carry_out(actions, now)
                actions, began = [], clock()
            actions += self._take(delivery, now)
            # One reading ends a message and begins the next: it is a system call.
            ended = clock()
            admission.worked(delivery.topic.rsplit("/", 1)[-1], ended - began, now)
            began = ended
        self.shell.carry_out([*actions, *self._core.tick(now)], now)

    def _take(self, delivery: Delivery, now: float) -> Sequence[ev.Action]:
        """Process one delivery."""
        read = self.reader.read(delivery, now)
        if isinstance(read, ev.FetchAsked):
            read = self.fitting.asked(read, now)
        if isinstance(read, ev.ProofAsked):
            self._prove(read, now)
            return ()
        if isinstance(read, ev.Reply | ev.GrantChunks):
            return (read,)  # decided by the ingress filter
        return () if read is None else self.shell.settle(read, now)

    def _prove(self, read: ev.ProofAsked, now: float) -> None:
        """Answer a device that requests the proof of an update. Not signed: the announced root proves it."""
        answer = frames.encode(self._engine.store.ledger.prove(read.device, read.asked))
        if self._ingress.admission.publishes(read.device, len(answer), now):
            self._outlet.put(Post(self._topics.receipt(read.device), answer, retain=False))
        else:
            self._outlet.meters.dropped["over rate"] += 1

    def forget(self, device: str, now: float) -> None:
        """Remove everything about a device, here and at the broker."""
        self.reader.follow(self._roster.forget(device), now)
        self._ingress.forget(device)
        self._observed.forget(device)
        self._outlet.put(Post(self._topics.status(device), b""))

    # --------------------------------------------------------------- the shell's host

    def decode(self, action: ev.Decode, now: float) -> ev.Decoded | ev.Undecodable:
        """Open an update's seal and decode it."""
        device, update, key = action.device, action.update, action.key
        body = self._bodies[key]
        try:
            update = self._ingress.unseal(device, update, body)
            self._observed.reports.trained(device, update.seconds)
            delta, norm = self._engine.decode(update, body.raw, self._core.strategy.plan.masking)
            if delta is None:
                return ev.Decoded(device, update, key, norm)
            if not update.feedback and self._core.strategy.plan.feedback:
                self._see_encoder(device, update.codec, now, NO_FEEDBACK)
        except codecs.NonFinite as error:
            return ev.Undecodable(device, update, key, Verdict.NON_FINITE, str(error))
        except WireError as error:
            return ev.Undecodable(device, update, key, Verdict.BAD_ENCODING, str(error))
        mean = delta
        if update.accepted:  # a site is judged by the mean of its devices
            mass = np.float32(update.weight)
            mean, norm = delta / mass, norm / float(mass)
        # Compared now: once held for its step, it would be part of the consensus that it is compared with.
        direction = self._engine.direction(self._core.strategy, mean)
        self._bodies.decode(key, delta, direction)
        content = hashlib.blake2b(delta.tobytes(), digest_size=8).digest() if self._core.strategy.hides else b""
        return ev.Decoded(device, update, key, norm, self._engine.agreement(direction), content)

    def commit(self, entries: Sequence[ev.Journal]) -> None:
        """Write records to the journal."""
        began = time.perf_counter()
        self._engine.store.commit([Entry(entry.record, self._body(entry), self._site(entry)) for entry in entries])
        self._outlet.meters.commit_seconds.observe(time.perf_counter() - began)

    def _body(self, entry: ev.Journal) -> bytes | memoryview | None:
        if entry.noise:
            # From the operating system's cryptographic generator: predictable noise could be subtracted again.
            return (
                rounded_gaussian(entry.noise, self._engine.model.schema.size, secrets.token_bytes)
                .astype("<i4")
                .tobytes()
            )
        return None if entry.key is None else self._bodies[entry.key].raw

    def _site(self, entry: ev.Journal) -> memoryview | None:
        return None if entry.key is None else self._bodies[entry.key].site

    def journaled(self, record: rec.Record, key: int | None, now: float) -> None:
        """Count and report an update, and hold it for its step if it was accepted."""
        if isinstance(record, rec.StatisticsRecord):
            self._ingress.known.heard(record.device)
        if isinstance(record, rec.PaceRecord):
            self._observed.notices.pace(record)
        if not isinstance(record, rec.UpdateRecord):
            return
        meters = self._outlet.meters
        self._ingress.judged(record.device, record.verdict, now)
        meters.verdicts[record.verdict] += 1
        self._observed.settled(record.device, record.verdict, record.why, now, record.base)
        if record.why == OTHER_BASE:
            log.warning("%s trained from a model that is not our version %d.", record.device, record.base)
            self._outlet.tell("other_base", device=record.device, version=record.base)
        if record.verdict == Verdict.ACCEPTED:
            meters.staleness.observe(record.staleness)
            assert key is not None
            body = self._bodies[key]
            if body.delta is not None:  # otherwise it is masked, and only its sum with others can be decoded
                self._engine.hold(record, body.delta, body.direction)
                self._see_encoder(record.device, record.codec, now)
        _tell_verdict(record, self._outlet)

    def _see_encoder(self, device: str, codec: str, now: float, why: str = "") -> None:
        """Tell a device that its encoder is suspect, if its codec needs error feedback."""
        needed: bool = codecs.parse(codec).feedback
        why = why or (self._core.encoder_doubt(device, now) if needed else "")
        if needed and why and self._ingress.troubles.tell(device, why, now):
            log.warning("%s: %s.", device, why)
            self._outlet.tell("encoder", device=device, codec=codec, why=why)

    def carry(self, record: rec.Record, now: float) -> None:
        """Execute a decision on the model, store the result, and publish it."""
        # Before the step, which drops its updates.
        senders = self._engine.senders(record) if isinstance(record, rec.StepRecord) else ()
        new = self._engine.carry(record)
        put, tell = self._outlet.put, self._outlet.tell
        match record:
            case rec.StepRecord():
                self._observed.notices.step(record, senders, self._core.growth.damping, now)
                self._observed.notices.mixing(self._core.strategy, self._core.steering.live)
                failpoint("step.applied")
            case rec.ReleaseRecord():
                failpoint("release.computed")
                digest = self._engine.model.state.digest()
                self._core.handle(ev.ReleaseCarried(record.version, digest), now)
                self._engine.store.note_release(record, self._core.generation, digest)
                # Stored before it is published: a frame that only the broker knows could never be removed there.
                self._shelf.add(new)
                failpoint("release.stored")
                announced = 0
                for post in self._shelf.release(new, now):
                    put(post)
                    announced = len(post.payload) if post.topic == self._topics.announcement() else announced
                # Most devices fetch the smallest frame of a version, so the pacing uses its size.
                step = min((len(frame.data) for frame in new if frame.version == record.version), default=0)
                self._core.handle(ev.ReleasePublished(announced, step), now)
                failpoint("release.handed_over")
                tell("release", version=record.version, step=record.step, devices=record.devices)
            case rec.ServeRecord():
                self._shelf.add(new)
                failpoint("serve.stored")
                for post in self._shelf.serve(now):
                    put(post)
                tell("serve", version=record.version, step=record.step)
            case rec.RegisterRecord() | rec.AliasRecord() | rec.RollbackRecord():
                self._engine.replayed(new)
                _publish_registered(record, self._engine, self._shelf, self._outlet, now)
            case rec.DropRecord():
                self._outlet.meters.dropped[record.why] += len(record.dropped)
            case rec.FreezeRecord():
                tell("freeze", devices=len(record.statistics))

    def measure(self, lsns: Sequence[int]) -> ev.Measured:
        """Measure deltas on the model."""
        return ev.Measured(self._engine.measure(lsns))

    def examine(self, lsns: Sequence[int]) -> ev.Examined:
        """Examine statistics, and report outliers."""
        core, tell, names = self._core, self._outlet.tell, {"input": self._core.features}
        event, finding = self._engine.examine(lsns, core.moments, factor=core.statistics_factor, names=names)
        if (finding.off, finding.limited) != self._observed.off:
            self._observed.off = finding.off, finding.limited
            for device, why in finding.off:
                log.warning("The statistics of %s are not like the others': %s", device, why)
                tell("statistics_off", device=device, why=why)
            for device, why in finding.limited:
                log.warning("The statistics of %s are unlike the others' and count with a limit: %s", device, why)
                tell("statistics_limited", device=device, why=why)
        if finding.constant and not event.wait:
            log.warning("These channels never changed, and are not scaled: %s", ", ".join(finding.constant[:20]))
            tell("statistics_constant", channels=list(finding.constant))
        return event

    def announce(self) -> None:
        """Announce the newest version again."""
        self._outlet.put(self._shelf.announcement())

    def republish(self, fetch: Fetch) -> None:
        """Publish chunks of a frame again."""
        for post in self._shelf.again(fetch.version, span(fetch), fetch.parts):
            self._outlet.put(post)

    def reply(self, device: str, outbox: int, hi: int, settled: Sequence[Settled]) -> None:
        """Add to a receipt; verdicts without a record, duplicates and temporary refusals, are reported here."""
        self._receipts.settle(device, outbox, hi, settled)
        verdicts = self._outlet.meters.verdicts
        for item in settled:
            if item.repeat:
                verdicts["duplicate"] += 1
                self._outlet.tell("repeat", device=device, seq=item.seq, verdict=item.verdict.value)
            elif not item.verdict.final or item.verdict is Verdict.FORGOTTEN:
                verdicts[item.verdict.value] += 1
                self._observed.settled(device, item.verdict.value, item.why, self._now)
                self._outlet.tell("held", device=device, seq=item.seq, verdict=item.verdict.value, why=item.why)

    def grant(self, device: str, update: Update, hi: int, now: float) -> None:
        """Grant chunks of an update, or answer that there is no room."""
        # The offered update may have been settled by its last chunks in the same batch: its room would stay reserved.
        if self._core.hi(device, update.outbox) >= update.seq:
            return
        answer = self._ingress.reassembler.grant(device, update, self._shelf.chunk, now)
        if isinstance(answer, Settled):
            self._receipts.settle(device, update.outbox, hi, (answer,))
        else:
            self._receipts.grant(device, update.outbox, hi, answer)

    def drop(self, key: int) -> None:
        """Drop a body and its decoded delta."""
        self._bodies.drop(key)

    def flush(self, now: float) -> None:
        """Queue the receipts of the batch."""
        posts, self._receipts = list(self._receipts.posts(self._topics, now, self._encode_receipt)), Receipts()
        if not posts:
            return
        failpoint("receipts.before")
        for post in posts:
            self._outlet.put(post)
        failpoint("receipts.handed_over")


def _tell_verdict(record: rec.UpdateRecord, outlet: Outlet) -> None:
    """Report the verdict on an update."""
    outlet.tell(
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


def _publish_registered(
    record: rec.RegisterRecord | rec.AliasRecord | rec.RollbackRecord,
    engine: Engine,
    shelf: ModelPublisher,
    outlet: Outlet,
    now: float,
) -> None:
    """Store a registered version, or publish what names stand for."""
    if isinstance(record, rec.RegisterRecord):
        engine.write_replayed()
        failpoint("registered.stored")
        outlet.tell("registered", version=record.version, by=record.by, pruned=list(record.pruned))
        return
    for post in shelf.named(now):
        outlet.put(post)
    failpoint("alias.handed_over")
    registry = shelf.core.registry
    outlet.tell(
        "alias",
        champion=registry.champion,
        candidate=registry.candidate,
        share=registry.share,
        where=dict(registry.where),
        why=record.why,
        by=record.by,
        rolled_back=record.to if isinstance(record, rec.RollbackRecord) else None,
    )
