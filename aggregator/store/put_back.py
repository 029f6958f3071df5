"""Marks a restored store: at its next start it begins a generation above its own.

Devices may know versions, and hold receipts, that such a store does not have, and the broker may not retain them.
"""

from collections.abc import Callable
from typing import Any

from midge.aggregator.store.ledger import RESTORED
from midge.aggregator.store.store import Store


def private(query: Callable[[str], list[tuple[Any, ...]]]) -> bool:
    """Whether devices have spent a budget of differential privacy: a restored store does not know all of it."""
    rows = query("SELECT record FROM journal WHERE kind = 'strategy'")
    return any(b"'privacy': {" in bytes(record) for (record,) in rows)


def mark(store: Store, generation: int) -> None:
    """Mark an open store as restored."""
    store.set_constant(RESTORED, generation)


def marked(store: Store) -> int | None:
    """The generation to continue above; None if the store was not restored, or has begun one since."""
    return next((value for (value,) in store.query("SELECT value FROM meta WHERE name = ?", (RESTORED,))), None)


def unmark(store: Store) -> None:
    """Remove the mark: the generation has begun."""
    store.remove_constant(RESTORED)
