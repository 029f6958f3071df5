"""Write stored results into docs/advice.md and examples/next_item/README.md: python docs/advice.py.

They are what these commands print, with the command: `midge advise digits … --json`, `python -m benchmarks.ledger` and
`python examples/next_item/compare.py --seeds 3`.
"""

import json
import statistics
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from marks import put

from midge.sensor_fleet.report.quantities import score, size, whole

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE, ITEMS = ROOT / "docs" / "advice.md", ROOT / "examples" / "next_item" / "README.md"
WAYS = {
    "pooled": "pooled",
    "data-parallel": "data-parallel (one seed)",
    "federated": "federated",
    "hybrid": "hybrid",
    "alone": "alone",
}
Row = dict[str, Any]


def load(name: str) -> dict[str, Any]:
    """Return a stored result."""
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return found


def ways(result: dict[str, Any]) -> str:
    """Return the table of a trial of all ways, and its advice."""
    metric = result["metric"]
    lines = (
        (
            WAYS[row["way"]],
            *(score(row[name], metric) for name in (metric, "own", "worst")),
            size(row["bytes"]) if row["bytes"] else "0",
            whole(row["steps"]),
        )
        for row in result["rows"]
    )
    text = table(("way", "new rows", "own rows", "worst devices", "over links", "steps"), lines)
    advice = result["advice"]
    said = "\n".join(["> " + advice["text"], ">", *(f"> - {each}" for each in advice["changes"])])
    return f"`{result['command']}`:\n\n{text}\n\n{said}"


def ledger(result: dict[str, Any]) -> str:
    """Return the table of what the log of releases costs."""
    rows = result["rows"]

    def span(name: str, unit: str, digits: int) -> str:
        values = [round(row[name], digits) for row in rows]
        low, high = (f"{value:.{digits}f}" for value in (min(values), max(values)))
        return f"{low} {unit}" if low == high else f"{low} to {high} {unit}"

    updates, times = (
        ", ".join(each) for each in zip(*((str(r["updates"]), f"{r['release_ms']:.1f}") for r in rows), strict=True)
    )
    lines = (
        ("in each announcement", span("announcement_bytes", "bytes", 0)),
        (f"an answer, log of {min(row['entries'] for row in rows):,} entries", span("answer_bytes", "bytes", 0)),
        ("in the store, per entry", span("stored_bytes_per_entry", "bytes", 0)),
        (f"processor time of a release of {updates} updates", f"{times} ms, in the transaction of its frames"),
        ("processor time of a proof", span("proof_ms", "ms", 2)),
    )
    return table(("", ""), lines)


def items(result: dict[str, Any]) -> str:
    """Return the table of rows that are counted or not, means over the seeds."""
    found: dict[str, list[Row]] = {}
    for row in result["rows"]:
        found.setdefault(row["way"], []).append(row)
    lines = []
    for way, rows in found.items():
        rule, codec = ("counted" if "counted" in way else "averaged over all"), way.rpartition(", ")[2]
        hits = [statistics.mean(each) for each in zip(*(row["hits"] for row in rows), strict=True)]
        bytes_ = whole(statistics.mean(row["bytes"] for row in rows))
        lines.append((rule, f"`{codec}`", bytes_, *(f"{100 * each:.1f} %" for each in hits)))
    steps = [str(5 * place) for place in range(1, len(lines[0]) - 2)]
    return table(("rows", "codec", "bytes of an update", f"after {steps[0]} steps", *steps[1:]), lines)


def table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """Return a table in Markdown."""
    head = list(head)
    cells = ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in (head, *rows)]
    return "\n".join([cells[0].replace("|  |  |", "| | |"), "|---" * len(head) + "|", *cells[1:]])


def parts() -> dict[Path, dict[str, str]]:
    """Return the generated parts of each page."""
    return {
        PAGE: {"ways": ways(load("advice")), "ledger": ledger(load("ledger"))},
        ITEMS: {"scores": items(load("next_item"))},
    }


def main() -> int:
    """Rewrite the tables of both pages."""
    for page, found in parts().items():
        put(page, found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
