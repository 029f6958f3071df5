"""Single key presses from a terminal, whose modes are restored afterwards."""

import asyncio
import os
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_LOCAL_MODES, _CHARACTERS = 3, 6
"""Indices in the result of `termios.tcgetattr`."""


@contextmanager
def keys(pressed: Callable[[str], None]) -> Iterator[None]:
    """Call `pressed` with each key, in the running loop. Without a terminal on standard input there are none.

    Ctrl-C stays a signal. Ctrl-Z does nothing: a stopped process would leave its terminal in our mode.
    """
    if not sys.stdin.isatty():
        yield
        return
    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)
    ours: list[Any] = termios.tcgetattr(terminal)
    ours[_LOCAL_MODES] &= ~(termios.ICANON | termios.ECHO)
    ours[_CHARACTERS][termios.VMIN], ours[_CHARACTERS][termios.VTIME] = 1, 0
    ours[_CHARACTERS][termios.VSUSP] = b"\0"
    loop = asyncio.get_running_loop()

    def read() -> None:
        read = os.read(terminal, 64)
        if not read:
            loop.remove_reader(terminal)  # the terminal is gone
        for key in read.decode(errors="ignore"):
            pressed(key)

    termios.tcsetattr(terminal, termios.TCSANOW, ours)
    try:
        loop.add_reader(terminal, read)
        try:
            yield
        finally:
            loop.remove_reader(terminal)
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)
