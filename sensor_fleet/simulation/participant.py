"""A simulated device: the production session on virtual time."""

import math
from collections.abc import Iterator
from functools import partial
from heapq import merge

from midge.iot_client.session import events as ev
from midge.iot_client.session.session import DeviceSession, SessionSettings
from midge.iot_client.session.states import Work
from midge.iot_client.session.training_cycle import training_seed
from midge.iot_client.shell import DeviceShell
from midge.iot_client.training.throughput import Throughput
from midge.sensor_fleet.profiles.population import Departure
from midge.sensor_fleet.profiles.presence import uniform
from midge.sensor_fleet.simulation import headers
from midge.sensor_fleet.simulation.announcement_reader import AnnouncementReader
from midge.sensor_fleet.simulation.encoding import DecodedUpdate
from midge.sensor_fleet.simulation.environment import Environment
from midge.sensor_fleet.simulation.incidents import Outage
from midge.sensor_fleet.simulation.publisher import PublishedVersion
from midge.sensor_fleet.simulation.shards import Task
from midge.sensor_fleet.simulation.usage import Usage
from midge.sensor_fleet.simulation.virtual_constraints import VirtualConstraints
from midge.sensor_fleet.simulation.virtual_link import VirtualLink
from midge.wire import chunks
from midge.wire.messages import (
    AggregatorStatus,
    Announcement,
    Chunk,
    FrameInfo,
    Grant,
    Moment,
    Plan,
    Receipt,
    Settled,
    Update,
)

CONNECTING = 12
"""One-way trips from the first packet until the session is connected: TCP handshake, CONNECT, the retained status of
its own name, the greeting that detects duplicate names, and two subscriptions, each answered before the next."""
ROUNDING = 1e-9
"""Tolerance of sums of times, in seconds."""


