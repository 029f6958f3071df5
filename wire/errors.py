"""Errors about bytes from a peer that violate the contract."""

from midge.wire.inert import inert

_LONGEST = 300
"""Characters of a message: it may quote the peer, and must fit in a receipt."""


class WireError(ValueError):
    """A peer violated the protocol.

    The message tells how, for a log or a receipt: one line of bounded length, whatever it quotes.
    """

    def __init__(self, message: str) -> None:
        """Cut the message to its limit and keep it on one line."""
        cut = message if len(message) <= _LONGEST else message[: _LONGEST - 1] + "…"
        super().__init__(inert(cut))
