"""Write the results of benchmarks.learning into docs/strategies.md and its pictures: python docs/strategies.py."""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Any

from marks import put

from midge.sensor_fleet.report.quantities import plain
from midge.sensor_fleet.report.scales import linear
from midge.sensor_fleet.report.svg import Label, Plot

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "learning.json"
PAGE = ROOT / "docs" / "strategies.md"
PICTURES = ROOT / "docs" / "pictures"
BEST, DEFAULT = "best synchronous", "balanced"
SYNCHRONOUS = {BEST: "synchronous, tuned", "fedavg, waits for all": "synchronous, tuned, waits for all"}
COLOURS = ("#2a78b8", "#c4581c", "#3a8f4d", "#8550a8")
STYLE = """text{font:12px sans-serif;fill:#888}.strong{font-weight:bold}.hair,.base{stroke:#8884;fill:none}
.leader{stroke:#8886}.line{fill:none;stroke-width:2}.even{stroke:#888;stroke-dasharray:3 3}""" + "".join(
    f".s{number}{{stroke:{colour};fill:{colour}}}path.s{number}{{fill:none;stroke-width:2}}text.s{number}{{stroke:none}}"
    for number, colour in enumerate(COLOURS)
)
WORLDS = {
    "lockstep": "lock-step: identical devices",
    "jittered": "identical, training times ± 30 %",
    "even": "σ = 0.6",
    "uneven": "σ = 1.2",
    "wild": "σ = 1.8",
    "correlated": "σ = 1.2, slow devices hold different data",
    "correlated L=0.05": "the same, with 0.05 s overhead per training",
    "correlated L=0.25": "the same, with 0.25 s overhead per training",
    "gaps": "the same, with gaps of 5 s",
    "half-normal": "|N(0, 1)|, as in FedBuff's experiments",
}
Entry = dict[str, Any]


def of(entries: Iterable[Entry], **wanted: object) -> list[Entry]:
    """Return the entries with these values."""
    return [entry for entry in entries if all(entry[name] == value for name, value in wanted.items())]


def shown(strategy: str, local_steps: int | None) -> str:
    """Name a method; a synchronous rule with the local steps chosen by tuning."""
    if strategy not in SYNCHRONOUS:
        return strategy
    steps = local_steps or 20  # of the search that did not vary them
    return f"{SYNCHRONOUS[strategy]}: {steps} local step{'' if steps == 1 else 's'}"


# --------------------------------------------------------------------------- tables


def seconds(entry: Entry) -> str:
    """Format the seconds to the target over the seeds."""
    found, seeds = entry["virtual_seconds_to_target"], entry["seeds"]
    if found is None:
        return "never"
    middle, low, high = found
    if middle is None:
        return f"{entry['reached']} of {seeds} seeds, from {plain(low)}"
    return f"{plain(middle)} ({plain(low)} to {plain(high) if high is not None else 'never'})"


def share(found: list[float] | None, metric: str) -> str:
    """Format the median of a quality over the seeds."""
    if found is None or found[0] is None:
        return ""
    return f"{100 * found[0]:.1f} %" if metric == "accuracy" else f"{found[0]:.1f}"


def digits_table(summary: list[Entry], world: str, devices: int) -> list[str]:
    """Return the table of one world of the digits, fastest first."""
    some = of(summary, dataset="digits", world=world, devices=devices)
    names = list(dict.fromkeys(entry["strategy"] for entry in some))
    rows = []
    for name in names:
        low, high = (of(some, strategy=name, target=target)[0] for target in (0.93, 0.95))
        found = low["virtual_seconds_to_target"]
        order = math.inf if found is None or found[0] is None else found[0]
        cells = [
            f"**{name}**, as it ships" if name == DEFAULT else shown(name, low.get("local_steps")),
            seconds(low),
            seconds(high),
            *(share(low[each], "accuracy") for each in ("final", "worst_class", "slow_class")),
        ]
        rows.append((order, "| " + " | ".join(cells) + " |"))
    head = "| strategy | seconds to 93 % | to 95 % | at the end | worst class | slow half |"
    return [head, "|---|---|---|---|---|---|", *(row for _, row in sorted(rows, key=lambda row: row[0])), ""]


def sets_table(summary: list[Entry]) -> list[str]:
    """Return the table of the other data sets."""
    columns = ("data, world (devices; seeds)", "strategy", "seconds to target", "at the end", "pooled", "alone")
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for entry in summary:
        if entry["dataset"] == "digits":
            continue
        where = f"{entry['dataset']}, {entry['world']} ({entry['devices']}; {entry['seeds']})"
        metric, name = entry["metric"], shown(entry["strategy"], entry.get("local_steps"))
        name = f"**{name}**" if name == DEFAULT else name
        cells = [
            where,
            name,
            seconds(entry),
            *(share(entry[each], metric) for each in ("final", "central", "local_only")),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, ""]


