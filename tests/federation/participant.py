"""A simulated device: the real session and outbox on virtual time, ended between any two of its actions."""

import hashlib
import itertools
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from midge.iot_client.session import events as ev
from midge.iot_client.session import session as s
from midge.iot_client.shell import DeviceShell
from midge.iot_client.state.memory_outbox import MemoryOutbox
from midge.wire import chunks, codecs, frames, lineage, messages
from midge.wire.errors import WireError
from midge.wire.lineage import State
from midge.wire.messages import (
    AggregatorStatus,
    Announcement,
    Chunk,
    DeviceState,
    FrameInfo,
    Hello,
    Moment,
    Part,
    Plan,
    Receipt,
    Settled,
    Update,
    Verdict,
)
from tests.aggregator.rig import TOPICS
from tests.federation.kernel import Kernel, PowerCut
from tests.federation.network import Network


class Ledger:
    """What all devices stored and were told. Each update is a one in a place of its own, so the model counts them."""

    def __init__(self) -> None:
        self._places = itertools.count()
        self.training = True
        self.stored: dict[int, tuple[str, int, int]] = {}
        """The device, outbox and seq of each update that reached an outbox, by its place in the model."""
        self.told: dict[tuple[str, int, int], Verdict] = {}
        self.digests: dict[tuple[int, int], bytes] = {}

    def delta(self, size: int) -> tuple[int, "np.ndarray[tuple[int], np.dtype[np.float32]]"]:
        place = next(self._places)
        assert place < size, "the model has too few places for so many updates"
        delta = np.zeros(size, np.float32)
        delta[place] = 1
        return place, delta


