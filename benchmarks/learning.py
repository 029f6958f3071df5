"""Time to quality: `python -m benchmarks.learning [--quick] [--data FILE.npz] [--seeds N] [--only dataset,world,…]`.

Federations on a virtual clock, in which the median device trains in one second: the real aggregator, sessions and
codecs, compared with ideal synchronous rounds (`benchmarks.learning_synchronous`). Prints one JSON line with `rows`,
one for each strategy, seed and target:

- `virtual_seconds_to_target`: when the target was reached and then held for two seconds; null if it never was.
- `speedup`: seconds of the best synchronous rule over these, for the same fleet and seed; null if either missed it.
- `final`, `worst_class`, `slow_class`: the metric over the last fifth of the run, of the worst class, and weighted by
  the slow half's data. Runs of synchronous rules last twice as long. The five best synchronous rules of the tuning are
  run, and each seed is given its best one: more than could be known in advance.
- `overhead`: L, the seconds added to each training.
- `local_steps`: of the best synchronous rule of the tuning; null if the aggregator chooses them, or if all have the
  recipe's.
- `central`, `local_only`: the same model on all rows pooled, and the mean of devices that train alone.
- `metric`: accuracy, or rmse, for which lower is better, also as a target.

The default strategy runs as it ships. All others are tuned first, on seeds that are not reported: asynchronous ones
over local rate × server rate, the synchronous rule over m/n × deadline × local rate × server rate × local steps ×
server momentum × served average. Without `--quick`, results are kept in `benchmarks/results/learning.json` part by
part, so that an interrupted run can be resumed.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from benchmarks import learning_poisoned
from benchmarks.learning_methods import (
    EVERYBODY,
    LOCAL,
    METHODS,
    SYNCHRONOUS,
    Course,
    Run,
    Setting,
    courses,
    references,
    tuned,
    tuned_rounds,
)
from benchmarks.learning_problems import Problem, digits, fashion, of_file
from benchmarks.learning_worlds import WORLDS

RESULTS = Path(__file__).with_name("results") / "learning.json"
FIRST_SEED = 100
"""First reported seed; no constant of the default was chosen on these seeds."""
TUNING_SEEDS = tuple(range(50, 55))
"""Tuning seeds: all of them for synchronous rules, whose best on one seed fails on others; otherwise the first."""
MARGIN = {"accuracy": 0.02, "rmse": 3.0}
"""Relaxation of targets that are derived from pooled training."""
FEW = ("balanced", "fedbuff by weight", EVERYBODY, SYNCHRONOUS)
SOME = ("balanced", "balanced, tuned", "fedbuff by weight", "fedbuff averaged", EVERYBODY, SYNCHRONOUS)
ALL = (*METHODS, EVERYBODY, SYNCHRONOUS)
PUBLISHED = ("balanced", "fedbuff by count", "fedasync delta", EVERYBODY, SYNCHRONOUS)
"""The methods that FedBuff's paper compares, and the default."""


@dataclass(frozen=True, slots=True)
class Part:
    """A data set in a world, and the methods run there."""

    dataset: str
    world: str
    devices: int
    """Number of devices for digits; 0: as many as the data set has."""
    make: Callable[[int], Problem]
    horizon: float
    methods: tuple[str, ...]
    seeds: int