def default_table(summary: list[Entry]) -> list[str]:
    """Return the table of the default by fleet size and world."""
    lines = ["| devices | " + " | ".join(WORLDS[world] for world in _SIZED) + " |", "|---|" + "---|" * len(_SIZED)]
    some = of(summary, dataset="digits", strategy=DEFAULT, target=0.93)
    for devices in sorted({entry["devices"] for entry in some}):
        cells = []
        for world in _SIZED:
            found = of(some, world=world, devices=devices)
            cells.append(f"{seconds(found[0])}; {share(found[0]['final'], 'accuracy')}" if found else "")
        lines.append(f"| {devices} | " + " | ".join(cells) + " |")
    return [*lines, ""]


_SIZED = ("lockstep", "jittered", "wild", "correlated")


POISONED = RESULTS.with_name("poisoned.json")


def poisoned_table() -> list[str]:
    """Return the table of the default under each kind of attack, by size of fleet."""
    found = of(json.loads(POISONED.read_text())["summary"], rule=DEFAULT)
    sizes = sorted({entry["devices"] for entry in found})
    lines = [
        "| attack by one in ten | " + " | ".join(f"{size} devices" for size in sizes) + " |",
        "|---" * (1 + len(sizes)) + "|",
    ]
    for kind in dict.fromkeys(entry["kind"] for entry in found):
        cells = [_final(of(found, kind=kind, devices=size)) for size in sizes]
        lines.append(f"| {KIND_WORDS.get(kind, kind)} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def rules_table() -> list[str]:
    """Return the table of rules under the attacks that break at least one of them; twenty devices."""
    found = of(json.loads(POISONED.read_text())["summary"], devices=20)
    rules = list(dict.fromkeys(entry["rule"] for entry in found))
    lines = ["| attack by one in ten | " + " | ".join(rules) + " |", "|---" * (1 + len(rules)) + "|"]
    for kind in dict.fromkeys(entry["kind"] for entry in found if entry["rule"] != DEFAULT):
        cells = [_final(of(found, kind=kind, rule=rule)) for rule in rules]
        lines.append(f"| {KIND_WORDS.get(kind, kind)} | " + " | ".join(cells) + " |")
    return [*lines, ""]


KIND_WORDS = {
    "alone": "(honest devices only)",
    "honest": "(all devices honest)",
    "-10 times": "−10 times what it learned",
    "huge turned": "huge, negated",
    "scaled turned": "scaled, negated",
}


def _final(entries: list[Entry]) -> str:
    """Format median, minimum and maximum accuracy over seeds."""
    if not entries:
        return ""
    middle, low, high = entries[0]["final"]
    return f"{100 * middle:.1f} % ({100 * low:.1f} to {100 * high:.1f})"


HONEST = RESULTS.with_name("honest.json")


def honest_table() -> list[str]:
    """Return the table of the cost of robustness for honest fleets, with bounds."""
    lines = ["| fleet | time to 93 % | end | worst class | slow half |", "|---|---|---|---|---|"]
    columns = ("final", "worst_class", "slow_half")
    for entry in json.loads(HONEST.read_text())["summary"]:
        points = [f"{mean:+.2f} (≥ {bound:+.2f})" for mean, bound in (entry[name] for name in columns)]
        mean, bound = entry["time"]
        time = f"{100 * mean:+.1f} % (≤ {100 * bound:+.1f} %)"
        row = f"| {entry['devices']} devices, {WORLDS[entry['world']]} | {time} | {' | '.join(points)} |"
        lines.append(row.replace("-", "−"))
    return [*lines, ""]


def presets_table() -> list[str]:
    """Return the table of presets on small problems: fleets that reach the target, time relative to the default."""
    rows = json.loads(RESULTS.with_name("presets.json").read_text())["rows"]
    lines = [
        "| preset | reached the target | time relative to the default, median | maximum | overshoots |",
        "|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(row["preset"] for row in rows):
        mine = of(rows, preset=name)
        times = sorted(row["multiple"] for row in mine if row["multiple"] is not None)
        reached = sum(row["seconds"] is not None for row in mine)
        wild = sum(row["wild"] for row in mine) or "–"
        lines.append(f"| {name} | {reached} of {len(mine)} | {median(times):.2g} | {times[-1]:.3g} | {wild} |")
    return [*lines, ""]


PUBLISHED = (("fedasync delta", "FedAsync", "up to 2.5"),)
"""Speed-ups published by FedBuff's authors (arXiv:2106.06639, abstract of version 1)."""


def published_table(parts: dict[str, Any]) -> list[str]:
    """Return FedBuff relative to others, published and here: ratios of median seconds to the target."""
    seconds = {
        part["strategy"]: [each["reached"]["0.93"] or math.inf for each in part["seeds"]]
        for key, part in parts.items()
        if key != "references" and part["world"] == "half-normal"
    }
    if not seconds:
        return []
    lines = [
        "| FedBuff relative to | published speed-up | here | median seconds: FedBuff, the other |",
        "|---|---|---|---|",
    ]
    ours = median(seconds["fedbuff by count"])
    for name, words, published in PUBLISHED:
        theirs = median(seconds[name])
        ratio = f"{theirs / ours:.1f}" if math.isfinite(theirs) else "never reached"
        lines.append(f"| {words} | {published} | {ratio} | {ours:.1f}, {theirs:.1f} |")
    return [*lines, ""]


SYSTEMS = {"midge": "Midge", "flower": "Flower", "appfl": "APPFL"}


def peers_table() -> list[str]:
    """Return the comparison with other systems, in wall-clock seconds."""
    path = RESULTS.with_name("peers.json")
    if not path.exists():
        return []
    found = json.loads(path.read_text(encoding="utf-8"))
    lines = ["| system | seconds to 90 % | updates | best accuracy |", "|---|---|---|---|"]
    for row in found["rows"]:
        took = f"not within {found['limit']}" if row["seconds"] is None else plain(row["seconds"])
        held = f" (held from {plain(row['seconds_held'])})" if row.get("seconds_held") else ""
        best = next(row[name] for name in ("best", "best_acc", "last_acc") if name in row)
        words = f"{SYSTEMS[row['system']]}, `{row['mode']}`"
        lines.append(f"| {words} | {took}{held} | {row['updates']} | {100 * best:.1f} % |")
    return [*lines, ""]


def settings_table(parts: dict[str, Any]) -> list[str]:
    """Return the table of tuned settings."""
    lines = [
        (
            "| data, world, devices | method | local rate × | server rate "
            "| m/n | deadline | local steps | momentum | average |"
        ),
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for part in parts.values():
        setting = part.get("setting") or {}
        if not setting.get("tried"):
            continue
        where = f"{part['dataset']}, {part['world']}, {part['devices']}"
        rate = "its own" if setting["rate"] == 0 else setting["rate"]
        rest = " | ".join(str(setting.get(name) or "") for name in _RULE)
        name = SYNCHRONOUS.get(part["strategy"], part["strategy"])
        lines.append(f"| {where} | {name} | {setting['local']} | {rate} | {rest} |")
    return [*lines, ""]


_RULE = ("share", "deadline", "local_steps", "momentum", "average")


def blocks(results: dict[str, Any]) -> dict[str, list[str]]:
    """Return the content between the page's markers, by name."""
    summary, parts = results["summary"], results["parts"]
    digits = of(summary, dataset="digits", target=0.93, strategy=BEST)
    found: dict[str, list[str]] = {"digits": []}
    for world, words in WORLDS.items():
        for entry in of(digits, world=world):
            found["digits"] += [
                f"### {words[0].upper() if words[0].isascii() else words[0]}{words[1:]}; {entry['devices']} devices",
                "",
            ]
            found["digits"] += digits_table(summary, world, entry["devices"])
    found["sets"] = sets_table(summary)
    found["default"] = default_table(summary)
    found["poisoned"] = poisoned_table()
    found["rules"] = rules_table()
    found["honest"] = honest_table()
    found["presets"] = presets_table()
    found["peers"] = peers_table()
    found["published"] = published_table(parts)
    found["settings"] = settings_table({key: part for key, part in parts.items() if key != "references"})
    return found


# ------------------------------------------------------------------------- pictures


def curves(parts: dict[str, Any], world: str, devices: int) -> str:
    """Draw median accuracy over virtual time."""
    names = (DEFAULT, BEST, "fedbuff by weight", "fedavg, waits for all")
    some = {
        part["strategy"]: part["curve"]
        for key, part in parts.items()
        if key != "references" and (part["dataset"], part["world"], part["devices"]) == ("digits", world, devices)
    }
    end = some[DEFAULT]["times"][-1]
    plot = Plot(
        (720, 320),
        f"Median accuracy over virtual seconds: digits, {devices} devices, {WORLDS[world]}",
        linear(0, end, plain, tight=True),
        linear(0.5, 1.0, lambda value: f"{100 * value:.0f} %"),
        x_name="virtual seconds",
        y_name="accuracy, median over seeds",
        right=270,
    )
    plot.level(0.95, "even")
    labels = []
    for number, name in enumerate(name for name in names if name in some):
        points = [point for point in zip(some[name]["times"], some[name]["values"], strict=True) if point[0] <= end]
        plot.line([(x, max(y, 0.5)) for x, y in points], f"s{number}")
        labels.append(Label(points[-1][1], SYNCHRONOUS.get(name, name), f"{100 * points[-1][1]:.1f} %", f"s{number}"))
    plot.labels(labels)
    return plot.file(STYLE) + "\n"


def load() -> dict[str, Any]:
    """Read the results."""
    results: dict[str, Any] = json.loads(RESULTS.read_text())
    return results


def parts() -> dict[str, str]:
    """Return the blocks of the page."""
    return {name: "\n".join(lines) for name, lines in blocks(load()).items()}


def main() -> None:
    """Write page and pictures."""
    results = load()
    put(PAGE, parts())
    (PICTURES / "strategies-correlated.svg").write_text(curves(results["parts"], "correlated", 50))
    (PICTURES / "strategies-lockstep.svg").write_text(curves(results["parts"], "lockstep", 20))


if __name__ == "__main__":
    main()
