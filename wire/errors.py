"""What is raised when bytes from a peer do not keep the contract."""


class WireError(ValueError):
    """A peer sent something that is not what the protocol says. The message says what, for a log or a receipt."""
