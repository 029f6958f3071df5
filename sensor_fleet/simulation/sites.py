"""Sites on virtual time: gateways whose two sides are the production core and the production session."""

from collections.abc import Callable
from functools import partial

import numpy as np

from midge.aggregator.core import records as rec
from midge.gateway.pace import SitePace
from midge.iot_client.session import events as ev
from midge.iot_client.session.session import DeviceSession, SessionSettings
from midge.iot_client.session.states import Link, Work
from midge.iot_client.shell import DeviceShell
from midge.iot_client.training.update_encoder import chosen, encode
from midge.sensor_fleet.profiles.presence import uniform
from midge.sensor_fleet.simulation import headers
from midge.sensor_fleet.simulation.clock import Clock
from midge.sensor_fleet.simulation.encoding import DecodedUpdate
from midge.sensor_fleet.simulation.publisher import PublishedVersion, VersionPublisher
from midge.sensor_fleet.simulation.result import AcceptedUpdates
from midge.sensor_fleet.simulation.server import Server
from midge.sensor_fleet.simulation.server_setup import DeviceCalls, ServerSetup
from midge.wire import chunks, frames
from midge.wire.messages import (
    AggregatorStatus,
    Announcement,
    Chunk,
    FrameInfo,
    Grant,
    Moment,
    Participation,
    Plan,
    Receipt,
    Settled,
    Trouble,
    Update,
)

LATENCY, BANDWIDTH = 0.1, 125_000.0
"""The line of a site: seconds one way, and bytes a second each way: a megabit, as of a rural line."""


def site_of(number: int, sites: int) -> int:
    """The site of a device: they are dealt in turn, so that each has some of every class."""
    return number % sites


class RelayedVersions(VersionPublisher):
    """Versions of the federation above, as they are passed on."""

    def pass_on(self, version: PublishedVersion, server: "SiteServer") -> None:
        """Announce a version of the root to the site's devices."""
        if self._frames is not None:
            self._count(server.core, version.announcement)
        here = PublishedVersion(version.announcement, version.state, self._clock.now, version.number)
        self.published.append(here)
        self._released(here)


class SiteServer(Server):
    """A gateway's lower side: an aggregator that makes sums.

    Args:
        clock: virtual time.
        setup: of the site; its strategy relays.
        calls: reach the devices.
        accepted: the accepted updates of all sites.
        online: called with changes of the number of online devices.
    """

    publisher: RelayedVersions

    def __init__(
        self,
        clock: Clock,
        setup: ServerSetup,
        calls: DeviceCalls,
        accepted: AcceptedUpdates,
        online: Callable[[int], None],
    ) -> None:
        super().__init__(clock, setup, calls)
        self.publisher = RelayedVersions(clock, setup, calls.released)
        self.accepted = accepted
        self._online_above = online
        self.look: Callable[[], None] = lambda: None
        """Called after each decision: a sum may be due."""

    def follow(self, version: PublishedVersion) -> None:
        """Pass a version on."""
        announced = version.announcement
        record = rec.FollowRecord(
            0, announced.generation, announced.version, announced.step, self.now, announced.digest, b"simulated"
        )
        self.shell.carry_out(self.core.note(self.core.site.follow(record)), self.now)
        self.publisher.pass_on(version, self)

    def announce(self) -> None:
        """Nothing: only the root announces."""

    def devices_online(self, change: int) -> None:
        super().devices_online(change)
        self._online_above(change)

    def _schedule(self) -> None:
        super()._schedule()
        self.look()


