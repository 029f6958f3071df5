"""What the operating system allows a live fleet, looked at before it hurts: each limit with what to do about it."""

import math
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

SPARE: Final = 128
"""Descriptors that a process has open beside those of its devices: generously."""
PER_DEVICE: Final = 70_000
"""Bytes of memory that a connected device takes here, and its connection in a broker of ours, about."""
PER_VALUE: Final = 4
"""Bytes of each of the model's values that a device holds besides: what is left to say, and an update under way."""
EMBEDDED: Final = 200
"""Devices that the embedded broker serves, at most."""
ROOT: Final = Path("/")


@dataclass(frozen=True, slots=True)
class SystemLimits:
    """What there is. None is not known, or without end."""

    descriptors: int | None = None
    """Files and sockets that this process, and a broker that it starts, may open."""
    ports: int | None = None
    """Local ports for connections to one address."""
    memory: int | None = None
    """Bytes."""


def problems(
    limits: SystemLimits, devices: int, values: int, *, embedded: bool = False, near: bool = True
) -> list[str]:
    """What keeps a fleet of this size with a model of this size from running here, in sentences that say what to do.

    Args:
        limits: what there is.
        devices: how many are wanted.
        values: of the model.
        embedded: whether our own broker is to serve them.
        near: whether the broker is on this machine too, and of ours.
    """
    found = []
    if embedded and devices > EMBEDDED:
        found.append(
            f"The embedded broker is for up to about {EMBEDDED} devices, not {devices:,}: install Mosquitto "
            "(apt install mosquitto), or name a broker with --broker."
        )
    need = devices + SPARE
    if limits.descriptors is not None and limits.descriptors < need:
        whose = "this process and the broker that it starts" if near else "this process"
        found.append(
            f"{devices:,} devices need {need:,} open files, and {whose} may open {limits.descriptors:,}: raise the "
            f"hard limit (sudo prlimit --pid $$ --nofile={_round(need):d} in this shell; for good, "
            f"'* hard nofile {_round(need):d}' in /etc/security/limits.conf), or take "
            f"--devices {max(0, limits.descriptors - SPARE)}."
        )
    if limits.ports is not None and limits.ports < devices:
        found.append(
            f"{devices:,} devices need a local port each, and {limits.ports:,} are free towards one broker: widen the "
            f'range (sudo sysctl net.ipv4.ip_local_port_range="1024 65535"), or take --devices {limits.ports}.'
        )
    size = devices * (PER_DEVICE + PER_VALUE * values)
    if limits.memory is not None and limits.memory < size:
        fits = int(limits.memory / (PER_DEVICE + PER_VALUE * values))
        found.append(
            f"{devices:,} devices take about {_words(size)} of memory with this model, and {_words(limits.memory)} are "
            f"free: take --devices {fits}, or a smaller --model."
        )
    return found


def advice(devices: int) -> str:
    """What to look at on a broker that is not ours."""
    return (
        f"The broker must let {devices:,} clients in: Mosquitto's max_connections (unlimited by default), its open "
        f"files (LimitNOFILE={_round(devices + SPARE):d} in its systemd unit; ulimit -n), and each device's rights "
        "(midge broker check)."
    )


def measured(root: Path = ROOT) -> SystemLimits:
    """What there is now, once the soft limit of open files is raised to the hard one."""
    return SystemLimits(_descriptors(), _ports(root), _memory(root))


def _descriptors() -> int | None:
    try:
        import resource  # noqa: PLC0415 - not on every system
    except ModuleNotFoundError:
        return None
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(ValueError, OSError):  # macOS says that there is no limit, and has one
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
    return None if soft == resource.RLIM_INFINITY else soft


def _ports(root: Path) -> int | None:
    """The range that connections are given, but for those that have one now; of one address, so it is a lower bound."""
    with suppress(OSError, ValueError):
        low, high = map(int, (root / "proc/sys/net/ipv4/ip_local_port_range").read_text().split())
        return max(0, high - low + 1 - _taken(root, low, high))
    return None


def _taken(root: Path, low: int, high: int) -> int:
    """Sockets that are connected or not long ago were, by proc(5)."""
    with suppress(OSError, ValueError, IndexError):
        lines = (root / "proc/net/tcp").read_text().splitlines()[1:]
        return sum(low <= int(line.split()[1].rpartition(":")[2], 16) <= high for line in lines)
    return 0


def _memory(root: Path) -> int | None:
    """What the machine has left, or what the container may take."""
    found = [limit for limit in (_available(root), _of_container(root)) if limit is not None]
    return min(found, default=None)


def _available(root: Path) -> int | None:
    with suppress(OSError, ValueError, IndexError):
        for line in (root / "proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
    return None


def _of_container(root: Path) -> int | None:
    """Of control groups, version 2."""
    here = root / "sys/fs/cgroup"
    with suppress(OSError, ValueError):
        return max(0, int((here / "memory.max").read_text()) - int((here / "memory.current").read_text()))
    return None


def _round(need: int) -> int:
    """A limit with room: the next power of two."""
    return int(2 ** math.ceil(math.log2(need)))


def _words(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
