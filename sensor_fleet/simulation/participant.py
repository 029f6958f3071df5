"""A device in a simulation: the real session, on virtual time."""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from statistics import NormalDist

from midge.iot_client.board.conditions import enough_new
from midge.iot_client.connection.announcement_policy import Attention
from midge.iot_client.session import events as ev
from midge.iot_client.session.session import DeviceSession, SessionSettings
from midge.iot_client.session.states import Work
from midge.iot_client.session.training_cycle import training_seed
from midge.iot_client.shell import DeviceShell, OutboxContents
from midge.sensor_fleet.profiles.population import Departure, Population
from midge.sensor_fleet.profiles.presence import chance
from midge.sensor_fleet.sensors.stream import Stream
from midge.sensor_fleet.simulation import headers
from midge.sensor_fleet.simulation.clock import Clock
from midge.sensor_fleet.simulation.clock import Work as Errand
from midge.sensor_fleet.simulation.coding import Said
from midge.sensor_fleet.simulation.learners import Learner
from midge.sensor_fleet.simulation.server import Published, Server
from midge.sensor_fleet.simulation.shards import Pool, Start, Task
from midge.wire import chunks
from midge.wire.messages import (
    AggregatorState,
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
from midge.wire.participation import takes_part

CONNECTING = 12
"""Ways from the first packet until a session is told that it is connected: the handshake of TCP, CONNECT, the status of
one's own name, the greeting that asks for duplicates of the name, two subscriptions; each is answered before the
next."""
ROUNDING = 1e-9
"""Seconds by which a sum of times may be off."""


class Air:
    """What lies between all devices and the aggregator: the clock, chance, and the versions that are on offer."""

    def __init__(
        self,
        clock: Clock,
        server: Callable[[], Server],
        pool: Pool,
        learner: Learner,
        world: Population,
        *,
        loss: float,
        jitter: float,
        seconds: Callable[[str], float],
        stream: Stream | None = None,
    ) -> None:
        self.clock, self._server, self.pool, self.learner, self.world = clock, server, pool, learner, world
        self.loss, self.jitter, self.seconds, self.stream = loss, jitter, seconds, stream
        self.up = self.down = 0.0
        """Bytes that all devices have sent, and received beside announcements."""
        self.resting: dict[str, Participant] = {}
        """Devices that would begin something if there were a newer version, in the order in which they came to rest."""

    @property
    def server(self) -> Server:
        return self._server()

    def expected(self, shard: Sequence["Participant"]) -> Iterator[tuple[Task, Start]]:
        """The trainings that these devices will probably begin from the newest version before there is another."""
        newest, pause = self.server.published[-1], self.server.core.strategy.release_interval
        if not pause:
            return
        now, told = self.clock.now, newest.announcement
        horizon = max(newest.at + pause, now + pause / 8)
        found = [(when, one.number, one) for one in shard if (when := one.soon(newest)) < horizon]
        for when, _, one in sorted(found, key=lambda each: each[:2]):
            if takes_part(one.name, told.lineage, told.generation, told.version, told.participation.share):
                yield one.task(newest, max(now, when)), newest.start

    def lost(self, device: str, purpose: str, number: int) -> bool:
        """Whether a message is lost on its way."""
        return self.loss > 0 and chance(self.world.seed, device, f"lost/{purpose}", number) < self.loss

    def released(self, published: Published) -> None:
        """Tell those who wait for it and take part; all others look for themselves when they have something to do."""
        told = published.announcement
        share = told.participation.share
        for name, participant in list(self.resting.items()):
            if takes_part(name, told.lineage, told.generation, told.version, share):
                self.clock.at(published.at + participant.latency, participant.look)


class Participant:
    """One device, from when it joins until it leaves."""

    __slots__ = (
        "_attention",
        "_back",
        "_base",
        "_began",
        "_bodies",
        "_connection",
        "_deaf",
        "_due",
        "_enough",
        "_fits",
        "_heard",
        "_hindrances",
        "_job",
        "_latest",
        "_outages",
        "_pauses",
        "_resumes",
        "_seen",
        "_sensor",
        "_shaken",
        "air",
        "bytes_down",
        "bytes_up",
        "connected",
        "down",
        "gone",
        "latency",
        "messages",
        "name",
        "number",
        "seconds",
        "session",
        "shell",
        "steps",
        "trainings",
        "up",
        "updates",
    )

    def __init__(self, air: Air, number: int, name: str) -> None:
        self.air, self.number, self.name = air, number, name
        world = air.world
        link = world.link(name)
        self.latency, self.up = link.latency, link.bandwidth
        self.down = link.down
        self.seconds = air.seconds(name)
        self._shaken = 0
        self.session = DeviceSession(
            name, number, (), 1, self._jitter, settings=SessionSettings(rereads=bool(air.loss))
        )
        self.shell = DeviceShell(self.session, self)
        self.connected = self.gone = False
        self.trainings = self.steps = self.updates = self.messages = 0
        self.bytes_up = self.bytes_down = 0.0
        self._connection = 0
        self._heard = 0.0
        self._attention = Attention()
        self._deaf = False
        """Whether it hears of no new version, for the while of a training."""
        self._base: Published | None = None
        """What is trained from, or being fetched for that."""
        self._latest: Published | None = None
        """What the session was told of last."""
        self._seen: Published | None = None
        """The same, or None where it is to be told again."""
        self._job = 0
        self._began = 0.0
        self._fits: dict[int, Said] = {}
        self._bodies: dict[int, Said] = {}
        self._due: float | None = None
        self._outages: Iterator[tuple[float, float]] = iter(world.outages(name))
        self._pauses: Iterator[tuple[float, float]] = iter(world.pauses(name))
        clock = air.clock
        joins = world.joins(name)
        self._back, self._resumes = joins, 0.0
        """When it will be connected, and when it will have nothing against training."""
        self._hindrances: dict[str, str] = {}
        self._enough = 0.0
        """When enough of its data will be new."""
        stream = air.stream
        self._sensor = None if stream is None else stream.sensor(number, lambda: clock.now)
        self._await_enough()
        clock.at(joins, self._connect)
        self._next_pause(joins)
        if (departure := world.leaves(name)) is not None:
            clock.at(departure.at, partial(self._leave, departure))

    def _jitter(self) -> float:
        """Chance for the session."""
        self._shaken += 1
        return chance(self.air.world.seed, self.name, "session", self._shaken)

    # ---------------------------------------------------------------------- link

    def _connect(self) -> None:
        if self.gone:
            return
        self._connection += 1
        connection = self._connection

        def stand() -> None:
            if self._connection == connection and not self.gone:
                self._stand()

        self.air.clock.after(CONNECTING * self.latency, stand)
        broken, back = next(self._outages, (math.inf, math.inf))
        while back <= self.air.clock.now:
            broken, back = next(self._outages)
        if broken < math.inf:
            self.air.clock.at(broken, lambda: self._disconnect(back))

    def _stand(self) -> None:
        """The connection stands: what is retained has come, and so has the echo of our own greeting."""
        server = self.air.server
        self.connected, self._deaf = True, False
        self._heard = server.heard
        server.there(1)
        self._sent(self._hello)
        before = self._connection > 1  # what we said last is retained, or our Last Will
        self._received((1 + before) * self._hello + headers.status() + server.weighs)
        self._event(ev.Connected())
        core = server.core
        self._event(ev.AggregatorSeen(AggregatorStatus(state=AggregatorState.READY, boot=1, lineage=core.lineage)))

    def _disconnect(self, back: float) -> None:
        if self.gone:
            return
        self._connection += 1
        self._back = back
        if self.connected:
            if self.air.world.says_goodbye(self.name):
                self._sent(self._hello)
            self.note_heard()
            self.connected = False
            self.air.server.there(-1)
            self._event(ev.Disconnected())
        self.air.clock.at(back, self._connect)

    def _leave(self, departure: Departure) -> None:
        if self.connected and departure.goodbye:
            self._sent(self._hello)
        self.note_heard()
        self.air.server.there(-1 if self.connected else 0)
        self.gone, self.connected = True, False
        self.air.resting.pop(self.name, None)
        self.air.pool.forget(self._job)

    def note_heard(self) -> None:
        """Count the announcements that this connection has brought."""
        if self.connected and not self._deaf:
            heard = self.air.server.heard
            self.bytes_down += heard - self._heard
            self._heard = heard

    def _turn_away(self, announcement: Announcement) -> None:
        """Hear of no new version while training, where many would come."""
        if self.connected and self._attention.turns_away(announcement):
            self.note_heard()
            self._deaf = True

    def _turn_back(self) -> None:
        """Hear of the newest version at once, for it is retained."""
        if self._deaf and self.connected:
            server = self.air.server
            self._deaf = False
            self.air.down -= server.heard - self._heard  # which was counted as heard by everybody
            self._heard = server.heard
            self._received(server.weighs)

    @property
    def _hello(self) -> int:
        """Bytes of a greeting."""
        return headers.hello(trained=self.trainings > 0)

    def _sent(self, size: float) -> None:
        self.bytes_up += size
        self.air.up += size

    def _received(self, size: float) -> None:
        self.bytes_down += size
        self.air.down += size

    def _next_pause(self, now: float) -> None:
        """Train nothing from the next pause on until it is over: the device has something against it."""
        for start, end in self._pauses:
            if end > now:
                self.air.clock.at(start, partial(self._pause, "not now", end))
                if end < math.inf:
                    self.air.clock.at(end, partial(self._pause, None, end))
                return

    def _pause(self, why: str | None, until: float) -> None:
        if self.gone:
            return
        self._resumes = until
        self._hinder("pause", why)
        if why is None:
            self._next_pause(self.air.clock.now)

    def _hinder(self, of: str, why: str | None) -> None:
        """One of the things that keep it from training is there, or over."""
        if why is None:
            self._hindrances.pop(of, None)
        else:
            self._hindrances[of] = why
        found = next(iter(self._hindrances.values()), None)
        if found != self.session.hindered:
            self._event(ev.Hindered(found))

    def _await_enough(self) -> None:
        """Train nothing until enough of its data is new."""
        sensor, stream, clock = self._sensor, self.air.stream, self.air.clock
        if sensor is None or stream is None or (why := enough_new(sensor, stream.fresh)()) is None:
            return
        self._enough = sensor.enough_at(stream.fresh)
        self._hinder("data", why)
        clock.at(self._enough, self._has_enough)

    def _has_enough(self) -> None:
        if not self.gone:
            self._hinder("data", None)

    def _hear(self, work: Errand, seconds: float = 0.0) -> None:
        """Do what a message brings, once it is here, if this connection still stands then."""
        connection = self._connection

        def heard() -> None:
            if self.connected and self._connection == connection:
                work()

        self.air.clock.after(self.latency + seconds, heard)

    def _say(self, purpose: str, size: int, work: Errand, *, ahead: float = 0.0) -> None:
        """Do what a message brings, once the aggregator has it, `ahead` seconds after other bytes on the uplink."""
        if not self.connected:
            return
        self.messages += 1
        self._sent(size)
        if self.air.lost(self.name, purpose, self.messages):
            return
        seconds = self.latency + ahead + size / self.up
        self.air.clock.after(seconds, work)
        if self.air.world.twice and self.air.world.twice_sent(self.name, self.messages):
            self.air.clock.after(2 * seconds, work)

    def reply(self, outbox: int, hi: int, settled: tuple[Settled, ...]) -> None:
        """The aggregator has something to say to us."""
        receipt = Receipt.model_construct(outbox=outbox, hi=hi, settled=settled, grants=())
        self._answered(receipt, headers.receipt() if settled else headers.answer())

    def grant(self, outbox: int, hi: int, grant: Grant) -> None:
        """The aggregator asks for chunks of what we offered."""
        self._answered(Receipt.model_construct(outbox=outbox, hi=hi, settled=(), grants=(grant,)), headers.answer())

    def _answered(self, receipt: Receipt, size: int) -> None:
        self.messages += 1
        if self.connected and not self.air.lost(self.name, "receipt", self.messages):
            self._received(size)
            self._hear(lambda: self._event(ev.Receipted(receipt)))

    # ---------------------------------------------------------------- expectations

    def soon(self, newest: Published) -> float:
        """When it will probably train from the newest version; infinite where that is not to be expected."""
        session = self.session
        if self.gone or self._base is newest or session.work is not Work.RESTING:
            return math.inf
        return max(self._back, self._resumes, self._enough, session.pausing_until or 0.0)

    def task(self, newest: Published, when: float) -> Task:
        """What that training will be."""
        seed = training_seed(self.name, newest.announcement, self.session.next)
        seen = 0 if self.air.stream is None else self.air.stream.flow.slots(when)
        return Task(self.number, newest.number, seed, self.updates + 1, seen)

    # -------------------------------------------------------------------- events

    def look(self) -> None:
        """Read the newest announcement that has come, as a subscriber would have by now."""
        if not self.connected:
            return
        until = self.air.clock.now - self.latency + ROUNDING
        for published in reversed(self.air.server.published):
            if published is self._seen:
                return
            if published.at <= until and not self.air.lost(self.name, "announcement", published.announcement.version):
                self._seen = self._latest = published
                self._handle(ev.Announced(published.announcement))
                return

    def _event(self, event: ev.Event) -> None:
        self.look()
        self._handle(event)

    def _handle(self, event: ev.Event) -> None:
        self.shell.handle(event, self.air.clock.now)
        self._settle()

    def _settle(self) -> None:
        """Note whether a new version would wake us, and when time itself will."""
        session, air = self.session, self.air
        if session.waits_for_version:
            air.resting[self.name] = self
        else:
            air.resting.pop(self.name, None)
        due = session.deadline
        if due is not None and (self._due is None or due < self._due):
            self._due = due
            air.clock.at(due, lambda: self._tick(due))

    def _tick(self, due: float) -> None:
        if self.gone or self._due != due:
            return
        self._due = None
        deadline = self.session.deadline
        if deadline is not None and deadline <= self.air.clock.now:
            self.look()
            self.shell.tick(self.air.clock.now)
        self._settle()

    # ---------------------------------------------------------------------- hooks

    def train(self, announcement: Announcement, plan: Plan) -> None:
        self._begin(announcement)
        self._train(plan)

    def store(self, update: Update, key: int) -> bool:
        self._bodies[update.seq] = self._fits.pop(key)
        return True

    def send(self, update: Update) -> None:
        said = self._bodies[update.seq]
        self._say("update", said.size + headers.update(), partial(self.air.server.arrived, self.name, update, said))

    def forget(self, through: int) -> None:
        for seq in [seq for seq in self._bodies if seq <= through]:
            del self._bodies[seq]

    def fetch(self, announcement: Announcement, frames: tuple[FrameInfo, ...]) -> None:
        self._begin(announcement)
        fetched = partial(self._event, ev.Fetched(ev.Base.of(announcement)))
        size = sum(frame.size + frame.parts * headers.part() for frame in frames)
        self._received(size)
        # Two parts are asked for at a time, and their topics are left before the next are asked for.
        ways = 4 * -(-sum(frame.parts for frame in frames) // 2)
        self._hear(fetched, (ways - 1) * self.latency + size / self.down)

    def greet(self) -> None:
        hello = self.name, self.session.outbox, self.session.first
        self._say("hello", self._hello, partial(self.air.server.greeted, *hello))
        self._received(self._hello)  # we hear our own status

    def read_announcement(self) -> None:
        self._seen = None
        self._hear(self.look, self.latency)

    def tell_settled(self, settled: Settled) -> None:
        pass

    def offer(self, update: Update) -> None:
        said = self._bodies[update.seq]
        self._say("update", headers.update(), partial(self.air.server.offered, self.name, update, said))

    def send_chunks(self, update: Update, parts: tuple[int, ...]) -> None:
        size = chunks.part_size(update.size, update.parts)
        ahead = 0.0
        for part in parts:
            if part < update.parts:
                length = min(size, update.size - part * size) + headers.chunk()
                header = Chunk(outbox=update.outbox, first=update.first, seq=update.seq, part=part)
                self._say("chunk", length, partial(self.air.server.chunk, self.name, header), ahead=ahead)
                ahead += length / self.up
                self._hear(partial(self._event, ev.ChunkDelivered()), ahead + self.latency)

    def renew(self, keep: tuple[int, ...]) -> OutboxContents:
        raise AssertionError(f"no outbox is put back in this world, and {keep} were to move")

    def send_statistics(self, lineage: bytes, moments: tuple[Moment, ...]) -> None:
        raise AssertionError(f"nothing in this world asks for {moments} of {lineage.hex()}")

    def tell_unsuited(self, why: str) -> None:
        raise AssertionError(why)

    def _begin(self, announcement: Announcement) -> None:
        """Hold on to the version that is fetched or trained from."""
        for published in (self._latest, self._base):
            if published is not None and published.announcement is announcement:
                self._base = published
                return
        raise AssertionError(f"version {announcement.version} was never announced to {self.name}")

    def _train(self, plan: Plan) -> None:
        air, base = self.air, self._base
        assert base is not None
        self.trainings += 1
        self._began = now = air.clock.now
        seen = 0 if self._sensor is None else self._sensor.take()
        seconds = self.seconds * air.learner.load(self.number, plan, seen)
        if air.jitter:
            seconds *= math.exp(
                air.jitter * NormalDist().inv_cdf(chance(air.world.seed, self.name, "jitter", self.trainings))
            )
        self._turn_away(base.announcement)
        task = Task(self.number, base.number, plan.seed, self.updates + 1, seen)
        self._job = air.pool.begin(task, base.start, now + seconds)
        air.clock.at(now + seconds, self._trained)

    def _trained(self) -> None:
        if self.gone:
            return
        base, server = self._base, self.air.server
        assert base is not None
        self._turn_back()
        outcome = self.air.pool.end(self._job)
        self.steps += outcome.steps
        self._await_enough()
        if (said := outcome.said) is None:
            self._event(ev.NothingToSend("the training did not stay finite"))
            return
        self.updates += 1
        self._fits[self.updates] = said
        update = Update.model_construct(
            outbox=0,
            first=1,
            seq=1,
            lineage=base.announcement.lineage,
            generation=base.announcement.generation,
            base=base.announcement.version,
            schema_hash=server.core.schema_hash,
            codec=said.codec,
            size=said.size,
            sha256=bytes(16),
            examples=outcome.examples,
            steps=outcome.steps,
            seconds=self.air.clock.now - self._began,
            plan=base.announcement.plan.revision,
        )
        self._event(ev.Trained(update, self.updates))
