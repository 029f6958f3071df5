"""Write the results of `make bench` into docs/performance.md and the README: python docs/performance.py."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from marks import put

from midge.sensor_fleet.report.quantities import plain
from midge.sensor_fleet.report.scales import logarithmic
from midge.sensor_fleet.report.svg import Drawing, Label, Plot

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE, README = ROOT / "docs" / "performance.md", ROOT / "README.md"
PICTURES = ROOT / "docs" / "pictures"
NAMES = ("ingest", "ingest_peers", "apply", "neighbour", "release", "codecs", "transfer", "recovery")
NIGHTLY = ("soak", "soak_year")
"""Results of `make nightly`, on whatever machine that was."""
COLOURS = ("#2a78b8", "#c4581c", "#3a8f4d", "#8550a8")
STYLE = """text{font:12px sans-serif;fill:#888}.strong{font-weight:bold}.hair,.base{stroke:#8884;fill:none}
.leader{stroke:#8886}.line{fill:none;stroke-width:2}.even{stroke:#888;stroke-dasharray:3 3}
.grey{fill:#888}""" + "".join(
    f".s{number}{{stroke:{colour};fill:{colour}}}path.s{number}{{fill:none;stroke-width:2}}text.s{number}{{stroke:none}}"
    for number, colour in enumerate(COLOURS)
)
CASES = {
    "release": "first release of a model",
    "reconnect": "all devices reconnect, new version",
    "drain": "aggregator returns, all outboxes full",
}
Row = dict[str, Any]
Results = dict[str, dict[str, Any]]
BYTE_RATE = 8e6
"""The default byte rate of a federation."""
MISSING = ["Not measured yet: run `make bench`.", ""]


def load() -> Results:
    """Read the stored results, by benchmark."""
    paths = {name: RESULTS / f"{name}.json" for name in (*NAMES, *NIGHTLY)}
    return {name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()}


def rows(results: Results, name: str) -> list[Row]:
    """Return the rows of one benchmark; empty if it has not run."""
    found: list[Row] = results[name]["found"]["rows"] if name in results else []
    return found


# ---------------------------------------------------------------------------- tables


def table(columns: Sequence[str], lines: Iterable[Sequence[object]]) -> list[str]:
    """Return a Markdown table."""
    cells = ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines]
    return ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|", *cells, ""]


def number(value: object) -> str:
    """Format with three significant digits."""
    if not isinstance(value, int | float):
        return "" if value is None else str(value)
    if abs(value) >= 1000:
        return f"{float(f'{value:.3g}'):,.0f}"
    return plain(float(f"{value:.3g}"))


def pick(found: Iterable[Row], columns: dict[str, str]) -> list[str]:
    """Return a table of the given fields, omitting those that no row has."""
    chosen = list(found)
    known = {field: words for field, words in columns.items() if any(field in row for row in chosen)}
    return table(list(known.values()), ([number(row.get(field)) for field in known] for row in chosen))


def machine(results: Results) -> list[str]:
    """Describe the machine and its limits."""
    results = {name: each for name, each in results.items() if name in NAMES}
    if not results:
        return MISSING
    some = next(iter(results.values()))["machine"]
    libraries = ", ".join(f"{name} {version}" for name, version in some["libraries"].items())
    limits = results.get("ingest", {}).get("found", {}).get("limits", {})
    lines = [
        f"- {some['processor']}, {some['cores']} cores, {some['memory_gb']} GB; {some['system']}",
        f"- Python {some['python']}, Mosquitto {some['mosquitto']}, {libraries}",
    ]
    if limits:
        loopback, copied = number(limits["loopback_mb_per_s"]), number(limits["memcpy_gb_per_s"])
        lines.append(f"- one plain loopback socket: {loopback} MB/s; a copy of 40 MB in memory: {copied} GB/s")
    return [*lines, *_loads(results), ""]


def _loads(results: Results) -> list[str]:
    loads = ", ".join(f"{name} {each['load_before']:.1f}" for name, each in results.items())
    minutes = sum(each["seconds"] for each in results.values()) / 60
    return [f"- total time {minutes:.0f} minutes; runnable processes before each: {loads}"]


def neighbour_table(found: list[Row]) -> list[str]:
    """Return the table of effects on other clients of the broker."""
    lines = (
        (
            CASES[row["case"]],
            number(row["devices"]),
            f"{row['model_mb']:g} MB",
            f"{row.get('byte_rate', BYTE_RATE) / 1e6:g} MB/s",
            f"{row['p50_before_ms']:.2f}, {row['p50_during_ms']:.2f}",
            f"{row['p99_before_ms']:.2f}, {row['p99_during_ms']:.2f}",
            f"{row['p99_during_ms'] / row['p99_before_ms']:.2f}",
            f"{row['p99_other_ms']:.2f}",
            number(row["drain_s"]),
            row["lost"],
        )
        for row in found
    )
    columns = ("event", "devices", "model", "byte rate", "p50, ms: before, during", "p99, ms: before, during", "factor")
    return table((*columns, "p99 on the idle broker", "seconds", "lost"), lines)


def transfer_table(found: list[Row]) -> list[str]:
    """Return the table of slow links."""
    return pick(
        found,
        {
            "direction": "direction",
            "model_mb": "MB",
            "breaks": "breaks",
            "seconds": "s",
            "copy_seconds": "s, plain copy",
            "resent_bytes": "bytes resent",
        },
    )


def peers_table(found: list[Row]) -> list[str]:
    """Return the comparison with other systems at equal bytes."""
    ours = {row["params"]: row["updates_per_s"] for row in found if "ratio" in row}
    lines = []
    for row in found:
        rate = row.get("updates_per_s")
        system = row.get("system", "midge")
        times = "" if system == "midge" or not rate else f"{ours[row['params']] / rate:.0f}"
        shown = "" if rate is None else number(rate)
        lines.append((number(row["params"]), system.capitalize(), row.get("mode", ""), shown, times))
    return table(("float32 parameters", "system", "mode", "updates per second", "factor of Midge"), lines)


def recovery_table(found: list[Row]) -> list[str]:
    """Return the table of recovery after a crash."""
    lines = []
    for row in found:
        size = number(row.get("records") or row.get("devices"))
        seconds = row.get("seconds", row.get("virtual_seconds_until_settled"))
        about = ", ".join(f"{name} {row[name]}" for name in ("accepted", "lost", "doubled") if name in row)
        if "mib_at" in row:
            about = ", ".join(f"{number(int(count))}: {mib:.0f} MiB" for count, mib in row["mib_at"].items())
        lines.append((row["measure"], size, number(seconds), about))
    return table(("measure", "records or devices", "s", ""), lines)


PROCESSES = {
    "broker": "Mosquitto, after its restart",
    "aggregator": "aggregator, after its upgrade",
    "gateway": "gateway: one device",
}


def about_run(result: dict[str, Any]) -> str:
    """Say where and beside what a nightly result was measured."""
    some, load = result["machine"], result.get("load_before")
    before = "" if load is None else f"; runnable processes before: {load:.1f}"
    return f"{some['processor']}, {some['cores']} cores{before}."


def with_interval(values: Sequence[float]) -> str:
    """Format a slope with its interval."""
    middle, low, high = (number(value) for value in values)
    return f"{middle} ({low} to {high})"


def soak_table(result: dict[str, Any]) -> list[str]:
    """Return the results of a soak."""
    found = result["found"]
    named = [row for row in found["rows"] if row["process"] in PROCESSES]
    others = [row for row in found["rows"] if row["process"] not in PROCESSES]
    count = round((found["devices"] - 1) / max(len(others), 1))
    lines = []
    for row in (*named, *others[:1]):
        memory, files = row["rss_mb"], row["descriptors"]
        name = PROCESSES.get(row["process"], f"{number(count)} devices in a process")
        ends = f"{number(memory['begin'])} → {number(memory['end'])}"
        growth = f"{100 * memory['growth']:.1f} %"
        opened = f"{files['begin']:.0f} → {files['end']:.0f}"
        slopes = with_interval(memory["per_hour"]), with_interval(memory["per_year"])
        lines.append((name, number(row["minutes"]), ends, growth, *slopes, opened))
    columns = ("process", "minutes", "memory, MB", "growth", "MB an hour (95 %)", "MB a year (95 %)", "open files")
    hours = number(found["minutes"] * found["speed_up"] / 60)
    about = f"{number(found['devices'])} devices for {number(found['minutes'])} minutes, {hours} hours of a fleet that"
    return [
        f"{about} trains each hour. {about_run(result)}",
        "",
        *table(columns, lines),
        *table(("", "measured"), soak_lines(found)),
    ]


def soak_lines(found: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the other figures of a soak, each with its promise if it has one."""
    store, late, back, month = found["store"], found["telemetry"], found["reconnect"], found["mb_a_month"]
    kept = {name: "kept" if so else "**broken**" for name, so in found["promises"].items()}
    returned = "not all" if back["all_s"] is None else f"{number(back['all_s'])} s"
    restarts = found["restarts"]
    answered = ["not in time" if restarts[name] is None else f"{number(restarts[name])} s" for name in RESTARTS]
    return [
        ("memory of aggregator, broker and gateway within 5 %", kept["memory"]),
        ("open files as at the beginning", kept["descriptors"]),
        (
            "store grows by what it is to keep",
            (
                f"{kept['disk']}: {number(store['mb'])} MB with {number(store['records'])} records of "
                f"{number(store['bytes_a_record'])} bytes; {number(store['bound_mb'])} MB with all 100,000"
            ),
        ),
        (
            "all devices back within 120 s of the broker's return",
            f"{kept['reconnect']}: {back['devices']:,} of {found['devices']:,}; all {returned}",
        ),
        (
            "p99 of other clients at most doubled: alone → beside Midge (the idle broker)",
            (
                f"{kept['telemetry']}: {late['p99_alone_ms']} → {late['p99_beside_ms']} ms "
                f"({late['p99_other_alone_ms']} → {late['p99_other_beside_ms']} ms)"
            ),
        ),
        ("the same while all devices reconnect", f"{late['p99_reconnect_ms']} ms"),
        ("all devices answered again after a kill, after an upgrade of the aggregator", ", ".join(answered)),
        (
            "updates accepted, refused; a second",
            f"{found['updates']:,}, {found['refused']:,}; {number(found['updates_per_s'])}",
        ),
        (
            "MB a month of a gateway that trains each hour: payload; with TLS and TCP; and keep-alive; all",
            (
                f"{number(month['payload'])}; {number(month['work'])}; {number(month['keepalive'])}; "
                f"**{number(month['all'])}**"
            ),
        ),
    ]


RESTARTS = ("after_kill_s", "after_upgrade_s")
MEASURES = {
    "disk": "store on disk, MB",
    "records": "records of its journal",
    "frames": "frames in the store",
    "retained": "messages that the broker retains",
    "blocks": "blocks that Python allocated",
    "rss": "memory of the process, MB",
}


def year_table(result: dict[str, Any]) -> list[str]:
    """Return the results of a virtual year."""
    found = result["found"]
    lines = [
        (
            MEASURES[row["measure"]],
            *(number(row[name]) for name in ("first", "at_a_third", "at_two_thirds", "last")),
            f"{100 * row['growth']:.1f} %",
            with_interval(row["a_month"]),
            "yes" if row["bounded"] else "**no**",
        )
        for row in found["rows"]
    ]
    columns = ("measure", "first day", "a third", "two thirds", "last day", "growth in the last fifth")
    about = f"{number(found['days'])} days of {number(found['devices'])} devices, {number(found['names'])} names in all"
    done = f"{found['updates']:,} updates, {found['versions']:,} versions, {found['lives']:,} starts of the aggregator"
    return [
        f"{about}: {done}. {about_run(result)}",
        "",
        *table((*columns, "a month (95 %)", "bounded"), lines),
    ]


def blocks(results: Results) -> dict[str, list[str]]:
    """Return the content between the page's markers, by name."""
    ingest = {
        "params": "parameters",
        "codec": "codec",
        "devices": "devices",
        "rate": "offered per second",
        "updates_per_s": "updates per second",
        "bare_per_s": "bare subscriber",
        "paho_per_s": "bare subscriber on paho",
        "ratio": "ratio",
        "receipt_p50_ms": "receipt p50, ms",
        "receipt_p99_ms": "p99, ms",
        "cpu_ms_per_update": "CPU ms per update",
        "peak_mb": "peak, MB",
    }
    release = {
        "params": "parameters",
        "devices": "devices",
        "byte_rate": "byte rate",
        "release_ms": "announced, ms",
        "p50_ms": "half of the devices, ms",
        "last_ms": "all devices, ms",
        "bytes": "bytes per device",
        "server_cpu_ms": "CPU ms: aggregator",
        "broker_cpu_ms": "broker",
        "fleet_cpu_ms": "all devices",
    }
    apply = {
        "params": "parameters",
        "codec": "codec",
        "bytes": "bytes per parameter",
        "decode_ns": "decode, ns per parameter",
        "combine_ns": "combine and step",
        "apply_ns": "both",
        "machine_ns": "copy plus one pass",
        "within": "factor",
    }
    receipt = {"batch": "updates in a batch", "cpu_us": "CPU µs per update", "wall_us": "wall-clock µs"}
    codecs = {
        "codec": "codec",
        "encode_ns": "encode, ns per parameter",
        "decode_ns": "decode",
        "ratio": "compression factor",
    }
    found = {
        "machine": machine(results),
        "neighbour": [
            "![99th percentile of other clients' delays, before and during](pictures/performance-neighbour.svg)",
            "",
            *neighbour_table(rows(results, "neighbour")),
        ],
        "ingest": [
            "![Updates per second by size and codec](pictures/performance-ingest.svg)",
            "",
            *pick(rows(results, "ingest"), ingest),
        ],
        "ingest_peers": peers_table(rows(results, "ingest_peers")),
        "release": pick(rows(results, "release"), release),
        "apply": [
            *pick((row for row in rows(results, "apply") if "params" in row), apply),
            "Fixed cost of an update, independent of its size, by number of updates in a batch:",
            "",
            *pick((row for row in rows(results, "apply") if row.get("row") == "receipt"), receipt),
        ],
        "codecs": pick(rows(results, "codecs"), codecs),
        "transfer": transfer_table(rows(results, "transfer")),
        "recovery": recovery_table(rows(results, "recovery")),
        "soak": soak_table(results["soak"]) if "soak" in results else [],
        "soak_year": year_table(results["soak_year"]) if "soak_year" in results else [],
    }
    missing = {
        **{key: ["Not measured yet: run `make nightly`.", ""] for key in NIGHTLY},
        "ingest_peers": ["Not measured yet: give the suite `--peers` and their environments.", ""],
    }
    return {
        name: lines if name == "machine" or name in results else missing.get(name, MISSING)
        for name, lines in found.items()
    }


def summary(results: Results) -> list[str]:
    """Return the README's table."""
    lines: list[tuple[str, str]] = []
    near = rows(results, "neighbour")
    if near:
        worst = max(near, key=lambda row: float(row["p99_during_ms"] / row["p99_before_ms"]))
        lines.append(
            (
                "p99 delay of other clients' messages, worst case, before → during (idle broker on the same machine)",
                f"{worst['p99_before_ms']:.2f} → {worst['p99_during_ms']:.2f} ms ({worst['p99_other_ms']:.2f} ms)",
            )
        )
        drains = [row for row in near if row["case"] == "drain"]
        lines += [
            (f"{number(row['devices'])} outboxes of 50 KB drained", f"{number(row['drain_s'])} s, {row['lost']} lost")
            for row in drains
        ]
    taken = [row for row in rows(results, "ingest") if "ratio" in row]
    for params in sorted({row["params"] for row in taken}):
        best = max((row for row in taken if row["params"] == params), key=lambda row: float(row["updates_per_s"]))
        words = f"updates per second of {number(params)} parameters ({best['codec']}), journaled and receipted"
        lines.append(
            (words, f"{number(best['updates_per_s'])}; a subscriber that only counts: {number(best['bare_per_s'])}")
        )
    paced = [row for row in rows(results, "ingest") if row.get("rate")]
    lines += [
        (f"p99 time to a receipt at {number(row['rate'])} updates per second", f"{number(row['receipt_p99_ms'])} ms")
        for row in paced[:1]
    ]
    lines += [
        (
            f"from the last update of a step until all {number(row['devices'])} devices hold the new version",
            f"{number(row['last_ms'] / 1000)} s",
        )
        for row in rows(results, "release")
        if row["byte_rate"] and row["devices"] in {100, 1000}
    ]
    return table(("", "measured"), lines) if lines else MISSING


# ------------------------------------------------------------------------- pictures


def felt(found: list[Row]) -> str:
    """Draw the p99 of other clients' messages, before and during each case."""
    width, left, top, line = 720, 330, 24, 26
    values = [row[name] for row in found for name in ("p99_before_ms", "p99_during_ms")]
    scale = logarithmic(min(0.1, *values), max(10.0, *values)).over(left, width - 24)
    drawing = Drawing(
        width, top + line * len(found) + 40, "99th percentile of other clients' delays, before and during"
    )
    bottom = top + line * len(found)
    for tick in scale.ticks:
        drawing.rule(scale(tick), top - 8, scale(tick), bottom, "hair")
        drawing.text(scale(tick), bottom + 16, scale.text(tick), "tick", "middle")
    for place, row in enumerate(found):
        y = top + line * (place + 0.5)
        before, during = row["p99_before_ms"], row["p99_during_ms"]
        drawing.text(left - 12, y + 4, f"{CASES[row['case']]}, {number(row['devices'])}", "tick", "end")
        drawing.rule(scale(before), y, scale(during), y, "line s0")
        drawing.dot(scale(before), y, 4, "grey", f"before: {before} ms")
        drawing.dot(scale(during), y, 5, "s0", f"during: {during} ms")
    drawing.text(width - 24, bottom + 34, "p99 of telemetry, ms: grey before, blue during", "axis", "end")
    return drawing.file(STYLE) + "\n"


def taken_in(found: list[Row]) -> str:
    """Draw updates per second by number of parameters, and those of a bare subscriber."""
    best: dict[tuple[str, int], Row] = {}
    for row in found:
        if "ratio" in row:
            key = row["codec"], row["params"]
            if key not in best or row["updates_per_s"] > best[key]["updates_per_s"]:
                best[key] = row
    sizes = [params for _, params in best]
    rates = [row[name] for row in best.values() for name in ("updates_per_s", "bare_per_s")]
    plot = Plot(
        (720, 340),
        "Updates per second by number of parameters, for each codec, compared with a bare subscriber",
        logarithmic(min(sizes), max(sizes), number),
        logarithmic(min(rates), max(rates), number),
        x_name="parameters",
        y_name="updates per second; dashed: a bare subscriber of the same bytes",
        right=150,
    )
    labels = []
    for place, codec in enumerate(dict.fromkeys(codec for codec, _ in best)):
        line = sorted((params, row) for (of, params), row in best.items() if of == codec)
        plot.line([(params, row["bare_per_s"]) for params, row in line], "even")
        plot.line([(params, row["updates_per_s"]) for params, row in line], f"s{place}")
        for params, row in line:
            plot.point(params, row["updates_per_s"], f"s{place}", title=f"{codec}, {number(params)} parameters")
        last = line[-1][1]["updates_per_s"]
        labels.append(Label(last, codec, f"{number(last)} per second", f"s{place}"))
    plot.labels(labels)
    return plot.file(STYLE) + "\n"


def pictures(results: Results) -> dict[str, str]:
    """Return the pictures by file name."""
    found = {}
    if near := rows(results, "neighbour"):
        found["performance-neighbour.svg"] = felt(near)
    if any("ratio" in row for row in rows(results, "ingest")):
        found["performance-ingest.svg"] = taken_in(rows(results, "ingest"))
    return found


# -------------------------------------------------------------------------- writing


def parts() -> dict[str, str]:
    """Return the blocks of the page."""
    return {name: "\n".join(lines) for name, lines in blocks(load()).items()}


def main() -> None:
    """Write page, README and pictures."""
    results = load()
    put(PAGE, parts())
    put(README, {"performance": "\n".join(summary(results))})
    for name, drawn in pictures(results).items():
        (PICTURES / name).write_text(drawn)


if __name__ == "__main__":
    main()
