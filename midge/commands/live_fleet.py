"""`midge fleet --live`: a fleet of a profile over a real broker, each device with its own connection."""

import argparse
import json
import shlex
from typing import TYPE_CHECKING

from midge.commands import virtual
from midge.commands.parts import Problem, read_endpoint, user_errors
from midge.commands.runs import run_folder
from midge.running import run_until_interrupted
from midge.wire.plurals import counted

if TYPE_CHECKING:
    from midge.sensor_fleet.setting import BrokerAddress
    from midge.sensor_fleet.virtual import ProfileFleet


def register(parser: argparse.ArgumentParser) -> None:
    """The options of a live fleet."""
    group = parser.add_argument_group(
        "a live fleet (--live, or --broker alone)",
        "Takes the options of a virtual fleet too, except --workers, --ray and --seeds. Without --broker it starts a "
        "broker and an aggregator itself.",
    )
    group.add_argument(
        "--speed-up",
        type=float,
        metavar="X",
        help="seconds of the profile in one of ours: links, outages, trainings and pauses are that much faster "
        "(default: 600, a day in 2.4 minutes); with --virtual, simulate the fleet as a live one runs (default: 1)",
    )
    group.add_argument("--serve", action="store_true", help="start the aggregator too where --broker is given")


def run(args: argparse.Namespace) -> int:
    """Run it, and report the result."""
    try:
        from midge.sensor_fleet.live.aggregator_process import DemoError  # noqa: PLC0415
        from midge.sensor_fleet.live.run import LiveRun  # noqa: PLC0415 - an extra
        from midge.sensor_fleet.report.conclusion import write_report  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise Problem(f'A live fleet needs {error.name}: pip install "midge[demo]"') from error
    with user_errors():
        fleet = virtual.fleet_of(args)
        fleet.loaded()  # check that it can run before anything is written
    broker = None if args.broker is None else _address(args)
    aggregates = broker is None or args.serve

    def say(words: str) -> None:
        print(json.dumps({"event": "said", "words": words}) if args.json else words, flush=True)

    if not aggregates:
        say(f"The aggregator, in another terminal: {_line(fleet, args)}")
    title = f"{args.profile}, {counted(args.devices, 'device')}, live"
    with run_folder(args.name) as directory:
        with virtual.Shown(args, title) as shown, user_errors():
            running = LiveRun(fleet, directory, broker=broker, aggregates=aggregates, watch=shown.tell, say=say)
            try:
                interrupted = run_until_interrupted(running)
            except DemoError as error:
                raise Problem(str(error)) from error
        found = running.found
        if found is None or not len(found.result.times):
            raise Problem("The fleet was stopped before its model was ever evaluated: there is nothing to report.")
        outcome = found.write(directory)
        virtual.show_outcome(args, outcome, found.metric, write_report(directory))
    if interrupted:
        return 130
    return 0 if args.target is None or outcome["seconds_to_target"] is not None else 1


def _address(args: argparse.Namespace) -> "BrokerAddress":
    """The broker's address from the options, with its password, for the aggregator's process."""
    from midge.sensor_fleet.setting import BrokerAddress  # noqa: PLC0415 - an extra

    endpoint = read_endpoint(args, args.broker)
    if endpoint.websockets:
        raise Problem(f"{endpoint} speaks websockets: a live fleet speaks mqtt:// and mqtts://.")
    return BrokerAddress.of(endpoint)


def _line(fleet: "ProfileFleet", args: argparse.Namespace) -> str:
    """The command that starts the aggregator of a fleet."""
    endpoint = read_endpoint(args, args.broker)  # without a password
    words = ["midge", "aggregate", "midge.sensor_fleet.live.server:app", "--broker", str(endpoint)]
    given = {"user": endpoint.user, "password-file": args.password_file}
    given |= {"cafile": args.cafile, "certfile": args.certfile, "keyfile": args.keyfile}
    for name, word in given.items():
        if word is not None:
            words += [f"--{name}", word]
    return f"MIDGE_FLEET={shlex.quote(fleet.words())} {shlex.join(words)}"
