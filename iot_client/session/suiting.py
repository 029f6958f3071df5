"""Whether a device's inputs are those of the federation's model, as far as names and numbers say."""

from collections.abc import Sequence

from midge.wire.inputs import difference, listed, width
from midge.wire.messages import Announcement


def unsuited(ours: Sequence[str], announcement: Announcement, *, counted: bool) -> str | None:
    """Why a device must not train on what it has, and what to do, in words; None where nothing speaks against it.

    Args:
        ours: what the device calls its inputs, in order; none if it has no names.
        announcement: what the model's are called, and how many channels the statistics have that are asked for.
        counted: whether the device's statistics of `input` have a channel for each of its names.
    """
    why = difference(announcement.features, ours)
    asked = next((moment.channels for moment in announcement.moments if moment.name == "input"), len(ours))
    if not why and ours and counted and asked != len(ours):
        why = width(asked, ours)
    if not why:
        return None
    names = announcement.features
    how = f"--features {','.join(names)}" if names and len(listed(names)) == len(", ".join(names)) else "--features"
    return f"{why}. Give the model's inputs in its order: {how}, or midge.Samples(features=…)"
