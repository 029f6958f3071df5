"""`midge init`: a project that runs, with settings, a device, a sensor to try it with, tests and systemd units."""

import argparse
import re
from contextlib import suppress
from importlib import resources
from pathlib import Path

from midge.commands.config import schema_name, schema_text
from midge.commands.parts import Problem, Subparsers, user_errors
from midge.wire.topics import check_name

_FILES = {
    "midge.toml": "midge.toml.in",
    "device.toml": "device.toml.in",
    "device.py": "device.py.in",
    "sensor.py": "sensor.py.in",
    "test_project.py": "test_project.py.in",
    "README.md": "README.md.in",
    ".gitignore": "gitignore.in",
    "systemd/{federation}-aggregator.service": "systemd/aggregator.service.in",
    "systemd/{federation}-device@.service": "systemd/device.service.in",
}
"""Files of a project, and what each is made of in `midge/project/`."""


def register(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "init",
        help="make a project that runs: settings, a device, a sensor stub, tests, systemd units",
        description="Write a project with an aggregator and devices that learn from CSV files. Its README.md says how "
        "to run it. Files that are there already are not touched. (`midge broker init` makes certificates and rights.)",
    )
    parser.add_argument("directory", metavar="DIR", nargs="?", default=".", help="where to (default: here)")
    parser.add_argument("--federation", metavar="NAME", help="the federation's name (default: the folder's)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    directory = Path(args.directory).expanduser()
    federation = args.federation or re.sub(r"[^A-Za-z0-9_-]+", "-", directory.resolve().name).strip("-_") or "pumps"
    with user_errors():
        federation = check_name(federation, "federation")
    files = {
        directory / name.format(federation=federation): _text(source, federation) for name, source in _FILES.items()
    }
    for kind in ("aggregator", "device"):
        with suppress(Problem):  # the server's libraries are not installed
            files[directory / schema_name(kind)] = f"{schema_text(kind)}\n"
    if there := sorted(str(path) for path in files if path.exists()):
        raise Problem(f"{', '.join(there)} is there already: name another folder, or move it away.")
    try:
        for path, text in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise Problem(f"{path} cannot be written ({error.strerror or error}): name another folder.") from error
    print(f"{directory}: a project of federation {federation!r}. Next, see README.md:\n  cd {directory}\n  pytest")
    print("  midge aggregate --config midge.toml")
    return 0


def _text(source: str, federation: str) -> str:
    """A file of the project."""
    project = resources.files("midge.project")
    text = (project / source).read_text(encoding="utf-8")
    sandbox = (project / "systemd" / "sandbox.in").read_text(encoding="utf-8")
    return text.replace("@sandbox@\n", sandbox).replace("@federation@", federation)
