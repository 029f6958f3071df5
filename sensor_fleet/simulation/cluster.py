"""Shards on a Ray cluster: the same simulation on several machines, with results equal bit for bit.

One process holds the clock, the aggregator and the sessions; actors train. All machines must have the same kind of
processor, since the last bits of a matrix product depend on it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from midge.sensor_fleet.simulation.shards import Outcome, ShardWorker, Start, Task
from midge.sensor_fleet.simulation.workers import Make, StartCache

LOCAL = "local"


def _ray() -> Any:
    """Import Ray on first use.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import ray  # noqa: PLC0415 - an extra
    except ModuleNotFoundError as error:
        raise ValueError('This needs ray, which is not installed: pip install "midge[ray]"') from error
    return ray


class OnRay:
    """Runs shards in actors of a Ray cluster.

    Args:
        make: makes an actor's `ShardWorker`; it is sent to each actor.
        count: number of actors, each with one processor.
        address: of a running cluster, or `local` to start one and end it again.
    """

    def __init__(self, make: Make, count: int, address: str = LOCAL) -> None:
        ray = self._ray = _ray()
        self._ours = not ray.is_initialized()
        if self._ours:
            try:
                if address == LOCAL:
                    ray.init(num_cpus=count, include_dashboard=False, log_to_driver=False, configure_logging=False)
                else:
                    ray.init(address=address, log_to_driver=False, configure_logging=False)
            except ConnectionError as error:
                raise ValueError(
                    f"There is no Ray cluster at {address} ({error}): start one, or give {LOCAL}."
                ) from error
        actor = ray.remote(num_cpus=1)(_Actor)
        self._actors = [actor.remote(make) for _ in range(count)]
        self._sent = [StartCache() for _ in range(count)]

    def submit(self, shard: int, tasks: Sequence[Task], starts: Mapping[int, Start]) -> Callable[[], Sequence[Outcome]]:
        place = shard % len(self._actors)
        new = self._sent[place].missing(starts)
        coming = self._actors[place].run.remote(shard, tuple(tasks), tuple(starts), new)
        return lambda: self._outcomes(coming)

    def _outcomes(self, coming: Any) -> Sequence[Outcome]:
        found: Sequence[Outcome] = self._ray.get(coming)
        return found

    def close(self) -> None:
        for actor in self._actors:
            self._ray.kill(actor)
        if self._ours:
            self._ray.shutdown()


class _Actor:
    """One worker; Ray runs its calls in order."""

    def __init__(self, make: Make) -> None:
        self._work: ShardWorker = make()
        self._sent = StartCache()

    def run(
        self, shard: int, tasks: Sequence[Task], keys: Sequence[int], new: Mapping[int, Start]
    ) -> Sequence[Outcome]:
        return self._work.run(shard, tasks, self._sent.whole(keys, new))
