"""Folders of runs."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from midge.commands.parts import Problem, user_errors
from midge.wire.topics import check_name


@contextmanager
def run_folder(name: str | None) -> Iterator[Path]:
    """A new folder below runs/ for a block; removed if the block fails before it writes anything."""
    directory = new_run(name)
    try:
        yield directory
    finally:
        with suppress(OSError):  # it is not empty
            directory.rmdir()


def new_run(name: str | None) -> Path:
    """Make a folder below runs/, named by the argument or by the time."""
    with user_errors():
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
