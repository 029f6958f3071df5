"""Counts of the rows from one source: read, kept, and dropped with reasons.

A source without useful rows looks like a silent one; these counts distinguish the two. The first line of each reason is
kept, for a person who investigates.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

SOON, AGAIN = 8.0, 3600.0
"""Seconds until the first warning that no useful rows come, and between two such warnings."""
_LONGEST = 120
"""Characters of a line that are kept."""
_MOST_REASONS = 50


@dataclass(slots=True)
class LeftOut:
    """What was dropped for one reason."""

    why: str
    """The reason for the first one, as text."""
    first: str
    """The first line or payload, cut."""
    line: int | None = None
    """Its line number in the file, from 1."""
    count: int = 0

    def packed(self) -> dict[str, Any]:
        """As JSON types."""
        where = {} if self.line is None else {"line": self.line}
        return {"count": self.count, **where, "first": self.first, "why": self.why}


@dataclass(slots=True)
class Intake:
    """The counts of one source since the start."""

    source: str
    """A file, a topic filter, or `observe`."""
    read: int = 0
    """Rows, or messages, received."""
    kept: int = 0
    dropped: dict[str, LeftOut] = field(default_factory=dict)
    """Lost rows or messages, by reason."""
    values: dict[str, LeftOut] = field(default_factory=dict)
    """Non-numeric values, which count as missing, by column; their rows may be kept."""
    skipped: dict[str, int] = field(default_factory=dict)
    """Lines that are not meant to be rows: headers, units, comments."""
    problem: str = ""
    """Why no rows can come at the moment, such as a missing file; empty if they can."""

    def drop(self, reason: str, why: str, first: str, line: int | None = None) -> None:
        """Count a row as lost that is already counted as read."""
        _count(self.dropped, reason, LeftOut(why, first[:_LONGEST], line))

    def lose(self, reason: str, why: str, first: str, line: int | None = None) -> None:
        """Count a row that was received and lost."""
        self.read += 1
        self.drop(reason, why, first, line)

    def lose_value(self, column: str, why: str, first: str, line: int | None = None) -> None:
        """Count a value that is not a number."""
        _count(self.values, column, LeftOut(why, first[:_LONGEST], line))

    def skip(self, what: str) -> None:
        """Count a line that is not meant to be a row."""
        self.skipped[what] = self.skipped.get(what, 0) + 1

    @property
    def lost(self) -> int:
        """Number of dropped rows."""
        return sum(each.count for each in self.dropped.values())

    def words(self) -> str:
        """The counts, and why most rows are dropped, as a clause."""
        summary = f"{self.source}: {self.read:,} rows read, {self.kept:,} kept"
        if self.problem:
            return f"{summary}: {self.problem}"
        if not self.dropped:
            return summary
        most = self.dropped[self.reason()]
        where = "" if most.line is None else f" (line {most.line:,})"
        why = most.why.removeprefix(f"{self.source}: ")
        return f"{summary}: {why}{where}"

    def reason(self) -> str:
        """Why most rows are dropped, without their content: this may leave the device."""
        return max(self.dropped, key=lambda reason: self.dropped[reason].count, default="")

    def packed(self) -> dict[str, Any]:
        """As JSON types."""
        return {
            "source": self.source,
            "read": self.read,
            "kept": self.kept,
            "dropped": {reason: each.packed() for reason, each in self.dropped.items()},
            "values": {column: each.packed() for column, each in self.values.items()},
            "skipped": dict(self.skipped),
            "problem": self.problem,
            "words": self.words(),
        }


def _count(into: dict[str, LeftOut], key: str, first: LeftOut) -> None:
    if key not in into and len(into) >= _MOST_REASONS:
        key = "other"
    into.setdefault(key, first).count += 1


class IntakeWatch:
    """Decides when to warn that no useful rows come: soon after the start, and then once an hour.

    Args:
        intakes: the sources' counts, by name; sources added later count too.
        held: number of stored rows, including those from earlier runs.
    """

    def __init__(self, intakes: Mapping[str, Intake], held: Callable[[], int]) -> None:
        self._intakes, self._held = intakes, held
        self._before: dict[str, tuple[int, int]] = {}
        self._due = SOON
        self._useless = False

    def look(self, now: float) -> tuple[list[Intake], bool]:
        """Sources to warn of now, and whether to report counts: a report is due, or rows have come at last.

        Args:
            now: seconds since the start.
        """
        if now < self._due:
            came = self._useless and any(
                each.kept > self._before.get(name, (0, 0))[1] for name, each in list(self._intakes.items())
            )
            self._useless = self._useless and not came
            return [], came
        self._due += AGAIN
        found = []
        for name, each in list(self._intakes.items()):
            read, kept = self._before.get(name, (0, 0))
            if each.kept == kept and (each.read > read or (not each.kept and not self._held())):
                found.append(each)
            self._before[name] = each.read, each.kept
        self._useless = bool(found)
        return found, bool(self._intakes)
