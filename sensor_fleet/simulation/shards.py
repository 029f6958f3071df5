"""Trainings by shards: who trains with whom is decided by the seed and by virtual time, never by who carries it out.

Each device belongs to a logical shard for good. What a device computes depends on the version that it started from, its
data and its plan, and on nothing that happens meanwhile; so trainings are noted when they begin, and those of a shard
that end first are done together once the first result of them is asked for. Where too few are under way, those that
will probably begin from the same version are done with them; one that turns out otherwise is done again, which costs
time and changes nothing. A shard is carried by this process or by another one: batches are the same, and so are bits.
"""

import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby, islice, pairwise
from typing import Protocol
from zlib import crc32

import numpy as np

from midge.sensor_fleet.simulation import stacked
from midge.sensor_fleet.simulation.coding import Coding, Said
from midge.sensor_fleet.simulation.learners import Learner
from midge.sensor_fleet.simulation.stacked import Job
from midge.wire.messages import Announcement, Plan, Update
from midge.wire.schema import Schema, Vector

DEVICES = 1024
"""Devices of a shard, about."""
MOST = 64
"""Shards at most."""
BATCH = 64
"""Trainings that a shard does together, at most."""


def shards_of(names: Sequence[str], seed: int) -> list[int]:
    """The shard of each device: a hash of its name and the seed."""
    number = max(1, min(MOST, len(names) // DEVICES))
    return [crc32(f"{seed}/shard/{name}".encode()) % number for name in names]


@dataclass(frozen=True, slots=True, eq=False)
class Start:
    """What a training begins with: a version, and what its announcement asks for."""

    key: int
    """Another one for each version."""
    values: Vector
    plan: Plan
    lineage: bytes


@dataclass(frozen=True, slots=True)
class Task:
    """One training: which device, from which start, and the chance that the session gave it."""

    device: int
    key: int
    seed: int
    number: int
    """Of the update that it makes, from 1."""
    seen: int = 0
    """Slots of the device's stream that there have been when it begins; 0 where its data stands still."""
    steps: int = 0
    """Local steps that fit into the seconds of the plan; 0: as the plan says."""
    micro: bool = False
    """Whether the device is a microcontroller, which follows the plan for such ones."""

    def plan(self, announced: Plan) -> Plan:
        """The announced plan, for this training."""
        paced = {"local_steps": self.steps, "epochs": None} if self.steps else {}
        return announced.model_copy(update={"seed": self.seed, **paced})


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a training: the update as the aggregator reads it, None where it did not stay finite."""

    said: Said | None
    examples: int
    steps: int

    def update(self, said: Said, base: Announcement, seconds: float) -> Update:
        """The header of the update that it makes, before its outbox numbers it."""
        return Update.model_construct(
            outbox=0,
            first=1,
            seq=1,
            lineage=base.lineage,
            generation=base.generation,
            base=base.version,
            schema_hash=base.schema_hash,
            codec=said.codec,
            size=said.size,
            sha256=bytes(16),
            examples=self.examples,
            steps=self.steps,
            tensors=said.tensors,
            seconds=seconds,
            plan=base.plan.revision,
        )


class ShardWorker:
    """Does the trainings of the shards that one process carries, and encodes what comes of them."""

    def __init__(self, learner: Learner, schema: Schema, names: Sequence[str]) -> None:
        self._learner, self._schema, self._names = learner, schema, names
        self._codings: dict[int, Coding] = {}

    def do(self, shard: int, tasks: Sequence[Task], starts: Mapping[int, Start]) -> list[Outcome]:
        """What becomes of these trainings; stacks about as large as each other are cut from them in their order."""
        found: list[Outcome] = []
        parts = max(1, -(-len(tasks) // stacked.AT_ONCE))
        edges = [len(tasks) * part // parts for part in range(parts + 1)]
        for first, last in pairwise(edges):
            found += self._some(shard, tasks[first:last], starts)
        return found

    def _some(self, shard: int, tasks: Sequence[Task], starts: Mapping[int, Start]) -> list[Outcome]:
        begun = [starts[task.key] for task in tasks]
        trained = self._learner.train(
            [
                Job(task.device, start.values, task.plan(start.plan), task.seen)
                for task, start in zip(tasks, begun, strict=True)
            ]
        )
        with np.errstate(over="ignore", invalid="ignore"):
            deltas = [each.values - start.values for each, start in zip(trained, begun, strict=True)]
        coding = self._codings.get(shard)
        if coding is None:
            coding = self._codings[shard] = Coding(self._schema)
        said: list[Said | None] = []
        plans = [each.plan.micro() if task.micro else each.plan for each, task in zip(begun, tasks, strict=True)]

        def manner(place: int) -> tuple[str, bool, bytes, tuple[int, ...] | None]:
            """What decides how a delta is encoded."""
            plan = plans[place]
            return plan.codec, plan.feedback, begun[place].lineage, trained[place].tensors

        for (*_, tensors), same in groupby(range(len(tasks)), manner):
            places = list(same)
            updates = [(self._names[tasks[place].device], tasks[place].number) for place in places]
            first = places[0]
            some = [self._covered(deltas[place], tensors) for place in places]
            said += coding.encode(updates, some, plans[first], begun[first].lineage, tensors)
        return [Outcome(one, each.examples, each.steps) for one, each in zip(said, trained, strict=True)]

    def _covered(self, delta: Vector, tensors: tuple[int, ...] | None) -> Vector:
        """A delta without what it does not cover."""
        if tensors is None:
            return delta
        found = np.zeros_like(delta)
        for place in self._schema.covered(tensors):
            found[place] = delta[place]
        return found


class Carrier(Protocol):
    """Who carries shards."""

    def submit(self, shard: int, tasks: Sequence[Task], starts: Mapping[int, Start]) -> Callable[[], Sequence[Outcome]]:
        """Have trainings done; what is returned gives the outcomes, and waits for them where it must."""

    def close(self) -> None:
        """Let go of what was started."""


class Here:
    """Carries all shards in this process, when results are asked for."""

    def __init__(self, work: ShardWorker) -> None:
        self._work = work

    def submit(self, shard: int, tasks: Sequence[Task], starts: Mapping[int, Start]) -> Callable[[], Sequence[Outcome]]:
        return lambda: self._work.do(shard, tasks, starts)

    def close(self) -> None:
        pass


Expect = Callable[[int], Iterable[tuple[Task, Start]]]
"""The trainings of a shard that will probably begin soon, soonest first."""


@dataclass(slots=True)
class _Batch:
    """Trainings that were handed out together, by their numbers; 0 in place of one that is not wanted any more."""

    shard: int
    wait: Callable[[], Sequence[Outcome]]
    numbers: list[int]


@dataclass(slots=True)
class _Shard:
    waiting: list[tuple[float, int]] = field(default_factory=list)
    """A heap of when each training ends, and its number; some may be gone."""
    count: int = 0
    """Those that are not gone."""
    ahead: bool = False
    """Whether a batch was handed out of which no result was asked for yet."""


class Pool:
    """Trainings under way, handed out when the first result is needed.

    Which ones go together depends on virtual time only: the first of a shard to end, and those that are expected. While
    the results of one batch are taken, the next is handed out, if there are enough for one.
    """

    def __init__(self, carrier: Carrier, shard_of: Sequence[int], expect: Expect = lambda _: ()) -> None:
        self._carrier, self._shard_of, self._expect = carrier, shard_of, expect
        self._shards = [_Shard() for _ in range(max(shard_of, default=0) + 1)]
        self._noted: dict[int, tuple[Task, Start]] = {}
        self._expected: dict[int, tuple[Task, int]] = {}
        """Of each device, what was done before it began, and its number."""
        self._under_way: dict[int, _Batch] = {}
        self._done: dict[int, Outcome] = {}
        self._number = 0
        self.begun = 0
        """How many trainings began."""
        self.vain = 0
        """How many were done because they were expected, and did not begin so."""

    def begin(self, task: Task, start: Start, due: float) -> int:
        """Note a training that ends at a virtual time; the number under which its result is asked for."""
        self.begun += 1
        if (expected := self._expected.pop(task.device, None)) is not None:
            if expected[0] == task:
                return expected[1]
            self.vain += 1
            self.forget(expected[1])
        self._number += 1
        self._noted[self._number] = task, start
        shard = self._shards[self._shard_of[task.device]]
        heapq.heappush(shard.waiting, (due, self._number))
        shard.count += 1
        return self._number

    def end(self, number: int) -> Outcome:
        """The result of a training."""
        if number in self._noted:
            place = self._shard_of[self._noted[number][0].device]
            self._hand_out(place, number)
            for other, shard in enumerate(self._shards):
                if other != place and not shard.ahead and shard.count >= BATCH:
                    self._hand_out(other)
        if (batch := self._under_way.get(number)) is not None:
            self._take(batch)
        return self._done.pop(number)

    def forget(self, number: int) -> None:
        """Its device is gone."""
        if (noted := self._noted.pop(number, None)) is not None:
            self._shards[self._shard_of[noted[0].device]].count -= 1
        elif (batch := self._under_way.pop(number, None)) is not None:
            batch.numbers[batch.numbers.index(number)] = 0
        else:
            self._done.pop(number, None)

    def _hand_out(self, place: int, wanted: int | None = None) -> None:
        """Hand a shard's first trainings out, the one that is wanted among them, and those that are expected."""
        shard = self._shards[place]
        numbers = [] if wanted is None else [wanted]
        while shard.waiting and len(numbers) < BATCH:
            _, number = heapq.heappop(shard.waiting)
            if number in self._noted and number != wanted:
                numbers.append(number)
        shard.count -= len(numbers)
        chosen = [self._noted.pop(number) for number in numbers]
        if len(numbers) < BATCH:
            for task, start in islice(self._news(place), BATCH - len(numbers)):
                self._number += 1
                self._expected[task.device] = task, self._number
                numbers.append(self._number)
                chosen.append((task, start))
        shard.ahead = True
        starts = {start.key: start for _, start in chosen}
        batch = _Batch(place, self._carrier.submit(place, [task for task, _ in chosen], starts), numbers)
        self._under_way.update(dict.fromkeys(numbers, batch))

    def _news(self, place: int) -> Iterator[tuple[Task, Start]]:
        """What is expected and was not done yet; what was, and is expected otherwise now, is forgotten."""
        for task, start in self._expect(place):
            before = self._expected.get(task.device)
            if before is not None and before[0] == task:
                continue
            if before is not None:
                self.vain += 1
                self.forget(before[1])
            yield task, start

    def _take(self, batch: _Batch) -> None:
        shard = self._shards[batch.shard]
        shard.ahead = False
        if shard.count >= BATCH:
            self._hand_out(batch.shard)
        for number, outcome in zip(batch.numbers, batch.wait(), strict=True):
            if number:
                del self._under_way[number]
                self._done[number] = outcome