def parts(seeds: int | None, data: Path | None) -> Iterator[Part]:
    """All parts of the full run, most important first."""
    own, large = seeds or 5, seeds or 3
    if data is not None:
        for world in ("uneven", "correlated", "lockstep"):
            make = partial(of_file, data, correlated=world == "correlated")
            yield Part(data.stem, world, 0, make, 60, SOME, large)
        return
    fifty, dealt = partial(digits, correlated=True), partial(digits, correlated=False, devices=20)
    for world in ("correlated L=0.05", "correlated L=0.25"):
        yield Part("digits", world, 50, fifty, 30, ("balanced", SYNCHRONOUS), own)
    twenty = partial(digits, correlated=True, devices=20)
    yield Part("digits", "correlated", 50, fifty, 30, FEW, own)
    yield Part("digits", "lockstep", 20, dealt, 30, FEW, own)
    yield Part("digits", "uneven", 20, dealt, 25, FEW, own)
    dealt_fifty = partial(digits, correlated=False)
    yield Part("digits", "half-normal", 50, dealt_fifty, 30, PUBLISHED, own)
    if folder := os.environ.get("MIDGE_DATA"):
        har, cycles, images = (Path(folder) / f"{name}.npz" for name in ("spsw_har", "cmapss_fd001", "fashion_mnist"))
        yield Part("spsw_har", "correlated", 0, partial(of_file, har, correlated=True), 30, FEW, large)
        yield Part("cmapss_fd001", "uneven", 0, partial(of_file, cycles, correlated=False), 20, FEW, large)
        for alpha in (0.1, 0.3):
            make = partial(fashion, images, correlated=False, alpha=alpha)
            yield Part(f"fashion_mnist dirichlet {alpha}", "uneven", 0, make, 15, FEW, large)
        convolutional = partial(fashion, images, correlated=False, alpha=0.3, model="cnn")
        yield Part("fashion_mnist cnn", "uneven", 0, convolutional, 30, ("balanced",), large)
    for world in ("lockstep", "jittered", "wild", "correlated"):
        for devices, seconds in ((5, 40), (20, 30), (50, 30), (100, 12)):
            make = partial(digits, correlated=world == "correlated", devices=devices)
            count = own if devices == 20 or (world, devices) == ("correlated", 50) else 2
            yield Part("digits", world, devices, make, seconds, ("balanced",), count)
    yield Part("digits", "correlated", 20, twenty, 30, ALL, own)
    yield Part("digits", "gaps", 20, twenty, 40, FEW, own)
    yield Part("digits", "wild", 20, dealt, 30, FEW, own)
    yield Part("digits", "even", 20, dealt, 30, FEW, own)
    yield Part("digits", "lockstep", 20, dealt, 30, ALL, own)
    yield Part("digits", "uneven", 20, dealt, 25, ALL, own)
    yield Part("digits", "correlated", 50, fifty, 30, ALL, own)
    for world, make in (("gaps", twenty), ("wild", dealt), ("even", dealt)):
        yield Part("digits", world, 20, make, 40 if world == "gaps" else 30, ALL, own)


def quick_parts(data: Path | None) -> Iterator[Part]:
    """A few minutes of virtual time."""
    methods = ("balanced", SYNCHRONOUS)
    if data is not None:
        yield Part(data.stem, "uneven", 0, partial(of_file, data, correlated=False), 15, methods, 1)
        return
    yield Part("digits", "correlated", 50, partial(digits, correlated=True), 16, methods, 2)
    yield Part("digits", "lockstep", 20, partial(digits, correlated=False, devices=20), 20, methods, 1)


class Bench:
    """Runs parts, and keeps their results."""

    def __init__(self, path: Path | None, *, quick: bool) -> None:
        self.path, self.quick = path, quick
        self.kept: dict[str, Any] = {}
        if path is not None and path.exists():
            self.kept = json.loads(path.read_text())["parts"]

    def run(self, part: Part) -> None:
        """Run the missing methods of a part."""
        seeds = range(FIRST_SEED, FIRST_SEED + part.seeds)
        runs = [self._run(part, seed) for seed in seeds]
        made: list[Run] = []
        for name in sorted(part.methods, key=lambda name: name != SYNCHRONOUS):
            key = f"{part.dataset}/{part.world}/{part.devices}/{name}"
            if len(self.kept.get(key, {}).get("seeds", ())) >= part.seeds:
                continue
            began = time.process_time()
            made = made or [make() for make in runs]
            ends = [self._reference(part, each) for each in made]
            setting = self._setting(part, name, ends)
            ran = list(courses(name, setting, made, [end["targets"][-1] for end in ends]))
            rows = [_result(course, end) for course, end in zip(ran, ends, strict=True)]
            self.kept[key] = {
                "dataset": part.dataset,
                "world": part.world,
                "strategy": name,
                "metric": made[0].problem.metric,
                "devices": len(made[0].problem.slow),
                "setting": setting,
                "overhead": WORLDS[part.world].overhead,
                "seeds": [{"seed": seed, **row} for seed, row in zip(seeds, rows, strict=True)],
                "curve": _curve(ran),
                "cpu_seconds": round(time.process_time() - began, 1),
            }
            self._keep()
            say(f"{key}: {_short(self.kept[key])}  {setting}  {self.kept[key]['cpu_seconds']} s")

    def _run(self, part: Part, seed: int) -> Callable[[], Run]:
        @lru_cache(maxsize=1)
        def make() -> Run:
            conditions = WORLDS[part.world]
            return Run(part.make(seed), conditions, seed, part.horizon)

        return make

    def _setting(self, part: Part, name: str, ends: list[dict[str, Any]]) -> Setting:
        runs = [self._run(part, seed)() for seed in (TUNING_SEEDS[:1] if self.quick else TUNING_SEEDS)]
        targets = runs[0].problem.targets or ends[0]["targets"]
        if name in {SYNCHRONOUS, EVERYBODY}:
            return tuned_rounds(runs, targets[-1], whole_cohort=name == EVERYBODY, quick=self.quick)
        return tuned(METHODS[name], runs[:1], targets[-1])

    def _reference(self, part: Part, run: Run) -> dict[str, Any]:
        """Pooled training and devices alone, and the targets derived from them."""
        how = "correlated" if run.conditions.correlated else "dealt"
        key = f"{part.dataset}/{how}/{len(run.problem.slow)}/{run.seed}"
        found: dict[str, Any] | None = self.kept.setdefault("references", {}).get(key)
        if found is None:
            problem = run.problem
            central, alone = references(run, 2_500 if self.quick else 5_000)
            easier = MARGIN[problem.metric] * (1 if problem.lower else -1)
            found = {
                "central": round(central, 4),
                "local_only": round(alone, 4),
                "targets": list(problem.targets) or [round(central + easier, 4)],
            }
            self.kept["references"][key] = found
            say(f"{key}: pooled {found['central']}, alone {found['local_only']}")
        return found

    def _keep(self) -> None:
        if self.path is not None:
            self.path.parent.mkdir(exist_ok=True)
            fresh = self.path.with_suffix(".new")
            fresh.write_text(laid_out({**report(self.kept), "parts": self.kept}))
            fresh.replace(self.path)


