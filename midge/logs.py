"""Logs as JSON: events and lines of `logging` on standard output, one object a line, by the registry of events."""

import asyncio
import json
import logging
import math
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Self

from midge.events import FAILED, LOG, Service, level_of
from midge.wire.inert import inert

TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
"""A line of the log as text."""
_LEVELS = {logging.DEBUG: "debug", logging.INFO: "info", logging.WARNING: "warning"}


class SaidOnce(logging.Handler):
    """The listener of events and the handler of the log, in one.

    Where code logs a sentence and emits an event with the same sentence as its `why`, only the event is written. So a
    line is held until the loop's current step ends; what comes from a thread without a loop is written at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self._held: list[tuple[str, logging.LogRecord]] = []
        """Sentences of this step, and their records."""
        self._whys: list[str] = []
        """Sentences of this step's events."""

    def install(self) -> Self:
        """Take the place of the handlers of all loggers."""
        logging.basicConfig(handlers=[self], level=logging.getLogger().level, force=True)
        return self

    def show(self, event: Mapping[str, Any]) -> bool:
        """Write an event; return whether it was."""
        raise NotImplementedError

    def write(self, record: logging.LogRecord, sentence: str) -> None:
        """Write a line of the log."""
        raise NotImplementedError

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Write an event."""
        self.acquire()
        try:
            if self.show(event) and (why := inert(str(event.get("why") or ""))):
                self._held = [(sentence, record) for sentence, record in self._held if why not in sentence]
                if self._step_ends():
                    self._whys.append(why)
        finally:
            self.release()

    def emit(self, record: logging.LogRecord) -> None:
        sentence = record.getMessage()
        if not record.exc_info:
            if any(why in sentence for why in self._whys):
                return
            if self._step_ends():
                self._held.append((sentence, record))
                return
        self.write(record, sentence)

    def flush(self) -> None:
        self.acquire()
        try:
            for sentence, record in self._held:
                self.write(record, sentence)
            self._held.clear()
            self._whys.clear()
        finally:
            self.release()

    def _step_ends(self) -> bool:
        """Whether a loop runs in this thread; if so, the held lines are written once its current step ends."""
        if (loop := asyncio._get_running_loop()) is None:  # noqa: SLF001 - the public one raises
            return False
        if not self._held and not self._whys:
            loop.call_soon(self.flush)
        return True


class JsonLog(SaidOnce):
    """Writes one JSON object a line.

    Args:
        service: what runs.
        federation: its name.
        device: its name, if it is a device.
    """

    def __init__(self, service: Service, federation: str, device: str = "") -> None:
        super().__init__()
        self._service: Service = service
        self._about = {"service": service, "federation": federation} | ({"device": device} if device else {})

    def show(self, event: Mapping[str, Any]) -> bool:
        fields = {name: value for name, value in event.items() if name not in ("event", "time")}
        level = level_of(self._service, event)
        print_line(line_of(event["time"], level, self._about, str(event["event"])) | fields)
        return True

    def write(self, record: logging.LogRecord, sentence: str) -> None:
        line = line_of(record.created, _LEVELS.get(record.levelno, "error"), self._about, LOG.name)
        line |= {"logger": record.name, "message": sentence}
        if record.exc_info:
            line["traceback"] = logging.Formatter().formatException(record.exc_info)
        print_line(line)


def line_of(seconds: float, level: str, about: Mapping[str, Any], event: str) -> dict[str, Any]:
    """What every line begins with."""
    at = datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return {"time": at, "level": level, **about, "event": event}


def print_line(line: Mapping[str, Any]) -> None:
    """Print one JSON object (RFC 8259): no NaN, no infinity, text in ASCII with escapes."""
    try:
        text = json.dumps(line, default=_spelled, allow_nan=False)
    except ValueError:
        text = json.dumps(_finite(line), default=_spelled, allow_nan=False)
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _spelled(value: object) -> str:
    """What JSON has no type for: bytes as hexadecimal digits."""
    return value.hex() if isinstance(value, bytes) else str(value)


def print_failure(words: str) -> None:
    """Print that a command ended with an error that the user can fix."""
    print_line(line_of(datetime.now(UTC).timestamp(), FAILED.level, {}, FAILED.name) | {"message": inert(words)})


def _finite(value: Any) -> Any:
    match value:
        case float():
            return value if math.isfinite(value) else None
        case dict():
            return {name: _finite(each) for name, each in value.items()}
        case list() | tuple():
            return [_finite(each) for each in value]
    return value
