"""`midge fleet --virtual` and `--plan`: a fleet of a profile on the virtual clock."""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from midge.commands.numbers import refuse_impossible
from midge.commands.output import say
from midge.commands.parts import Problem, add_recipe, user_errors
from midge.commands.runs import run_folder
from midge.wire.plurals import counted

if TYPE_CHECKING:
    from midge.sensor_fleet.planning import FleetPlan
    from midge.sensor_fleet.simulation.fleet_progress import FleetProgress
    from midge.sensor_fleet.virtual import ProfileFleet

QUIET = 1.0
"""Seconds between two lines without a terminal."""


def register(parser: argparse.ArgumentParser) -> None:
    """Add the options of a virtual fleet."""
    group = parser.add_argument_group("a fleet of a profile (--virtual, --plan, --live)")
    group.add_argument(
        "--profile",
        default="factory",
        metavar="NAME|FILE.toml",
        help="hardware and links: factory, farm, city-gateways, phones, microcontrollers, demo, or a file "
        "(default: factory)",
    )
    group.add_argument(
        "--micro", type=int, default=0, metavar="N", help="about N of the devices are microcontrollers, ESP32s in C"
    )
    group.add_argument(
        "--sites", type=int, default=0, metavar="N", help="put N gateways between the devices and the aggregator"
    )
    group.add_argument("--days", type=float, help="of the profile's time (default: 7; 1 of a live fleet)")
    group.add_argument("--target", type=float, help="an accuracy to hold, or an RMSE; missed: exit code 1")
    group.add_argument("--stop", action="store_true", help="end once the target is held")
    group.add_argument("--workers", type=int, default=1, metavar="N", help="processes that train (default: 1)")
    group.add_argument(
        "--ray",
        nargs="?",
        const="local",
        metavar="ADDRESS",
        help="have them be actors of a Ray cluster (default: local)",
    )
    group.add_argument(
        "--data",
        default="digits",
        metavar="FILE.npz",
        help="arrays x and y; or sensors that stream: vibration, energy (default: digits)",
    )
    group.add_argument("--drift", type=float, metavar="DAYS", help="let them drift after this time")
    group.add_argument("--fresh", type=int, metavar="N", help="new rows of these before a device trains again")
    group.add_argument("--model", choices=["linear", "mlp", "cnn"], help="default: mlp")
    group.add_argument(
        "--strategy",
        choices=["balanced", "fedasync", "fedbuff", "ca2fl", "fedavg"],
        default="balanced",
        help="default: balanced, at the profile's pace",
    )
    group.add_argument("--buffer-size", type=int, metavar="K", help="updates for each step")
    add_recipe(group)
    group.add_argument("--codec", help="of the deltas (default: the plan's own)")
    group.add_argument("--interval", type=float, metavar="HOURS", help="between two trainings of a device")
    group.add_argument("--seed", type=int, default=0, help="seed of all random numbers (default: 0)")
    group.add_argument("--seeds", type=int, default=3, metavar="N", help="simulations of a plan (default: 3)")
    group.add_argument("--name", help="of the run: its folder below runs/ (default: the time)")
    group.add_argument("--json", action="store_true", help="JSON lines; the last one is the outcome")


def run(args: argparse.Namespace) -> int:
    """Simulate, and report the result."""
    with user_errors():
        fleet = fleet_of(args)
        fleet.loaded()  # check that it can be simulated before anything is written
    return _plan(fleet, args) if args.plan else _simulate(fleet, args)


def fleet_of(args: argparse.Namespace) -> "ProfileFleet":
    """The fleet that the options describe."""
    try:
        from midge.sensor_fleet.setting import Setting  # noqa: PLC0415 - an extra
        from midge.sensor_fleet.virtual import LIVE_SPEED_UP, ProfileFleet  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise Problem(f'A virtual fleet needs {error.name}: pip install "midge[demo]"') from error
    above_zero = {"days": 7, "learning_rate": 0.1, "interval": 6, "target": 0.93, "drift": 2}
    at_least_one = ("workers", "seeds", "buffer_size", "local_steps", "batch_size", "fresh")
    refuse_impossible(args, above_zero, at_least_one, ("seed", "micro", "sites"))
    if args.stop and args.target is None:
        raise Problem("--stop ends a run at its target: give one with --target.")
    names = ("data", "seed", "model", "strategy", "buffer_size", "learning_rate", "local_steps", "batch_size", "codec")
    return ProfileFleet(
        Setting(**{name: getattr(args, name) for name in names}),
        profile=args.profile,
        devices=args.devices,
        days=args.days,
        workers=args.workers,
        ray=args.ray,
        speed_up=args.speed_up or (LIVE_SPEED_UP if args.live else 1.0),
        federation=args.federation,
        target=args.target,
        stop_at_target=args.stop,
        interval=None if args.interval is None else 3600 * args.interval,
        drift=args.drift,
        fresh=args.fresh,
        micro=args.micro,
        sites=args.sites,
    )


