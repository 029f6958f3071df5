"""Detects that this process stood still, as in a suspended virtual machine: another may have taken over since then."""

import asyncio
import math
import time
from collections.abc import Callable

from midge.broker.mqtt.connection import Connection, ConnectionLost

_PULSE = 0.5
"""Seconds between two looks at the clock, each of which shows whether this process stood still since the last one."""


class StandstillGuard:
    """Ends a connection of a process that stood still, with everything that it has not sent yet.

    Args:
        longest: seconds from which on it must have stood still.
    """

    def __init__(self, longest: Callable[[], float]) -> None:
        self._longest = longest
        self._ran = math.inf
        """When this process last looked at the clock."""
        self._connection: Connection | None = None

    def begin(self, connection: Connection) -> None:
        """Guard this connection from now on."""
        self._connection = connection
        self.excuse()

    def excuse(self) -> None:
        """Take the time since the last look as work."""
        self._ran = time.monotonic()

    def look(self) -> None:
        """Look at the clock. To be called before each message.

        Raises:
            ConnectionLost: this process stood still since the last look.
        """
        now = time.monotonic()
        if (stopped := now - self._ran) > self._longest():
            why = f"This process stood still for {stopped:.0f} s."
            if self._connection is not None:
                self._connection.abort(why)
            raise ConnectionLost(why)
        self._ran = now

    async def watch(self) -> None:
        """Look at the clock all the time.

        Raises:
            ConnectionLost: this process stood still.
        """
        while True:
            self.look()
            await asyncio.sleep(_PULSE)
