"""A wall clock that another process may set: the machines of a play have wrong clocks, and clocks that are put right.

Once this is imported, `time.time` follows the file that the environment names, if it names one.
"""

import os
import time
from contextlib import suppress
from pathlib import Path

VARIABLE = "MIDGE_TEST_CLOCK"
"""Names the file with the seconds by which a process's clock is ahead."""


def put(path: Path, ahead: float) -> None:
    """Set the clock of the processes that follow a file."""
    beside = path.with_suffix(".new")
    beside.write_text(str(ahead))
    beside.replace(path)


class _Clock:
    def __init__(self, path: str) -> None:
        self._path, self._right = path, time.time
        self._seen, self._ahead = -1, 0.0

    def __call__(self) -> float:
        with suppress(OSError, ValueError):
            if (seen := os.stat(self._path).st_mtime_ns) != self._seen:  # noqa: PTH116 - as cheap as can be
                self._seen, self._ahead = seen, float(Path(self._path).read_text(encoding="ascii"))
        return self._right() + self._ahead


if _path := os.environ.get(VARIABLE):
    time.time = _Clock(_path)
