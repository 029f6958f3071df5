"""What befalls files: a flipped bit, a cut tail, a missing file, an old copy, two files that change places."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

KINDS = ("flip", "cut", "gone", "old", "swap")


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault of one file, or of two."""

    kind: str
    file: str
    """Its name in the folder."""
    place: int = 0
    """Of the bit that is flipped, or the length that is left."""
    other: str = ""
    """The file that it changes places with."""


def draw(random: Random, folder: Path, names: Sequence[str], older: Path | None) -> Fault | None:
    """A fault of one of these files; None if the kind that was drawn does not apply to any of them.

    Args:
        random: what draws.
        folder: where they lie.
        names: which may be struck.
        older: a copy of the folder from before; None if there is none.
    """
    kind = random.choice(KINDS)
    there = [name for name in names if (folder / name).is_file() and (folder / name).stat().st_size]
    match kind:
        case "flip" | "cut" | "gone" if there:
            return of(kind, random, folder / random.choice(there))
        case "old" if older is not None:
            changed = [name for name in names if (older / name).is_file() and not _same(folder / name, older / name)]
            return Fault(kind, random.choice(changed)) if changed else None
        case "swap":
            pairs = [
                (a, b) for a in there for b in there if a < b and _alike(a, b) and not _same(folder / a, folder / b)
            ]
            if pairs:
                one, other = random.choice(pairs)
                return Fault(kind, one, other=other)
    return None


def of(kind: str, random: Random, path: Path) -> Fault:
    """A fault of a kind at a random place of a file that is not empty; with which file it is swapped, if it is."""
    size = path.stat().st_size
    place = {"flip": 8 * size, "cut": size}.get(kind)
    others = [each.name for each in sorted(path.parent.iterdir()) if each.is_file() and each != path]
    other = random.choice(others) if kind == "swap" else ""
    return Fault(kind, path.name, 0 if place is None else random.randrange(place), other)


def strike(fault: Fault, folder: Path, older: Path | None) -> None:
    """Have it happen to the files of a folder."""
    path = folder / fault.file
    match fault.kind:
        case "flip":
            data = bytearray(path.read_bytes())
            data[fault.place // 8] ^= 1 << fault.place % 8
            path.write_bytes(data)
        case "cut":
            path.write_bytes(path.read_bytes()[: fault.place])
        case "gone":
            path.unlink()
        case "old":
            assert older is not None
            shutil.copyfile(older / fault.file, path)
        case "swap":
            other = folder / fault.other
            one, two = path.read_bytes(), other.read_bytes()
            path.write_bytes(two)
            other.write_bytes(one)


def _alike(one: str, other: str) -> bool:
    """Whether a person could take one for the other: names that differ in digits alone."""
    return _bare(one) == _bare(other)


def _bare(name: str) -> str:
    return "".join("#" if letter.isdigit() else letter for letter in name)


def _same(one: Path, other: Path) -> bool:
    return one.is_file() and other.is_file() and one.read_bytes() == other.read_bytes()
