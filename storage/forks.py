"""Locks and connections that a forked child lets go of: they are its parent's.

A worker of a user's trainer may outlive its process, as when that is killed. If it kept the lock of the outbox, the
device could not start again; and if it kept the connection, the broker would take the device for connected.
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


def _let_go() -> None:
    """Point them at nothing rather than close them: a later object's destructor would close another file by number."""
    if not _owned:
        return
    nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for descriptor in _owned:
        os.dup2(nothing, descriptor, inheritable=False)
    os.close(nothing)
    _owned.clear()


os.register_at_fork(after_in_child=_let_go)
