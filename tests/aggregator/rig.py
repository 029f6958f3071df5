"""An aggregator without a network: messages go in, posts come out, and a test may stop it between any two."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from midge.aggregator.core.core import AggregatorCore, Bounds
from midge.aggregator.core.presets import fedasync
from midge.aggregator.core.staleness import constant
from midge.aggregator.core.strategy import Strategy
from midge.aggregator.engine import Engine, recover
from midge.aggregator.ingress.authentication import Credentials
from midge.aggregator.ingress.filter import Bodies, IngressFilter
from midge.aggregator.ingress.rate_limits import Admission, IngressLimits
from midge.aggregator.ingress.reassembly import UpdateReassembler
from midge.aggregator.ingress.roster import Roster
from midge.aggregator.model.model import Model
from midge.aggregator.observations import Observations
from midge.aggregator.processor import Processor
from midge.aggregator.publish.model_publisher import ModelPublisher
from midge.aggregator.publish.outlet import Outlet
from midge.aggregator.publish.publish_queue import Post
from midge.aggregator.store.store import Store
from midge.broker.mqtt.connection import Delivery
from midge.wire import codecs, frames, messages
from midge.wire.messages import DeviceState, Hello, Moment, Receipt, Settled, Statistics, Trouble, Update
from midge.wire.messages.proofs import Proof
from midge.wire.moments import Moments
from midge.wire.schema import Parameters, Schema
from midge.wire.topics import Topics

Vector = npt.NDArray[np.float32]
TOPICS = Topics("f")
OPEN = IngressLimits(rate=None, fleet_rate=None, strikes=None)
"""Everything is taken in."""
EVERYTHING_COUNTS = fedasync(
    alpha=1.0, staleness=constant(), norm_limit=None, release_floor=1, form="delta", bounded=False
)
"""Each update is added to the model as it is."""


class AllDevices:
    """No register: every device may take part."""

    def withdrawn(self, device: str) -> bool:
        return False

    def heard(self, device: str) -> None:
        """Record nothing."""


class QuickStore(Store):
    """Commits as the real one does, without waiting for the disk: a process that is killed loses nothing by it."""

    def __enter__(self) -> Self:
        super().__enter__()
        self._open_db.execute("PRAGMA synchronous=OFF")
        return self


def update_of(core: AggregatorCore, seq: int, body: bytes, **fields: Any) -> Update:
    """The header of an update that was trained from the newest version; `fields` override it."""
    usual = {
        "outbox": 1,
        "first": seq,
        "seq": seq,
        "lineage": core.lineage,
        "generation": core.generation,
        "base": core.version,
        "codec": "float32",
        "size": len(body),
        "sha256": hashlib.sha256(body).digest(),
    }
    return Update(**{**usual, **fields})


class Rig:
    """One life of an aggregator over a store."""

    def __init__(
        self,
        directory: Path,
        strategy: Strategy = EVERYTHING_COUNTS,
        *,
        parameters: Parameters | None = None,
        roles: Mapping[str, Any] | None = None,
        moments: Sequence[Moment] = (),
        statistics_devices: int = 2,
        bounds: Bounds | None = None,
        memory: int = 2**20,
        chunk: int = 1024,
        store: Store | None = None,
        put: Callable[[Post], None] | None = None,
    ) -> None:
        parameters = parameters or {"x": np.zeros(4, np.float32)}
        schema = Schema.of(parameters, roles)
        self.store = (store or QuickStore(directory)).__enter__()
        self.posts: list[Post] = []
        self.put = put or self._keep
        self.told: list[tuple[str, dict[str, Any]]] = []
        try:
            fresh = self.store.empty
            if self.store.schema is None:
                self.store.create(schema)
            self.core = AggregatorCore(
                strategy,
                lineage=self.store.lineage,
                schema_hash=schema.hash,
                moments=moments,
                statistics_devices=statistics_devices,
                bounds=bounds or Bounds.of(schema),
            )
            if fresh:
                Engine(Model.of(parameters, schema), self.store).checkpoint(self.core)
            self.engine = recover(self.core, self.store, schema)
            self.shelf = ModelPublisher(
                self.engine, self.core, TOPICS, chunk=chunk, stepping_back=strategy.form == "mixing"
            )
            self.outlet = Outlet(self.put, self.tell)
            dropped = self.outlet.meters.dropped
            self.ingress = IngressFilter(
                Admission(OPEN),
                Credentials(TOPICS),
                AllDevices(),
                reassembler=UpdateReassembler(budget=memory, dropped=dropped),
                bodies=Bodies(),
                outlet=self.outlet,
            )
            self.roster = Roster(None, self.outlet, self.core.bounds.devices)
            self.observed = Observations(self.tell)
            self.processor = self.process_again()
        except BaseException:
            self.store.close()
            raise

    def process_again(self) -> Processor:
        """A processor of what the devices have said so far."""
        return Processor(
            self.engine,
            self.shelf,
            TOPICS,
            ingress=self.ingress,
            roster=self.roster,
            outlet=self.outlet,
            observed=self.observed,
        )

    def _keep(self, post: Post) -> None:
        self.posts.append(post)

    def tell(self, event: str, **fields: Any) -> None:
        self.told.append((event, fields))

    def start(self, now: float = 0.0) -> Self:
        self.processor.shell.carry_out(self.core.start(now), now)
        return self

    def close(self) -> None:
        """End this life as SIGKILL does: what is not in the store is gone."""
        self.store.close()

    @property
    def model(self) -> Model:
        return self.engine.model

    @property
    def state(self) -> tuple[bytes, dict[str, Any]]:
        """All that a restart must bring back: the model's bits, and what the journal says of the devices."""
        return self.model.digest(), journaled(self.core)

    # ------------------------------------------------------------------- messages

    def update(self, device: str, seq: int, delta: Sequence[float] | Vector, **fields: Any) -> tuple[str, bytes]:
        """An update of a device, as topic and payload; `fields` override its header's."""
        schema = self.model.schema
        codec, tensors = fields.get("codec", "float32"), fields.get("tensors")
        body = fields.pop("body", None)
        if body is None:
            body = codecs.encode_delta(np.asarray(delta, np.float32), schema, codec, tensors)
        header = update_of(self.core, seq, body, **{"schema_hash": schema.hash, "codec": codec, **fields})
        return TOPICS.update(device), frames.encode(header, b"" if "kind" in fields else body)

    def hear(self, *messages_: tuple[str, bytes], now: float = 0.0, retain: bool = False) -> list[Receipt]:
        """Take messages in as one batch; the receipts that it made."""
        before = len(self.posts)
        self.processor.process([Delivery(topic, payload, 1, retain) for topic, payload in messages_], now)
        return receipts(self.posts[before:])

    def send(self, device: str, seq: int, delta: Sequence[float] | Vector, now: float = 0.0, **fields: Any) -> Settled:
        """Take one update in; its verdict."""
        (receipt,) = self.hear(self.update(device, seq, delta, **fields), now=now)
        (settled,) = receipt.settled
        return settled

    def tick(self, now: float) -> None:
        self.hear(now=now)


