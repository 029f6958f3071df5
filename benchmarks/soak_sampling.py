"""Samples of a soak: memory and open files of its processes, and the size of its store."""

import asyncio
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

SETTLE = 0.15
"""Part of a process's life at its beginning that is not judged: it fills its caches."""


def resident(pid: int) -> float:
    """Resident bytes of a process (Linux)."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def open_files(pid: int) -> float:
    """Number of open descriptors of a process (Linux)."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def disk(directory: Path) -> float:
    """Bytes of all files of a folder, without SQLite's log: that comes and goes, up to some megabytes."""
    found = 0
    for path in directory.rglob("*"):
        with suppress(OSError):  # removed meanwhile
            found += 0 if path.name.endswith(("-wal", "-shm")) else path.stat().st_size
    return found


@dataclass
class Series:
    """Samples of one process or folder."""

    hours: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)
    files: list[float] = field(default_factory=list)

    def add(self, pid: int) -> None:
        self.hours.append(time.monotonic() / 3600)
        self.memory.append(resident(pid))
        self.files.append(open_files(pid))

    def since(self, hour: float) -> "Series":
        """The samples after an hour, when the process was in its place, without the first while its caches fill."""
        start = sum(each < hour for each in self.hours)
        start += round(SETTLE * (len(self.hours) - start))
        return Series(self.hours[start:], self.memory[start:], self.files[start:])


class Sampler:
    """Samples processes and the store each second; a process that is replaced begins a new series."""

    def __init__(self, store: Path) -> None:
        self.pids: dict[str, Callable[[], int | None]] = {}
        self.series: dict[str, Series] = {}
        self.store = Series()
        self._directory = store
        self._sampled: dict[str, int] = {}

    def reset(self) -> None:
        """Begin all series again."""
        self.series, self.store, self._sampled = {}, Series(), {}

    async def run(self) -> None:
        """Sample until cancelled."""
        while True:
            for name, find in self.pids.items():
                if (pid := find()) is None:
                    continue
                if self._sampled.get(name) != pid:
                    self._sampled[name], self.series[name] = pid, Series()
                with suppress(OSError):  # it ended meanwhile
                    self.series[name].add(pid)
            self.store.hours.append(time.monotonic() / 3600)
            self.store.memory.append(disk(self._directory))
            await asyncio.sleep(1.0)
