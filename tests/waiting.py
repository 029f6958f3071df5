"""Waiting for what must happen: no time limit here decides what a test finds, it only ends one that hangs."""

import asyncio
import os
import time
from collections.abc import Callable

LAST_RESORT = float(os.environ.get("MIDGE_LAST_RESORT") or 200.0)
"""Seconds after which what does not come is taken to hang. Far more than anything takes on a busy machine; less where
`tests.brokers` runs a suite on a broker that is known to send less than others."""


def until(what: str, condition: Callable[[], object], every: float = 0.05) -> None:
    """Wait for another process to get somewhere."""
    deadline = time.monotonic() + LAST_RESORT
    while not condition():
        assert time.monotonic() < deadline, f"it hangs: {what}"
        time.sleep(every)


async def eventually(what: str, condition: Callable[[], object], every: float = 0.01) -> None:
    """Wait for what nobody tells of, while the loop goes on."""
    deadline = time.monotonic() + LAST_RESORT
    while not condition():
        assert time.monotonic() < deadline, f"it hangs: {what}"
        await asyncio.sleep(every)
