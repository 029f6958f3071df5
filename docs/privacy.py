"""Write the stored results of benchmarks.privacy into docs/privacy.md and strategies.md: python docs/privacy.py."""

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "privacy.json"
NAMES = {
    "digits": "digits",
    "spsw_har": "activity of people (SPSW-HAR)",
    "fashion_mnist": "Fashion-MNIST",
    "cmapss_fd001": "turbofan engines (C-MAPSS FD001)",
}
KINDS = {
    "none": "none",
    "ring noise": "random elements of the ring",
    "long noise": "a random direction, ±7 levels in every value",
    "noise": "a random direction of the clip norm",
    "sign flip": "their update turned around",
    "-10 times": "−10 times their update, not clipped",
    "label flip": "honest training on turned labels",
}
Row = dict[str, Any]


def table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> list[str]:
    """Return a table in Markdown."""
    head = list(head)
    return [_line(head), _line(["---"] * len(head)), *map(_line, rows)]


def _line(cells: Iterable[object]) -> str:
    return f"| {' | '.join(map(str, cells))} |".replace("| --- ", "|---").replace("---|---", "---|---")


def _quality(row: Row, name: str) -> str:
    """The median of a value over seeds, with its range."""
    cycles = row.get("data") == "cmapss_fd001"

    def said(value: float) -> str:
        return f"{value:.2f}" if cycles else f"{100 * value:.1f}"

    unit, limits = "cycles" if cycles else "%", row.get(f"{name}_range")
    seeds = limits is not None and limits[0] != limits[1]
    return f"{said(row[name])} {unit}" + (f" ({said(limits[0])}–{said(limits[1])})" if seeds else "")


def price(rows: list[Row]) -> list[str]:
    """Return bytes and seconds, then the quality of each data set."""
    costs = [row for row in rows if row.get("bytes_per_param") and row["mode"].startswith("secure")]
    lines = table(
        ("mode", "parameters", "devices in a sum", "bytes per parameter", "seconds of a step"),
        (
            (f"`{row['mode']}`", f"{row['params']:,}", row["k"], row["bytes_per_param"], row["step_seconds"])
            for row in costs
        ),
    )
    quality = [row for row in rows if row["mode"] in ("secure", "secure, slices=4") and row.get("accuracy") is not None]
    by_set: dict[str, list[Row]] = {}
    for row in quality:
        by_set.setdefault(row["data"], []).append(row)
    return [
        *lines,
        "",
        *table(
            ("data", "parameters", "float32, not masked", "`secure`", "`secure`, `slices=4`"),
            (
                (
                    NAMES[name],
                    f"{found[0]['params']:,}",
                    _quality(found[0], "float32_accuracy"),
                    *(_quality(row, "accuracy") for row in found),
                )
                for name, found in by_set.items()
            ),
        ),
    ]


def liars(rows: list[Row]) -> list[str]:
    """Return the accuracy with each kind of liar, by rule."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        if "kind" in row:
            found.setdefault(row["kind"], []).append(row)
    return table(
        (
            "what 5 of 50 devices send",
            "one sum",
            "median of 5 groups",
            "with suspects held back",
            "of 5 held",
            "honest held",
        ),
        (
            (
                KINDS[kind],
                *(_quality(row, "accuracy") for row in each),
                f"{each[-1]['caught']:g}" if each[-1]["liars"] else "–",
                f"{each[-1]['innocent']:g}",
            )
            for kind, each in found.items()
        ),
    )


def noise(rows: list[Row]) -> list[str]:
    """Return accuracy against ε, with noise of the devices."""
    return table(
        (
            *("honest devices", "ε", "lower bound", "accuracy", "without noise", "parameters", "devices", "in a sum"),
            "updates of a device",
        ),
        (
            (
                row["honest"],
                f"{row['epsilon']:.2g}",
                # Earlier rows have that of another event, one sum of few devices.
                "–" if "epsilon_one" in row else f"{row['epsilon_lower']:.2f}",
                _quality(row, "accuracy"),
                _quality(row, "float32_accuracy"),
                f"{row['params']:,}",
                row["devices"],
                row["k"],
                row["contributions"],
            )
            for row in rows
            if row["mode"] == "shared"
        ),
    )


def central(rows: list[Row]) -> list[str]:
    """Return accuracy against ε, with noise of the aggregator; nothing if the stored results have no such row."""
    found = [row for row in rows if row["mode"] == "central"]
    bare = [row["epsilon_lower_without_noise"] for row in found if "epsilon_lower_without_noise" in row]
    lines = table(
        ("model, parameters", "devices", "K", "z", "ε", "lower bound", "accuracy", "without privacy"),
        (
            (
                f"{MODELS[row['model']]}, {row['params']:,}",
                row["devices"],
                row["k"],
                f"{row['noise']:.3g}",
                f"{row['epsilon']:.2g}",
                f"{row['epsilon_lower']:.2f}",
                _quality(row, "accuracy"),
                _quality(row, "float32_accuracy"),
            )
            for row in found
        ),
    )
    return [*lines, "", *(f"With the noise off, the same attack shows {each:.2f}." for each in bare)] if found else []


MODELS = {"linear": "linear", "mlp": "perceptron"}
PAGES = {"privacy.md": {"price": price, "liars": liars, "noise": noise}, "strategies.md": {"privacy": central}}


def page(name: str, rows: list[Row]) -> str:
    """Return a page with the tables of these rows."""
    text = (ROOT / "docs" / name).read_text()
    for mark, make in PAGES[name].items():
        begin, end = f"<!-- {mark} -->", f"<!-- /{mark} -->"
        if lines := make(rows):
            section = "\n".join([begin, "", *lines, "", end])
            text = text[: text.index(begin)] + section + text[text.index(end) + len(end) :]
    return text


def main() -> int:
    """Rewrite the tables of the pages."""
    rows = json.loads(RESULTS.read_text())["rows"]
    for name in PAGES:
        (ROOT / "docs" / name).write_text(page(name, rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
