"""Orders of the operator about registered versions: files in the store's directory, until they are followed.

A file needs no port, no topic and no right except to the store, and is not lost if no aggregator runs. The aggregator
answers each with another file. The record that follows from an order names it, so that an order that is found again
after a crash is answered and not followed twice.
"""

import asyncio
import getpass
import json
import os
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from midge.storage.files import atomic_write, make_folder
from midge.wire.participation import check_where

FOLDER = "orders"
LONGEST = 86_400.0
"""Seconds for which an order waits for its aggregator: later, it is refused."""
FRESH = 600.0
"""Seconds for which one that came signed over the network is taken: later, it may be an old one that is sent again."""
_POLL = 0.2
"""Seconds between two looks for the aggregator's answer."""
_WORDS = 300
"""Characters of a reason that are kept."""

Verb = Literal["register", "try", "promote", "withdraw", "rollback"]


def operator_name() -> str:
    """Who runs this process, by the operating system."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return f"uid {os.getuid()}"


@dataclass(frozen=True, slots=True)
class ModelOrder:
    """One order.

    Raises:
        ValueError: a value is out of range.
    """

    verb: Verb
    version: int = 0
    """0: the newest of a registration, the candidate of a promotion, the champion of a rollback."""
    share: float | None = None
    """Of the devices that use a candidate; None leaves it to the policy, or takes all that `where` names."""
    where: Mapping[str, str] = field(default_factory=dict)
    """Capabilities of the devices that use a candidate, each with its value; empty leaves it to the policy."""
    attempt: bool = False
    """Whether a version becomes the candidate as soon as it is registered."""
    why: str = ""
    by: str = field(default_factory=operator_name)
    at: float = field(default_factory=time.time)
    """Seconds since 1970."""
    name: str = field(default_factory=lambda: secrets.token_hex(8))

    def __post_init__(self) -> None:
        share = 1.0 if self.share is None else self.share
        if self.verb not in get_args(Verb) or not 0 < share <= 1 or self.version < 0 or not _is_id(self.name):
            raise ValueError(f"{self.verb!r} of version {self.version} for a share of {share} is no order.")
        check_where(self.where)


def _is_id(name: str) -> bool:
    return len(name) == 16 and all(letter in "0123456789abcdef" for letter in name)


def give(directory: Path, order: ModelOrder) -> None:
    """Leave an order for the aggregator of a store.

    Raises:
        OSError: it cannot be written.
    """
    folder = directory / FOLDER
    make_folder(folder, 0o700)
    atomic_write(folder / f"{order.name}.json", packed(order))


def packed(order: ModelOrder) -> bytes:
    """The order as it travels."""
    return json.dumps({**asdict(order), "why": order.why[:_WORDS]}).encode()


def receive(directory: Path, data: bytes, now: float) -> None:
    """Take an order that a release key signed; one that is malformed, or not of now, is ignored."""
    with suppress(ValueError, TypeError, OSError):
        order = ModelOrder(**json.loads(data))
        if abs(now - order.at) <= FRESH:
            give(directory, order)


def given(directory: Path) -> Iterator[ModelOrder]:
    """Orders that wait, in the order in which they were given. Files that are none are passed over."""
    found: list[ModelOrder] = []
    with suppress(FileNotFoundError):
        for path in (directory / FOLDER).glob("*.json"):
            with suppress(ValueError, TypeError, OSError):
                order = ModelOrder(**json.loads(path.read_bytes()))
                if order.name == path.stem:
                    found.append(order)
    yield from sorted(found, key=lambda order: (order.at, order.name))


def answer(directory: Path, order: ModelOrder, said: dict[str, Any]) -> None:
    """Say what became of an order, and remove it.

    Raises:
        OSError: it cannot be written.
    """
    folder = directory / FOLDER
    atomic_write(folder / f"{order.name}.answer", json.dumps(said).encode())
    (folder / f"{order.name}.json").unlink(missing_ok=True)
    for old in folder.glob("*.answer"):  # of commands that did not wait for them
        with suppress(FileNotFoundError):
            if old.stat().st_mtime < time.time() - LONGEST:
                old.unlink()


def answered(directory: Path, order: ModelOrder) -> dict[str, Any] | None:
    """Take the answer to an order; None while there is none."""
    path = directory / FOLDER / f"{order.name}.answer"
    try:
        said: dict[str, Any] = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    path.unlink(missing_ok=True)
    return said


async def awaited(directory: Path, order: ModelOrder, seconds: float) -> dict[str, Any] | None:
    """Take the answer to an order as soon as there is one; None if there is none within `seconds`."""
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    while (said := answered(directory, order)) is None and loop.time() < end:  # noqa: ASYNC110 - another process answers
        await asyncio.sleep(_POLL)
    return said
