"""Folders of runs."""

import time
from pathlib import Path

from midge.commands.parts import Problem, user_errors
from midge.wire.topics import check_name


def new_run(name: str | None) -> Path:
    """A new folder below runs/, of this name or of the time."""
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