def _simulate(fleet: "ProfileFleet", args: argparse.Namespace) -> int:
    from midge.sensor_fleet.report.conclusion import write_report  # noqa: PLC0415

    with run_folder(args.name) as directory:
        with Shown(args, f"{args.profile}, {counted(args.devices, 'device')}") as shown, user_errors():
            found = fleet.run(shown.tell)
        outcome = found.write(directory)
        show_outcome(args, outcome, found.metric, write_report(directory))
    return 0 if args.target is None or outcome["seconds_to_target"] is not None else 1


def _plan(fleet: "ProfileFleet", args: argparse.Namespace) -> int:
    from midge.sensor_fleet.planning import plan  # noqa: PLC0415

    with Shown(args, f"{args.profile}, {counted(args.devices, 'device')}", runs=args.seeds) as shown, user_errors():
        found = plan(fleet, args.seeds, shown.tell_of)
    if args.json:
        print(json.dumps(found.packed()), flush=True)
    else:
        _print_plan(found, args)
    return 0 if args.target is None or found.levels[0].reached == found.seeds else 1


# ----------------------------------------------------------------------- showing


class Shown:
    """Progress: a rewritten line in a terminal, plain or JSON lines elsewhere."""

    def __init__(self, args: argparse.Namespace, title: str, runs: int = 1) -> None:
        self._json, self._title, self._runs = args.json, title, runs
        self._began = self._last = time.monotonic()
        self._live: Any = None

    def __enter__(self) -> Self:
        drawable = os.environ.get("TERM", "dumb") not in ("dumb", "unknown")
        if not self._json and sys.stdout.isatty() and drawable and find_spec("rich") is not None:
            from rich.live import Live  # noqa: PLC0415 - an extra

            self._live = Live(refresh_per_second=4, transient=True)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def tell(self, moment: "FleetProgress") -> None:
        """Show the progress of the only run."""
        self.tell_of(0, moment)

    def tell_of(self, number: int, moment: "FleetProgress") -> None:
        """Show the progress of one of the runs."""
        now = time.monotonic()
        done = (number + moment.now / moment.until) / self._runs
        left = (now - self._began) * (1 - done) / done if done > 0 else float("inf")
        if self._json and moment.evaluated:
            print(json.dumps(self._object(number, moment, left)), flush=True)
        elif self._live is not None:
            self._live.update(_drawn(self._title, moment, done, left, now - self._began))
        elif not self._json and now - self._last >= QUIET:
            self._last = now
            print(_line(moment, done, left), flush=True)

    def _object(self, number: int, moment: "FleetProgress", left: float) -> dict[str, Any]:
        return {
            "event": "evaluation",
            "run": number,
            "time": moment.now,
            "until": moment.until,
            "version": moment.version,
            "trainings": moment.trainings,
            "updates": moment.updates,
            "live": moment.live,
            "metrics": dict(moment.metrics),
            "seconds_left": left,
        }


def _line(moment: "FleetProgress", done: float, left: float) -> str:
    from midge.sensor_fleet.report.quantities import duration  # noqa: PLC0415

    if moment.doing:
        return f"  0%  {moment.doing}"
    scores = ", ".join(f"{name} {value:.4g}" for name, value in moment.metrics.items())
    return (
        f"{done:4.0%}  {duration(moment.now)} of {duration(moment.until)}, {counted(moment.trainings, 'training')}, "
        f"version {moment.version:,}, {moment.live:,} connected, {scores}; about {duration(left)} left"
    )


def _drawn(title: str, moment: "FleetProgress", done: float, left: float, took: float) -> Any:
    from rich.console import Group  # noqa: PLC0415 - an extra
    from rich.progress_bar import ProgressBar  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    from midge.sensor_fleet.report.quantities import duration  # noqa: PLC0415

    scores = "   ".join(f"{name} {value:.4g}" for name, value in moment.metrics.items())
    rate = moment.trainings / took if took else 0.0
    return Group(
        Text.assemble(("midge fleet ", "bold"), title, f"   {duration(moment.now)} of {duration(moment.until)}"),
        ProgressBar(total=1.0, completed=done),
        Text.assemble((scores, "bold cyan"), f"   version {moment.version:,}   {moment.live:,} connected"),
        Text(
            f"{counted(moment.trainings, 'training')} ({rate:,.0f} a second), {counted(moment.events, 'event')}; "
            f"about {duration(left)} left" + (f"; {moment.doing}" if moment.doing else ""),
            style="dim",
        ),
    )


