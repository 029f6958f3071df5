"""`midge compare`: runs side by side on one page."""

import argparse
from pathlib import Path

from midge.commands.parts import Problem, Subparsers, user_errors, write_page


def register(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "compare",
        help="compare several runs on one HTML page",
        description="Compare runs side by side on one self-contained HTML page.",
    )
    parser.add_argument("run_directories", metavar="RUN", nargs="+", help="folders of runs, two at least")
    parser.add_argument(
        "-o", "--output", metavar="FILE.html", default="compare.html", help="where to write it (default: %(default)s)"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    try:
        from midge.sensor_fleet.report.comparison import comparison  # noqa: PLC0415 - an extra
        from midge.sensor_fleet.report.reading import read  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise Problem(f'The comparison needs {error.name}: pip install "midge[demo]"') from error
    with user_errors():
        page = comparison([read(Path(directory)) for directory in args.run_directories])
    path = write_page(args.output, page)
    print(f"The comparison is in {path}.")
    return 0
