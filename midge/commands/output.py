"""Lines on the terminal that may quote data or peers: none can hold a terminal escape."""

import sys
from typing import TextIO

from midge.wire.inert import inert


def say(text: str = "", *, to: TextIO | None = None) -> None:
    """Print lines, with a replacement character for each unprintable character.

    Args:
        text: one or more lines.
        to: a stream, by default the standard output.
    """
    print("\n".join(map(inert, text.split("\n"))), file=to or sys.stdout, flush=True)
