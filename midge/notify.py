"""Notifies systemd of a service's state: running, alive, ending. `sd_notify(3)`, without its library.

Without `NOTIFY_SOCKET` nothing is sent. The watchdog is fed by the event loop itself: a loop that hangs, or a device
whose trainer holds the interpreter forever, is restarted.
"""

import asyncio
import os
import socket
from contextlib import suppress


def notify(state: str) -> bool:
    """Send a state such as "READY=1"; return whether there is a service manager."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    if address.startswith("@"):  # the abstract namespace
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender, suppress(OSError):
        sender.sendto(state.encode(), address)
        return True
    return False


def watchdog_interval() -> float | None:
    """Seconds between two watchdog notifications: half of systemd's time-out; None without one."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    wanted = os.environ.get("WATCHDOG_USEC", "")
    return int(wanted) / 2e6 if wanted.isdecimal() and int(wanted) else None


async def keep_notifying() -> None:
    """Report that the service runs, until cancelled; then that it ends."""
    if not notify("READY=1"):
        return
    interval = watchdog_interval()
    try:
        while True:
            await asyncio.sleep(3600 if interval is None else interval)
            if interval is not None:
                notify("WATCHDOG=1")
    finally:
        notify("STOPPING=1")
