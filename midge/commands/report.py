"""`midge report`: a run as one page."""

import argparse
from pathlib import Path

from midge.commands.parts import Problem, Subparsers, user_errors

RUNS = Path("runs")


def register(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "report",
        help="report of a run as one HTML page",
        description="Write a run's report as one self-contained HTML page: runs/NAME/report.html.",
    )
    parser.add_argument(
        "run_directory", metavar="RUN", nargs="?", help="folder of a run (default: the newest in runs/)"
    )
    parser.add_argument("-o", "--output", metavar="FILE.html", help="output file")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    try:
        from midge.sensor_fleet.report.conclusion import write_report  # noqa: PLC0415 - an extra
    except ModuleNotFoundError as error:
        raise Problem(f'The report needs {error.name}: pip install "midge[demo]"') from error
    directory = Path(args.run_directory) if args.run_directory else newest()
    with user_errors():
        try:
            path = write_report(directory, Path(args.output) if args.output else None)
        except OSError as error:
            raise Problem(
                f"The page cannot be written ({error.strerror}): give another place with --output."
            ) from error
    print(f"The report is in {path}.")
    return 0


def newest() -> Path:
    """The newest run."""
    from midge.sensor_fleet.report.reading import holds_run  # noqa: PLC0415 - an extra

    found = [path for path in RUNS.glob("*") if holds_run(path)]
    if not found:
        raise Problem(f"There are no runs in {RUNS.resolve()}: run midge demo first, or give the folder of a run.")
    return max(found, key=lambda path: path.stat().st_mtime)
