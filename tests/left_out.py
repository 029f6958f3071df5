"""What tests were left out for, in one line: how many, and what would bring them."""

import json
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

_NEEDS = "needs "


def sentence(reasons: Iterable[str]) -> str:
    """One line on tests that were left out, each with its reason; empty where there are none."""
    counts = Counter(reasons)
    total = sum(counts.values())
    if not total:
        return ""
    said = "1 test was left out:" if total == 1 else f"{total} tests were left out:"
    if len(counts) == 1:
        (reason,) = counts
        return f"{said} {_clause(reason, 'it' if total == 1 else 'they', total)}."
    parts = [_clause(reason, str(count), count) for reason, count in counts.most_common()]
    return f"{said} {', '.join(parts)}."


def _clause(reason: str, who: str, count: int) -> str:
    if not reason.startswith(_NEEDS):
        return f"{who} because {reason}" if who.isdigit() else reason
    return f"{who} {'needs' if count == 1 else 'need'} {reason.removeprefix(_NEEDS)}"


def note(file: Path, reasons: Iterable[str]) -> None:
    """Add reasons to a file, for several runs that are told of together."""
    with file.open("a") as lines:
        lines.writelines(json.dumps(reason) + "\n" for reason in reasons)


def noted(file: Path) -> list[str]:
    """The reasons in a file."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


if __name__ == "__main__":
    print(sentence(noted(Path(sys.argv[1]))), end="\n" if noted(Path(sys.argv[1])) else "")  # noqa: T201
