"""One federation at run time: its store, core, model and ingress checks, and the recovery from a full disk.

On a full disk nothing is decided. The state is rebuilt from the store, and every update is refused with `busy`, so that
it stays with its device. Operation resumes once the disk has room for the reserved space again.
"""

import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from midge.aggregator.config import AggregatorConfig
from midge.aggregator.core import events as ev
from midge.aggregator.core.core import AggregatorCore, Bounds
from midge.aggregator.core.inputs import Inputs
from midge.aggregator.engine import Engine, recover
from midge.aggregator.helper_link import HelperLink
from midge.aggregator.ingress.authentication import Credentials
from midge.aggregator.ingress.filter import Bodies, IngressFilter
from midge.aggregator.ingress.rate_limits import Admission
from midge.aggregator.ingress.reassembly import UpdateReassembler
from midge.aggregator.ingress.roster import Roster
from midge.aggregator.ingress.sealing_keys import KEYS, SealingKeys
from midge.aggregator.issuing import IssuedNumbers
from midge.aggregator.metrics.credential_alarms import CredentialAlarms
from midge.aggregator.metrics.device_activity import DeviceActivity
from midge.aggregator.metrics.device_metrics import Reports
from midge.aggregator.metrics.history_recorder import HistoryRecorder
from midge.aggregator.metrics.usual_pace import UsualPace
from midge.aggregator.metrics.watchdog import FleetSituation, Watchdog
from midge.aggregator.model.export import write_model
from midge.aggregator.observations import Observations
from midge.aggregator.opening import begin_or_resume, new_core
from midge.aggregator.presence import DevicePresence
from midge.aggregator.processor import Processor
from midge.aggregator.publish.announcement_signer import AnnouncementSigner
from midge.aggregator.publish.model_publisher import ModelPublisher
from midge.aggregator.publish.notices import StrangerEvents
from midge.aggregator.publish.outlet import Outlet
from midge.aggregator.publish.part_sizes import PartSizes
from midge.aggregator.publish.publish_queue import Post
from midge.aggregator.publish.vouching import AnnouncementVouching
from midge.aggregator.registry.keeper import RegistryKeeper
from midge.aggregator.revocations import Revocations
from midge.aggregator.shards import Shards
from midge.aggregator.store.device_erasure import Names
from midge.aggregator.store.put_back import marked, unmark
from midge.aggregator.store.store import Store, StoreError, StoreFull
from midge.aggregator.upkeep import Upkeep
from midge.broker.mqtt.connection import Delivery
from midge.wire import chunks
from midge.wire.messages import DeviceState, Hello

log = logging.getLogger("aggregator")

_LOOK_FOR_ROOM = 5.0
"""Seconds between two checks whether the disk has room again."""


