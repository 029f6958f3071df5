"""`midge report`: a run, or a federation from the store of its aggregator, as one page."""

import argparse
import json
from pathlib import Path
from typing import Any

from midge.commands.parts import Problem, Subparsers, page_errors, server_side, user_errors

RUNS = Path("runs")


def register(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "report",
        help="report of a run, or of an aggregator's store, as one HTML page",
        description="Write a report as one self-contained HTML page: of a run of midge demo or midge fleet, or of a "
        "federation from its aggregator's store, which is only read, beside a running aggregator or at rest.",
    )
    parser.add_argument(
        "directory", metavar="RUN|STORE", nargs="?", help="folder of a run, or a store (default: the newest in runs/)"
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE.html",
        help="output file (default: runs/NAME/report.html, or report-FEDERATION.html in the current folder)",
    )
    parser.add_argument("--json", action="store_true", help="print the path and, of a store, all values as one object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    directory = Path(args.directory) if args.directory else newest()
    try:
        from midge.sensor_fleet.report.reading import holds_run  # noqa: PLC0415 - an extra

        of_store = (directory / "store.db").is_file() and not holds_run(directory)
        write = _write_of_store if of_store else _write_of_run
        with user_errors(), page_errors():
            path, values = write(directory, Path(args.output) if args.output else None)
    except ModuleNotFoundError as error:
        raise Problem(f'The report needs {error.name}: pip install "midge[demo]"') from error
    print(json.dumps({"report": str(path), **values}) if args.json else f"The report is in {path}.")
    return 0


def _write_of_run(directory: Path, output: Path | None) -> tuple[Path, dict[str, Any]]:
    from midge.sensor_fleet.report.conclusion import write_report  # noqa: PLC0415 - an extra

    return write_report(directory, output), {}


def _write_of_store(directory: Path, output: Path | None) -> tuple[Path, dict[str, Any]]:
    with server_side():
        from midge.aggregator.store.summary import summarise  # noqa: PLC0415 - an extra
    from midge.sensor_fleet.report.store_sections import packed, store_page  # noqa: PLC0415 - an extra

    found = summarise(directory)
    path = output or Path(f"report-{found.federation}.html")
    path.write_text(store_page(found), encoding="utf-8")
    return path, packed(found)


def newest() -> Path:
    """The newest run."""
    from midge.sensor_fleet.report.reading import holds_run  # noqa: PLC0415 - an extra

    found = [path for path in RUNS.glob("*") if holds_run(path)]
    if not found:
        raise Problem(f"There are no runs in {RUNS.resolve()}: run midge demo first, or give the folder of a run.")
    return max(found, key=lambda path: path.stat().st_mtime)
