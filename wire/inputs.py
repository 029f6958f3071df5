"""Names of a model's inputs, in order: they bind the columns of a device's data to the model."""

from collections import Counter
from collections.abc import Sequence

MOST = 256
"""Most names that travel; a model with more inputs sends none."""
LONGEST = 64
"""Most characters of a name."""
_BYTES = 16 * 1024
"""Most bytes of all names together: each announcement carries them, and its header has at most 64 KiB."""
_SHOWN = 120
"""Most characters of a list in an error message."""


def sayable(names: Sequence[str]) -> tuple[str, ...]:
    """The names as they travel; none if there are too many, one is too long or unprintable, or two are equal."""
    ordered = tuple(names)
    fits = len(ordered) <= MOST and len(set(ordered)) == len(ordered)
    fits = fits and sum(len(name.encode(errors="replace")) for name in ordered) <= _BYTES
    return ordered if fits and all(0 < len(name) <= LONGEST and name.isprintable() for name in ordered) else ()


def difference(announced: Sequence[str], ours: Sequence[str]) -> str:
    """How a device's inputs differ from the model's, as text; empty if they agree, or one side has no names."""
    if not announced or not ours or tuple(announced) == tuple(ours):
        return ""
    if len(announced) != len(ours):
        return f"{width(len(announced), ours)}. The model's are {listed(announced)}"
    if Counter(announced) == Counter(ours):
        text = f"the model's inputs are {listed(announced)}; this device gives them in another order, {listed(ours)}"
    else:
        text = f"the model's inputs are {listed(announced)}; this device gives {listed(ours)}"
    place = next(place for place, name in enumerate(announced) if name != ours[place])
    if len(", ".join(announced[: place + 1])) > _SHOWN:
        text += f". Number {place + 1} is {announced[place]!r} there and {ours[place]!r} here"
    return text


def width(inputs: int, ours: Sequence[str]) -> str:
    """Message for a model whose number of inputs differs from the device's."""
    return f"the model has {inputs} inputs, this device gives {len(ours)}: {listed(ours)}"


def listed(names: Sequence[str]) -> str:
    """Names joined by commas, shortened for a message."""
    text = ", ".join(names)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"
