"""`midge demo`: a whole federation on this machine, on real data."""

import argparse
import asyncio
import json
import os
import secrets
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from importlib.util import find_spec
from typing import Any

from midge.broker import Connector, connector
from midge.broker.mqtt.connection import Options
from midge.commands.moments import DemoMoment, Happenings
from midge.commands.numbers import refuse_impossible
from midge.commands.page import add_live_page, live_page
from midge.commands.parts import Problem, Subparsers, add_recipe, add_tls, read_endpoint, user_errors, write_errors
from midge.commands.runs import run_folder
from midge.commands.surroundings import add_world, read_world
from midge.commands.watching import Showing, every_second, live, print_ending, print_json, print_words, watch
from midge.wire.topics import DEFAULT_ROOT, Topics

LOCAL = ("auto", "mosquitto", "embedded")


def register(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "demo",
        help="a broker, an aggregator and a fleet on real data, on this machine",
        description="Run a whole federation on this machine: a broker, an aggregator and twenty devices, each with its "
        "own connection, that train on handwritten digits at speeds which differ a hundredfold.",
    )
    goal = parser.add_argument_group("when it ends")
    goal.add_argument(
        "--target", type=float, help="end at this accuracy, held; for regression: RMSE. Missed: exit code 1"
    )
    goal.add_argument(
        "--seconds",
        type=float,
        default=60.0,
        help="end this time after the devices have started (default: %(default)s)",
    )
    goal.add_argument(
        "--pooled-seconds",
        type=float,
        default=5.0,
        help="time limit of the pooled baseline's training, after the run (default: %(default)s)",
    )
    data = parser.add_argument_group("data and model")
    data.add_argument(
        "--data",
        default="digits",
        metavar="FILE.npz",
        help="arrays x, y, and unit and split where known; or a week of simulated sensors: vibration, energy",
    )
    data.add_argument(
        "--devices", type=int, metavar="N", help="number of devices (default: all in the data; 20 for digits)"
    )
    data.add_argument("--model", choices=["linear", "mlp", "cnn"], help="default: by the data's shape")
    data.add_argument("--app", metavar="MODULE:ATTRIBUTE", help="a model of your own: called with the data")
    data.add_argument(
        "--engine",
        choices=["numpy", "mixed", "torch"],
        default="numpy",
        help="training library of the devices (default: numpy)",
    )
    data.add_argument("--micro", type=int, default=0, metavar="N", help="devices that run on MicroPython (default: 0)")
    data.add_argument("--seed", type=int, default=0, help="of the data's split, the speeds and the model (default: 0)")
    learning = parser.add_argument_group("learning")
    learning.add_argument(
        "--strategy",
        choices=["balanced", "fedasync", "fedbuff", "ca2fl", "fedavg"],
        default="balanced",
        help="default: balanced",
    )
    learning.add_argument("--alpha", type=float, help="FedAsync's rate (default: 0.6, or 12 over the devices)")
    learning.add_argument(
        "--form", choices=["delta", "mixing"], default="mixing", help="FedAsync's form (default: mixing, as published)"
    )
    learning.add_argument(
        "--staleness",
        choices=["constant", "polynomial", "hinge"],
        help="how much less a late update counts, of fedasync and fedbuff (default: polynomial)",
    )
    learning.add_argument(
        "--buffer-size", type=int, metavar="K", help="updates for each step (default: the strategy's)"
    )
    add_recipe(learning)
    learning.add_argument(
        "--secure",
        action="store_true",
        help="secure aggregation: devices mask their updates, and a mask helper runs as a second process",
    )
    learning.add_argument(
        "--k-min", type=int, default=5, metavar="N", help="fewest devices in a masked sum (default: %(default)s)"
    )
    learning.add_argument(
        "--groups",
        type=int,
        default=1,
        metavar="N",
        help="masked sums in a step: with 5 or more, their median is used, which bears devices that send noise",
    )
    learning.add_argument("--codec", help="of the deltas, such as int8:256 or float32 (default: the plan's)")
    add_world(parser)
    run_options = parser.add_argument_group("where")
    run_options.add_argument(
        "--broker",
        default="auto",
        metavar="URL",
        help="one that runs already, or auto, mosquitto, embedded (default: auto)",
    )
    run_options.add_argument("--federation", default="demo", metavar="NAME", help="default: demo")
    run_options.add_argument("--root", default=DEFAULT_ROOT, help=f"topic root (default: {DEFAULT_ROOT})")
    run_options.add_argument("--name", help="of the run: its folder below runs/ (default: the time)")
    run_options.add_argument("--picture", metavar="FILE.svg", help="draw the last moment of the live view as an image")
    run_options.add_argument("--json", action="store_true", help="JSON lines; the last one is the outcome")
    add_live_page(parser)
    parser.add_argument(
        "--linger", type=float, default=0.0, metavar="SECONDS", help="keep the page after the end (default: 0)"
    )
    add_tls(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    outcome: dict[str, Any] = {"error": None}
    try:
        code = _run(args, outcome)
    except BaseException as error:
        if args.json:
            print(json.dumps({**outcome, "error": str(error) or type(error).__name__}), flush=True)
        raise
    return code


def _run(args: argparse.Namespace, outcome: dict[str, Any]) -> int:
    try:
        from midge.sensor_fleet.demo import Demo, DemoError  # noqa: PLC0415 - heavy, and an extra
        from midge.sensor_fleet.report.conclusion import conclude  # noqa: PLC0415
        from midge.sensor_fleet.setting import BrokerAddress, Setting  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise Problem(f'The demo needs {error.name}: pip install "midge[demo]"') from error
    above_zero = {"seconds": 60, "pooled_seconds": 5, "target": 0.93, "learning_rate": 0.1, "alpha": 0.6}
    at_least_one = ("devices", "buffer_size", "local_steps", "batch_size")
    refuse_impossible(args, above_zero, at_least_one, ("linger", "micro", "seed"))
    with user_errors():
        Topics(args.federation, args.root)
        given = {name: getattr(args, name) for name in Setting.__dataclass_fields__ if hasattr(args, name)}
        if given["staleness"] is None:
            del given["staleness"]
        elif args.strategy not in ("fedasync", "fedbuff"):
            raise Problem(f"--staleness is of fedasync and fedbuff, not of {args.strategy}: leave it out.")
        setting = Setting(**given, world=read_world(args))
        setting.make_strategy(devices=20)  # check that it exists before anything starts
        broker = args.broker
        if broker not in LOCAL:
            endpoint = read_endpoint(args, args.broker)
            asyncio.run(_reach(connector(endpoint)))
            broker = BrokerAddress.of(endpoint)
    happenings = Happenings()
    with run_folder(args.name) as directory, ExitStack() as stack:
        page = None
        if args.page is not None:
            topics = Topics(args.federation, args.root)
            page = stack.enter_context(live_page(args, topics, directory / "store"))
            outcome["page"] = page.url
            token = () if args.page_token_file else (("token", page.token),)
            happenings.page = (("page", page.url), *token)  # the live view hides what was printed
        demo = Demo(
            setting,
            directory,
            target=args.target,
            seconds=args.seconds,
            broker=broker,
            on_event=happenings.take,
            on_device_event=happenings.take_device,
            on_broker=None if page is None else page.observe,
        )
        where = {} if page is None else {"page": page.url}
        moments: list[DemoMoment] = []
        if args.picture is not None:
            if find_spec("rich") is None:
                raise Problem('A picture needs rich: pip install "midge[demo]"')
            demo.on_ending = lambda: moments.append(DemoMoment.of(demo, happenings))
        try:
            ending = asyncio.run(watch(demo, _showing(args, happenings, where)))
        except (ValueError, DemoError) as error:
            outcome.update(demo.outcome())
            raise Problem(str(error)) from error
        for moment in moments:
            _draw(moment, args.picture)
        if page is not None:
            page.end(f"This run has ended: {ending}.")
        result = demo.outcome()
        (demo.directory / "result.json").write_text(json.dumps(result, indent=1) + "\n")
        if not args.json:
            print_ending(demo, ending)
        result = conclude(demo, result, args.pooled_seconds)
        report = f"The report is in {demo.directory}/report.html."
        print(json.dumps(result | where) if args.json else report, flush=True)
        if page is not None and ending != "interrupted":
            time.sleep(args.linger)
        if ending == "interrupted":
            return 130
        missed = demo.target is not None and not demo.progress.reached
        return 1 if missed or not demo.progress.version else 0


async def _reach(connect: Connector) -> None:
    """Check that there is a broker before anything starts: a short demo would end before its absence shows.

    Raises:
        BrokerError: there is none, or it refuses us.
    """
    async with connect(Options(f"midge-demo-{secrets.token_hex(4)}")):
        pass


def _showing(args: argparse.Namespace, happenings: Happenings, where: Mapping[str, str]) -> Showing:
    """How this run is shown: live in a terminal."""
    if args.json:
        return every_second(print_json(where))
    drawable = os.environ.get("TERM", "dumb") not in ("dumb", "unknown")
    if sys.stdout.isatty() and drawable and find_spec("rich") is not None:
        return live(happenings)
    return every_second(print_words)


def _draw(moment: DemoMoment, path: str) -> None:
    from midge.commands.live import picture  # noqa: PLC0415 - an extra

    with write_errors(f"The picture {path}", "name another file"):
        picture(moment, path)
