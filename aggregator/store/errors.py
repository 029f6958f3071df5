"""What can be wrong with a store, in sentences for its operator."""

from midge.storage.database import DiskFull


class StoreError(Exception):
    """The store cannot be used as it is; the message says why and what to do."""


class StoreInUse(StoreError):
    """An aggregator has it open."""


class StoreDamaged(StoreError):
    """Some of it, or of a backup, is not what was written."""


class StoreFull(StoreError, DiskFull):
    """There is no room on the disk. What was to be written is not; everything before it is."""
