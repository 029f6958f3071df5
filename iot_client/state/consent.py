"""The owner's consent: a file beside the outbox, which holds over restarts and is followed while the device runs.

Without it nothing is trained, measured or sent, and updates that wait are withdrawn. Models are still received and
used. No file is consent: the owner started the device.
"""

import asyncio
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from midge.iot_client.board.training_constraints import LOOK_EVERY
from midge.storage.files import atomic_write

WITHDRAWN = "its owner has withdrawn consent: it trains on nothing and gives nothing"
"""The reason not to train, also in the device's status."""


@dataclass(frozen=True, slots=True)
class Consent:
    """The owner's decision about one outbox."""

    path: Path | None
    """The file; None is a device without one, in memory."""

    @classmethod
    def beside(cls, outbox: Path | None) -> "Consent":
        """The decision about an outbox at this path."""
        return cls(None if outbox is None else outbox.with_name(f"{outbox.name}.consent"))

    def withheld(self) -> str | None:
        """Why nothing may be given; None if the owner consents."""
        return None if self.path is None or not self.path.exists() else WITHDRAWN

    @property
    def since(self) -> float | None:
        """When consent was withdrawn, in seconds since 1970; None if it is given, or the file is damaged."""
        with suppress(OSError, ValueError, TypeError, KeyError):
            assert self.path is not None
            return float(json.loads(self.path.read_text())["since"])
        return None

    def withdraw(self, now: float) -> bool:
        """Withdraw it, durably; return whether that is new.

        Raises:
            OSError: it cannot be written.
        """
        assert self.path is not None
        if self.withheld() is not None:
            return False
        atomic_write(self.path, json.dumps({"since": now}).encode())
        return True

    async def follow(self, look: Callable[[], None], waits: Callable[[], str]) -> None:
        """Call `look` within some seconds after each change, however rarely the device checks its other conditions.

        Args:
            look: what has the device follow.
            waits: why it waits now, as it knows.
        """
        while self.path is not None:
            await asyncio.sleep(LOOK_EVERY)
            if (self.withheld() == WITHDRAWN) != (waits() == WITHDRAWN):
                look()

    def give(self) -> bool:
        """Give it again; return whether it was withdrawn.

        Raises:
            OSError: the file cannot be removed.
        """
        assert self.path is not None
        was = self.withheld() is not None
        self.path.unlink(missing_ok=True)
        return was
