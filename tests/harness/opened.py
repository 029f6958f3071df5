"""What a store or an outbox is once it is opened: what a fault of its files must not change without a word."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from midge.aggregator.federation import FederationRuntime
from midge.aggregator.publish.outlet import Outlet
from midge.aggregator.store.errors import StoreError
from midge.broker.embedded.in_memory import Twin
from midge.iot_client.state.outbox import Outbox, OutboxError
from midge.iot_client.state.outbox_state import OutboxState
from tests.aggregator.rig import journaled
from tests.harness.ledger import Books, config

_COUNT = re.compile(r"(\d+) updates?\b")


@dataclass(slots=True)
class Opened:
    """One opening."""

    content: Any = None
    """Equal for the same content; None if the opening was refused."""
    offers: dict[tuple[int, int], bytes] = field(default_factory=dict)
    """Frames that devices may fetch, by version and span."""
    applied: int = 0
    """Updates that are in the ledger's model."""
    refusal: str = ""
    said: list[str] = field(default_factory=list)
    """Warnings and events."""

    @property
    def counts(self) -> list[int]:
        """The numbers of updates that are named in what was said."""
        return [int(number) for line in [self.refusal, *self.said] for number in _COUNT.findall(line)]

    @property
    def unused(self) -> bool:
        """Whether it is an outbox that was just made: killed before its witness was written, it may be made again."""
        _, following, held = self.content
        return following == OutboxState(0).next and not held

    def lost_of(self, other: "Opened") -> int | None:
        """Updates that this outbox lacks of what another holds; None if it is no later life of the same one."""
        (identity, following, held), (was, before, all_held) = self.content, other.content
        whole = {seq: (header, body) for seq, header, body in all_held}
        if identity != was or following < before or any(whole.get(seq) != (header, body) for seq, header, body in held):
            return None
        return len(whole) - len(held)


class _Lines(logging.Handler):
    def __init__(self, lines: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append(record.getMessage())


@contextmanager
def _listening(found: Opened) -> Iterator[None]:
    handler = _Lines(found.said)
    loggers = [logging.getLogger(name) for name in ("aggregator", "iot_client", "storage")]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)


def store(books: Books, directory: Path) -> Opened:
    """Open a store as an aggregator does that starts: what it decides from, and what it offers."""
    found = Opened()

    def tell(event: str, **fields: Any) -> None:
        found.said.append(f"{event} {fields}")

    with _listening(found):
        try:
            federation = FederationRuntime(config(books, Twin().connect, directory), Outlet(lambda _: None, tell), 0.0)
        except StoreError as error:
            found.refusal = str(error)
            return found
        try:
            federation.begin(0.0)
            found.applied = round(float(federation.engine.model.x.sum()))
            core = journaled(federation.core)
            core["versions"] = [[version, step] for version, step, *_ in core["versions"]]  # a first one is dated now
            found.content = federation.engine.model.digest(), core
            for frame in federation.store.published():
                data = federation.store.frame(frame.version, frame.span) if frame.offered else None
                if data is not None:
                    found.offers[frame.version, frame.span] = data
        except StoreError as error:
            found.refusal, found.content = str(error), None
        finally:
            federation.store.close()
    return found


def outbox(path: Path) -> Opened:
    """Open an outbox as a device does that starts: what it will send, and under which identity."""
    found = Opened()
    with _listening(found):
        try:
            with Outbox(path) as box:
                found.said += [box.rotted] if box.rotted else []
                held = [(update.seq, repr(update), box.body(update.seq)) for update in box.held()]
                found.content = box.identity, box.next_seq, held
        except OutboxError as error:
            found.refusal = str(error)
    return found
