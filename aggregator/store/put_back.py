"""The mark of a store that was put back: with its next start it begins a generation above the one that it has.

Devices may know versions, and hold receipts, of which such a store has nothing, and the broker may have forgotten them.
"""

from collections.abc import Callable
from typing import Any

from midge.aggregator.store.store import Store

_NAME = "restored"
"""In the metadata: the generation that the store had."""


def private(query: Callable[[str], list[tuple[Any, ...]]]) -> bool:
    """Whether devices have spent a budget of differential privacy here: what they spent goes back with a store."""
    rows = query("SELECT record FROM journal WHERE kind = 'strategy'")
    return any(b"'privacy': {" in bytes(record) for (record,) in rows)


def mark(store: Store, generation: int) -> None:
    """Say that an open store was put back."""
    store.set_constant(_NAME, generation)


def marked(store: Store) -> int | None:
    """The generation to go on above; None if the store was not put back, or has begun one since."""
    return next((value for (value,) in store.query("SELECT value FROM meta WHERE name = ?", (_NAME,))), None)


def unmark(store: Store) -> None:
    """The generation has begun."""
    store.remove_constant(_NAME)
