"""Write the results of `make brokers` and the limits of hosted brokers into docs/brokers.md: python docs/brokers.py."""

import json
from pathlib import Path
from typing import Any

from marks import put

from midge.broker.mqtt.services import SERVICES

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "brokers.json"
PAGE = ROOT / "docs" / "brokers.md"
MISSING = ["Not measured yet: run `make nightly`."]
NAMES = {
    "mosquitto": "Mosquitto",
    "embedded": "Midge's embedded broker",
    "rabbitmq": "RabbitMQ, `rabbitmq_mqtt`",
    "ejabberd": "ejabberd, `mod_mqtt`",
    "aedes": "aedes",
    "rumqttd": "rumqttd, its listener for 3.1.1",
    "rumqttd-5": "rumqttd, its listener for 5",
}
FIGURES = {
    "packet": "bytes of a packet, in CONNACK",
    "message": "bytes of a message that pass",
    "retained": "bytes of a retained message",
    "receive_maximum": "messages in flight, in CONNACK",
    "in_flight_bytes": "bytes in flight",
    "publishes": "messages a second of a client",
    "bytes_a_second": "bytes a second of a client",
    "subscriptions": "subscriptions of a client",
    "filters": "filters in a SUBSCRIBE",
    "levels": "levels of a topic",
    "client_id": "bytes of a client id",
}
Row = dict[str, Any]


def rows() -> list[Row]:
    """Return the stored rows; empty if there are none."""
    found: list[Row] = json.loads(RESULTS.read_text())["found"]["rows"] if RESULTS.exists() else []
    return found


def about() -> list[str]:
    """Return on which machine, and in which form, the rows were measured."""
    if not RESULTS.exists():
        return MISSING
    result = json.loads(RESULTS.read_text())
    some, form = result["machine"], "quick" if result["found"]["quick"] else "whole"
    load = f"{result['load_before']:.0f} runnable processes before"
    return [f"Measured by the {form} form on {some['processor']}, {some['cores']} cores, {load}."]


def table(columns: list[str], lines: list[list[str]]) -> list[str]:
    """Return a Markdown table."""
    return [f"| {' | '.join(each)} |" for each in (columns, ["---"] * len(columns), *lines)]


def brokers(found: list[Row]) -> list[str]:
    """Return the table of the brokers that were run, and in what they differ."""
    own = [row for row in found if "service" not in row]
    if not own:
        return MISSING
    lines, differing = [], []
    for row in own:
        name = NAMES[row["broker"]]
        if row["version"] is None:
            lines.append([name, "not run", row["missing"], "", "", "", ""])
            continue
        suite, check = row["contract"], row["check"]
        version = row["version"].rpartition(" ")[2] if any(map(str.isdigit, row["version"])) else ""
        kills = f"{row['kills']} kills, {row['kills_updates']} updates: {row['kills_lost']} lost"
        demo = f"{row['demo_seconds']:.1f} s" if row["demo_good"] else "**missed**"
        clean = f"{row['clean_left']} of {row['clean_seen']}{', devices named' if row['clean_named'] else ''}"
        lines.append([name, version, check["protocol"], f"{suite['passed']}, {suite['failed']}", demo, kills, clean])
        differing += [f"- {name} {reason}." for reason in suite["differs"]]
    columns = ["broker", "version", "protocol", "contract: passed, failed", "demonstration", "processes killed"]
    return [*table([*columns, "topics left by `clean`"], lines), "", "What failed, in words:", "", *differing]


def services(found: list[Row]) -> list[str]:
    """Return the table of federations under the limits of hosted brokers."""
    lines = [
        [
            f"`{row['service']}`",
            f"{row['devices']}",
            f"{row['model_mb']:g} MB",
            f"{row['seconds']:.0f} s",
            f"{row['receipts']}, {row['fetched']}",
            ", ".join(row["violations"]) or "none",
        ]
        for row in found
        if "service" in row
    ]
    columns = ["service", "devices", "model", "time", "receipts, versions fetched", "limits exceeded"]
    return table(columns, lines) if lines else MISSING


def figures() -> list[str]:
    """Return the table of the limits in the code."""
    lines, sources = [], {}
    for name, words in FIGURES.items():
        line = [words]
        for service in SERVICES.values():
            figure = service.figures.get(name)
            if figure is None:
                line.append("")
                continue
            number = sources.setdefault(figure.source, (len(sources) + 1, figure.read))[0]
            line.append(f"{figure.value:,}{'' if figure.verified else ' ?'} [{number}]")
        lines.append(line)
    listed = [f"{number}. <{source}>, a stored copy read on {read}" for source, (number, read) in sources.items()]
    return [*table(["limit", *(f"`{name}`" for name in SERVICES)], lines), "", *listed]


def parts() -> dict[str, str]:
    """Return the blocks of the page."""
    found = rows()
    blocks = {"about": about(), "brokers": brokers(found), "services": services(found), "figures": figures()}
    return {name: "\n".join(lines) for name, lines in blocks.items()}


if __name__ == "__main__":
    put(PAGE, parts())
