"""Writing Rice coded numbers, in passes over them instead of a copy of them."""

import struct
from array import array

_GROUP = 256
"""Numbers that share a parameter."""
_PIECE = 64


class Sink:
    """Bytes to a function, some at a time; or only counted, if the function is None."""

    def __init__(self, write):
        self._write = write
        self._buffer = bytearray(_PIECE)
        self._fill = self._bits = self._width = 0
        self.size = 0

    def byte(self, value):
        """Write a byte."""
        self.size += 1
        self._buffer[self._fill] = value & 0xFF
        self._fill += 1
        if self._fill == _PIECE:
            self.flush()

    def float(self, value):
        """Write a float32."""
        for byte in struct.pack("<f", value):
            self.byte(byte)

    def u32(self, value):
        """Write a u32."""
        for shift in (0, 8, 16, 24):
            self.byte(value >> shift)

    def high(self, value, width):
        """Write bits, highest first."""
        while width:
            some = min(8 - self._width, width)
            width -= some
            self._bits = self._bits << some | value >> width & (1 << some) - 1
            self._width += some
            if self._width == 8:
                self._close()

    def unary(self, zeros):
        """Write zeros and a one."""
        while zeros:
            some = min(8, zeros)
            self.high(0, some)
            zeros -= some
        self.high(1, 1)

    def _close(self):
        self.byte(self._bits)
        self._bits = self._width = 0

    def fill(self):
        """End bits, highest first, at a whole byte."""
        if self._width:
            self._bits <<= 8 - self._width
            self._close()

    def flush(self):
        """Write what waits."""
        if self._write and self._fill:
            self._write(memoryview(self._buffer)[: self._fill])
        self._fill = 0


def write(sink, numbers, count):
    """Write `count` numbers; `numbers()` gives them from the first on, as often as it is called."""
    parameters = bytearray(-(-count // _GROUP))
    group, fill, at, unary = array("i", range(_GROUP)), 0, 0, 0
    for number in numbers():
        group[fill] = number
        fill += 1
        if fill == _GROUP:
            unary += _choose(group, fill, parameters, at)
            fill, at = 0, at + 1
    if fill:
        unary += _choose(group, fill, parameters, at)
    for parameter in parameters:
        sink.byte(parameter)
    sink.u32(unary + 7 >> 3)
    for low in (False, True):
        for at, number in enumerate(numbers()):
            parameter = parameters[at // _GROUP]
            if low:
                sink.high(number & (1 << parameter) - 1, parameter)
            else:
                sink.unary(number >> parameter)
        sink.fill()


def _choose(group, count, parameters, at):
    """Set the parameter that makes a group shortest; the bits of its unary parts."""
    total = 0
    for place in range(count):
        total += group[place]
    best, shortest, unary, parameter = 0, total, total, 0
    while total // count >> parameter:
        parameter += 1
        high = 0
        for place in range(count):
            high += group[place] >> parameter
        if high + parameter * count < shortest:
            best, shortest, unary = parameter, high + parameter * count, high
    parameters[at] = best
    return unary + count
