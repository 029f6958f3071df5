"""The mark of a store that was put back: with its next start it begins a generation above the one that it has.

Devices may know versions, and hold receipts, of which such a store has nothing, and the broker may have forgotten them.
"""

from midge.aggregator.store.store import Store

_NAME = "restored"
"""In the metadata: the generation that the store had."""


def mark(store: Store, generation: int) -> None:
    """Say that an open store was put back."""
    store.set_constant(_NAME, generation)


def marked(store: Store) -> int | None:
    """The generation to go on above; None if the store was not put back, or has begun one since."""
    return next((value for (value,) in store.query("SELECT value FROM meta WHERE name = ?", (_NAME,))), None)


def unmark(store: Store) -> None:
    """The generation has begun."""
    store.remove_constant(_NAME)
