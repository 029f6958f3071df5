"""Worker processes for shards. A shard always runs in the same process, which keeps its devices' residuals."""

import multiprocessing
import pickle
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor

from midge.sensor_fleet.simulation.shards import Outcome, ShardWorker, Start, Task

REMEMBERED = 256
"""Starts that a worker caches, so that a version is sent to it once; more than one batch needs."""
_PROBLEM = (
    "trainers, model or data cannot be sent to another process ({error}): put them in a module, or use workers=1."
)

Make = Callable[[], ShardWorker]


class StartCache:
    """Tracks which starts a worker has cached. Both ends apply the same rule, so neither asks the other."""

    def __init__(self) -> None:
        self._known: OrderedDict[int, Start | None] = OrderedDict()

    def missing(self, starts: Mapping[int, Start]) -> dict[int, Start]:
        """On the sender's side: the starts that must be sent along."""
        new = {key: start for key, start in starts.items() if key not in self._known}
        self._note(starts, dict.fromkeys(new))
        return new

    def whole(self, keys: Sequence[int], new: Mapping[int, Start]) -> dict[int, Start]:
        """On the worker's side: all starts of a batch."""
        self._note(keys, new)
        return {key: start for key in keys if (start := self._known[key]) is not None}

    def _note(self, keys: Sequence[int] | Mapping[int, Start], new: Mapping[int, Start | None]) -> None:
        for key in keys:
            if key in new:
                self._known[key] = new[key]
            self._known.move_to_end(key)
        while len(self._known) > REMEMBERED:
            self._known.popitem(last=False)


class Processes:
    """Runs shards in processes of this machine."""

    def __init__(self, make: Make, count: int) -> None:
        """Start the processes.

        Raises:
            ValueError: the trainers, model or data cannot be pickled.
        """
        try:
            packed = pickle.dumps(make)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise ValueError(_PROBLEM.format(error=error)) from error
        context = multiprocessing.get_context("spawn")
        self._workers = [ProcessPoolExecutor(1, context, _initialise, (packed,)) for _ in range(count)]
        self._sent = [StartCache() for _ in range(count)]

    def submit(self, shard: int, tasks: Sequence[Task], starts: Mapping[int, Start]) -> Callable[[], Sequence[Outcome]]:
        place = shard % len(self._workers)
        new = self._sent[place].missing(starts)
        return self._workers[place].submit(_run, shard, tuple(tasks), tuple(starts), new).result

    def close(self) -> None:
        for worker in self._workers:
            worker.shutdown(wait=True, cancel_futures=True)


_state: list[tuple[ShardWorker, StartCache]] = []
"""The worker process's state."""


def _initialise(packed: bytes) -> None:
    _state.append((pickle.loads(packed)(), StartCache()))  # noqa: S301 - from the process that started this one


def _run(shard: int, tasks: Sequence[Task], keys: Sequence[int], new: Mapping[int, Start]) -> list[Outcome]:
    ((work, sent),) = _state
    return work.run(shard, tasks, sent.whole(keys, new))
