"""Events of a device or an aggregator on standard output, as they come."""

import argparse
import logging
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from midge.commands.words import sentence
from midge.events import Service, level_of
from midge.logs import TEXT, JsonLog, SaidOnce, print_line
from midge.wire.inert import inert

_SHORT = 60.0
"""A connection that lasts less than these seconds and ends for the same reason is not reported again."""


class InWords(SaidOnce):
    """Prints one sentence a line, with date, time and level: events on standard output, the log on standard error.

    A broker that is away is reported once, not at each retry.
    """

    def __init__(self, service: Service = "device") -> None:
        super().__init__()
        self.setFormatter(logging.Formatter(TEXT))
        self._service: Service = service
        self._away: set[bool] = set()
        """While the broker is away: whether its loss and its refusal were reported."""
        self._why, self._back, self._quiet = "", -_SHORT, False
        """Why it was last lost, when it was back, and whether it is lost again for the same reason, unreported."""

    def show(self, event: Mapping[str, Any]) -> bool:
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
            level = level_of(self._service, event).upper()
            print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {level} {inert(words)}", flush=True)
        return bool(words)

    def write(self, record: logging.LogRecord, sentence: str) -> None:  # noqa: ARG002 - the formatter makes it
        sys.stderr.write(self.format(record) + "\n")
        sys.stderr.flush()

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


def add_log(parser: argparse.ArgumentParser) -> None:
    """Options for how events are printed."""
    ways = parser.add_mutually_exclusive_group()
    ways.add_argument("--json", action="store_true", help="one JSON object for each event")
    ways.add_argument(
        "--log",
        choices=["text", "json"],
        default="text",
        help="json: events and the log as one JSON object a line, with time, level and federation (default: text)",
    )


def in_words(args: argparse.Namespace) -> bool:
    """Whether sentences are printed, so that a command may print its own."""
    return not args.json and getattr(args, "log", "text") == "text"


def printer(
    args: argparse.Namespace, service: Service, federation: str, device: str = ""
) -> Callable[[Mapping[str, Any]], None]:
    """Make a function that prints events in the way of `add_log`."""
    if args.log == "json":
        return JsonLog(service, federation, device).install()
    return print_line if args.json else InWords(service).install()
