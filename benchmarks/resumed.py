"""A long benchmark case by case: what is stored is not run again, so that an interrupted run goes on where it was.

Remove the rows of a case from the file, or the file, to measure it again.
"""

import json
import sys
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

Row = dict[str, Any]
Case = TypeVar("Case", bound=Hashable)
EVERY = 10
"""Rows after which they are stored."""


def resumed(
    cases: Sequence[Case],
    run: Callable[[Case], Row],
    case_of: Callable[[Row], Case],
    report: Callable[[Iterable[Row]], dict[str, Any]],
    kept: Path | None,
) -> list[Row]:
    """Return the rows of all cases: the stored ones, and those that are run now, on two cores.

    Args:
        cases: what to measure.
        run: measures one case, in a process of its own.
        case_of: the case of a row.
        report: what is stored of all rows.
        kept: the file of stored rows; None stores nothing.
    """
    known = {case_of(row): row for row in json.loads(kept.read_text())["rows"]} if kept and kept.exists() else {}
    missing = [case for case in cases if case not in known]
    with ProcessPoolExecutor(2) as pool:
        for number, row in enumerate(pool.map(run, missing), 1):
            known[case_of(row)] = row
            if number % EVERY == 0 or number == len(missing):
                sys.stderr.write(f"{number} of {len(missing)}\n")
                if kept:
                    kept.write_text(json.dumps(report(known.values()), indent=1) + "\n")
    return [known[case] for case in cases]
