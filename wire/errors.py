"""What is raised when bytes from a peer do not keep the contract."""

from midge.wire.inert import inert

_LONGEST = 300
"""Characters of a message: what a peer sent may be quoted in it, and a receipt must be able to carry it."""


class WireError(ValueError):
    """A peer sent something that is not what the protocol says.

    The message says what, for a log or a receipt: one line of bounded length, whatever it quotes.
    """

    def __init__(self, message: str) -> None:
        """Cut the message to its limit and keep it on one line."""
        cut = message if len(message) <= _LONGEST else message[: _LONGEST - 1] + "…"
        super().__init__(inert(cut))
