"""Thousands of random federations, each drawn from its seed: does any stop learning, and is any model ruined?

    python -m benchmarks.stalls --worlds 1000 --seed 1 [--quick]
    python -m benchmarks.stalls --worlds 2000 --seeds 1,2,3,4,5 --store

A world has a preset, 2 to 100 devices of different speeds, rows that are partly noise, and some of: concept drift
(labels scaled by 0.01 to 1,000, or shifted), devices that join late or leave, links that break, under the default up to
one attacker in five devices at up to its full rate, restarts of the aggregator (its process ends between any two
actions, and the next one's clock starts anywhere) and of devices, outages of one device and of all beyond what the
strategy needs, pauses by the operator, messages that are lost, duplicated or overtaken, wrong clocks, and devices that
train one of two tensors only (`benchmarks.stalls_worlds`).

- *Stalled*: for three training intervals (and the strategy's own deadline) no honest update was accepted, while the
  aggregator was up and not paused and enough honest devices were present, counted from when it or they returned.
- *Late*: the final model is not finite, or further off than the same world without attackers by more than `SLACK` of
  the loss of an ignorant model. Without attackers it must end no worse than an ignorant model, before or after the
  drift: slow presets and federations of two have not learned all of the new concept by the end. A world is *abandoned*,
  and its end not judged, if fewer devices stay to the end than a release needs.
- *Broken*: it is still so after nine times as long; or the model is ever `RUINED` times as far off as an ignorant one
  (`OUTVOTED` if attackers were half of the first devices); or an exception is raised, a restart changes the state, or
  an update is accepted twice.

Presets other than the default promise nothing against attackers, and get none.
"""

import benchmarks.one_thread  # noqa: F401 - before NumPy

# isort: split
import argparse
import gc
import json
import math
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.liars import Liars
from benchmarks.stalls_worlds import BROKEN, RECIPE, Drawn, Sensors, kinds
from benchmarks.suite import machine
from midge.aggregator.core.participation_controller import PERIOD
from midge.aggregator.core.strategy import Strategy
from midge.aggregator.core.turn import STATUSES
from midge.iot_client.session.session import REREAD
from midge.iot_client.session.timers import PATIENCE
from midge.sensor_fleet.profiles.population import Population
from midge.sensor_fleet.profiles.presence import Interval
from midge.sensor_fleet.simulation.incidents import Incidents
from midge.sensor_fleet.simulation.participant import CONNECTING
from midge.sensor_fleet.simulation.result import Simulated
from midge.sensor_fleet.simulation.simulate import simulate

__all__ = ["Drawn", "judge", "verdict"]

RESULTS = Path(__file__).parent / "results" / "stalls.json"
INTERVALS = 3.0
SLACK = 0.25
LONGER = 9
"""Times its length that a world is run before it counts as broken. Small fleets are slow to unlearn: labels that shrink
by a factor of 40 leave a model that is 300 bounds off, and with devices that are mostly away its error swings for 40 to
100 trainings before it is within the bound, with attackers or without."""
RUINED = 10.0
"""Multiple of the RMSE of an ignorant model beyond which a model is ruined, even if it is learned again."""
OUTVOTED = 32.0
"""The same as an RMSE if attackers were at least half of the devices when three or more had been heard from. No rule
can tell then which of them lie, but the first updates move a value by at most 4 each."""
EVALUATIONS = 30
WORLDS = 100_000
"""Maximum number of worlds of one seed."""


@dataclass(frozen=True, slots=True)
class Played:
    """How the run of a world ended."""

    end: float
    """The final RMSE."""
    before: float
    """That of a model of zeros with the first labels."""
    ignorant: float
    """That of a model of zeros with the last labels."""
    least: float
    """That of the best model with the last labels."""
    ruined: str
    """When the model was ruined, and how far; empty if it was not."""
    stalled: str
    """Why it stalled; empty if it did not."""
    abandoned: bool
    """Whether fewer devices stayed than a release needs."""


