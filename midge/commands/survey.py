"""`midge survey`: whether a fleet's data is fit for training, from a file or from the devices of a live federation."""

import argparse
import json
from typing import TYPE_CHECKING, Any

from midge.commands.output import say
from midge.commands.parts import Problem, Subparsers, add_federation, add_page, try_page, user_errors, write_page
from midge.wire.plurals import counted

if TYPE_CHECKING:
    from midge.sensor_fleet.survey.survey import Survey


def register(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "survey",
        help="is the data fit for training: rows, classes, units, drift, unlike and broken devices",
        description="Survey the data of a fleet before anything is trained: rows, classes, missing values, ranges, "
        "devices that measure in another unit or look broken, drift over time, and how unlike devices are. With a "
        "broker's address the devices of a federation are asked: each answers with statistics of its rows, and no row "
        "leaves it; with --data a file is read. Every number is over at least K devices; of a single device only the "
        "kind of its fault is named. Writes a page. Exit code 1: there are faults, or inputs without a value or with "
        "one only.",
    )
    add_federation(parser)
    live = parser.add_argument_group("of a live federation")
    live.add_argument(
        "--seconds",
        type=float,
        default=60.0,
        metavar="S",
        help="wait so long for answers, or until all devices that are online have answered and none sleeps (default: "
        "60)",
    )
    live.add_argument(
        "--release-key",
        metavar="FILE",
        help="sign the request with this private key; devices that pin a release key answer no other",
    )
    live.add_argument(
        "--device-keys", metavar="DIR", help="verify the answers of devices whose NAME.pub or NAME.crt is here"
    )
    live.add_argument("--classes", metavar="A,B,C", help="names of the classes, in the model's order")
    file = parser.add_argument_group("of a file")
    file.add_argument(
        "--data",
        metavar="FILE.npz",
        help="arrays x, y and unit, rows in the order in which they were recorded, and names of inputs in columns; or "
        "digits, vibration, energy",
    )
    file.add_argument("--devices", type=int, metavar="N", help="survey the first of them (default: all)")
    parser.add_argument("--k-min", type=int, default=5, metavar="K", help="fewest devices behind a number (default: 5)")
    parser.add_argument("--no-names", action="store_true", help="count the devices with faults, and name none")
    add_page(parser, "survey.html")
    parser.add_argument("--json", action="store_true", help="print everything as one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    try:
        from midge.sensor_fleet.report.survey_sections import survey_page  # noqa: PLC0415 - an extra
    except ModuleNotFoundError as error:
        raise Problem(f'A survey needs {error.name}: pip install "midge[demo]"') from error
    live = args.url is not None or args.config is not None
    if live == (args.data is not None):
        raise Problem("Say one thing to survey: a broker's address and --federation NAME, or --data FILE.npz.")
    try_page(args.output)
    notes: list[str] = []
    more: dict[str, Any] = {}
    if live:
        from midge.commands.survey_live import survey_federation  # noqa: PLC0415

        found, source, notes, more = survey_federation(args)
    else:
        found, source = _of_file(args), args.data
    path = write_page(args.output, survey_page(found, source, notes))
    if args.json:
        print(json.dumps({**found.packed(), **more, "page": str(path)}))
    else:
        for note in notes:
            say(note)
        _print(found)
        say(f"\nThe page is {path}.")
    return 1 if found.flawed else 0


def _of_file(args: argparse.Namespace) -> "Survey":
    from midge.sensor_fleet.data import channel_names, load  # noqa: PLC0415
    from midge.sensor_fleet.survey.survey import survey  # noqa: PLC0415

    with user_errors():
        data = load(args.data, devices=args.devices, every=True)
        return survey(data, k_min=args.k_min, named=not args.no_names, channels=channel_names(args.data))


def _print(found: "Survey") -> None:
    from midge.commands.virtual import print_table  # noqa: PLC0415
    from midge.sensor_fleet.report.quantities import MISSING, percent, plain  # noqa: PLC0415 - an extra
    from midge.sensor_fleet.report.survey_sections import findings  # noqa: PLC0415

    def number(value: float | None) -> str:
        return MISSING if value is None else plain(value)

    say(
        f"{counted(found.devices, 'device')}, about {counted(found.rows, 'row')}; numbers are over at least "
        f"{found.k_min} devices, and have the digits that stand."
    )
    for sentence in findings(found):
        say(f"- {sentence}")
    say()
    rows = [
        (
            one.name,
            percent(one.missing),
            number(one.low),
            number(one.mean),
            number(one.high),
            number(one.shift),
            number(one.drift),
        )
        for one in found.channels
    ]
    print_table(("", "missing", "low", "mean", "high", "shift", "drift"), rows)
    for fault in found.faults:
        say(f"{fault.device}: {fault.words}")
