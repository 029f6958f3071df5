"""A device's hardware, for its status: plain values, read once, without a library."""

import os
import platform
from collections.abc import Mapping
from contextlib import suppress

from midge.iot_client.training.throughput import Throughput
from midge.wire.messages import MICRO

Value = str | int | float | bool


def capabilities(speed: Throughput, link: str | None, *, micro: bool = False) -> dict[str, Value]:
    """Cores, memory in MiB, architecture, measured throughput, and link and class if the owner gave them."""
    found = stated(link, micro=micro)
    if speed.rows:
        found["rows_per_second"] = round(speed.rows, 3)
        found["steps_per_second"] = round(speed.steps, 3)
    return found


def stated(link: str | None, owner: Mapping[str, Value] | None = None, *, micro: bool = False) -> dict[str, Value]:
    """What does not change while the device runs, with what its owner says of it."""
    found: dict[str, Value] = {
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "machine": platform.machine(),
    }
    with suppress(ValueError, OSError, AttributeError):
        found["memory_mib"] = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    if micro:
        found["class"] = MICRO
    if link is not None:
        found["link"] = link
    return {**found, **(owner or {})}
