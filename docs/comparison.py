"""Write the measured tables of docs/comparison.md from stored results: python docs/comparison.py."""

import json
from pathlib import Path
from textwrap import wrap
from typing import Any

from marks import put

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "comparison.md"
RESULTS = ROOT / "benchmarks" / "results" / "peers_compared.json"
NAMES = {"midge": "Midge", "flower": "Flower 1.42", "appfl": "APPFL 1.12", "nvflare": "NVFlare 2.9"}
MODES = {
    "balanced, delta": "default strategy",
    "fedasync, delta": "`fedasync`, deltas",
    "uq:4|rice": "as it ships, codec `uq:4` and Rice",
    "float32": "`float32`",
    "--mode thin": "FedAvg, thinnest client",
    "--alpha 6 --lean 1": "FedAsync, `--alpha 6 --lean 1`",
    "server": "state in memory, the default",
    "server-db": "with `--database`",
}


def table(head: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def when(part: dict[str, Any]) -> str:
    """When a part was measured, and how busy the machine was."""
    return f"Run of {part['at']}; {part['busy_cores']:.1f} of 2 cores were busy with other work when it began."


def named(row: dict[str, Any]) -> str:
    """A system and how it was run."""
    mode = str(row.get("mode") or row.get("case") or "")
    return f"{NAMES[row['system']]}, {MODES.get(mode, mode)}" if mode else NAMES[row["system"]]


def rules(part: dict[str, Any]) -> str:
    """Virtual seconds by rule and local epochs."""
    epochs = sorted({row["epochs"] for row in part["rows"]})
    known = list(dict.fromkeys(row["rule"] for row in part["rows"]))
    found = {(row["rule"], row["epochs"]): row["seconds"] for row in part["rows"]}

    def cells(rule: str) -> list[str]:
        seconds = [found[rule, each] for each in epochs]
        best = min(each for each in seconds if each is not None)
        return ["–" if each is None else f"**{each:.1f}**" if each == best else f"{each:.1f}" for each in seconds]

    head = ["seconds to 90 %, by local epochs", *map(str, epochs)]
    return table(head, [[rule, *cells(rule)] for rule in known])


def real(part: dict[str, Any]) -> str:
    """Wall-clock seconds."""
    rows = []
    for row in part["rows"]:
        score = row.get("best") or row.get("best_acc") or row.get("last_acc") or 0.0
        reached = "not reached" if row.get("seconds") is None else f"{row['seconds']:.1f}"
        rows.append([named(row), str(row["epochs"]), reached, str(row.get("updates", "–")), f"{100 * score:.1f} %"])
    return f"{table(['system', 'local epochs', 'seconds', 'updates', 'best accuracy'], rows)}\n\n{when(part)}"


def counted(part: dict[str, Any]) -> str:
    """Bytes of an update."""
    rows = [
        [named(row), f"{row['up_bytes_per_update']:,}", f"{row['down_bytes_per_update']:,}", str(row["updates"])]
        for row in part["rows"]
        if "error" not in row
    ]
    return f"{table(['system', 'bytes up', 'bytes down', 'updates'], rows)}\n\n{when(part)}"


def killed(part: dict[str, Any]) -> str:
    """What happened after the server was killed."""
    rows = []
    for row in part["rows"]:
        if row["system"] == "midge":
            after = (
                f"{row['after']} updates after it, {row['before']} before; {row['accepted_twice']} accepted twice; "
                f"of {row['trained']} trained, {row['settled']} had their receipt when the devices were stopped"
            )
            alive = f"{row['devices_alive']} of {row['devices']}"
        elif "rounds_after" in row:
            after = f"{row['rounds_after']} rounds after it, {row['rounds_before']} before; run: {row['run_status']}"
            alive = f"{row['nodes_alive']} of 4"
        elif "updates_after" in row:
            after = f"{row['updates_after']} updates after it, {row['updates_before']} before"
            alive = f"{row['clients_alive']} of 4"
        else:
            continue
        rows.append([named(row), after, alive])
    return f"{table(['system', 'afterwards', 'devices alive'], rows)}\n\n{when(part)}"


def parts() -> dict[str, str]:
    """The tables, by their marks."""
    found = json.loads(RESULTS.read_text(encoding="utf-8"))
    shown = {"rules": rules, "real": real, "bytes": counted, "killed": killed}
    return {name: show(found[name]) for name, show in shown.items() if name in found}


def readme() -> dict[str, str]:
    """What the README says of it."""
    rows = json.loads(RESULTS.read_text(encoding="utf-8"))["rules"]["rows"]

    def best(rule: str) -> str:
        return f"{min(row['seconds'] for row in rows if row['rule'] == rule and row['seconds'] is not None):.1f} s"

    text = (
        f"Twenty clients to 90 % of digits, rules alone, each with its best number of local epochs: Midge's default "
        f"{best('Midge, balanced')}, rounds of all clients {best('FedAvg, all clients')}, each delta added with a "
        f"fixed factor {best('deltas, mix 0.1')}. So the default is not the fastest rule on an easy task."
    )
    return {"compared": "\n".join(wrap(text, 120))}


def main() -> None:
    """Write the tables into the page, and a sentence into the README."""
    put(PAGE, parts())
    put(ROOT / "README.md", readme())


if __name__ == "__main__":
    main()
