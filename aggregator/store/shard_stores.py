"""The stores of shards, which lie in the store of their aggregator."""

from pathlib import Path

SHARDS = "shards"
"""Folder in a store with the stores of its shards."""


def shard_stores(directory: Path) -> list[Path]:
    """The stores of an aggregator's shards; none if it has no shards, or they have not begun."""
    return sorted(path.parent for path in directory.glob(f"{SHARDS}/*/store.db"))
