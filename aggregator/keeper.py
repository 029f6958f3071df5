"""Keeps one federation: its store, its core and its model, from opening to closing, and through a full disk.

On a full disk nothing is decided any more. What was rebuilt from the store answers every update `busy`, so that each
stays with its device, and goes on by itself once the disk takes the ballast again.
"""

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from aggregator import events as ev
from aggregator.admission import Admission, Limits
from aggregator.core import AggregatorCore, Bounds
from aggregator.credentials import Credentials
from aggregator.engine import Engine, recover
from aggregator.export import write_model
from aggregator.forgetting import RETENTION, Names, asked, done, forget
from aggregator.gate import Gate
from aggregator.inputs import Inputs
from aggregator.issuing import Issuer
from aggregator.meters import Meters
from aggregator.model import Model
from aggregator.outgoing import Post
from aggregator.processor import Processor
from aggregator.shelf import Shelf
from aggregator.statistics import FACTOR
from aggregator.store import Store, StoreError, StoreFull
from aggregator.strategy import Strategy
from broker.connection import Delivery
from storage.failpoints import failpoint
from wire import chunks
from wire.messages import Moment
from wire.schema import Parameters, Schema, Tensor
from wire.topics import Topics

log = logging.getLogger("aggregator")

CHECKPOINT_RECORDS = 1000
CHECKPOINT_SECONDS = 300.0
_QUICK = 100.0
"""Records a second from which on checkpoints go by the clock, for all that comes waits while one is written: of 1,000
records, one in ten seconds …"""
_MOST = 10
"""… while at most this many times the records have come: a restart has to go through them."""
_LOOK_FOR_REQUESTS = 2.0
"""Seconds between two looks whether somebody wants a device to be forgotten."""
_LOOK_FOR_SILENCE = 3600.0
"""Seconds between two looks whether a device has been silent for as long as names are kept."""
_LOOK_FOR_ROOM = 5.0
"""Seconds between two looks whether the disk has room again."""