def play(drawn: Drawn) -> Played:
    """Run a world."""
    names, speeds, world, strategy, incidents = (
        drawn.names,
        drawn.speeds,
        drawn.world,
        drawn.strategy,
        drawn.incidents(),
    )
    liars, end = frozenset(names[: drawn.liars]), drawn.seconds * drawn.median
    sensors = Sensors(drawn, Liars(drawn.kind, liars, drawn.seed) if liars else None)
    found = simulate(
        [sensors.trainer(place) for place in range(drawn.devices)],
        strategy=strategy,
        seed=drawn.seed,
        seconds=end,
        recipe=RECIPE,
        initial={"w": np.zeros(3, np.float32), "b": np.zeros(1, np.float32)},
        speeds=list(speeds),
        jitter=drawn.jitter,
        loss=drawn.loss,
        world=world,
        tamper=sensors,
        incidents=incidents,
        evaluate=lambda parameters: {"rmse": sensors.rmse(parameters, end)},
        every=end / EVALUATIONS,
    )
    zeros = {"w": np.zeros(3), "b": np.zeros(1)}
    before, after = sensors.rmse(zeros, 0.0), sensors.rmse(zeros, end)
    errors = [float(error) for error in found.metrics["rmse"]]
    worst = max(errors, key=lambda error: error if math.isfinite(error) else math.inf)
    most = max(RUINED * max(before, after), OUTVOTED if _outvoted(found, drawn.liars) else 0.0)
    ruined = "" if worst <= most else f"was {worst:.3g} off, an ignorant model {after:.3g}"
    fleet = _Honest.of(drawn, strategy, speeds, world.population(names), incidents or Incidents())
    return Played(errors[-1], before, after, sensors.least(end), ruined, fleet.stalled(found, end), fleet.abandoned)


def _outvoted(found: Simulated, liars: int) -> bool:
    """Whether attackers were at least half of the devices when three or more had been heard from."""
    heard = list(dict.fromkeys(map(int, found.senders)))  # in the order of their first update
    return any(2 * sum(place < liars for place in heard[:count]) >= count for count in range(3, len(heard) + 1))