class VirtualGateway:
    """One site: its lower side, and its device at the root. Implements the hooks of the device's shell.

    Args:
        clock: virtual time.
        name: of the site.
        number: of the site, from 0.
        root: the federation's aggregator.
        site: its lower side.
        pace: when sums are sent.
        seed: of the session's random numbers.
    """

    def __init__(
        self,
        clock: Clock,
        name: str,
        number: int,
        *,
        root: Callable[[], Server],
        site: SiteServer,
        pace: SitePace,
        seed: int,
    ) -> None:
        self._clock, self.name, self._root, self.site, self._pace = clock, name, root, site, pace
        self._seed, self._draws = seed, 0
        self.session = DeviceSession(name, number, (), 1, self._jitter, settings=SessionSettings(rereads=False))
        self.shell = DeviceShell(self.session, self)
        self.bytes_up = self.bytes_down = 0.0
        self.sums = 0
        self.given = 0
        """Updates of devices in the sums."""
        self._held: dict[int, tuple[Update, DecodedUpdate]] = {}
        self._made: dict[int, tuple[Update, DecodedUpdate]] = {}
        self._versions: dict[int, PublishedVersion] = {}
        self._residual: bytes | None = None
        self._passed, self._gave, self._looking = 0.0, True, False
        self._due: float | None = None
        self._looks_at: float | None = None
        site.look = self._look

    @property
    def unsettled(self) -> int:
        """Updates of devices in sums without a receipt of the root."""
        return sum(update.accepted for update, _ in self._held.values())

    def start(self) -> None:
        """Connect to the root."""
        self._event(ev.Connected(None))
        self._event(ev.AggregatorSeen(self._root().status))
        self.look_up()

    def _jitter(self) -> float:
        self._draws += 1
        return uniform(self._seed, self.name, "session", self._draws)

    # ------------------------------------------------------------------- from the root

    def released(self, version: PublishedVersion) -> None:
        """The root has announced a version."""
        self.bytes_down += self._root().publisher.announcement_bytes
        self._clock.after(LATENCY, partial(self._announced, version))

    def look_up(self) -> None:
        """Read the retained announcement."""
        if published := self._root().publisher.published:
            self._announced(published[-1])

    def _announced(self, version: PublishedVersion) -> None:
        told = version.announcement.model_copy(update={"participation": Participation()})
        self._versions[told.version] = version
        for old in [number for number in self._versions if number < told.version - 64]:
            del self._versions[old]
        self._event(ev.Announced(told))

    def reply(self, outbox: int, hi: int, settled: tuple[Settled, ...]) -> None:
        """The root's receipt."""
        self._receipt(Receipt.model_construct(outbox=outbox, hi=hi, settled=settled, grants=()), headers.receipt())

    def granted(self, outbox: int, hi: int, grant: Grant) -> None:
        """The root asks for chunks."""
        self._receipt(Receipt.model_construct(outbox=outbox, hi=hi, settled=(), grants=(grant,)), headers.answer())

    def _receipt(self, receipt: Receipt, size: int) -> None:
        self.bytes_down += size
        self._clock.after(LATENCY, partial(self._event, ev.Receipted(receipt)))

    def status(self, status: AggregatorStatus) -> None:
        """The root's status has changed."""
        self._clock.after(LATENCY, partial(self._event, ev.AggregatorSeen(status)))

    def trouble(self, trouble: Trouble) -> None:
        """Count a trouble message."""
        self.bytes_down += len(frames.encode(trouble))

    # -------------------------------------------------------------------------- events

    def _event(self, event: ev.Event) -> None:
        self.shell.handle(event, self._clock.now)
        self._reschedule()
        self._look()

    def _reschedule(self) -> None:
        due = self.session.deadline
        if due is not None and (self._due is None or due < self._due):
            self._due = due
            self._clock.at(due, partial(self._tick, due))

    def _tick(self, due: float) -> None:
        if self._due == due:
            self._due = None
            self.shell.tick(max(self._clock.now, due))
            self._reschedule()
            self._look()

    # --------------------------------------------------------------------------- sums

    def _look(self) -> None:
        """Send what is due, and take the next version, as `gateway.service` does."""
        session, core, now = self.session, self.site.core, self._clock.now
        if self._looking or session.link is not Link.UP:
            return
        self._looking = True
        try:
            if not session.holding and now >= self._pace.due(core):
                while self._send():
                    self._gave = True
            collecting = session.work is Work.TRAINING
            if collecting and now >= self._pace.next_version(core, self._passed, gave=self._gave):
                self.shell.handle(ev.NothingToSend(""), now)
        finally:
            self._looking = False
        self._reschedule()
        self._look_later()

    def _look_later(self) -> None:
        if self.session.holding:
            return
        core = self.site.core
        due = self._pace.due(core)
        if self.session.work is Work.TRAINING:
            due = min(due, self._pace.next_version(core, self._passed, gave=self._gave))
        if self._clock.now < due < float("inf") and (self._looks_at is None or due < self._looks_at):
            self._looks_at = due
            self._clock.at(due, partial(self._looked, due))

    def _looked(self, due: float) -> None:
        if self._looks_at == due:
            self._looks_at = None
            self._look()

    def _send(self) -> bool:
        core, now, announcement = self.site.core, self._clock.now, self.session.announcement
        record = core.site.next(now, self.sums + 1)
        if record is None or announcement is None:
            return False
        total = self.site.engine.total(record)
        self.site.shell.carry_out(core.note(record), now)
        core.site.made(now)
        self.sums += 1
        self.given += len(record.updates)
        codec = chosen(announcement.plan)
        coded, (self._residual,) = encode(
            total[None],
            codec,
            announcement.lineage,
            self.site.model.schema,
            record.tensors,
            feedback=announcement.plan.feedback,
            left=[self._residual],
            seeds=[self.sums],
        )
        values = coded.values[0]
        norm = float(np.sqrt(np.sum(np.square(values, dtype=np.float64))))
        decoded = DecodedUpdate(codec, len(coded.body(0)), values, norm, record.tensors)
        update = Update.model_construct(
            outbox=0,
            first=1,
            seq=1,
            lineage=announcement.lineage,
            generation=record.generation,
            base=record.base,
            schema_hash=announcement.schema_hash,
            codec=codec,
            size=decoded.size,
            sha256=bytes(16),
            tensors=record.tensors,
            plan=announcement.plan.revision,
            accepted=len(record.updates),
            devices=record.devices,
            weight=record.mass,
        )
        self._made[self.sums] = update, decoded
        self.shell.handle(ev.Summed(update, self.sums), now)
        return True

    # -------------------------------------------------------------------------- hooks

    def store(self, update: Update, key: int) -> bool:
        self._held[update.seq] = update, self._made.pop(key)[1]
        return True

    def _up(self, size: float, work: Callable[[], None]) -> None:
        self.bytes_up += size
        self._clock.after(LATENCY + size / BANDWIDTH, work)

    def send(self, update: Update) -> None:
        decoded = self._held[update.seq][1]
        self._up(decoded.size + headers.update(), partial(self._root().arrived, self.name, update, decoded))

    def offer(self, update: Update) -> None:
        decoded = self._held[update.seq][1]
        self._up(headers.update(), partial(self._root().offered, self.name, update, decoded))

    def send_chunks(self, update: Update, parts: tuple[int, ...]) -> None:
        size = chunks.part_size(update.size, update.parts)
        for part in parts:
            length = min(size, update.size - part * size) + headers.chunk()
            header = Chunk(outbox=update.outbox, first=update.first, seq=update.seq, part=part)
            self._up(length, partial(self._root().chunk, self.name, header))

    def forget(self, through: int) -> None:
        for seq in [seq for seq in self._held if seq <= through]:
            del self._held[seq]

    def fetch(self, announcement: Announcement, frames: tuple[FrameInfo, ...]) -> None:
        parts = sum(frame.parts for frame in frames)
        size = sum(frame.size for frame in frames) + parts * headers.part()
        self.bytes_down += size
        seconds = 4 * -(-parts // 2) * LATENCY + size / BANDWIDTH
        self._clock.after(seconds, partial(self._event, ev.Fetched(ev.Base.of(announcement))))

    def train(self, announcement: Announcement, plan: Plan) -> None:  # noqa: ARG002 - signature of the hook
        self.site.follow(self._versions[announcement.version])
        self._passed, self._gave = self._clock.now, False

    def greet(self) -> None:
        hello = headers.hello(trained=self.sums > 0)
        self.bytes_down += hello
        self._up(hello, partial(self._root().greeted, self.name, self.session.outbox, self.session.first))

    def ignore_versions(self) -> None:
        raise AssertionError("a gateway passes every version on")

    follow_versions = ignore_versions

    def read_announcement(self) -> None:
        self._clock.after(LATENCY, self.look_up)

    def tell_settled(self, settled: Settled) -> None:
        pass

    def note_site(self, site: str) -> None:
        pass

    def renew(self, keep: tuple[int, ...]) -> ev.Renewed:
        raise AssertionError(f"the outbox of {self.name} is not restored, yet {keep} were to be renumbered")

    def send_statistics(self, lineage: bytes, moments: tuple[Moment, ...]) -> None:
        raise AssertionError(f"no simulated aggregator asks for {moments} of {lineage.hex()}")

    def tell_unsuited(self, why: str) -> None:
        raise AssertionError(why)


class SiteGateways:
    """The gateways of one root.

    Args:
        number: of them; 0 if there are none.
    """

    def __init__(self, number: int) -> None:
        self.names = [f"site-{place}" for place in range(number)]
        self.gateways: list[VirtualGateway] = []
        self._of: dict[str, VirtualGateway] = {}
        self.accepted = AcceptedUpdates()
        """The accepted updates of all sites' devices."""

    @property
    def places(self) -> dict[str, int]:
        """Index of each site by name."""
        return {name: place for place, name in enumerate(self.names)}

    def add(self, gateway: VirtualGateway) -> None:
        """Add a gateway."""
        self.gateways.append(gateway)
        self._of[gateway.name] = gateway

    @property
    def calls(self) -> DeviceCalls:
        """How the root reaches its gateways."""
        return DeviceCalls(
            reply=lambda site, *told: self._of[site].reply(*told),
            granted=lambda site, *told: self._of[site].granted(*told),
            released=self._released,
            status=self._status,
            trouble=lambda site, told: self._of[site].trouble(told),
        )

    def _released(self, version: PublishedVersion) -> None:
        for gateway in self.gateways:
            gateway.released(version)

    def _status(self, status: AggregatorStatus) -> None:
        for gateway in self.gateways:
            gateway.status(status)

    def ledger(self, root: Server) -> dict[str, int]:
        """What the sites sent and received, and whether each accepted update is at the root or on its way, once."""
        if not self.gateways:
            return {}
        accepted = len(self.accepted)
        here = sum(gateway.site.core.buffered for gateway in self.gateways)
        given = sum(gateway.given for gateway in self.gateways)
        counted = root.core.applied + root.core.buffered
        open_ = given - sum(gateway.unsettled for gateway in self.gateways)
        return {
            "sites": len(self.gateways),
            "sums": sum(gateway.sums for gateway in self.gateways),
            "root_bytes_up": round(sum(gateway.bytes_up for gateway in self.gateways)),
            "root_bytes_down": round(sum(gateway.bytes_down for gateway in self.gateways)),
            "lost": max(0, accepted - here - given) + max(0, open_ - counted),
            "doubled": max(0, here + given - accepted) + max(0, counted - given),
        }
