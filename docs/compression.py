"""Write the results of benchmarks.bytes into docs/compression.md and its picture: python docs/compression.py."""

import json
from collections import defaultdict
from pathlib import Path
from statistics import mean
from typing import Any

from marks import put

from midge.sensor_fleet.report.scales import linear, logarithmic
from midge.sensor_fleet.report.svg import Label, Plot

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "bytes.json"
PAGE = ROOT / "docs" / "compression.md"
PICTURE = ROOT / "docs" / "pictures" / "compression.svg"
DEFAULT = "uq:4|rice"
NAMES = {
    "digits": "digits",
    "spsw_har": "activity, phone and watch",
    "cmapss_fd001": "engines (C-MAPSS FD001)",
    "fashion_mnist": "Fashion-MNIST, Dirichlet 0.3",
}
Row = dict[str, Any]
COLOURS = ("#2a78b8", "#c4581c", "#3a8f4d", "#8550a8")
STYLE = """text{font:12px sans-serif;fill:#888}.label{font-size:12px}.strong{font-weight:bold}
.hair,.base{stroke:#8884;fill:none}.leader{stroke:#8886}.line{fill:none;stroke-width:1.5;stroke-opacity:.4}
.even{stroke:#888;stroke-dasharray:3 3}""" + "".join(
    f".s{number}{{stroke:{colour};fill:{colour}}}path.s{number}{{fill:none}}text.s{number}{{stroke:none}}"
    for number, colour in enumerate(COLOURS)
)


def rows(kind: str) -> list[Row]:
    """Return the stored results of a kind, in the order of measurement."""
    parts = json.loads(RESULTS.read_text(encoding="utf-8"))
    return [row for key, found in parts.items() if key.startswith(kind) for row in found]


def by_codec() -> dict[str, dict[str, list[Row]]]:
    """Group rows by data set and codec."""
    measured: dict[str, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows("rows"):
        measured[row["dataset"]][row["codec"]].append(row)
    return measured


def points() -> dict[str, list[tuple[float, float, str]]]:
    """Return for each data set: compression factor, quality difference to float32 in points, codec."""
    return {
        dataset: sorted(
            (each[0]["ratio_up"], lost(each, codecs["float32"])[0], codec) for codec, each in codecs.items()
        )
        for dataset, codecs in by_codec().items()
        if "float32" in codecs
    }


def lost(some: list[Row], plain: list[Row]) -> tuple[float, float, float]:
    """Return the difference to float32 over the same seeds, in points: mean, minimum, maximum."""
    others = {row["seed"]: _quality(row) for row in plain}
    differences = [_quality(row) - others[row["seed"]] for row in some if row["seed"] in others]
    return mean(differences), min(differences), max(differences)


def codec_table() -> list[str]:
    """Return the table of quality and bytes: data sets, codecs sorted by compression."""
    lines = [
        "| data | codec | quality | difference to float32 (min to max) | bytes up | factor | bytes down | factor |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for dataset, codecs in by_codec().items():
        one = next(iter(codecs.values()))[0]
        unit, seeds = ("%", len(codecs["float32"])) if "accuracy" in one else ("cycles", len(codecs["float32"]))
        name = f"{NAMES[dataset]}: {one['parameters']:,} parameters, {one['devices']} devices, {seeds} seeds"
        for codec, found in sorted(codecs.items(), key=lambda item: item[1][0]["ratio_up"]):
            first, (middle, low, high) = found[0], lost(found, codecs["float32"])
            cells = [
                name,
                f"**`{codec.replace('|', chr(92) + '|')}`**"
                if codec == DEFAULT
                else f"`{codec.replace('|', chr(92) + '|')}`",
                f"{abs(mean(_quality(row) for row in found)):.1f} {unit}",
                "" if codec == "float32" else f"{middle:+.1f} ({low:+.1f} to {high:+.1f})",
                f"{first['bytes_up']:,}",
                f"{first['ratio_up']:.1f}",
                f"{first['bytes_down']:,}",
                f"{first['ratio_down']:.1f}",
            ]
            lines.append("| " + " | ".join(cells) + " |")
            name = ""
    return lines


def downlink_table() -> list[str]:
    """Return the table of bytes down by the number of devices per update of a release."""
    lines = ["| data | devices per update of a release | bytes down | factor |", "|---|---|---|---|"]
    lines += [
        f"| {NAMES[row['dataset']]} | {row['devices_per_buffer']:g} | {row['bytes_down']:,} | {row['ratio_down']:.1f} |"
        for row in sorted(rows("downlink"), key=lambda row: (row["dataset"], row["devices_per_buffer"]))
    ]
    return lines


def parts() -> dict[str, str]:
    """Return the tables of the page."""
    return {"codecs": "\n".join(codec_table()), "downlink": "\n".join(downlink_table())}


def _quality(row: Row) -> float:
    """Return the quality in points, higher is better: per cent of accuracy, or negative error in cycles."""
    return 100 * row["accuracy"] if "accuracy" in row else -row["rmse"]


def picture() -> str:
    """Draw quality against compression."""
    found = points()
    values = [point for line in found.values() for point in line]
    low, high = min(-1.5, *(y for _, y, _ in values)), max(1.0, *(y for _, y, _ in values))
    plot = Plot(
        (720, 360),
        "Quality relative to float32, against the compression factor of uploads on the wire",
        logarithmic(1, max(x for x, _, _ in values)),
        linear(low, high),
        x_name="compression factor of uploads, on the wire",
        y_name="points relative to float32",
        right=150,
    )
    plot.level(0, "even")
    labels = []
    for number, (dataset, line) in enumerate(found.items()):
        best = [(x, y) for x, y, _ in line if not any(y < above and x <= right for right, above, _ in line)]
        plot.line(best, f"s{number}")
        for x, y, codec in line:
            radius = 6.5 if codec == DEFAULT else 3.5
            title = f"{dataset}, {codec}: factor {x:.1f}, {y:+.2f}"
            plot.point(x, y, f"s{number}", radius=radius, title=title)
            if codec == DEFAULT:
                labels.append(Label(y, dataset, f"default: factor {x:.0f}", f"s{number}"))
    plot.labels(labels)
    return plot.file(STYLE)


def main() -> None:
    """Write picture and page."""
    PICTURE.write_text(picture() + "\n", encoding="utf-8")
    put(PAGE, parts())


if __name__ == "__main__":
    main()
