"""Writes the tables of docs/events.md from the registry in midge/events.py: python docs/events.py."""

from pathlib import Path

from marks import put

from midge.events import EVENTS, FAILED, FIELDS, LOG, EventKind

PAGE = Path(__file__).with_name("events.md")
TITLES = {
    "aggregator": "Of an aggregator",
    "device": "Of a device",
    "authority": "Of `midge broker renewals`",
    "helper": "Of `midge helper run`",
    "gateway": "Of `midge gateway run`, beside those of its device (`side` is `above`) and aggregator (`below`)",
}


def row(kind: EventKind) -> str:
    """The line of an event."""
    fields = ", ".join(f"`{name}`" for name in kind.fields)
    return f"| `{kind.name}` | {kind.level} | {fields} | {kind.meaning} |"


def parts() -> dict[str, str]:
    """The tables, as they stand on the page."""
    lines: list[str] = []
    for service, kinds in EVENTS.items():
        lines += ["", f"## {TITLES[service]}", "", "| event | level | fields | |", "|---|---|---|---|"]
        lines += [row(kind) for kind in kinds.values()]
    lines += ["", "## Of every command", "", "| event | level | fields | |", "|---|---|---|---|", row(LOG), row(FAILED)]
    lines += ["", "## Fields", "", "| field | |", "|---|---|"]
    lines += [f"| `{name}` | {meaning} |" for name, meaning in sorted(FIELDS.items())]
    return {"events": "\n".join(lines)}


def main() -> None:
    """Put the tables into the page."""
    put(PAGE, parts())


if __name__ == "__main__":
    main()