class Participant:
    """One device, from when it joins until it leaves."""

    __slots__ = (
        *("_ahead", "_back", "_began", "_constraints", "_due", "_finished", "_job"),
        *("_life", "_outage", "_outages", "_outbox", "_reader", "_draws", "_speed"),
        *("environment", "gone", "link", "name", "number", "seconds", "session", "shell", "steps"),
        *("trainings", "updates", "usage"),
    )

    def __init__(self, environment: Environment, number: int, name: str) -> None:
        self.environment, self.number, self.name = environment, number, name
        world = environment.world
        self.link = VirtualLink(environment, name)
        self.seconds = environment.noise.seconds(name)
        joins = world.joins(name)
        self.usage = Usage(world.hardware(name), joins)
        self._outage: Outage | None = None
        """The next outage, or the current one."""
        self._draws = 0
        self._speed = Throughput()
        self._outbox: dict[int, tuple[Update, DecodedUpdate]] = {}
        """Unsettled updates by seq; they survive a reboot."""
        self._begin_session(1)
        self.gone = False
        self.trainings = self.steps = self.updates = 0
        self._reader = AnnouncementReader(environment, name)
        self._job = 0
        self._began = 0.0
        self._life = 0
        """Number of reboots."""
        self._ahead = environment.incidents.clocks.get(name, 0.0)
        """Offset of its clock to virtual time."""
        self._finished: dict[int, DecodedUpdate] = {}
        self._due: float | None = None
        usual = (Outage(start, end) for start, end in world.outages(name))
        self._outages: Iterator[Outage] = merge(usual, environment.incidents.outages.get(name, ()))
        clock = environment.clock
        self._back = joins
        """When it will next be connected."""
        self._constraints = VirtualConstraints(environment, number, name, self._constrained)
        clock.at(joins, self._connect)
        self._constraints.expect_pause(joins)
        if (departure := world.leaves(name)) is not None:
            clock.at(departure.at, partial(self._leave, departure))

    def _begin_session(self, next_seq: int) -> None:
        held = [update for _, (update, _) in sorted(self._outbox.items())]
        settings = SessionSettings(rereads=bool(self.environment.noise.loss), micro=self.usage.micro)
        self.session = DeviceSession(self.name, self.number, held, next_seq, self._jitter, settings=settings)
        self.shell = DeviceShell(self.session, self)

    @property
    def _now(self) -> float:
        """The time on its clock."""
        return self.environment.clock.now + self._ahead

    def _reboot(self) -> None:
        """Restart its process: a training under way is lost, the outbox survives."""
        self.environment.pool.forget(self._job)
        self.environment.resting.pop(self.name, None)
        self._life += 1
        self._ahead = -self.environment.clock.now
        self._due = None
        self._reader.again()
        self._finished.clear()
        self._begin_session(self.session.next)
        if (why := self._constraints.why) is not None:
            self._event(ev.Hindered(why))

    def _jitter(self) -> float:
        """The session's source of randomness."""
        self._draws += 1
        return uniform(self.environment.world.seed, self.name, "session", self._draws)

    # ---------------------------------------------------------------------- link

    def _connect(self) -> None:
        if self.gone:
            return
        link = self.link
        self.usage.wake(self.environment.clock.now)
        link.connection += 1
        connection = link.connection

        def establish() -> None:
            if link.connection == connection and not self.gone:
                self._establish()

        self.environment.clock.after(CONNECTING * link.latency, establish)
        while (outage := next(self._outages, None)) is not None:
            if outage.end > self.environment.clock.now:
                self._outage = outage
                self.environment.clock.at(outage.start, partial(self._disconnect, outage))
                return

    def _establish(self) -> None:
        """Handle an established connection: retained messages and the echo of its own greeting have arrived."""
        server, link = self.environment.server, self.link
        link.connect()
        self._reader.connected()
        self.environment.connected[self.name] = self
        server.devices_online(1)
        link.sent(self._hello)
        before = link.connection > 1  # its last status or its Last Will is retained
        link.received((1 + before) * self._hello + headers.status() + server.publisher.announcement_bytes)
        # The announcement arrives over this connection: a board that sleeps may do so once it has read it.
        (self._handle if self.usage.sleeps else self._event)(ev.Connected())
        self._event(ev.AggregatorSeen(server.status))

    def receive_status(self, status: AggregatorStatus) -> None:
        """Receive a change of the aggregator's status."""
        self.link.deliver(lambda: self._event(ev.AggregatorSeen(status)))

    def _disconnect(self, outage: Outage) -> None:
        if self.gone or self._outage is not outage or (self.usage.sleeps and self.session.work is Work.TRAINING):
            return  # it has left or sleeps already, or sleeps after its training
        self._outage = None
        self.usage.sleep(self.environment.clock.now)
        link = self.link
        link.connection += 1
        self._back = back = max(outage.end, self.environment.clock.now)  # a training may last longer than the sleep
        self.environment.connected.pop(self.name, None)
        if link.connected:
            if self.environment.world.says_goodbye(self.name):
                link.sent(self._hello)
            link.disconnect()
            self.environment.server.devices_online(-1)
            self._event(ev.Disconnected())
        if outage.reboot:
            self._reboot()
        elif self.usage.forgets_model:
            self._event(ev.FetchFailed("", start_over=True))  # the model was in RAM
        self.environment.clock.at(back, self._connect)

    @property
    def _may_sleep(self) -> bool:
        """Whether nothing is left to do, or the time to sleep has come."""
        return self._outage is not None and (self.session.at_rest or self.environment.clock.now >= self._outage.start)

    def _sleep(self) -> None:
        if self._outage is not None and self._may_sleep:
            self._disconnect(self._outage)

    def _leave(self, departure: Departure) -> None:
        link = self.link
        if link.connected and departure.goodbye:
            link.sent(self._hello)
        self.environment.server.devices_online(-1 if link.connected else 0)
        link.disconnect()
        self.usage.leave(self.environment.clock.now)
        self.environment.connected.pop(self.name, None)
        self.gone = True
        self._constraints.end()
        self.environment.resting.pop(self.name, None)
        self.environment.pool.forget(self._job)

    @property
    def _hello(self) -> int:
        """Bytes of a greeting."""
        return headers.hello(trained=self.trainings > 0)

    def _constrained(self, why: str | None) -> None:
        """Handle a reason against training, or with None its end."""
        if why != self.session.hindered:
            self._event(ev.Hindered(why))

    def reply(self, outbox: int, hi: int, settled: tuple[Settled, ...]) -> None:
        """Receive a receipt from the aggregator."""
        receipt = Receipt.model_construct(outbox=outbox, hi=hi, settled=settled, grants=())
        self._receive_receipt(receipt, headers.receipt() if settled else headers.answer())

    def grant(self, outbox: int, hi: int, grant: Grant) -> None:
        """Receive a grant for chunks of an offered update."""
        receipt = Receipt.model_construct(outbox=outbox, hi=hi, settled=(), grants=(grant,))
        self._receive_receipt(receipt, headers.answer())

    def _receive_receipt(self, receipt: Receipt, size: int) -> None:
        self.link.receive_answer(size, lambda: self._event(ev.Receipted(receipt)))

    # ---------------------------------------------------------------- expectations

    def next_training_at(self, newest: PublishedVersion) -> float:
        """Predict when it will train from the newest version; infinite if no such training is expected."""
        session = self.session
        if self.gone or self._reader.base is newest or session.work is not Work.RESTING:
            return math.inf
        paused = session.pausing_until
        return max(self._back, self._constraints.until, 0.0 if paused is None else paused - self._ahead)

    def task(self, newest: PublishedVersion, when: float) -> Task:
        """Predict that training."""
        seed = training_seed(self.name, newest.announcement, self.session.next)
        seen = 0 if self.environment.stream is None else self.environment.stream.flow.slots(when)
        return self._task(newest, seed, seen, newest.announcement.plan)

    def _task(self, base: PublishedVersion, seed: int, seen: int, plan: Plan) -> Task:
        steps = self._speed.fitting(plan)
        return Task(self.number, base.number, seed, self.updates + 1, seen, steps, self.usage.micro)

    # -------------------------------------------------------------------- events

    def look(self) -> None:
        """Read the newest announcement that has arrived by now."""
        until = self.environment.clock.now - self.link.latency + ROUNDING
        if self.link.hears_versions and (published := self._reader.read(until)) is not None:
            self._handle(ev.Announced(published.announcement))

    def _event(self, event: ev.Event) -> None:
        self.look()
        self._handle(event)

    def _handle(self, event: ev.Event) -> None:
        self.shell.handle(event, self._now)
        self._reschedule()

    def _reschedule(self) -> None:
        """Register whether a new version would wake the device, and schedule its next deadline."""
        session, environment = self.session, self.environment
        if session.waits_for_version:
            environment.resting[self.name] = self
        else:
            environment.resting.pop(self.name, None)
        due = session.deadline
        if due is not None and (self._due is None or due < self._due):
            self._due = due
            environment.clock.at(due - self._ahead, partial(self._tick, due))
        if self.usage.sleeps and self._may_sleep:
            environment.clock.at(environment.clock.now, self._sleep)

    def _tick(self, due: float) -> None:
        if self.gone or self._due != due:
            return
        self._due = None
        deadline = self.session.deadline
        if deadline is not None and deadline <= max(self._now, due):  # rounding, if the clock is offset
            self.look()
            self.shell.tick(max(self._now, due))
        self._reschedule()

    # ---------------------------------------------------------------------- hooks

    def train(self, announcement: Announcement, plan: Plan) -> None:
        self._reader.hold(announcement)
        self._train(plan)

    def store(self, update: Update, key: int) -> bool:
        self._outbox[update.seq] = update, self._finished.pop(key)
        self.usage.store(update.size)
        return True

    def send(self, update: Update) -> None:
        _, decoded = self._outbox[update.seq]
        arrived = partial(self.environment.server.arrived, self.name, update, decoded)
        self.link.send("update", decoded.size + headers.update(), arrived)

    def forget(self, through: int) -> None:
        for seq in [seq for seq in self._outbox if seq <= through]:
            del self._outbox[seq]

    def fetch(self, announcement: Announcement, frames: tuple[FrameInfo, ...]) -> None:
        self._reader.hold(announcement)

        def fetched() -> None:
            self.usage.keep(self.environment.world.values, self.environment.world.frozen)
            self._event(ev.Fetched(ev.Base.of(announcement)))

        self.link.fetch(frames, fetched)

    def greet(self) -> None:
        hello = self.name, self.session.outbox, self.session.first
        self.link.send("hello", self._hello, partial(self.environment.server.greeted, *hello))
        self.link.received(self._hello)  # the echo of its own status

    def ignore_versions(self) -> None:
        self.link.ignore_versions()

    def follow_versions(self) -> None:
        self.link.follow_versions()
        self.read_announcement()

    def read_announcement(self) -> None:
        self._reader.again()
        self.link.deliver(self.look, self.link.latency)

    def note_site(self, site: str) -> None:
        pass

    def tell_settled(self, settled: Settled) -> None:
        pass

    def offer(self, update: Update) -> None:
        _, decoded = self._outbox[update.seq]
        self.link.send("update", headers.update(), partial(self.environment.server.offered, self.name, update, decoded))

    def send_chunks(self, update: Update, parts: tuple[int, ...]) -> None:
        size = chunks.part_size(update.size, update.parts)
        ahead = 0.0
        for part in parts:
            if part < update.parts:
                length = min(size, update.size - part * size) + headers.chunk()
                header = Chunk(outbox=update.outbox, first=update.first, seq=update.seq, part=part)
                self.link.send("chunk", length, partial(self.environment.server.chunk, self.name, header), ahead=ahead)
                ahead += length / self.link.up
                self.link.deliver(partial(self._event, ev.ChunkDelivered()), ahead + self.link.latency)

    def renew(self, keep: tuple[int, ...]) -> ev.Renewed:
        raise AssertionError(f"outboxes are not restored in a simulation, yet {keep} were to be renumbered")

    def send_statistics(self, lineage: bytes, moments: tuple[Moment, ...]) -> None:
        raise AssertionError(f"no simulated aggregator asks for {moments} of {lineage.hex()}")

    def tell_unsuited(self, why: str) -> None:
        raise AssertionError(why)

    def _train(self, plan: Plan) -> None:
        environment, base = self.environment, self._reader.base
        assert base is not None
        self.trainings += 1
        self._began = now = environment.clock.now + environment.noise.overhead
        seen = self._constraints.take()
        task = self._task(base, plan.seed, seen, plan)
        load = environment.learner.load(self.number, task.plan(plan), seen) * environment.duration_factor(
            self.name, self.trainings
        )
        if self.session.versions.many:
            self.link.ignore_versions()
        end = now + self.seconds * load
        self._job = environment.pool.begin(task, base.start, end)
        environment.clock.at(end, partial(self._trained, self._life))

    def _trained(self, life: int) -> None:
        if self.gone or life != self._life:
            return
        base = self._reader.base
        assert base is not None
        self.link.follow_versions()
        outcome = self.environment.pool.end(self._job)
        self.steps += outcome.steps
        self.usage.trained += self.environment.clock.now - self._began
        self._speed.record(outcome.steps, 0, self.environment.clock.now - self._began)
        self._constraints.expect_rows()
        if (decoded := outcome.decoded) is None:
            self._event(ev.NothingToSend("the training did not stay finite"))
            return
        self.updates += 1
        self._finished[self.updates] = decoded
        seconds = (self.environment.clock.now - self._began) * self.environment.incidents.claims.get(self.name, 1.0)
        update = outcome.update(decoded, base.announcement, seconds)
        self._event(ev.Trained(update, self.updates))