class Participant:
    """Lives, dies and comes back over one outbox."""

    def __init__(self, kernel: Kernel, network: Network, name: str, ledger: Ledger) -> None:
        self.kernel, self.network, self.name, self.ledger = kernel, network, name, ledger
        self.outbox = MemoryOutbox().__enter__()
        self.lives = 0
        self.alive = False
        self.boot()

    # ---------------------------------------------------------------- life and death

    def boot(self) -> None:
        self.lives += 1
        self.alive, self.connected = True, False
        self.state: State | None = None
        self.bodies: dict[int, tuple[int, bytes]] = {}
        self.session = s.DeviceSession(
            self.name, self.outbox.identity, self.outbox.held(), self.outbox.next_seq, self.kernel.random.random
        )
        self.shell = DeviceShell(self.session, self, before=self.kernel.crash_point)
        self._later(self.kernel.random.random(), self._connect)

    def _later(self, seconds: float, work: Callable[[], None]) -> None:
        self.kernel.after(seconds, partial(self._in_this_life, self.lives, work))

    def _in_this_life(self, life: int, work: Callable[[], None]) -> None:
        if life != self.lives or not self.alive:
            return
        try:
            work()
        except PowerCut:
            self.alive = False
            self.network.disconnect(self.name)
            self.kernel.after(3 * self.kernel.random.random(), self.boot)

    def _connect(self) -> None:
        self.connected = True
        topics = (TOPICS.aggregator, TOPICS.receipt(self.name), TOPICS.announcement())
        self._event(ev.Connected())
        life = self.lives
        self.network.connect(
            self.name,
            topics,
            lambda topic, payload, _: self._in_this_life(life, partial(self._deliver, topic, payload)),
        )

    def _break_link(self) -> None:
        if self.connected:
            self.connected = False
            self.network.disconnect(self.name)
            self._later(0.0, partial(self._event, ev.Disconnected()))
            self._later(2 * self.kernel.random.random() + 0.1, self._connect)

    # ----------------------------------------------------------------------- events

    def _deliver(self, topic: str, payload: bytes) -> None:
        if topic == TOPICS.announcement():
            self._event(ev.Announced(messages.decode_announcement(payload)))
        elif topic == TOPICS.aggregator:
            self._event(ev.AggregatorSeen(messages.decode(AggregatorStatus, payload)[0]))
        elif topic == TOPICS.receipt(self.name):
            said = messages.decode_answer(payload)[0]
            if isinstance(said, Receipt):
                self._event(ev.Receipted(said))

    def _event(self, event: ev.Event) -> None:
        self.shell.handle(event, self.kernel.now)
        self._wake()

    def _tick(self) -> None:
        deadline = self.session.deadline
        if deadline is not None and deadline <= self.kernel.now:
            self.shell.tick(self.kernel.now)
            self._wake()

    def _wake(self) -> None:
        if (deadline := self.session.deadline) is not None:
            self._later(deadline - self.kernel.now, self._tick)

    # ------------------------------------------------------------------------ hooks

    def greet(self) -> None:
        session = self.session
        hello = Hello(state=DeviceState.READY, outbox=session.outbox, first=session.first, next=session.next)
        self._publish(TOPICS.status(self.name), frames.encode(hello), retain=True)

    def read_announcement(self) -> None:
        if self.connected:
            self.network.again(self.name, TOPICS.aggregator)
            self.network.again(self.name, TOPICS.announcement())

    def ignore_versions(self) -> None:
        self.network.ignore(self.name, TOPICS.announcement())

    def follow_versions(self) -> None:
        if self.connected:
            self.network.again(self.name, TOPICS.announcement())

    def fetch(self, announcement: Announcement, frames: tuple[FrameInfo, ...]) -> None:
        self._later(0.2 * self.kernel.random.random(), partial(self._fetch, announcement, frames))

    def train(self, announcement: Announcement, plan: Plan) -> None:
        self._later(self.kernel.random.expovariate(1.0), partial(self._train, announcement))

    def store(self, update: Update, key: int) -> bool:
        place, body = self.bodies.pop(key)
        self.outbox.store(update, body)
        self.ledger.stored[place] = self.name, update.outbox, update.seq
        return True

    def send(self, update: Update) -> None:
        self._publish(TOPICS.update(self.name), frames.encode(update, self.outbox.body(update.seq)))

    def offer(self, update: Update) -> None:
        self._publish(TOPICS.update(self.name), frames.encode(update))

    def send_chunks(self, update: Update, parts: tuple[int, ...]) -> None:
        cut = list(chunks.cut(self.outbox.body(update.seq), chunks.part_size(update.size, update.parts)))
        for part in [part for part in parts if part < len(cut)]:
            header = Chunk(outbox=update.outbox, first=update.first, seq=update.seq, part=part)
            self._publish(TOPICS.update(self.name), frames.encode(header, cut[part]))

    def forget(self, through: int) -> None:
        self.outbox.forget(through)

    def note_site(self, site: str) -> None:
        pass

    def tell_settled(self, settled: Settled) -> None:
        if settled.verdict.final:
            self.ledger.told[self.name, self.session.outbox, settled.seq] = settled.verdict

    def send_statistics(self, lineage: bytes, moments: tuple[Moment, ...]) -> None:
        raise AssertionError(f"{lineage.hex()} asks for {moments}; this model has none")

    def renew(self, keep: tuple[int, ...]) -> ev.Renewed:
        raise AssertionError(f"no outbox is put back here, and {keep} were to move")

    def tell_unsuited(self, why: str) -> None:
        raise AssertionError(why)

    def _publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        if self.connected:
            self.network.publish(topic, payload, retain=retain)
            if self.kernel.chance(self.kernel.faults.link):
                self._break_link()

    def _fetch(self, announcement: Announcement, way: Sequence[FrameInfo]) -> None:
        if not self.connected:
            return
        try:
            state = lineage.follow(way, partial(self._collect, announcement), self.state)
        except WireError as error:
            self._event(ev.FetchFailed(str(error)))
            return
        assert state is not None
        assert state.digest() == announcement.digest
        version = announcement.generation, announcement.version
        assert self.ledger.digests.setdefault(version, state.digest()) == state.digest()
        self.state = state
        self._event(ev.Fetched(ev.Base.of(announcement)))

    def _collect(self, announcement: Announcement, frame: FrameInfo) -> bytes:
        bodies = []
        for index in range(frame.parts):
            payload = self.network.retained.get(TOPICS.part(frame.version, frame.span, index))
            if payload is None:
                asking = messages.Fetch(
                    lineage=announcement.lineage, version=frame.version, span=frame.span, parts=(index,)
                )
                self._publish(TOPICS.update(self.name), frames.encode(asking))
                raise WireError("a chunk is missing")
            bodies.append(messages.decode(Part, payload)[1])
        return b"".join(bodies)

    def _train(self, announcement: Announcement) -> None:
        if not self.ledger.training or self.state is None:
            self._event(ev.NothingToSend("the day is over"))
            return
        place, delta = self.ledger.delta(self.state.schema.size)
        body = codecs.encode_delta(delta, self.state.schema, "float32")
        update = Update(
            outbox=0,
            first=1,
            seq=1,
            lineage=announcement.lineage,
            generation=announcement.generation,
            base=announcement.version,
            schema_hash=self.state.schema.hash,
            codec="float32",
            size=len(body),
            sha256=hashlib.sha256(body).digest(),
        )
        self.bodies[place] = place, body
        self._event(ev.Trained(update, place))
