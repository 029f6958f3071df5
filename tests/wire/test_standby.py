"""Messages between an aggregator and its standby: only the holders of the release key read them, each in its place."""

import pytest

from midge.wire import frames, signing
from midge.wire.errors import WireError
from midge.wire.standby import OVERHEAD, StandbyLink, StandbyMessage


def test_only_who_has_the_key_reads_it_and_nothing_fits_elsewhere() -> None:
    key = signing.new_key()
    link = StandbyLink(key, "f")
    sealed = link.seal(7, "copy", ["piece", 1, b"x" * 100])
    assert StandbyLink(key, "f").open("copy", sealed) == (7, ("piece", 1, b"x" * 100))
    assert len(sealed) < 110 + OVERHEAD
    assert b"xxxx" not in sealed
    with pytest.raises(WireError, match="not sealed with the release key"):
        StandbyLink(signing.new_key(), "f").open("copy", sealed)
    with pytest.raises(WireError, match="not sealed"):
        StandbyLink(key, "g").open("copy", sealed)
    with pytest.raises(WireError, match="not sealed"):
        link.open("follow", sealed)
    body = frames.decode(sealed)[1]
    with pytest.raises(WireError, match="not sealed"):
        link.open("copy", frames.encode(StandbyMessage(boot=8), body))
    for cut in range(len(sealed)):
        with pytest.raises(WireError):
            link.open("copy", sealed[:cut])
    flipped = bytearray(sealed)
    flipped[-1] ^= 1
    with pytest.raises(WireError):
        link.open("copy", bytes(flipped))
