"""A simulated aggregator: the real core, processor and store on virtual time, ended between any two of its actions."""

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from midge.aggregator.core import records as rec
from midge.aggregator.core.strategy import Strategy
from midge.aggregator.model.model import Frame
from midge.aggregator.publish.publish_queue import Post
from midge.aggregator.store.store import Entry
from midge.broker.mqtt.connection import Delivery
from midge.wire import frames
from midge.wire.messages import AggregatorState, AggregatorStatus
from midge.wire.schema import Parameters
from tests.aggregator.rig import TOPICS, QuickStore, Rig
from tests.federation.kernel import Kernel, PowerCut
from tests.federation.network import Network


class MortalStore(QuickStore):
    """The real store, with a crash point before and after each write, and a list of what became durable."""

    def __init__(self, directory: Path, kernel: Kernel, durable: list[rec.Record]) -> None:
        super().__init__(directory)
        self.kernel, self.durable = kernel, durable

    def commit(self, entries: Iterable[Entry]) -> None:
        entries = list(entries)
        self.kernel.crash_point()
        super().commit(entries)
        self.durable += [entry.record for entry in entries]
        self.kernel.crash_point()

    def add_frames(self, new: Iterable[tuple[Frame, int]]) -> None:
        self.kernel.crash_point()
        super().add_frames(new)
        self.kernel.crash_point()

    def checkpoint(self, *arguments: Any, **named: Any) -> None:
        self.kernel.crash_point()
        super().checkpoint(*arguments, **named)
        self.kernel.crash_point()


class Server:
    """Lives, dies and comes back over one store."""

    def __init__(
        self,
        kernel: Kernel,
        network: Network,
        directory: Path,
        strategy: Strategy,
        parameters: Parameters,
        *,
        chunk: int,
    ) -> None:
        self.kernel, self.network = kernel, network
        self.directory, self.strategy, self.parameters, self.chunk = directory, strategy, parameters, chunk
        self.durable: list[rec.Record] = []
        self.rig: Rig | None = None
        self.lives = 0
        self._inbox: list[Delivery] = []
        self.boot()

    # ---------------------------------------------------------------- life and death

    def boot(self) -> None:
        self.lives += 1
        self._inbox = []
        self._guarded(self._begin)

    def _begin(self) -> None:
        store = MortalStore(self.directory, self.kernel, self.durable)
        try:
            self.rig = Rig(
                self.directory,
                self.strategy,
                parameters=self.parameters,
                store=store,
                chunk=self.chunk,
                put=self._put,
            )
        except PowerCut:
            store.close()
            raise
        self.rig.start(self.kernel.now)
        for post in self.rig.shelf.everything():
            self._put(post)
        status = self._status(AggregatorState.READY)
        self.network.publish(TOPICS.aggregator, status, retain=True)
        own = tuple(topic.split("+")[0] for topic in TOPICS.from_devices)
        self.network.connect("aggregator", own, partial(self._hear, self.lives))
        self._wake()
        self.kernel.after(20 * self.kernel.random.random(), partial(self._in_this_life, self.lives, self._checkpoint))

    def _guarded(self, work: Any) -> None:
        try:
            work()
        except PowerCut:
            self._die()

    def _die(self) -> None:
        self.network.disconnect("aggregator")
        if self.rig is not None:
            self.network.publish(TOPICS.aggregator, self._status(AggregatorState.LOST), retain=True)
            self.rig.close()
            self.rig = None
        self.kernel.after(5 * self.kernel.random.random(), self.boot)

    def _in_this_life(self, life: int, work: Any) -> None:
        if life == self.lives and self.rig is not None:
            self._guarded(work)

    def _status(self, state: AggregatorState) -> bytes:
        assert self.rig is not None
        return frames.encode(AggregatorStatus(state=state, boot=self.lives, lineage=self.rig.core.lineage))

    # ------------------------------------------------------------------------- work

    def _hear(self, life: int, topic: str, payload: bytes, retain: bool) -> None:
        self._inbox.append(Delivery(topic, payload, 1, retain))
        if len(self._inbox) == 1:
            self.kernel.after(0.01, partial(self._in_this_life, life, self._process))

    def _process(self) -> None:
        assert self.rig is not None
        batch, self._inbox = self._inbox, []
        self.rig.processor.process(batch, self.kernel.now)
        self._wake()

    def _wake(self) -> None:
        assert self.rig is not None
        if (deadline := self.rig.core.deadline) is not None:
            self.kernel.after(deadline - self.kernel.now, partial(self._in_this_life, self.lives, self._process))

    def _checkpoint(self) -> None:
        assert self.rig is not None
        self.rig.engine.checkpoint(self.rig.core)

    def _put(self, post: Post) -> None:
        self.kernel.crash_point()
        self.network.publish(post.topic, post.payload, retain=post.retain)
        if post.withdraws is not None:
            self.kernel.after(0.1, partial(self._in_this_life, self.lives, partial(self._withdraw, post.withdraws)))

    def _withdraw(self, frame: tuple[int, int]) -> None:
        assert self.rig is not None
        self.rig.shelf.withdrawn([frame])
