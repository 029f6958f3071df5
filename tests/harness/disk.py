"""A small disk that can be filled: a file system in memory, of a mount namespace that ends with its processes."""

import os
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

_APART = "MIDGE_TEST_APART"


def apart() -> bool:
    """Go on in a mount namespace of our own, so that no mount outlives us; False if that is not allowed here."""
    if os.environ.get(_APART):
        return True
    unshare = shutil.which("unshare")
    if os.geteuid() != 0 or unshare is None or subprocess.run([unshare, "--mount", "true"], check=False).returncode:
        return False
    command = [unshare, "--mount", sys.executable, *sys.orig_argv[1:]]
    return os.execvpe(unshare, command, {**os.environ, _APART: "1"})


class SmallDisk:
    """A directory that is a disk of its own.

    Raises:
        OSError: it cannot be mounted.
    """

    def __init__(self, directory: Path, size: int) -> None:
        directory.mkdir(parents=True)
        mounting = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(directory)]
        done = subprocess.run(mounting, check=False, capture_output=True, text=True)
        if done.returncode:
            raise OSError(done.stderr)
        self._directory, self._rubbish = directory, directory / "rubbish"

    def fill(self) -> None:
        """Leave no room."""
        with suppress(OSError), self._rubbish.open("wb", buffering=0) as file:
            while file.write(bytes(65536)):
                pass

    def empty(self) -> None:
        """Give the room back."""
        self._rubbish.unlink(missing_ok=True)

    def close(self) -> None:
        """Take it away, with all that is on it."""
        subprocess.run(["umount", "-l", str(self._directory)], check=True)
