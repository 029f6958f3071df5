"""Coded integers: what snapshots and steps of a model are made of."""

_BLOCK, _SECTION = 131072, 2048


class Bits:
    """Bits of a row of bytes, highest first."""

    def __init__(self, data, at):
        """`at` is the byte to begin with."""
        self._data = data
        self._at = 8 * at

    def take(self, width):
        """The next `width` bits as a number."""
        number, at = 0, self._at
        while width:
            free = 8 - (at & 7)
            some = min(free, width)
            number = number << some | self._data[at >> 3] >> free - some & (1 << some) - 1
            at += some
            width -= some
        self._at = at
        return number

    def unary(self):
        """How many zeros come before the next one."""
        at = begin = self._at
        data = self._data
        while not data[at >> 3] & 0x80 >> (at & 7):
            at += 1
        self._at = at + 1
        return at - begin


def add(body, values):
    """Add coded integers to the array `values`, in place.

    Raises:
        ValueError, IndexError: the body is none of as many, and some may have been added.
    """
    at = 0
    for start in range(0, len(values), _BLOCK):
        at = _add_block(body, at, values, start, min(start + _BLOCK, len(values)))
    if at != len(body):
        raise ValueError("bytes follow the integers")


def _add_block(body, at, values, start, end):
    table = at + 8
    sections = -(-(end - start) // _SECTION)
    zeros_bytes, sizes_bytes = _u32(body, at), _u32(body, at + 4)
    count = zero_bits = size_bits = 0
    for row in range(table, table + 5 * sections, 5):
        here = body[row] | body[row + 1] << 8
        count += here
        zero_bits += here * body[row + 3]
        size_bits += here * body[row + 4]
    at = table + 5 * sections
    zeros = Bits(body, at)
    at += zeros_bytes
    zeros_low = Bits(body, at)
    at += zero_bits + 7 >> 3
    signs = Bits(body, at)
    at += count + 7 >> 3
    sizes = Bits(body, at)
    at += sizes_bytes
    sizes_low = Bits(body, at)
    for section in range(sections):
        row = table + 5 * section
        shift, a, b = body[row + 2], body[row + 3], body[row + 4]
        place = start + section * _SECTION - 1
        last = min(place + _SECTION, end - 1)
        for _ in range(body[row] | body[row + 1] << 8):
            place += 1 + (zeros.unary() << a | zeros_low.take(a))
            if place > last:
                raise ValueError("a value lies outside its section")
            size = (sizes.unary() << b | sizes_low.take(b)) + 1 << shift
            values[place] += -size if signs.take(1) else size
    return at + (size_bits + 7 >> 3)


def _u32(data, at):
    return data[at] | data[at + 1] << 8 | data[at + 2] << 16 | data[at + 3] << 24
