"""An announcement for tests that need a valid one."""

from typing import Any

from midge.wire.messages import Announcement


def announced(version: int = 1, **fields: Any) -> Announcement:
    """An announcement of a version, with these fields."""
    usual = {
        "federation": "f",
        "lineage": bytes(16),
        "generation": 0,
        "version": version,
        "step": version,
        "phase": "training",
        "schema_hash": bytes(16),
        "digest": bytes(16),
    }
    return Announcement(**{**usual, **fields})
