"""What an announcement offers: the packed list of frames, and the cheapest way to its version."""

_ASKING = 200
"""Bytes that a frame costs beside its own: header, topic, subscription and acknowledgement."""


def unpack(data):
    """Frames as tuples of version, span, size and parts, newest version first.

    Raises:
        ValueError: it is no such list.
    """
    found, numbers, ahead = [], _numbers(data), 0
    for first in numbers:
        span = first >> 1 & 31
        if span == 31:
            span = next(numbers)
        size = next(numbers)
        ahead = ahead - (first >> 6) if found else first >> 6
        found.append((ahead, span, size, next(numbers) if first & 1 else 1))
    return found


def _numbers(data):
    number = shift = 0
    for byte in data:
        number |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            yield number
            number = shift = 0
    if shift:
        raise ValueError("a number of the list does not end")


def part_size(size, parts):
    """Bytes of each part but the last."""
    return max(1, -(-size // parts))


def route(frames, have, target, largest):
    """The cheapest frames from the version `have` (None: nothing) to `target`, in order; None if no way is there.

    A frame whose parts are larger than `largest` bytes is none.
    """
    best = {} if have is None else {have: (0, ())}
    for frame in sorted(frames, key=lambda each: (each[0], each[1] == 0)):
        version, span, size, parts = frame
        start = (0, ()) if not span else best.get(version - span)
        if start is None or version > target or part_size(size, parts) > largest:
            continue
        cost = start[0] + size + _ASKING * parts
        if version not in best or cost < best[version][0]:
            best[version] = cost, start[1] + (frame,)
    return best[target][1] if target in best else None