@dataclass(frozen=True, slots=True)
class _Honest:
    """When the honest devices of a world are present, and how long the next update may take."""

    speeds: npt.NDArray[np.float64]
    """Seconds of a training, by index among all devices."""
    places: Sequence[int]
    """Indices of the honest devices."""
    away: dict[int, list[Interval]]
    """Absences of each device, by index."""
    held: Sequence[Interval]
    """When nothing can be accepted."""
    needed: int
    """Number of devices without which no release is made."""
    enough: int
    """Number of devices that are never without an accepted update for long."""
    stretch: float
    """Allowance for a training beside its usual time."""
    slowest: bool
    """Whether a version may wait for an update of every device."""
    waits: float
    """Waiting time in seconds beside trainings."""

    @classmethod
    def of(
        cls,
        drawn: Drawn,
        strategy: Strategy,
        speeds: npt.NDArray[np.float64],
        population: Population,
        incidents: Incidents,
    ) -> "_Honest":
        places, names = range(drawn.liars, drawn.devices), drawn.names
        away: dict[int, list[Interval]] = {}
        for place in places:
            name = names[place]
            away[place] = [(-math.inf, population.joins(name))]
            away[place] += [(outage.start, outage.end) for outage in incidents.outages.get(name, ())]
            away[place] += takewhile(lambda outage: outage[0] < drawn.seconds * drawn.median, population.outages(name))
            if (gone := population.leaves(name)) is not None:
                away[place].append((gone.at, math.inf))
        most = len(places)
        needed = max(strategy.release_floor, 2)
        if strategy.privacy is not None and strategy.deadline is None:
            needed = max(needed, strategy.size(most))  # a step waits for this number of distinct devices
        # A broken link reconnects by itself; a lost message is repeated, and may be lost again.
        waits = (
            (strategy.deadline or 0.0)
            + strategy.release_interval
            + INTERVALS * (BROKEN * drawn.median if drawn.online else 0.0)
        )
        waits += 2 * CONNECTING * drawn.latency * drawn.median * 4
        if strategy.pace.steered:  # if no device was selected, more are once three releases would have come
            waits += max(PERIOD, INTERVALS * (float(np.max(speeds)) + (strategy.deadline or 0.0)))
        if drawn.loss:  # two of a message in a row; a lost announcement is noticed at the next reading
            waits += 1.25 * (PATIENCE + 2 * PATIENCE) + 2 * REREAD
        waits += 4 * incidents.delay if drawn.delayed else 0.0
        if drawn.crashes and (drawn.release_every > 1 or drawn.endless):  # until the number of devices is believed
            waits += STATUSES
        return cls(
            speeds,
            places,
            away,
            sorted([*((crash.at, crash.until) for crash in incidents.crashes), *incidents.pauses]),
            needed,
            max(needed, min(3, most)),
            math.exp(2 * drawn.jitter),
            drawn.release_every > 1 or drawn.release_floor > 2 or drawn.endless,
            waits,
        )

    @property
    def abandoned(self) -> bool:
        """Whether fewer devices stay to the end than a release needs."""
        return sum(intervals[-1][1] < math.inf for intervals in self.away.values()) < self.needed

    def stalled(self, found: Simulated, end: float) -> str:
        """The first interval in which an honest update was due but none was accepted; empty if there is none.

        Links may break too often for any such interval. Then a second version shows that it goes on, once as many
        devices as it needs have given an update, or were present for as long as that takes.
        """
        honest = set(self.places)
        taken = [(float(at), int(place)) for at, place in zip(found.update_times, found.senders, strict=True)]
        taken = [(at, place) for at, place in taken if place in honest]
        if found.versions[-1] <= 1 and not self.abandoned:
            first = dict(reversed([(place, at) for at, place in taken]))  # when each device was heard first
            enough = sorted(first.values())[self.needed - 1 : self.needed]
            able = sum(self._longest_presence(place, end) > self._limit([place]) for place in self.places)
            if end - enough[0] > self._limit(self.places) if enough else able >= self.needed:
                return f"no second version in {end:.4g} s, {len(first)} devices were heard"
        times = [at for at, _ in taken]
        for begin, until in zip([0.0, *times], [*times, end], strict=True):
            if until - begin <= self._limit(self.places):
                continue
            for since in self._starts(begin, until):
                limit = self._limit(self.places)
                there = self._there(since, since + limit)
                if len(there) < self.enough:
                    continue
                limit = max(limit, self._limit(there))
                if since + limit >= until or len(self._there(since, since + limit)) < self.enough:
                    continue
                if not any(start < since + limit and since < stop for start, stop in self.held):
                    why = f"no honest update from {begin:.4g} to {until:.4g} s, limit {limit:.4g} s from {since:.4g} s"
                    return f"{why}: {dict(found.refused)}"
        return ""

    def _longest_presence(self, place: int, end: float) -> float:
        """The most seconds for which a device was present without a break."""
        longest = since = 0.0
        for start, stop in sorted(self.away[place]):
            longest, since = max(longest, min(start, end) - since), max(since, stop)
        return max(longest, end - since)

    def _limit(self, places: Sequence[int]) -> float:
        """Seconds within which these devices have sent something, with as many of them as needed."""
        speeds = np.sort(self.speeds[list(places)])
        usual = float(np.quantile(speeds, 0.75 if len(speeds) >= 10 and not self.slowest else 1.0))
        return INTERVALS * usual * self.stretch + self.waits

    def _starts(self, begin: float, until: float) -> Iterator[float]:
        """When an update may become due in an interval: at its start, and whenever an obstacle ends."""
        ends = {stop for _, stop in self.held} | {stop for each in self.away.values() for _, stop in each}
        yield begin
        yield from sorted(stop for stop in ends if begin < stop < until)

    def _there(self, begin: float, until: float) -> list[int]:
        """Devices that are present for the whole of an interval."""
        return [
            place for place in self.places if all(stop <= begin or start >= until for start, stop in self.away[place])
        ]


def judge(seed: int) -> dict[str, Any]:
    """The verdict on the world of a seed."""
    return verdict(Drawn.of(seed))


