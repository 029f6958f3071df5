"""Trainings by shards: the seed and virtual time decide which trainings are batched, never the process that runs them.

Each device belongs to one logical shard. What a device computes depends only on the version that it started from, its
data and its plan. So trainings are queued when they begin, and a batch of those that end first is run when the first
result is needed. If too few are queued, the batch is filled with trainings that will probably begin from the same
version; one that turns out differently is repeated, at the cost of time only. A shard runs in this process or in
another one: the batches are the same, and the results are equal bit for bit.
"""

import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby, islice, pairwise
from typing import Protocol
from zlib import crc32

import numpy as np

from midge.sensor_fleet.simulation import stacked
from midge.sensor_fleet.simulation.encoding import DecodedUpdate, FleetEncoder
from midge.sensor_fleet.simulation.learners import Learner
from midge.sensor_fleet.simulation.stacked import Job
from midge.wire.messages import Announcement, Plan, Update
from midge.wire.schema import Schema, Vector

DEVICES = 1024
"""Approximate number of devices in a shard."""
MOST = 64
"""Shards at most."""
BATCH = 64
"""Trainings in a batch at most."""


def shards_of(names: Sequence[str], seed: int) -> list[int]:
    """The shard of each device: a hash of its name and the seed."""
    number = max(1, min(MOST, len(names) // DEVICES))
    return [crc32(f"{seed}/shard/{name}".encode()) % number for name in names]


@dataclass(frozen=True, slots=True, eq=False)
class Start:
    """What a training starts from: a version's values, and its announced plan."""

    key: int
    """Unique for each version."""
    values: Vector
    plan: Plan
    lineage: bytes


@dataclass(frozen=True, slots=True)
class Task:
    """One training: the device, its start, and the seed that its session drew."""

    device: int
    key: int
    seed: int
    number: int
    """Number of the resulting update, from 1."""
    seen: int = 0
    """Slots of the device's stream when it begins; 0 for fixed data."""
    steps: int = 0
    """Local steps that fit into the plan's time budget; 0 if the plan sets the steps."""
    micro: bool = False
    """Whether the device is a microcontroller, which follows `Plan.micro()`."""

    def plan(self, announced: Plan) -> Plan:
        """The announced plan with this training's seed and steps."""
        paced = {"local_steps": self.steps, "epochs": None} if self.steps else {}
        return announced.model_copy(update={"seed": self.seed, **paced})


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of a training: the encoded update, or None if the model did not stay finite."""

    decoded: DecodedUpdate | None
    examples: int
    steps: int

    def update(self, decoded: DecodedUpdate, base: Announcement, seconds: float) -> Update:
        """The header of the update, before the outbox numbers it."""
        return Update.model_construct(
            outbox=0,
            first=1,
            seq=1,
            lineage=base.lineage,
            generation=base.generation,
            base=base.version,
            schema_hash=base.schema_hash,
            codec=decoded.codec,
            size=decoded.size,
            sha256=bytes(16),
            examples=self.examples,
            steps=self.steps,
            tensors=decoded.tensors,
            seconds=seconds,
            plan=base.plan.revision,
        )


class ShardWorker:
    """Trains for the shards of one process, and encodes the updates."""

    def __init__(self, learner: Learner, schema: Schema, names: Sequence[str]) -> None:
        self._learner, self._schema, self._names = learner, schema, names
        self._encoders: dict[int, FleetEncoder] = {}

    def run(self, shard: int, tasks: Sequence[Task], starts: Mapping[int, Start]) -> list[Outcome]:
        """Run the trainings, in stacks of about equal size."""
        found: list[Outcome] = []
        parts = max(1, -(-len(tasks) // stacked.AT_ONCE))
        edges = [len(tasks) * part // parts for part in range(parts + 1)]
        for first, last in pairwise(edges):
            found += self._run_stack(shard, tasks[first:last], starts)
        return found

    def _run_stack(self, shard: int, tasks: Sequence[Task], starts: Mapping[int, Start]) -> list[Outcome]:
        begun = [starts[task.key] for task in tasks]
        trained = self._learner.train(
            [
                Job(task.device, start.values, task.plan(start.plan), task.seen)
                for task, start in zip(tasks, begun, strict=True)
            ]
        )
        with np.errstate(over="ignore", invalid="ignore"):
            deltas = [each.values - start.values for each, start in zip(trained, begun, strict=True)]
        encoder = self._encoders.get(shard)
        if encoder is None:
            encoder = self._encoders[shard] = FleetEncoder(self._schema)
        decoded: list[DecodedUpdate | None] = []
        plans = [each.plan.micro() if task.micro else each.plan for each, task in zip(begun, tasks, strict=True)]

        def manner(place: int) -> tuple[str, bool, bytes, tuple[int, ...] | None]:
            """The parameters on which the encoding depends."""
            plan = plans[place]
            return plan.codec, plan.feedback, begun[place].lineage, trained[place].tensors

        for (*_, tensors), same in groupby(range(len(tasks)), manner):
            places = list(same)
            updates = [(self._names[tasks[place].device], tasks[place].number) for place in places]
            first = places[0]
            some = [self._covered(deltas[place], tensors) for place in places]
            decoded += encoder.encode(updates, some, plans[first], begun[first].lineage, tensors)
        return [Outcome(one, each.examples, each.steps) for one, each in zip(decoded, trained, strict=True)]

    def _covered(self, delta: Vector, tensors: tuple[int, ...] | None) -> Vector:
        """The delta with zeros outside the covered tensors."""
        if tensors is None:
            return delta
        found = np.zeros_like(delta)
        for place in self._schema.covered(tensors):
            found[place] = delta[place]
        return found


class Carrier(Protocol):
    """Runs the trainings of shards."""

    def submit(self, shard: int, tasks: Sequence[Task], starts: Mapping[int, Start]) -> Callable[[], Sequence[Outcome]]:
        """Submit trainings; the returned function waits for their outcomes."""

    def close(self) -> None:
        """Release all resources."""


class LocalCarrier:
    """Runs all shards in this process, when results are needed."""

    def __init__(self, work: ShardWorker) -> None:
        self._work = work

    def submit(self, shard: int, tasks: Sequence[Task], starts: Mapping[int, Start]) -> Callable[[], Sequence[Outcome]]:
        return lambda: self._work.run(shard, tasks, starts)

    def close(self) -> None:
        pass


Predict = Callable[[int], Iterable[tuple[Task, Start]]]
"""The trainings of a shard that will probably begin soon, soonest first."""


@dataclass(slots=True)
class _Batch:
    """Trainings submitted together, by number; 0 replaces a number that is no longer wanted."""

    shard: int
    wait: Callable[[], Sequence[Outcome]]
    numbers: list[int]


@dataclass(slots=True)
class _Shard:
    waiting: list[tuple[float, int]] = field(default_factory=list)
    """Heap of the end and number of each queued training; some may have been forgotten."""
    count: int = 0
    """Number of queued trainings that have not been forgotten."""
    ahead: bool = False
    """Whether a batch is submitted of which no result has been read yet."""


class Pool:
    """Trainings under way, submitted when the first result is needed.

    Virtual time alone decides which ones form a batch: the first of a shard to end, then the predicted ones. While the
    results of one batch are read, the next one runs, if enough trainings are queued.
    """

    def __init__(self, carrier: Carrier, shard_of: Sequence[int], predict: Predict = lambda _: ()) -> None:
        self._carrier, self._shard_of, self._predict = carrier, shard_of, predict
        self._shards = [_Shard() for _ in range(max(shard_of, default=0) + 1)]
        self._queued: dict[int, tuple[Task, Start]] = {}
        self._predicted: dict[int, tuple[Task, int]] = {}
        """The training predicted for each device, and its number."""
        self._under_way: dict[int, _Batch] = {}
        self._done: dict[int, Outcome] = {}
        self._number = 0
        self.begun = 0
        """Number of trainings begun."""
        self.mispredicted = 0
        """Number of predicted trainings that did not begin as predicted."""

    def begin(self, task: Task, start: Start, due: float) -> int:
        """Queue a training that ends at virtual time `due`; return the number for `end`."""
        self.begun += 1
        if (predicted := self._predicted.pop(task.device, None)) is not None:
            if predicted[0] == task:
                return predicted[1]
            self.mispredicted += 1
            self.forget(predicted[1])
        self._number += 1
        self._queued[self._number] = task, start
        shard = self._shards[self._shard_of[task.device]]
        heapq.heappush(shard.waiting, (due, self._number))
        shard.count += 1
        return self._number

    def end(self, number: int) -> Outcome:
        """Return the result of a training."""
        if number in self._queued:
            place = self._shard_of[self._queued[number][0].device]
            self._submit(place, number)
            for other, shard in enumerate(self._shards):
                if other != place and not shard.ahead and shard.count >= BATCH:
                    self._submit(other)
        if (batch := self._under_way.get(number)) is not None:
            self._collect(batch)
        return self._done.pop(number)

    def forget(self, number: int) -> None:
        """Drop a training whose device has left or rebooted."""
        if (queued := self._queued.pop(number, None)) is not None:
            self._shards[self._shard_of[queued[0].device]].count -= 1
        elif (batch := self._under_way.pop(number, None)) is not None:
            batch.numbers[batch.numbers.index(number)] = 0
        else:
            self._done.pop(number, None)

    def _submit(self, place: int, wanted: int | None = None) -> None:
        """Submit a shard's first trainings, including the wanted one, and fill the batch with predicted ones."""
        shard = self._shards[place]
        numbers = [] if wanted is None else [wanted]
        while shard.waiting and len(numbers) < BATCH:
            _, number = heapq.heappop(shard.waiting)
            if number in self._queued and number != wanted:
                numbers.append(number)
        shard.count -= len(numbers)
        chosen = [self._queued.pop(number) for number in numbers]
        if len(numbers) < BATCH:
            for task, start in islice(self._new_predictions(place), BATCH - len(numbers)):
                self._number += 1
                self._predicted[task.device] = task, self._number
                numbers.append(self._number)
                chosen.append((task, start))
        shard.ahead = True
        starts = {start.key: start for _, start in chosen}
        batch = _Batch(place, self._carrier.submit(place, [task for task, _ in chosen], starts), numbers)
        self._under_way.update(dict.fromkeys(numbers, batch))

    def _new_predictions(self, place: int) -> Iterator[tuple[Task, Start]]:
        """Predicted trainings that have not been run; drop earlier predictions that they replace."""
        for task, start in self._predict(place):
            before = self._predicted.get(task.device)
            if before is not None and before[0] == task:
                continue
            if before is not None:
                self.mispredicted += 1
                self.forget(before[1])
            yield task, start

    def _collect(self, batch: _Batch) -> None:
        shard = self._shards[batch.shard]
        shard.ahead = False
        if shard.count >= BATCH:
            self._submit(batch.shard)
        for number, outcome in zip(batch.numbers, batch.wait(), strict=True):
            if number:
                del self._under_way[number]
                self._done[number] = outcome
