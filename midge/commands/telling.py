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


class InWords:
    """One sentence a line, with the time of day. A broker that is away is told once, not at each try."""

    def __init__(self) -> None:
        self._away: set[bool] = set()
        """While the broker is away: whether it was told to be lost, and to refuse us."""

    def __call__(self, event: Mapping[str, Any]) -> None:
        match event:
            case {"event": "disconnected", "why": why}:
                refused = bool(event.get("refused"))
                words = "" if refused in self._away else f"Lost the broker: {why} Trying again until it is back."
                self._away.add(refused)
            case {"event": "connected"} if self._away:
                words = "The broker is back."
                self._away.clear()
            case _:
                words = sentence(event)
        if words:
            print(f"{time.strftime('%H:%M:%S')} {inert(words)}", flush=True)


def printer(*, as_json: bool) -> Callable[[Mapping[str, Any]], None]:
    """What prints events in one of the two ways."""
    return print_json if as_json else InWords()