def verdict(drawn: Drawn) -> dict[str, Any]:
    """Run one world, without its attackers as well where its bound needs it, and longer if it ends beyond that."""
    found = {"seed": drawn.seed, "stalled": "", "broken": "", "late": "", "abandoned": False, "over": math.inf}
    found["world"] = repr(drawn)
    try:
        played = play(drawn)
        found["abandoned"] = bool(played.abandoned)
        bound = math.inf if played.abandoned else _bound(drawn, played)
        if not played.end <= bound:
            found["late"] = f"ends at {played.end:.3g}, beyond {bound:.3g}"
            longer, before = replace(drawn, seconds=LONGER * drawn.seconds), played
            played = play(longer)
            bound = _bound(longer, played)
            found["broken"] = "" if played.end <= bound else f"ends at {played.end:.3g}, beyond {bound:.3g}"
            played = replace(played, stalled=before.stalled or played.stalled, ruined=before.ruined or played.ruined)
        found["stalled"], found["broken"] = played.stalled, found["broken"] or played.ruined
        found["over"] = float(played.end / bound) if bound else 0.0
    except Exception as error:  # noqa: BLE001 - whatever it is: no world may raise anything
        found["broken"] = f"{type(error).__name__}: {error} ({traceback.format_exc(limit=-3)})"
    return found


def _bound(drawn: Drawn, played: Played) -> float:
    """The bound of a world's final RMSE.

    With attackers it is at least what any model needs; a world that ends below that is not run without attackers.
    """
    if not drawn.liars:
        return 1.05 * max(played.before, played.ignorant)
    slack = SLACK * played.ignorant
    certain = played.least + slack
    return certain if played.end <= certain else play(replace(drawn, liars=0, kind="")).end + slack


def _begin() -> None:
    """Prepare a worker process: imported modules never become garbage, and little else is cyclic."""
    gc.freeze()
    gc.set_threshold(100_000, 20, 20)


def main() -> int:
    """Run the requested worlds."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stalls", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--worlds", type=int, default=1000, help="of each seed")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seeds", help="several, such as 1,2,3,4,5, instead of --seed")
    parser.add_argument("--quick", action="store_true", help="100 worlds, under 90 seconds on two cores")
    parser.add_argument("--strict", action="store_true", help="exit with 1 if a world stalled or broke")
    parser.add_argument("--rows", type=Path, help="file of played worlds: they are counted, and each new one is added")
    parser.add_argument("--store", action="store_true", help="store the results in benchmarks/results/stalls.json")
    given = parser.parse_args()
    seeds = [given.seed] if given.seeds is None else [int(seed) for seed in given.seeds.split(",")]
    each, began = 100 if given.quick else given.worlds, time.perf_counter()
    with ProcessPoolExecutor(2, initializer=_begin) as pool:
        numbers = [seed * WORLDS + number for seed in seeds for number in range(each)]
        stored = given.rows.read_text().splitlines() if given.rows and given.rows.exists() else []
        known = {row["seed"]: row for row in map(json.loads, stored)}
        found: list[dict[str, Any]] = [known[number] for number in numbers if number in known]
        for row in pool.map(judge, [number for number in numbers if number not in known], chunksize=1):
            found.append(row)
            if given.rows:
                with given.rows.open("a") as rows:
                    rows.write(json.dumps(row) + "\n")
            if row["stalled"] or row["late"] or row["broken"]:
                findings = f"stalled: {row['stalled']} broken: {row['broken']} late: {row['late']}"
                sys.stderr.write(f"{row['seed']}: {findings} {row['world']}\n")
                sys.stderr.flush()
    worst = max(found, key=_badness)
    counts = Counter(name for row in found for name in ("stalled", "broken", "late", "abandoned") if row[name])
    line = {
        "benchmark": "stalls",
        "quick": given.quick,
        "worlds": len(found),
        "stalled": counts["stalled"],
        "broken": counts["broken"],
        "late": counts["late"],
        "abandoned": counts["abandoned"],
        "worst": {"seed": worst["seed"], "why": worst["broken"] or worst["stalled"] or worst["world"]},
        "seconds": round(time.perf_counter() - began, 1),
        "seeds": seeds,
        "by_kind": dict(sorted(Counter(kind for number in numbers for kind in kinds(Drawn.of(number))).items())),
    }
    if given.store:
        RESULTS.write_text(json.dumps({"benchmark": "stalls", "machine": machine(), "found": line}, indent=1) + "\n")
    sys.stdout.write(json.dumps(line) + "\n")
    return int(given.strict and bool(line["stalled"] or line["broken"]))


def _badness(row: dict[str, Any]) -> tuple[bool, bool, float]:
    over = row["over"]
    return bool(row["broken"]), bool(row["stalled"]), over if math.isfinite(over) else math.inf


if __name__ == "__main__":
    sys.exit(main())