def laid_out(results: dict[str, Any]) -> str:
    """JSON with a line for each row, summary and part."""
    pieces = []
    for name, value in results.items():
        if isinstance(value, list):
            inside = "[\n" + ",\n".join(json.dumps(each) for each in value) + "\n]"
        elif isinstance(value, dict):
            inside = "{\n" + ",\n".join(f"{json.dumps(key)}: {json.dumps(each)}" for key, each in value.items()) + "\n}"
        else:
            inside = json.dumps(value)
        pieces.append(f"{json.dumps(name)}: {inside}")
    return "{\n" + ",\n".join(pieces) + "\n}\n"


def _result(course: Course, ends: dict[str, Any]) -> dict[str, Any]:
    reached = {str(target): course.seconds_to(target) for target in ends["targets"]}
    return {"reached": reached, **course.ends(), "central": ends["central"], "local_only": ends["local_only"]}


def _curve(ran: list[Course], most: int = 81) -> dict[str, list[float]]:
    """Median over seeds at given times."""
    step = max(1, -(-len(ran[0].times) // most))
    values = zip(*(course.metric[::step] for course in ran), strict=True)
    return {
        "times": [round(float(time), 2) for time in ran[0].times[::step]],
        "values": [round(float(statistics.median(each)), 4) for each in values],
    }


def _short(kept: dict[str, Any]) -> str:
    reached = [list(seed["reached"].values()) for seed in kept["seeds"]]
    return f"seconds {reached}, ends {[seed['metric'] for seed in kept['seeds']]}"


# -------------------------------------------------------------------------- results


def report(kept: dict[str, Any]) -> dict[str, Any]:
    """Rows and summary from the stored results."""
    found = [part for key, part in kept.items() if key != "references"]
    best = {
        (part["dataset"], part["world"], part["devices"], seed["seed"], target): reached
        for part in found
        if part["strategy"] == SYNCHRONOUS
        for seed in part["seeds"]
        for target, reached in seed["reached"].items()
    }
    rows = []
    for part in found:
        for seed in part["seeds"]:
            for target, reached in seed["reached"].items():
                rule = best.get((part["dataset"], part["world"], part["devices"], seed["seed"], target))
                rows.append(
                    {
                        **{name: part[name] for name in ("dataset", "world", "strategy", "metric", "devices")},
                        "default": part["strategy"] == "balanced",
                        "overhead": part.get("overhead", 0.0),
                        "local_steps": part["setting"].get("local_steps"),
                        "seed": seed["seed"],
                        "target": float(target),
                        "virtual_seconds_to_target": reached,
                        "speedup": round(rule / reached, 2) if rule and reached else None,
                        "final": seed["metric"],
                        "worst_class": seed["worst"],
                        "slow_class": seed["slow"],
                        "central": seed["central"],
                        "local_only": seed["local_only"],
                    }
                )
    return {"benchmark": "learning", "rows": rows, "summary": summary(rows)}


def summary(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Medians over seeds, with minimum and maximum. A missed target counts as infinitely late."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        # A target derived from pooled training differs by seed: its rows still belong together.
        target = row["target"] if row["dataset"] == "digits" else None
        groups.setdefault((row["dataset"], row["world"], row["devices"], row["strategy"], target), []).append(row)
    found = []
    for (dataset, world, _, strategy, target), group in groups.items():
        entry: dict[str, Any] = {"dataset": dataset, "world": world, "strategy": strategy, "target": target}
        entry |= {name: group[0][name] for name in ("metric", "devices", "default", "overhead", "local_steps")} | {
            "seeds": len(group)
        }
        entry["reached"] = sum(row["virtual_seconds_to_target"] is not None for row in group)
        for name in (
            "virtual_seconds_to_target",
            "speedup",
            "final",
            "worst_class",
            "slow_class",
            "central",
            "local_only",
        ):
            entry[name] = _spread([row[name] for row in group], last=name == "virtual_seconds_to_target")
        found.append(entry)
    return found


def _spread(values: list[float | None], *, last: bool) -> list[float | None] | None:
    """Median, minimum and maximum. With `last`, None counts as infinite, otherwise it is skipped."""
    known = sorted(value for value in values if value is not None)
    if not known or (not last and len(known) < len(values)):
        return None
    ordered: list[float | None] = [*known, *([None] * (len(values) - len(known)))]
    low, high = ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]
    middle = None if high is None or low is None else round((low + high) / 2, 4)
    return [middle, ordered[0], ordered[-1]]


def table(entries: Iterable[dict[str, Any]]) -> Iterator[str]:
    """Print a readable summary."""
    for entry in entries:
        seconds, speedup, final = entry["virtual_seconds_to_target"], entry["speedup"], entry["final"]
        target = entry["target"] if entry["target"] is not None else "of pooled"
        where = f"{entry['dataset']}, {entry['world']}, {entry['devices']}, {target}: {entry['strategy']}"
        times = "never" if not seconds else f"{seconds[0]} s ({seconds[1]}…{seconds[2]})"
        yield f"{where:70} {times:28} {'' if not speedup else f'×{speedup[0]}':8} ends {final[0] if final else None}"


def say(words: str) -> None:
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {words}\n")
    sys.stderr.flush()


def main() -> None:
    """Run the requested parts."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.learning", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="digits in two worlds, under a minute; nothing is stored")
    parser.add_argument(
        "--data", type=Path, metavar="FILE.npz", help="this set: x, y, and if it has them unit and split"
    )
    parser.add_argument("--seeds", type=int, metavar="N", help="reported seeds; 5 for digits and 3 for larger sets")
    parser.add_argument("--only", default="", metavar="NAME,…", help="parts whose data set or world is named")
    arguments = parser.parse_args()
    if arguments.seeds is not None and arguments.seeds < 1:
        parser.error("--seeds must be at least 1.")
    bench = Bench(None if arguments.quick else RESULTS, quick=arguments.quick)
    every = list(quick_parts(arguments.data) if arguments.quick else parts(arguments.seeds, arguments.data))
    asked = [name for name in arguments.only.split(",") if name]
    for name in asked:
        if not any(name in (part.dataset, part.world, part.dataset.split()[0]) for part in every):
            there = sorted({part.dataset for part in every} | {part.world for part in every})
            parser.error(f"--only: there is no {name!r}; there are {', '.join(there)}.")
    names = {part.dataset for part in every} | {part.dataset.split()[0] for part in every}
    sets, worlds = [name for name in asked if name in names], [name for name in asked if name not in names]
    for part in every:
        if (not sets or part.dataset in sets or part.dataset.split()[0] in sets) and (
            not worlds or part.world in worlds
        ):
            bench.run(part)
    found = report(bench.kept)
    for line in table(found["summary"]):
        say(line)
    if not arguments.quick and learning_poisoned.RESULTS.exists():
        found["rows"] += json.loads(learning_poisoned.RESULTS.read_text())["rows"]
    sys.stdout.write(json.dumps({**found, "local_rates": LOCAL}) + "\n")


if __name__ == "__main__":
    main()
