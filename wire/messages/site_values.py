"""A gateway's message to its devices: the site's values of the tensors that go no further."""

from typing import Literal

from midge.wire.messages.fields import U32, U63, Id, Message, Sha, Word


class SiteValues(Message):
    """The values of a site's tensors, retained: the mean over its devices. The body is float32, little-endian."""

    kind: Literal["site_values"] = "site_values"
    lineage: Id
    name: Word
    """The site."""
    size: U32
    """Bytes of the values."""
    sha256: Sha
    """SHA-256 of the values."""
    token: U63 = 0
    """The fencing token of the gateway's start."""
    number: U63 = 0
    """Counts its messages: within one `token`, a lower one is older."""
    devices: U32 = 0
    """The number of devices whose values are in it."""

    @property
    def order(self) -> tuple[int, int]:
        """Higher in a newer message of the same site."""
        return self.token, self.number
