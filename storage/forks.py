"""Locks and connections that a forked child must release, because they belong to its parent.

A worker of a user's trainer may outlive its process, for example if that is killed. If the worker kept the lock of the
outbox, the device could not start again; if it kept the connection, the broker would believe that the device is
connected.
"""

import os

_owned: set[int] = set()
"""Descriptors of this process that a child must not keep."""


def own(descriptor: int) -> None:
    """Keep a descriptor out of forked children, until `disown`."""
    _owned.add(descriptor)


def disown(descriptor: int) -> None:
    """Forget a descriptor that is about to be closed."""
    _owned.discard(descriptor)


def _release_in_child() -> None:
    """Point the descriptors at /dev/null. Closing them would let a later destructor close another file by number."""
    if not _owned:
        return
    nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for descriptor in _owned:
        os.dup2(nothing, descriptor, inheritable=False)
    os.close(nothing)
    _owned.clear()


os.register_at_fork(after_in_child=_release_in_child)