class FederationRuntime:
    """A federation from opening its store to closing it. One thread calls it; it knows no connection.

    What the store rebuilds (core, engine, publisher, processor) is created here and again after a full disk; what
    belongs to the devices (ingress, roster, observations) is kept.

    Args:
        config: of the federation.
        outlet: takes messages and events.
        now: seconds of a monotonic clock.
        issuer: signs messages; None signs nothing.
        credentials: authenticates messages; None trusts every name.
        store: replaces the store in the config; not yet open.

    Raises:
        StoreError: the store cannot be used, or holds a model of other tensors.
    """

    def __init__(
        self,
        config: AggregatorConfig,
        outlet: Outlet,
        now: float,
        *,
        issuer: AnnouncementSigner | None = None,
        credentials: Credentials | None = None,
        store: Store | None = None,
    ) -> None:
        # Events of unknown devices are rate limited; which devices are known is set below.
        events = StrangerEvents(outlet.tell, time.monotonic)
        outlet = replace(outlet, tell=events)
        self._outlet = outlet
        self.issuer = issuer or AnnouncementSigner(config.topics)
        self._chunk = config.chunk
        self._looked_for_room = 0.0
        self.store = (store or Store(config.directory)).__enter__()
        try:
            self.config = config = begin_or_resume(self.store, config)
            self.names = Names(self.store)
            self.revocations = Revocations(self.names, self.issuer, outlet)
            self._restored = marked(self.store)
            self.issued = IssuedNumbers(self.issuer, self.store, outlet, raise_epoch=config.raise_epoch)
            if self.issuer.signs and self.issuer.seals:
                self.issuer.daily = SealingKeys(
                    self.store.directory / KEYS, self.issuer.dating.now, hybrid=config.post_quantum
                )
            key = () if config.release_key is None else (Path(config.release_key),)
            self.credential_alarms = CredentialAlarms((*config.credential_files, *key), self.issuer.dating.now)
            # Measured once for the life of the process: a clock that is set meanwhile must not move journaled times.
            self._ahead = self.issuer.dating.now() - now
            inputs = Inputs(self.store, config.features, config.inputs)
            self._roster = Roster(
                inputs, outlet, Bounds().devices, PartSizes(config.smallest_chunk, config.largest_part)
            )
            self._roster.is_site = Bounds(sites=tuple(config.sites)).is_site
            self.shards = Shards(config.shards)
            if self.shards.number:
                self._roster.is_shard = self.shards.is_shard
            self._observed = Observations(outlet.tell, Bounds().devices)
            self.presence = DevicePresence(self._roster.devices, self._observed.activity)
            self._pace = UsualPace(self.store)
            self.watchdog = Watchdog(self._observed.activity, now, self._pace.interval, self._pace.training)
            self.history = HistoryRecorder(self.store, outlet.meters, self.issuer.dating.now, now)
            self.admission = Admission(config.limits)
            self._ingress = IngressFilter(
                self.admission,
                credentials or Credentials(config.topics),
                self.names,
                reassembler=UpdateReassembler(
                    budget=config.memory, dropped=outlet.meters.dropped, progress=partial(_tell_progress, outlet)
                ),
                bodies=Bodies(),
                outlet=outlet,
                encode_trouble=self.issuer.trouble,
            )
            self._ingress.credentials.daily = self.issuer.daily
            if self.shards.number:
                self._ingress.answers = self.admission.exempt = self.shards.is_shard
            self.registry = RegistryKeeper(
                config.registry,
                self._observed,
                self._ingress.bodies,
                outlet,
                self.issuer,
                devices=self._roster.devices,
            )
            self.issuer.verifies = self._roster.verifies
            self.issuer.secret = self._ingress.credentials.secret
            self._vouching = AnnouncementVouching(self.issuer, self._roster, config.topics, outlet.put)
            self.core, self.engine, self.shelf, self.processor = self._rebuilt()
            events.known = self.admission.knows
            _see_it_asks_for_statistics(self.core, config, self.store)
            self.engine.repair(self.core)
        except BaseException:
            self.store.close()
            raise
        self.helper = (
            None
            if config.helper_key is None
            else HelperLink(config.topics, config.helper_key, self.issuer, self._ingress.bodies, outlet)
        )
        """The link to the mask helper; None if there is none."""
        self.more_alarms: list[Callable[[], Sequence[str]]] = []
        """Alarms of what this runtime does not know, such as a standby."""
        self.upkeep = Upkeep(self.names, outlet, self.core.lsn, now, config, wall=self.issuer.dating.now)

    # ------------------------------------------------------------ opening and closing

    def _rebuilt(self) -> tuple[AggregatorCore, Engine, ModelPublisher, Processor]:
        """The state of the store, complete, without anything from memory."""
        config, core = self.config, new_core(self.store, self.config)
        core.handle(ev.ClockCompared(self._ahead), 0.0)
        engine = recover(core, self.store, config.schema)
        shelf = self._publisher(engine, core)
        processor = Processor(
            engine,
            shelf,
            config.topics,
            ingress=self._ingress,
            roster=self._roster,
            outlet=self._outlet,
            encode_receipt=self.issuer.receipt,
            observed=self._observed,
        )
        return core, engine, shelf, processor

    def _publisher(self, engine: Engine, core: AggregatorCore) -> ModelPublisher:
        """What publishes the model; a gateway passes on another's."""
        return ModelPublisher(
            engine,
            core,
            self.config.topics,
            chunk=self._chunk,
            stepping_back=self.config.strategy.form == "mixing",
            encode=self.issuer.announcement,
        )

    def rebuild(self) -> None:
        """Begin again from the store, paused as before."""
        paused = self.core.paused
        self.core, self.engine, self.shelf, self.processor = self._rebuilt()
        self.core.handle(ev.OperatorPaused(paused), 0.0)

    def close(self, *, failed: bool = False) -> None:
        """Write a checkpoint and close the store.

        After a failure no checkpoint is written: the core may have decided what was not written or not executed, and
        only the journal is authoritative.
        """
        try:
            if not failed:
                self.issued.write()
                self.upkeep.close(self.core, self.engine)
                self.store.write_history()
        except StoreFull as error:
            log.warning("%s No checkpoint was written; the journal has everything.", error)
        finally:
            self.store.close()

    def export(self, path: str | Path) -> None:
        """Write the exact model as safetensors."""
        about = {
            "federation": self.config.federation,
            "lineage": self.core.lineage.hex(),
            "generation": str(self.core.generation),
            "version": str(self.core.version),
            "step": str(self.core.step),
        }
        write_model(path, self.engine.model.parameters(), about)

    def fit_chunks(self, largest: int | None) -> None:
        """Limit chunks for a broker that takes at most this many bytes of body; None sets no limit."""
        self._chunk = self.shelf.chunk = chunks.fitting(self.config.chunk, largest)

    # -------------------------------------------------------------------- operation

    def begin(self, now: float) -> None:
        """Do what is due at the start of the process: the first release, an overdue step."""
        strategy = self.core.note_strategy(repr(asdict(self.config.strategy)))
        unlike = self.core.sums.unlike(self.engine.ticket)
        dropped = [] if unlike is None else self.core.note(unlike)
        self.processor.shell.carry_out(strategy + dropped + self.core.start(now), now)
        self._begin_restored(now)

    def _begin_restored(self, now: float) -> None:
        """Begin a generation if the store was restored: devices may be ahead of it, whatever the broker retains."""
        core = self.core
        if self._restored is not None and core.full is None and core.frozen:
            if core.generation <= self._restored:
                log.warning("The store %s was restored. A new generation begins.", self.store.directory)
                self._outlet.tell("put_back", announced=None, version=core.version)
                self.begin_generation(core.generation, core.version, now)
            unmark(self.store)
            self._restored = None

    def begin_generation(self, generation: int, version: int, now: float) -> None:
        """Continue above a version that devices know and this store does not."""
        self.processor.shell.carry_out(self.core.begin_generation(generation, version, now), now)

    def process(self, deliveries: Sequence[Delivery], now: float) -> None:
        """Process a batch. When this returns it is durable, or has been refused for now."""
        if self.shards.number:
            deliveries = self.shards.sift(deliveries, self.config.topics)
        helpers = [] if self.helper is None else [each for each in deliveries if self.helper.hears(each)]
        deliveries = [each for each in deliveries if each not in helpers] if helpers else deliveries
        try:
            self.revocations.carry_out(self.processor, now)
            self.processor.process(deliveries, now)
            if self.helper is not None and helpers and self.core.full is None:
                self.helper.take(helpers, self.engine, self.processor, now)
        except StoreFull as error:
            self._handle_full_disk(str(error), now)
            self.processor.process(deliveries, now)  # what was written is now a duplicate, the rest is refused for now
        self._detect_rollback(now)
        self._housekeeping(now)

    def connected(self, now: float, *, forgotten: bool = False) -> None:
        """Notify of a connection: the broker now sends the devices' retained messages.

        Args:
            now: seconds of the monotonic clock.
            forgotten: whether the broker has lost what was retained.
        """
        self.presence.connected(now)
        self._roster.begin_connection(now, forgotten=forgotten)

    def _detect_rollback(self, now: float) -> None:
        """Continue above the devices' version, if the store turns out to be behind it."""
        core, put_back = self.core, self._observed.put_back
        known = put_back.proven(core.generation, core.version, now) if put_back.claims else None
        if core.full is not None or not core.frozen:
            return
        try:
            if known is not None:
                behind = "Devices know version %d.%d, this store %d.%d: it is an old copy. A new generation begins."
                log.warning(behind, *known, core.generation, core.version)
                self._outlet.tell("put_back", announced=known[1], version=core.version)
                self.begin_generation(*known, now)
            self._begin_restored(now)
        except StoreFull as error:
            self._handle_full_disk(str(error), now)

    def withdrawn(self, frame: tuple[int, int], now: float) -> None:
        """Record that this frame has been removed from the broker."""
        try:
            self.shelf.withdrawn([frame])
        except StoreFull as error:
            self._handle_full_disk(str(error), now)

    def _housekeeping(self, now: float) -> None:
        """Housekeeping: old announcements, checkpoints, erasures, and the end of a full disk."""
        for channel in self.issuer.overdue:
            for post in self.shelf.reissued(channel):
                self._outlet.put(post)
        self.issued.report_clock()
        if self.issuer.daily is not None:
            self.issuer.daily.roll()
        if self.core.full is not None:
            if now - self._looked_for_room >= _LOOK_FOR_ROOM:
                self._looked_for_room = now
                self._look_for_room(now)
            return
        self.processor.reader.drop_unconfirmed(now)
        self._vouching.look()
        for post in self.shelf.overdue(now):
            self._outlet.put(post)
        try:
            self.issued.write()
            self.processor.fitting.look(now)
            if self.helper is not None and self.config.strategy.masked:
                self.helper.look(self.processor, self.engine, now)
            self.registry.look(self.engine, self.processor, now)
            self.upkeep.tend(self.core, self.engine, self.processor, now)
            self._pace.write(self.watchdog.interval, self.watchdog.training, now)
            state, devices = self.watchdog.finding.state.value, self.core.steering.live
            self.history.look(now, lsn=self.core.lsn, state=state, devices=devices)
        except StoreFull as error:
            self._handle_full_disk(str(error), now)

    def _handle_full_disk(self, why: str, now: float) -> None:
        """Return to the state on the disk, and decide nothing until there is room."""
        log.warning("%s Updates stay with their devices until there is room.", why)
        self.store.make_room()
        self.rebuild()
        self.core.handle(ev.StoreFilled(why), now)
        self._looked_for_room = now
        self._outlet.tell("full", why=why)

    def _look_for_room(self, now: float) -> None:
        if not self.store.has_room():
            return
        try:
            self.engine.write_replayed()
            self.core.handle(ev.StoreWritable(), now)
            self.processor.shell.carry_out(self.core.start(now), now)
        except StoreFull as error:
            self._handle_full_disk(str(error), now)
            return
        log.warning("The disk has room again: updates are accepted.")
        self._outlet.tell("room")
        for post in self.shelf.everything():
            self._outlet.put(post)

    # ------------------------------------------------------------------- inspection

    @property
    def hold(self) -> str | None:
        """Why no updates are accepted; None if they are."""
        return self.core.full or self.core.paused

    @property
    def devices(self) -> Mapping[str, Hello]:
        """The newest status of each device."""
        return self._roster.devices

    @property
    def filters(self) -> tuple[str, ...]:
        """The topics to subscribe to."""
        topics, helpers = self.config.topics, () if self.helper is None else self.helper.filters
        return (*self.shards.updates(topics, frozen=self.core.frozen), *topics.from_devices[1:], *helpers)

    @property
    def reports(self) -> Reports:
        """The devices' results on their own data."""
        return self._observed.reports

    @property
    def activity(self) -> DeviceActivity:
        """Verdicts and activity of each device."""
        return self._observed.activity

    @property
    def waits(self) -> Mapping[str, str]:
        """Reasons of online devices that do not train."""
        return self._roster.waits

    def situation(self, now: float) -> FleetSituation:
        """The watchdog's input."""
        clock = (self.issued.doubt,) if self.issued.doubt else ()
        more = [alarm for alarms in self.more_alarms for alarm in alarms()]
        own = (*clock, *self.credential_alarms.now(), *more)
        return _situation(self.core, self._roster, own, self.presence.absent(now, self.core.interval))

    def everything(self) -> Iterator[Post]:
        """All messages that must be retained at the broker."""
        return self.shelf.everything()