class Keeper:
    """The federation's memory and decisions. One thread calls it; it knows no connection.

    Args:
        store: not yet open.
        initial: the model to begin with where the store is new.
        schema: of that model.
        strategy: decides from now on.
        topics: of the federation.
        moments: the statistics to ask for.
        statistics: how many devices' statistics are pooled, and after how many seconds fewer do.
        statistics_factor: how far apart devices' statistics may be: `aggregator.statistics.FACTOR`; None is any way.
        features: names of the model's inputs; none at all: they are not compared; None: they are learned.
        chunk: bytes of a chunk's body.
        memory: bytes for updates that come in chunks.
        checkpoint_records: records after which a checkpoint is written.
        put: takes what is to be published.
        tell: called with each event.
        meters: where to count.
        issuer: signs what is published.
        credentials: whose message a message is.
        limits: who may send how much.
        retention: seconds without a word after which what names a device is erased, where nothing of it can be needed
            any more; None keeps it.
        raise_epoch: begin a higher epoch: devices that trust a key follow to a lower version, or to another lineage.
    """

    def __init__(
        self,
        store: Store,
        initial: Parameters,
        schema: Schema,
        strategy: Strategy,
        topics: Topics,
        *,
        moments: Sequence[Moment],
        statistics: tuple[int, float],
        chunk: int,
        memory: int,
        checkpoint_records: int = CHECKPOINT_RECORDS,
        put: Callable[[Post], None],
        tell: Callable[..., None],
        meters: Meters,
        issuer: Issuer | None = None,
        credentials: Credentials | None = None,
        limits: Limits | None = None,
        retention: float | None = RETENTION,
        raise_epoch: bool = False,
        statistics_factor: float | None = FACTOR,
        features: Sequence[str] | None = None,
    ) -> None:
        self.store = store
        self._initial, self._schema, self._strategy, self._topics = initial, schema, strategy, topics
        self._moments, self._statistics = tuple(moments), statistics
        self._statistics_factor, self.features = statistics_factor, features
        self._chunk, self._memory = chunk, memory
        self._fitting = chunk
        self._checkpoint_records = checkpoint_records
        self._put, self._tell, self._meters = put, tell, meters
        self.issuer = issuer or Issuer(topics)
        self._credentials = credentials or Credentials(topics)
        self._limits = limits or Limits()
        self._retention, self._raise_epoch = retention, raise_epoch
        self._checkpointed = (0, 0.0)
        self._looked_for_room = 0.0
        self._looked_for_requests = self._looked_for_silence = -math.inf

    # ---------------------------------------------------------- opening and closing

    def open(self, now: float) -> None:
        """Lock the store and rebuild what it holds, or begin a lineage in it.

        Raises:
            StoreError: it cannot be used, or holds a model of other tensors.
        """
        self.store.__enter__()
        try:
            self._begin_or_go_on()
        except BaseException:
            self.store.close()
            raise
        self._checkpointed = (self.core.lsn, now)
        gate = Gate(
            Admission(self._limits),
            self._credentials,
            withdrawn=self.names.withdrawn,
            heard=self.names.heard,
            dropped=self._meters.dropped,
            tell=self._tell,
        )
        self.processor = Processor(
            self.core,
            self.engine,
            self.shelf,
            self._topics,
            put=self._put,
            tell=self._tell,
            memory=self._memory,
            meters=self._meters,
            gate=gate,
            encode_receipt=self.issuer.receipt,
            inputs=self._inputs,
            statistics_factor=self._statistics_factor,
        )

    def _begin_or_go_on(self) -> None:
        fresh = self.store.empty
        if self.store.schema is None:
            self.store.create(self._schema)
            failpoint("store.created")
        elif self.store.schema != self._schema:
            raise StoreError(
                f"The store {self.store.directory} holds another model: "
                f"{_difference(self.store.schema, self._schema)}. Name another store, or give the model that it "
                "was made with."
            )
        if fresh:
            Engine(Model.of(self._initial, self._schema), self.store).checkpoint(self._new_core())
        if not self.store.has_room():
            raise StoreFull(f"The disk of the store {self.store.directory} is full: make room and start again.")
        self.names = Names(self.store)
        self.issuer.epoch = self.store.constant("epoch", _milliseconds)
        if self._raise_epoch:
            self.raise_epoch(self.issuer.epoch + 1)
        self._inputs = Inputs(self.store, self.features, inputs_of(self._schema))
        self._rebuild()
        if not self.core.frozen and not self._moments:
            raise StoreError(
                f"The model in {self.store.directory} waits for statistics of the devices' data, and the aggregator "
                "asks for none: give midge.Aggregator(moments=…) as before."
            )
        self.engine.write_replayed()

    def _new_core(self) -> AggregatorCore:
        return AggregatorCore(
            self._strategy,
            lineage=self.store.lineage,
            schema_hash=self._schema.hash,
            moments=self._moments,
            statistics_devices=self._statistics[0],
            statistics_deadline=self._statistics[1],
            bounds=Bounds.of(self._schema),
        )

    def _rebuild(self) -> None:
        core = self._new_core()
        engine = recover(core, self.store, self._schema)
        core.handle(ev.InputsCompared(self._inputs.names), 0.0)
        stepping_back = self._strategy.form == "mixing"
        self.core, self.engine = core, engine
        self.shelf = Shelf(
            engine,
            core,
            self._topics,
            chunk=self._fitting,
            stepping_back=stepping_back,
            encode=self.issuer.announcement,
        )

    def use(self, issuer: Issuer, credentials: Credentials, *, raise_epoch: bool) -> None:
        """Sign and believe otherwise than was said at first; before `open`."""
        self.issuer, self._credentials, self._raise_epoch = issuer, credentials, raise_epoch

    def raise_epoch(self, least: int) -> None:
        """Announce in this epoch, or a higher one, from now on: the time, which only grows."""
        self.issuer.epoch = max(least, _milliseconds())
        self.store.set_constant("epoch", self.issuer.epoch)

    def close(self, *, failed: bool = False) -> None:
        """Write a checkpoint and let the store go.

        Without the checkpoint where something had failed: the core may have decided what was not written or not carried
        out, and the journal has what counts.
        """
        try:
            if not failed:
                self.names.write_heard(time.time(), self.core.version)
                if self.core.lsn > self._checkpointed[0]:
                    self.engine.checkpoint(self.core)
        except StoreFull as error:
            log.warning("%s No checkpoint was written; the journal has everything.", error)
        finally:
            self.store.close()

    def export(self, path: str | Path) -> None:
        """Write the exact model as safetensors."""
        about = {
            "federation": self._topics.federation,
            "lineage": self.core.lineage.hex(),
            "generation": str(self.core.generation),
            "version": str(self.core.version),
            "step": str(self.core.step),
        }
        write_model(path, self.engine.model.parameters(), about)

    def fit_chunks(self, largest: int | None) -> None:
        """Cut chunks so that they fit a broker that takes at most this many bytes of body; None sets no limit."""
        self._fitting = chunks.fitting(self._chunk, largest)
        self.shelf.chunk = self._fitting

    # --------------------------------------------------------------------- working

    def begin(self, now: float) -> None:
        """What is due at the start of the process: the first release, an overdue step."""
        strategy = self.core.note_strategy(repr(asdict(self._strategy)))
        self.processor.shell.carry_out(strategy + self.core.start(now), now)

    def begin_generation(self, generation: int, version: int, now: float) -> None:
        """Go on above a version that devices know and this store does not."""
        self.processor.shell.carry_out(self.core.begin_generation(generation, version, now), now)

    def process(self, deliveries: Sequence[Delivery], now: float) -> None:
        """Take a batch in. When this returns it is durable, or has been refused for now."""
        try:
            self.processor.process(deliveries, now)
        except StoreFull as error:
            self._run_full(str(error), now)
            self.processor.process(deliveries, now)  # what was written is a repeat now, the rest is held
        self._tend(now)

    def withdrawn(self, frame: tuple[int, int], now: float) -> None:
        """This frame is off the broker."""
        try:
            self.shelf.withdrawn([frame])
        except StoreFull as error:
            self._run_full(str(error), now)

    def _tend(self, now: float) -> None:
        """Announcements that grow old, checkpoints, what is to be forgotten, and the end of a full disk."""
        if self.issuer.overdue:
            self._put(self.shelf.announcement())
        if self.core.full is not None:
            if now - self._looked_for_room >= _LOOK_FOR_ROOM:
                self._looked_for_room = now
                self._look_for_room(now)
            return
        for post in self.shelf.overdue(now):
            self._put(post)
        lsn, since = self._checkpointed
        new = self.core.lsn - lsn
        try:
            quick = now - since < self._checkpoint_records / _QUICK
            many = new >= self._checkpoint_records * (_MOST if quick else 1)
            if many or (new and now - since >= CHECKPOINT_SECONDS):
                self.names.write_heard(time.time(), self.core.version)
                self.engine.checkpoint(self.core)
                self._checkpointed = (self.core.lsn, now)
            if now - self._looked_for_requests >= _LOOK_FOR_REQUESTS:
                self._looked_for_requests = now
                self._forget_asked(now)
            if now - self._looked_for_silence >= _LOOK_FOR_SILENCE:
                self._looked_for_silence = now
                self._forget_silent(now)
        except StoreFull as error:
            self._run_full(str(error), now)

    def _forget_asked(self, now: float) -> None:
        """Take up what was asked for in the store's directory: refuse at once, erase when no update waits any more."""
        for request in asked(self.store.directory):
            if self.names.withdraw(request.device):
                self.names.audit("withdrawn", request.device, request.by)
                self.processor.forget(request.device, now)
                self._tell("withdrawn", device=request.device)
            if not self.core.waits(request.device):
                counted = self._forget([request.device], now)
                self.names.audit("erased", request.device, request.by, **counted)
                done(self.store.directory, request.device)
                self._tell("erased", device=self.names.alias(request.device), **counted)

    def _forget_silent(self, now: float) -> None:
        if self._retention is None or self.core.strategy.privacy is not None:
            return  # a private budget is spent for ever, so who spent it is known for ever
        silent = self.names.silent(time.time() - self._retention, self.core.oldest_base)
        silent = [device for device in silent if not self.core.waits(device)]
        if silent:
            counted = self._forget(silent, now)
            for device in silent:
                self.names.audit("erased after silence", device, "retention")
            self._tell("silent", devices=len(silent), **counted)

    def _forget(self, devices: Sequence[str], now: float) -> Counter[str]:
        counted = forget(self.engine, self.core, self.names, devices)
        self._checkpointed = (self.core.lsn, now)
        for device in devices:
            self.processor.forget(device, now)
        return counted

    def _run_full(self, why: str, now: float) -> None:
        """Go back to what is on the disk, and decide nothing until there is room."""
        log.warning("%s Updates stay with their devices until there is room.", why)
        self.store.make_room()
        self._rebuild()
        self.core.handle(ev.StoreFilled(why), now)
        self.processor.take_up(self.core, self.engine, self.shelf)
        self._looked_for_room = now
        self._tell("full", why=why)

    def _look_for_room(self, now: float) -> None:
        if not self.store.has_room():
            return
        try:
            self.engine.write_replayed()
            self.core.handle(ev.StoreWritable(), now)
            self.processor.shell.carry_out(self.core.start(now), now)
        except StoreFull as error:
            self._run_full(str(error), now)
            return
        log.warning("The disk has room again: updates are taken in.")
        self._tell("room")
        for post in self.shelf.everything():
            self._put(post)

    @property
    def hold(self) -> str | None:
        """Why nothing is taken in; None where everything is."""
        return self.core.full or self.core.paused


def inputs_of(schema: Schema) -> int | None:
    """How many inputs the model has, if its normalisation says so."""
    return next((tensor.size for tensor in schema.frozen if tensor.name == "input_mean"), None)


def _milliseconds() -> int:
    """Since 1970."""
    return int(1000 * time.time())


def _difference(theirs: Schema, ours: Schema) -> str:
    def described(tensor: Tensor | None) -> str:
        return "absent" if tensor is None else f"{tensor.role} {tensor.shape} {tensor.dtype}"

    there = {tensor.name: tensor for tensor in theirs.tensors}
    here = {tensor.name: tensor for tensor in ours.tensors}
    for name in [*there, *here]:
        if there.get(name) != here.get(name):
            return f"{name} is {described(there.get(name))} there and {described(here.get(name))} here"
    return "its tensors come in another order"
