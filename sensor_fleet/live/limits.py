"""Checks of the operating system's limits before a live fleet starts, each with a remedy."""

import math
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

SPARE: Final = 128
"""Generous number of descriptors that a process has open besides those of its devices."""
PER_DEVICE: Final = 70_000
"""Approximate bytes of memory of a connected device here and, if the broker is ours, there."""
PER_VALUE: Final = 4
"""Bytes per model value that a device holds besides: residual, and an update under way."""
EMBEDDED: Final = 200
"""Maximum number of devices for the embedded broker."""
ROOT: Final = Path("/")


@dataclass(frozen=True, slots=True)
class SystemLimits:
    """The system's limits. None is unknown or unlimited."""

    descriptors: int | None = None
    """Files and sockets that this process, and a broker that it starts, may open."""
    ports: int | None = None
    """Local ports for connections to one address."""
    memory: int | None = None
    """Bytes."""


def problems(
    limits: SystemLimits, devices: int, values: int, *, embedded: bool = False, near: bool = True
) -> list[str]:
    """Why a fleet of this size with this model cannot run here, in sentences with a remedy.

    Args:
        limits: of the system.
        devices: number wanted.
        values: number of the model's values.
        embedded: whether the embedded broker would serve them.
        near: whether the broker is started here.
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
            f"hard limit (sudo prlimit --pid $$ --nofile={_round(need):d} in this shell; permanently, "
            f"'* hard nofile {_round(need):d}' in /etc/security/limits.conf), or take "
            f"--devices {max(0, limits.descriptors - SPARE)}."
        )
    if limits.ports is not None and limits.ports < devices:
        found.append(
            f"{devices:,} devices need a local port each, and {limits.ports:,} are available for one broker: widen the "
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
    """What to check on a broker that is not ours."""
    return (
        f"The broker must admit {devices:,} clients: Mosquitto's max_connections (unlimited by default), its open "
        f"files (LimitNOFILE={_round(devices + SPARE):d} in its systemd unit; ulimit -n), and each device's rights "
        "(midge broker check)."
    )


def measured(root: Path = ROOT) -> SystemLimits:
    """Measure the limits, after raising the soft limit of open files to the hard one."""
    return SystemLimits(_descriptors(), _ports(root), _memory(root))


def _descriptors() -> int | None:
    try:
        import resource  # noqa: PLC0415 - not on every system
    except ModuleNotFoundError:
        return None
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(ValueError, OSError):  # macOS reports no limit, and has one
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
    return None if soft == resource.RLIM_INFINITY else soft


def _ports(root: Path) -> int | None:
    """Size of the ephemeral port range less the ports in use; those of other addresses count too, so a lower bound."""
    with suppress(OSError, ValueError):
        low, high = map(int, (root / "proc/sys/net/ipv4/ip_local_port_range").read_text().split())
        return max(0, high - low + 1 - _taken(root, low, high))
    return None


def _taken(root: Path, low: int, high: int) -> int:
    """Sockets in use or recently closed (proc(5))."""
    with suppress(OSError, ValueError, IndexError):
        lines = (root / "proc/net/tcp").read_text().splitlines()[1:]
        return sum(low <= int(line.split()[1].rpartition(":")[2], 16) <= high for line in lines)
    return 0


def _memory(root: Path) -> int | None:
    """Memory available to the machine, or to the container if that is less."""
    found = [limit for limit in (_available(root), _of_container(root)) if limit is not None]
    return min(found, default=None)


def _available(root: Path) -> int | None:
    with suppress(OSError, ValueError, IndexError):
        for line in (root / "proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
    return None


def _of_container(root: Path) -> int | None:
    """Of cgroups, version 2."""
    here = root / "sys/fs/cgroup"
    with suppress(OSError, ValueError):
        return max(0, int((here / "memory.max").read_text()) - int((here / "memory.current").read_text()))
    return None


def _round(need: int) -> int:
    """The next power of two, to leave room."""
    return int(2 ** math.ceil(math.log2(need)))


def _words(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
