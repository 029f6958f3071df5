"""Events of a device or an aggregator on standard output, as they come."""

import json
import time
from collections.abc import Callable, Mapping
from typing import Any

from midge.commands.words import sentence
from midge.wire.inert import inert


def print_json(event: Mapping[str, Any]) -> None:
    """One JSON object a line."""
    print(json.dumps(event, default=str), flush=True)


_SHORT = 60.0
"""A connection that lasts less than these seconds and ends for the same reason is not reported again."""


class InWords:
    """Prints one sentence a line, with the time of day. A broker that is away is reported once, not at each retry."""

    def __init__(self) -> None:
        self._away: set[bool] = set()
        """While the broker is away: whether its loss and its refusal were reported."""
        self._why, self._back, self._quiet = "", -_SHORT, False
        """Why it was last lost, when it was back, and whether it is lost again for the same reason, unreported."""

    def __call__(self, event: Mapping[str, Any]) -> None:
        match event:
            case {"event": "disconnected", "why": why}:
                words = self._lost(str(why), bool(event.get("refused")))
            case {"event": "connected"} if self._away or self._quiet:
                words = "" if self._quiet else "The broker is back."
                self._away.clear()
                self._back, self._quiet = time.monotonic(), False
            case _:
                words = sentence(event)
        if words:
            print(f"{time.strftime('%H:%M:%S')} {inert(words)}", flush=True)

    def _lost(self, why: str, refused: bool) -> str:
        if refused in self._away:
            return ""
        again = not self._away and not self._quiet and why == self._why and time.monotonic() < self._back + _SHORT
        if again:  # an unstable broker: reported once, unless it stays away this time
            self._quiet = True
            return ""
        self._quiet, self._why = False, why
        self._away.add(refused)
        return f"Lost the broker: {why} Trying again until it is back."


def printer(*, as_json: bool) -> Callable[[Mapping[str, Any]], None]:
    """Make a function that prints events in one of the two ways."""
    return print_json if as_json else InWords()
