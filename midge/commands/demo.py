"""`midge demo`: a whole federation on this machine, on real data."""

import argparse
import asyncio
import json
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from midge.commands.parts import Problem, Subparsers, add_tls, mendable
from midge.commands.surroundings import add_world, read_world
from wire.topics import DEFAULT_ROOT, check_name

if TYPE_CHECKING:
    from sensor_fleet.demo import Demo, Ending
    from sensor_fleet.progress import Progress

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
    goal.add_argument("--seconds", type=float, default=60.0, help="end after so long (default: %(default)s)")
    data = parser.add_argument_group("data and model")
    data.add_argument(
        "--data", default="digits", metavar="FILE.npz", help="arrays x, y, and unit and split where known"
    )
    data.add_argument(
        "--devices", type=int, metavar="N", help="so many devices (default: all of the data; 20 for digits)"
    )
    data.add_argument("--model", choices=["linear", "mlp", "cnn"], help="default: by the data's shape")
    data.add_argument("--app", metavar="MODULE:ATTRIBUTE", help="a model of your own: called with the data")
    data.add_argument(
        "--engine",
        choices=["numpy", "mixed", "torch"],
        default="numpy",
        help="what devices train with (default: numpy)",
    )
    data.add_argument("--seed", type=int, default=0, help="of the data's split, the speeds and the model (default: 0)")
    learning = parser.add_argument_group("learning")
    learning.add_argument("--strategy", choices=["fedasync", "fedbuff"], default="fedasync", help="default: fedasync")
    learning.add_argument("--alpha", type=float, default=0.6, help="FedAsync's rate (default: 0.6)")
    learning.add_argument(
        "--form", choices=["delta", "mixing"], default="delta", help="FedAsync's form (default: delta)"
    )
    learning.add_argument("--staleness", choices=["constant", "polynomial", "hinge"], default="polynomial")
    learning.add_argument("--buffer-size", type=int, default=10, metavar="K", help="FedBuff's (default: 10)")
    learning.add_argument("--learning-rate", type=float, help="of the devices (default: the model's)")
    learning.add_argument("--local-steps", type=int, help="of the devices (default: the model's)")
    learning.add_argument("--batch-size", type=int, help="of the devices (default: the model's)")
    learning.add_argument("--codec", default="int8:256", help="of the deltas: int8:B or float32 (default: int8:256)")
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
        from sensor_fleet.demo import Demo, DemoError  # noqa: PLC0415 - heavy, and an extra
        from sensor_fleet.setting import BrokerAddress, Setting  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise Problem(f'The demo needs {error.name}: pip install "midge[demo]"') from error
    with mendable():
        check_name(args.federation, "federation")
        given = {name: getattr(args, name) for name in Setting.__dataclass_fields__ if hasattr(args, name)}
        setting = Setting(**given, world=read_world(args))
        setting.make_strategy()
        broker = args.broker
        if broker not in LOCAL:
            broker = BrokerAddress(args.broker, args.cafile, args.certfile, args.keyfile)
            broker.endpoint()
    demo = Demo(setting, _directory(args.name), target=args.target, seconds=args.seconds, broker=broker)
    try:
        ending = asyncio.run(_watch(demo, _print_json if args.json else _print_words))
    except (ValueError, DemoError) as error:
        outcome.update(demo.outcome())
        raise Problem(str(error)) from error
    result = demo.outcome()
    (demo.directory / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    if args.json:
        print(json.dumps(result), flush=True)
    else:
        _print_ending(demo, ending, result)
    if ending == "interrupted":
        return 130
    return 1 if demo.target is not None and not demo.progress.reached else 0


def _directory(name: str | None) -> Path:
    with mendable():
        name = check_name(name or time.strftime("%Y%m%d-%H%M%S"), "run")
    for number in range(100):
        directory = Path("runs") / (name if number == 0 else f"{name}-{number}")
        try:
            directory.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise Problem(
                f"{directory} cannot be made ({error.strerror}): go to a directory that you may write."
            ) from error
        return directory
    raise Problem(f"There are a hundred runs named {name}: give another --name.")


async def _watch(demo: "Demo", show: Callable[["Demo"], None]) -> "Ending":
    """Run, show a line a second, and end cleanly on Ctrl-C."""
    loop = asyncio.get_running_loop()
    interrupted = False

    def interrupt() -> None:
        nonlocal interrupted
        interrupted = True
        demo.stop()
        loop.remove_signal_handler(signal.SIGINT)  # a second one ends it at once

    loop.add_signal_handler(signal.SIGINT, interrupt)
    loop.add_signal_handler(signal.SIGTERM, interrupt)

    async def showing() -> None:
        while True:
            await asyncio.sleep(1)
            show(demo)

    shower = asyncio.create_task(showing())
    try:
        ending = await demo.run()
    finally:
        shower.cancel()
    return "interrupted" if interrupted else ending


def _print_json(demo: "Demo") -> None:
    print(json.dumps(demo.outcome()), flush=True)


def _print_words(demo: "Demo") -> None:
    progress, fleet = demo.progress, demo.fleet
    if fleet is None:
        print(f"{demo.elapsed:5.0f} s  starting a broker and the aggregator", flush=True)
        return
    if not progress.version:
        waiting = "gathering statistics" if progress.states else "devices connect"
        print(f"{demo.elapsed:5.0f} s  {demo.about_broker}; {waiting}", flush=True)
        return
    value = _value(progress)
    verdicts = ", ".join(f"{number} {verdict}" for verdict, number in progress.updates.most_common())
    tau = progress.quantiles()
    print(
        f"{demo.elapsed:5.0f} s  version {progress.version:<5} {progress.metric} {value:<6}"
        f"  updates: {verdicts or 'none'}"
        f"  staleness {tau.get('p50', '-')}/{tau.get('p90', '-')}/{tau.get('max', '-')}"
        f"  up {_bytes(fleet.bytes_up)}  down {_bytes(fleet.bytes_down)}",
        flush=True,
    )


def _print_ending(demo: "Demo", ending: "Ending", result: dict[str, Any]) -> None:
    progress = demo.progress
    what = {
        "target": f"The target is reached and held after {result['seconds_to_target']} s",
        "time": "The time is over",
        "interrupted": "Interrupted",
    }
    print(f"{what[ending]}: {progress.metric} {_value(progress)} at version {progress.version}.")
    if demo.target is not None and not progress.reached and ending == "time":
        print(f"The target of {demo.target:g} was missed.", file=sys.stderr)
    print(f"The model is in {demo.directory}/model.safetensors, every event in {demo.directory}/metrics.jsonl.")


def _value(progress: "Progress") -> str:
    if progress.value is None:
        return "-"
    return f"{progress.value:.1%}" if progress.metric == "accuracy" else f"{progress.value:.3g}"


def _bytes(number: float) -> str:
    for unit in ("B", "kB", "MB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} GB"
