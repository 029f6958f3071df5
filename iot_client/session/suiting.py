"""Whether a device's inputs are those of the federation's model, judged by names and numbers."""

from collections.abc import Sequence

from midge.wire.inputs import difference, listed, width
from midge.wire.messages import Announcement


def unsuited(ours: Sequence[str], announcement: Announcement, *, counted: bool) -> str | None:
    """Why a device must not train on its data, and what to do; None if the inputs fit.

    Args:
        ours: the device's names of its inputs, in order; none if it has no names.
        announcement: has the model's names, and the number of channels of the requested statistics.
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