def _situation(
    core: AggregatorCore, roster: Roster, own: Sequence[str], absent: Collection[str] = ()
) -> FleetSituation:
    waits = roster.waits
    devices = {name: hello for name, hello in roster.devices.items() if not roster.is_shard(name)}
    shards = [name for name in roster.devices if name not in devices]
    there = [name for name, hello in devices.items() if hello.state.live and name not in absent]
    able = [name for name in there if name not in waits]
    obstacle = core.obstacle
    given = core.settled if obstacle is not None and obstacle.updates else set(able)
    present = [hello for hello in devices.values() if hello.state.live or hello.state is DeviceState.SLEEPING]
    return FleetSituation(
        full=core.full,
        paused=core.paused,
        frozen=core.frozen,
        obstacle=obstacle,
        able=len(able),
        waiting=next(iter(waits.values()), ""),
        there=len(there),
        interval=core.interval([*able, *shards]),
        training=core.usual_training,
        version=core.version,
        scheduled=core.scheduled,
        idle=[name for name in able if name not in given and not shards],  # a shard does not say whose updates it sums
        rest=core.steering.rest,
        unlike=core.unlike,
        own=own,
        present=len(present),
        asleep=sum(hello.state is DeviceState.SLEEPING for hello in present),
        keeping=sum(bool(hello.keeps) for hello in present),
        left_out=list(roster.sizes.left_out()),
    )


def _tell_progress(outlet: Outlet, device: str, done: int, total: int) -> None:
    outlet.tell("progress", device=device, way="up", done=done, total=total)


def _see_it_asks_for_statistics(core: AggregatorCore, config: AggregatorConfig, store: Store) -> None:
    if not core.frozen and not config.asked:
        raise StoreError(
            f"The model in {store.directory} waits for statistics of the devices' data, and the aggregator asks for "
            "none: give midge.Aggregator(moments=…) as before."
        )