def show_outcome(args: argparse.Namespace, outcome: dict[str, Any], metric: str, report: Path) -> None:
    """Report the result of a run, and the path of its report."""
    if args.json:
        print(json.dumps(outcome), flush=True)
    else:
        _print_outcome(outcome, metric)
        print(f"The report is in {report}.")


def _print_outcome(outcome: dict[str, Any], metric: str) -> None:
    from midge.sensor_fleet.report.quantities import duration, energy, score, size  # noqa: PLC0415

    kind = "virtual time" if outcome["virtual"] else "the profile's time"
    print(f"{metric} {score(outcome[metric], metric)} after {duration(outcome['seconds'])} of {kind}", end="")
    if outcome["target"] is not None:
        held = outcome["seconds_to_target"]
        goal = score(outcome["target"], metric)
        print(f"; {goal} " + ("was missed" if held is None else f"was held after {duration(held)}"), end="")
    print(f". It took {duration(outcome['took'])}: {counted(outcome['trainings'], 'training')}.")
    head = ("", "devices", "took part", "of updates", "own rows", "up", "down", "energy")
    rows = [
        (
            name,
            f"{one['devices']:,}",
            f"{one['took_part']:.0%}",
            f"{one['share_of_updates']:.0%}",
            score(outcome["own"].get(name, {}).get("mean"), metric),
            size(one["bytes_up"]),
            size(one["bytes_down"]),
            energy(one["joules"]),
        )
        for name, one in outcome["classes"].items()
    ]
    print_table(head, rows)
    boards = {name: one["board"] for name, one in outcome["classes"].items() if one["board"] is not None}
    _print_boards(boards, outcome["left_out"])


def _print_boards(boards: Mapping[str, Mapping[str, Any]], left_out: Sequence[str]) -> None:
    """What microcontrollers need and how long they last, and which classes the model does not fit into."""
    from midge.sensor_fleet.report.quantities import MISSING, energy, size, years  # noqa: PLC0415 - an extra

    if boards:
        print("\nA microcontroller of each class, at this pace:")
    rows = [
        (
            name,
            f"{size(one['ram_needed'])} of {size(one['ram'])}",
            f"{one['flash_erases_per_year']:,.0f}",
            years(one["flash_years"]),
            energy(one["joules_per_training"]),
            energy(one["joules_per_day"]),
            MISSING if one["battery_days"] is None else years(one["battery_days"] / 365.25),
        )
        for name, one in boards.items()
    ]
    if rows:
        print_table(("", "memory", "erases a year", "flash lasts", "a training", "a day", "battery lasts"), rows)
    for sentence in left_out:
        print(sentence)


def _print_plan(found: "FleetPlan", args: argparse.Namespace) -> None:
    from midge.sensor_fleet.report.quantities import duration, energy, score, size  # noqa: PLC0415

    def span(of: tuple[float, float] | None, words: Callable[[float], str]) -> str:
        if of is None:
            return "not reached"
        low, high = words(of[0]), words(of[1])
        return high if low == high else f"{low} – {high}"

    metric = found.metric
    days, seeds = "1 day" if args.days == 1 else f"{args.days:g} days", counted(found.seeds, "seed")
    print(f"{counted(args.devices, 'device')} of the profile {args.profile}, {days}, {seeds}.")
    print("Bytes and energy are means per device, from the best to the worst seed.\n")
    rows = [
        (
            score(level.score, metric)
            + ("" if level.reached == found.seeds else f" ({level.reached} of {found.seeds})"),
            span(level.seconds, duration),
            span(level.sent, size),
            span(level.received, size),
            span(level.joules, energy),
        )
        for level in found.levels
    ]
    print_table((metric, "after", "sent", "received", "energy"), rows)
    print("\nIn a month at this pace, a device of each class:")
    costs = [(name, size(up), size(down), energy(joules)) for name, (up, down, joules) in found.monthly.items()]
    print_table(("", "sent", "received", "energy"), costs)
    _print_boards({name: asdict(one) for name, one in found.boards.items()}, found.left_out)
    if args.target is not None and found.levels[0].reached < found.seeds:
        worst = score(found.final[1], metric)
        print(
            f"\nThe target is not sure to be reached: the worst seed ends at {worst}. Give more --days, or a lower one."
        )


def print_table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """Print rows below a head, in columns; the first is text, the others are numbers."""
    widths = [max(len(row[place]) for row in [head, *rows]) for place in range(len(head))]
    for row in [head, *rows]:
        first, *rest = (
            f"{cell:<{width}}" if place == 0 else f"{cell:>{width}}"
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        say("  ".join([first, *rest]).rstrip())
