"""The frames of an announcement as compact bytes: about sixty, in three bytes each, because every device gets them.

The list, newest version first, is a sequence of unsigned LEB128 numbers (DWARF 5, section 7.6). Each frame has:

- how many versions it lies before the previous frame (the first one: its version), times 64; plus its span, or 31 if
  it is longer than 30, times 2; plus one if it has several parts;
- its span, if it is longer than 30;
- its size in bytes;
- the number of parts, if there are several.
"""

from collections.abc import Iterable

_MOST = 256
"""Frames in a list."""
_SPAN = 5
"""Bits of a span."""
_LONG = 31
"""Marks a span that does not fit these bits: it follows as a number."""


def pack(frames: Iterable[tuple[int, int, int, int]]) -> bytes:
    """Encode frames, each as version, span, size and parts."""
    out = bytearray()
    ahead: int | None = None
    for version, span, size, parts in sorted(frames, key=lambda frame: (-frame[0], *frame[1:])):
        long = span >= _LONG
        several = parts != 1
        back = version if ahead is None else ahead - version
        ahead = version
        _write(out, back << (_SPAN + 1) | (_LONG if long else span) << 1 | several)
        for number in (*([span] if long else []), size, *([parts] if several else [])):
            _write(out, number)
    return bytes(out)


def unpack(data: bytes) -> tuple[tuple[int, int, int, int], ...]:
    """Decode what `pack` made, newest version first. Ranges are not checked.

    Raises:
        ValueError: the bytes are no such list.
    """
    frames: list[tuple[int, int, int, int]] = []
    at, ahead = 0, 0
    while at < len(data):
        if len(frames) == _MOST:
            raise ValueError(f"more than {_MOST} frames are listed")
        first, at = _read(data, at)
        span, at = (first >> 1 & _LONG, at) if first >> 1 & _LONG < _LONG else _read(data, at)
        size, at = _read(data, at)
        parts, at = _read(data, at) if first & 1 else (1, at)
        ahead = ahead - (first >> (_SPAN + 1)) if frames else first >> (_SPAN + 1)
        frames.append((ahead, span, size, parts))
    return tuple(frames)


def _write(out: bytearray, number: int) -> None:
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)


def _read(data: bytes, at: int) -> tuple[int, int]:
    number = 0
    for place, byte in enumerate(data[at : at + 11]):
        number |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return number, at + place + 1
    raise ValueError("a number of the list does not end")