@contextmanager
def rig(directory: Path, strategy: Strategy = EVERYTHING_COUNTS, **arguments: Any) -> Iterator[Rig]:
    """A life that begins with what is due and ends without a word."""
    life = Rig(directory, strategy, **arguments)
    try:
        yield life.start()
    finally:
        life.close()


def hello(device: str, outbox: int = 1, first: int = 1, state: DeviceState = DeviceState.READY) -> tuple[str, bytes]:
    return TOPICS.status(device), frames.encode(Hello(state=state, outbox=outbox, first=first))


def statistics(device: str, lineage: bytes, **moments: Moments) -> tuple[str, bytes]:
    header = Statistics(lineage=lineage, names=tuple((name, each.count.size) for name, each in moments.items()))
    return TOPICS.update(device), frames.encode(header, b"".join(each.to_bytes() for each in moments.values()))


def receipts(posts: Sequence[Post]) -> list[Receipt]:
    return [said for said in answers(posts) if isinstance(said, Receipt)]


def answers(posts: Sequence[Post]) -> list[Receipt | Trouble]:
    said = [messages.decode_answer(post.payload)[0] for post in posts if "/receipt/" in post.topic]
    return [each for each in said if not isinstance(each, Proof)]


def journaled(core: AggregatorCore) -> dict[str, Any]:
    """What the core remembers, but for what a restart may forget: refusals for now, repeats, greetings."""
    state = core.dump()
    lost = {"duplicate", "busy", "paused"}
    state["counts"] = {name: count for name, count in state["counts"].items() if name not in lost}
    state["outboxes"] = sorted(box for box in state["outboxes"] if box[4])
    return state
